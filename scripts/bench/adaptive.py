"""How much of the probe's budget does adaptive probing take, and are its labels those of the whole budget?

    python scripts/bench/adaptive.py                       # every sixth concept of the embedded world
    python scripts/bench/adaptive.py --written-every 3     # a larger world
    python scripts/bench/adaptive.py probe.num_draws=16    # other settings than those of configs/world.yaml

The same concepts are probed three times: with the whole budget, adaptively with the same seed, and with the whole budget
and another seed. The first two say how well adaptive probing foretells what the budget says; how far the last two full
probes agree is what a label is worth at that budget. Finished probes in `--folder` are kept and a stopped one goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion_sft.buckets import BucketConfig, bucket
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.evaluate.readers import readout_reader
from diffusion_sft.files import read_json, write_json
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.machine import hardware, pick_device, versions
from diffusion_sft.numerics.statistics import wilson
from diffusion_sft.plan import StudyConfig
from diffusion_sft.probe import AdaptiveConfig, ProbeConfig, picture_samples, probe
from diffusion_sft.records import RULES, ConceptSet
from diffusion_sft.settings import load_settings, settings_dict
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.readout import Readout
from diffusion_sft.world.write import write_world

LABELS = ("category", *(f"known_{rule}" for rule in RULES))


def main() -> None:
    """Probe, compare, print, write."""
    options = _options()
    config = load_settings(StudyConfig, Path(options.settings), options.overrides).probe
    concept_set = _concepts(options.concepts, Path(options.folder), options.written_every)
    device = pick_device(options.device)
    learner = DiffusionLearner.load(options.base, device=device)
    read_labels = readout_reader(Readout.load(Path(options.readout), device), concept_set.concepts)
    adaptive = AdaptiveConfig(enabled=True, confidence=options.confidence)
    configs = {
        "whole": replace(config, adaptive=AdaptiveConfig()),
        "adaptive": replace(config, adaptive=adaptive),
        "other seed": replace(config, adaptive=AdaptiveConfig(), seed=config.seed + 1),
    }
    tables, records = {}, {}
    for name, own in configs.items():
        folder = Path(options.folder) / _folder(name, own, options)
        found = probe(learner, concept_set, own, folder, picture_samples(learner, own, read_labels))
        tables[name] = bucket(
            found.scores, found.answers, found.samples, concept_set.table(), BucketConfig()
        ).concepts
        records[name] = read_json(folder / "probe.json")
    report = {
        "num_concepts": len(tables["whole"]),
        "evaluations": _evaluations(records["adaptive"]),
        "agreement": {
            "adaptive": _agreement(tables["whole"], tables["adaptive"]),
            "other_seed": _agreement(tables["whole"], tables["other seed"]),
        },
        "disagreeing": _disagreeing(tables["whole"], tables["adaptive"]),
        "settings": {name: value for name, value in vars(options).items() if name not in ("output", "folder")},
        "probe": settings_dict(configs["adaptive"]),
        "versions": versions(),
        "hardware": hardware(device),
    }
    print(_text(report))
    write_json(Path(options.output), report)
    print(f"\nwritten to {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of diffusion-sft probe")
    parser.add_argument("--settings", default="configs/world.yaml", help="whose probe it is")
    parser.add_argument("--base", default="data/world-base", help="a pipeline folder or Hub id")
    parser.add_argument("--concepts", help="a concept set; default is the embedded world")
    parser.add_argument("--written-every", type=int, default=6, help="every so many-th concept of the embedded world")
    parser.add_argument("--readout", default="data/world-readout")
    parser.add_argument("--confidence", type=float, default=AdaptiveConfig().confidence)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", default="runs/bench/adaptive", help="for the probes")
    parser.add_argument("--output", default="runs/bench/adaptive.json")
    return parser.parse_args()


def _folder(name: str, config: ProbeConfig, options: argparse.Namespace) -> str:
    """Whole probes are shared by all confidences, and by benches whose seeds overlap."""
    every = "set" if options.concepts else f"every-{options.written_every}"
    kind = f"adaptive-{config.adaptive.confidence}" if name == "adaptive" else "whole"
    return f"{every}-{kind}-seed{config.seed}"


def _concepts(path: str | None, folder: Path, written_every: int) -> ConceptSet:
    if path is None:
        own = folder / f"world-{written_every}"
        config = WorldConfig(written_every=written_every, train_images=1, reference_images=1)
        path = str(own if own.exists() else write_world(own, config))
    return read_concept_set(ConceptsConfig(path=path)).concept_set


def _evaluations(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    stages = record["adaptive"] | {
        "all": {"used": record["num_evaluations"], "budget": record["num_evaluations_of_budget"]}
    }
    return {name: found | {"times_fewer": found["budget"] / max(found["used"], 1)} for name, found in stages.items()}


def _agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The share of concepts with the same label, for each kind of label, with its 95 % interval."""
    other = other.set_index("concept").loc[one["concept"]].reset_index()
    return {name: asdict(wilson(int((one[name] == other[name]).sum()), len(one))) for name in LABELS}


def _disagreeing(whole: pd.DataFrame, adaptive: pd.DataFrame) -> list[dict[str, Any]]:
    adaptive = adaptive.set_index("concept").loc[whole["concept"]].reset_index()
    return [
        {
            "concept": whole["concept"][place],
            "exposure": None if pd.isna(whole["exposure"][place]) else int(whole["exposure"][place]),
            "label": name,
            "whole": str(whole[name][place]),
            "adaptive": str(adaptive[name][place]),
        }
        for name in LABELS
        for place in np.flatnonzero((whole[name] != adaptive[name]).to_numpy())
    ]


def _text(report: dict[str, Any]) -> str:
    lines = [f"\n{report['num_concepts']} concepts, confidence {report['settings']['confidence']}"]
    lines.append(f"{'':>10} {'used':>10} {'budget':>10} {'times fewer':>12}")
    for name, found in report["evaluations"].items():
        lines.append(f"{name:>10} {found['used']:10,} {found['budget']:10,} {found['times_fewer']:12.2f}")
    lines.append(f"\n{'label':>16} {'adaptive = whole budget':>30} {'two seeds, whole budget':>30}")
    for name in LABELS:
        shown = [_interval(report["agreement"][kind][name]) for kind in ("adaptive", "other_seed")]
        lines.append(f"{name:>16} {shown[0]:>30} {shown[1]:>30}")
    lines.append("\nwhere adaptive and whole budget differ:" if report["disagreeing"] else "\nthey differ nowhere")
    lines += [
        f"  {one['label']}: {one['concept']} (exposure {one['exposure']}): {one['whole']}, adaptively {one['adaptive']}"
        for one in report["disagreeing"]
    ]
    return "\n".join(lines)


def _interval(share: dict[str, float]) -> str:
    return f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


if __name__ == "__main__":
    main()
