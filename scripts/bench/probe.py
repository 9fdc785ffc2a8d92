"""How many network evaluations does each estimator of the information gain need for the same error?

    python scripts/bench/probe.py                                     # the shipped base on the embedded world
    python scripts/bench/probe.py --base FOLDER --concepts FOLDER     # any pipeline, any concept set
    python scripts/bench/probe.py --gpu                               # evaluations a second instead, see probe_speed.py

Every held-out example chosen is read many times with fresh seeds by each estimator, at equal network evaluations.
`sd` is the spread of the gain over seeds, `bias` its distance from a long run of the default estimator, `rmse` both,
`claimed` the standard error that the estimator itself states; all in nats, root mean square over examples. The last
columns say how many times the default's evaluations an estimator needs to reach the default's error.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.files import write_json
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.numerics.quadrature import ESTIMATORS
from diffusion_sft.probe.scores import own_caption, score_of
from diffusion_sft.records import HELDOUT, ConceptSet, Draws, Example, identity_seed
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.write import write_world

WHAT = {
    "default": "all of the below",
    "common_control": "common noise, control variate",
    "common_antithetic": "common noise, antithetic pairs",
    "common_systematic": "common noise, low-discrepancy levels",
    "common": "common noise alone",
    "classifier": "common noise on an even t grid",
    "naive": "nothing shared",
}


@dataclass(frozen=True)
class Row:
    """One estimator's figures; the last two pairs are ratios to the default with a 95 % interval over examples."""

    estimator: str
    sd_nats: float
    bias_nats: float
    rmse_nats: float
    claimed_nats: float
    error_sd_nats: float
    evaluations_for_equal_sd: float
    evaluations_for_equal_rmse: float
    rmse_ratio_low: float
    rmse_ratio_high: float


@dataclass(frozen=True)
class Repeats:
    """Gains, their claimed standard errors and errors of one estimator, each (num_repeats, num_examples)."""

    gains: np.ndarray
    claimed: np.ndarray
    errors: np.ndarray


def chosen_examples(concept_set: ConceptSet, count: int) -> list[Example]:
    """Held-out examples spread over the concepts, by a hash of their ids."""
    held_out = concept_set.split(HELDOUT)
    return sorted(held_out, key=lambda example: identity_seed(0, "bench", example.id))[:count]


def repeat(learner: DiffusionLearner, examples: list[Example], draws: list[Draws], batch_size: int) -> Repeats:
    """Read all examples once for each of the draws."""
    figures = []
    for draw in tqdm(draws, desc=draws[0].estimator, disable=None, leave=False):
        readings = learner.surprise([own_caption(e) for e in examples], draw, batch_size=batch_size)
        scores = [score_of(reading, draw) for reading in readings]
        figures.append([(s["gain_nats"], s["gain_se_nats"], s["error_nats"]) for s in scores])
    return Repeats(*np.moveaxis(np.array(figures), 2, 0))


def squared_bias(repeats: Repeats, truth: np.ndarray, truth_variance: np.ndarray) -> np.ndarray:
    """(mean − truth)² for each example, less what the noise of both adds to it on average."""
    noise = repeats.gains.var(axis=0, ddof=1) / len(repeats.gains) + truth_variance
    return (repeats.gains.mean(axis=0) - truth) ** 2 - noise


def rows_of(measured: dict[str, Repeats], truth: np.ndarray, truth_variance: np.ndarray) -> list[Row]:
    """Compare every estimator with the default."""
    variance = {name: repeats.gains.var(axis=0, ddof=1) for name, repeats in measured.items()}
    square = {name: squared_bias(repeats, truth, truth_variance) for name, repeats in measured.items()}
    resampled = np.random.default_rng(0).integers(len(truth), size=(2000, len(truth)))

    def mean_square(name: str, picked: np.ndarray) -> np.ndarray:
        bias = np.maximum(square[name][picked].mean(axis=-1), 0)
        return np.asarray(variance[name][picked].mean(axis=-1) + bias)

    rows = []
    everyone = np.arange(len(truth))
    for name, repeats in measured.items():
        ratio = mean_square(name, everyone) / mean_square("default", everyone)
        spread = mean_square(name, resampled) / mean_square("default", resampled)
        low, high = np.quantile(spread, [0.025, 0.975])
        rows.append(
            Row(
                estimator=name,
                sd_nats=float(np.sqrt(variance[name].mean())),
                bias_nats=float(np.sqrt(max(square[name].mean(), 0.0))),
                rmse_nats=float(np.sqrt(mean_square(name, everyone))),
                claimed_nats=float(np.sqrt((repeats.claimed**2).mean())),
                error_sd_nats=float(np.sqrt(repeats.errors.var(axis=0, ddof=1).mean())),
                evaluations_for_equal_sd=float(variance[name].mean() / variance["default"].mean()),
                evaluations_for_equal_rmse=float(ratio),
                rmse_ratio_low=float(low),
                rmse_ratio_high=float(high),
            )
        )
    return rows


def print_table(rows: list[Row], title: str) -> None:
    """The table, widest errors last."""
    print(f"\n{title}")
    print(
        f"{'estimator':>18} {'sd':>8} {'bias':>8} {'rmse':>8} {'claimed':>8} {'sd of error':>12}"
        f" {'x for sd':>9} {'x for rmse':>11}  {'95 %':<16} what"
    )
    for row in sorted(rows, key=lambda row: row.rmse_nats):
        interval = f"{row.rmse_ratio_low:.2f} .. {row.rmse_ratio_high:.2f}"
        nats = (row.sd_nats, row.bias_nats, row.rmse_nats, row.claimed_nats)
        print(
            f"{row.estimator:>18} {' '.join(f'{value:8.3f}' for value in nats)} {row.error_sd_nats:12.3f}"
            f" {row.evaluations_for_equal_sd:9.2f} {row.evaluations_for_equal_rmse:11.2f}"
            f"  {interval:<16} {WHAT[row.estimator]}"
        )


def read_concepts(path: str | None, folder: Path) -> ConceptSet:
    """The given concept set, or the embedded world written to a temporary folder."""
    if path is None:
        path = str(write_world(folder, WorldConfig(written_every=6, train_images=1, reference_images=1)))
    return read_concept_set(ConceptsConfig(path=path)).concept_set


def arguments() -> argparse.Namespace:
    """What to read, and how often."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="data/world-base", help="a pipeline folder or Hub id")
    parser.add_argument("--concepts", help="a concept set; default is the embedded world")
    parser.add_argument("--num-examples", type=int, default=24)
    parser.add_argument("--num-draws", type=int, default=32, help="draws of one reading; two evaluations each")
    parser.add_argument("--num-repeats", type=int, default=30)
    parser.add_argument(
        "--reference-draws", type=int, default=1024, help="of the long run that bias is measured from"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gpu", action="store_true", help="time the probe beside plain loops instead (any device)")
    parser.add_argument("--plain-examples", type=int, default=1, help="of --gpu: examples that plain loops read")
    parser.add_argument(
        "--compile-mode", help="of --gpu: time the compiled network too, in this mode of torch.compile"
    )
    parser.add_argument("--output", default="runs/bench/probe.json")
    return parser.parse_args()


def main() -> None:
    """Read, compare, print, write."""
    chosen = arguments()
    if chosen.gpu:
        import probe_speed  # a neighbour that is on the path of this script, not of those that import from it

        with tempfile.TemporaryDirectory() as folder:
            concept_set = read_concepts(chosen.concepts, Path(folder) / "world")
            probe_speed.run(chosen, chosen_examples(concept_set, chosen.num_examples), concept_set)
        return
    learner = DiffusionLearner.load(chosen.base, device=chosen.device)
    with tempfile.TemporaryDirectory() as folder:
        examples = chosen_examples(read_concepts(chosen.concepts, Path(folder) / "world"), chosen.num_examples)
        learner.targets(examples)
        long_draws = [Draws(seed=10**6 + i, count=chosen.reference_draws // 8) for i in range(8)]
        long_run = repeat(learner, examples, long_draws, chosen.batch_size).gains
        measured = {}
        for name in ESTIMATORS:
            draws = [Draws(seed=seed, count=chosen.num_draws, estimator=name) for seed in range(chosen.num_repeats)]
            measured[name] = repeat(learner, examples, draws, chosen.batch_size)
    truth = long_run.mean(axis=0)
    rows = rows_of(measured, truth, long_run.var(axis=0, ddof=1) / len(long_run))
    title = f"{chosen.base}: {len(examples)} examples, {chosen.num_draws} draws, {chosen.num_repeats} seeds"
    print_table(rows, f"{title}; mean gain {truth.mean():.2f} nats (sd over examples {truth.std():.2f})")
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    write_json(Path(chosen.output), {"settings": settings, "rows": [asdict(row) for row in rows]})
    print(f"\nwritten to {chosen.output}")


if __name__ == "__main__":
    main()
