"""How many rounds, and how much time, do DDIM's steps take when they are solved for side by side?

    python scripts/bench/samplers.py                                  # rounds on the shipped base, by kind of prompt
    python scripts/bench/samplers.py --buckets concepts.parquet       # the same by the categories of a buckets stage
    python scripts/bench/samplers.py --unet FOLDER --device cuda --dtype bfloat16     # time of a round

Rounds: every solver draws the same pictures from the same noises; `error` is the relative distance of their latents
from the sequential ones. Published for Stable Diffusion 1.5 and 100 steps: images that look the same after 7 to 15
rounds (Tang et al., 2024), at looser tolerances than the ones here.

Time: a UNet of that configuration with random weights. Its trajectories say nothing about rounds, so what is reported
is the time of one round at each window, beside that of one sequential step, and how many rounds break even.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from diffusion_sft.files import read_table, write_json
from diffusion_sft.learner import NULL_CUE, Cue
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.sampling import coefficients, rows_per_evaluation, sampling_system
from diffusion_sft.numerics.fixed_point import Anderson, Parareal, Picard, Sequential, Solver
from diffusion_sft.numerics.triangular import Solution, TriangularSystem
from diffusion_sft.records import CATEGORIES, identity_seed
from diffusion_sft.world.population import WorldConfig, populate


@dataclass(frozen=True)
class Row:
    """One solver on the prompts of one category: means over pictures, and the largest error."""

    guidance_scale: float
    category: str
    solver: str
    num_pictures: int
    rounds: float
    most_rounds: int
    depth: float
    evaluations: float
    median_error: float
    largest_error: float


@dataclass(frozen=True)
class Timing:
    """Seconds of one round at a window, and of what it is compared with, medians over repeats."""

    window: int
    round_seconds: float
    evaluation_seconds: float
    sequential_step_seconds: float
    rounds_that_break_even: float
    """Rounds that take as long as all sequential steps."""


def prompts_by_category(buckets: str | None, count: int) -> dict[str, list[str]]:
    """`count` prompts of each kind: of a table's categories, or of names seen and not, of descriptions, and ∅."""
    people = populate(WorldConfig())
    kinds = {"described": [p.name for p in people if p.kind == "described"], "empty": []}
    if buckets is not None:
        table = read_table(Path(buckets))
        named = {name: table.loc[table["category"] == name, "concept"].tolist() for name in CATEGORIES}
    else:
        named = {
            "exposed": [p.name for p in people if p.exposure],
            "unexposed": [p.name for p in people if p.exposure == 0],
        }
    chosen = {
        category: sorted(names, key=lambda name: identity_seed(0, "bench", name))[:count]
        for category, names in (named | kinds).items()
    }
    prompts = {category: [f"a photo of a {name}" for name in names] for category, names in chosen.items() if names}
    return prompts | {"empty": [NULL_CUE] * count}


def solvers(window: int, tolerance: float) -> dict[str, Solver]:
    """What is compared."""
    return {
        "sequential": Sequential(),
        "picard": Picard(tolerance=tolerance),
        f"picard, window {window}": Picard(tolerance=tolerance, window=window),
        "anderson": Anderson(tolerance=tolerance),
        f"anderson, window {window}": Anderson(tolerance=tolerance, window=window),
        "parareal": Parareal(tolerance=tolerance),
    }


def row_of(solutions: list[Solution], truths: list[Solution], **names: Any) -> Row:
    """Summarise."""
    pairs = zip(solutions, truths, strict=True)
    errors = [float((a.states[-1] - b.states[-1]).norm() / b.states[-1].norm()) for a, b in pairs]
    return Row(
        **names,
        num_pictures=len(solutions),
        rounds=float(np.mean([solution.rounds for solution in solutions])),
        most_rounds=max(solution.rounds for solution in solutions),
        depth=float(np.mean([solution.depth for solution in solutions])),
        evaluations=float(np.mean([solution.num_evaluations for solution in solutions])),
        median_error=float(np.median(errors)),
        largest_error=max(errors),
    )


def median_residuals(solutions: list[Solution]) -> np.ndarray:
    """Over pictures, (rounds, steps), of equations that at least half of them still evaluated."""
    most = max(solution.rounds for solution in solutions)
    padded = [np.pad(s.residuals, ((0, most - s.rounds), (0, 0)), constant_values=np.nan) for s in solutions]
    stacked = np.stack(padded)
    kept = np.isfinite(stacked).mean(axis=0) >= 0.5
    return np.where(kept, np.nanmedian(np.where(kept, stacked, 0.0), axis=0), np.nan)


def measure_rounds(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every solver on every category."""
    learner = DiffusionLearner.load(chosen.base, device=chosen.device, dtype=getattr(torch, chosen.dtype))
    rows, residuals = [], {}
    for guidance_scale in chosen.guidance:
        for category, prompts in prompts_by_category(chosen.buckets, chosen.num_prompts).items():
            cues = [Cue(prompt=prompt, seed=identity_seed(1, "bench", n)) for n, prompt in enumerate(prompts)]
            system = sampling_system(
                learner,
                cues,
                num_inference_steps=chosen.num_inference_steps,
                guidance_scale=guidance_scale,
                batch_size=chosen.batch_size,
            )
            truths = Sequential()(system)
            for name, solver in solvers(chosen.window, chosen.tolerance).items():
                solutions = truths if name == "sequential" else solver(system)
                rows.append(row_of(solutions, truths, guidance_scale=guidance_scale, category=category, solver=name))
                print_row(rows[-1], header=len(rows) == 1)
                if name == "picard":
                    residuals[f"guidance {guidance_scale:g}, {category}"] = median_residuals(solutions)
    for title, table in residuals.items():
        print_residuals(title, table)
    return {
        "rows": [asdict(row) for row in rows],
        "residuals": {title: np.where(np.isnan(table), None, table).tolist() for title, table in residuals.items()},
    }


def print_row(row: Row, header: bool) -> None:
    """One line of the table."""
    if header:
        print(
            f"{'guidance':>8} {'prompts':>12} {'solver':>20} {'n':>3} {'rounds':>7} {'most':>5} {'depth':>6}"
            f" {'evaluations':>12} {'error':>8} {'largest':>8}"
        )
    print(
        f"{row.guidance_scale:8g} {row.category:>12} {row.solver:>20} {row.num_pictures:3d} {row.rounds:7.1f}"
        f" {row.most_rounds:5d} {row.depth:6.1f} {row.evaluations:12.0f} {row.median_error:8.1e} {row.largest_error:8.1e}",
        flush=True,
    )


def print_residuals(title: str, table: np.ndarray) -> None:
    """Decimal logarithms of Picard's residuals, rounds down, steps across from noise to picture."""
    columns = np.linspace(0, table.shape[1] - 1, 11).round().astype(int)
    print(f"\nPicard's residual relative to the noise level (log10, median over pictures), {title}")
    print(f"{'round':>6} " + " ".join(f"{f'step {column + 1}':>8}" for column in columns))
    for number, line in enumerate(table[:, columns], start=1):
        shown = ["" if np.isnan(value) else f"{np.log10(max(value, 1e-12)):.1f}" for value in line]
        print(f"{number:6d} " + " ".join(f"{text:>8}" for text in shown))


def random_system(chosen: argparse.Namespace) -> TriangularSystem:
    """DDIM's equations of a UNet with random weights and random conditions."""
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(chosen.unet)
    unet = UNet2DConditionModel.from_config(config).to(device, dtype).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(chosen.num_inference_steps)
    timesteps = scheduler.timesteps.to(device)
    levels = scheduler.alphas_cumprod.double().numpy()
    before, after = levels[scheduler.timesteps], levels[[*scheduler.timesteps[1:], 0]]
    decay, gain, _ = coefficients(before, after, "epsilon", 0.0)
    rows = rows_per_evaluation(chosen.guidance[0])
    condition = torch.randn(1, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    extra: Callable[[int], dict[str, torch.Tensor] | None] = lambda count: None  # noqa: E731
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        pooled = torch.randn(1, width, device=device, dtype=dtype)
        sizes = torch.full((1, 6), 1024.0, device=device)
        extra = lambda count: {"text_embeds": pooled.expand(count, -1), "time_ids": sizes.expand(count, -1)}  # noqa: E731

    @torch.no_grad()
    def evaluate(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        parts, most = [], max(1, chosen.batch_size // rows)
        for at, noisy in zip(steps.split(most), states.split(most), strict=True):
            noisy, at, count = noisy.to(dtype).repeat(rows, 1, 1, 1), timesteps[at].repeat(rows), rows * len(at)
            embeds = condition.expand(count, -1, -1)
            output = unet(noisy, at, encoder_hidden_states=embeds, added_cond_kwargs=extra(count), return_dict=False)[
                0
            ]
            parts.append(output.chunk(rows)[-1].double())
        return torch.cat(parts)

    side = unet.config.sample_size
    start = torch.randn(1, unet.config.in_channels, side, side, device=device, dtype=torch.float64)
    return TriangularSystem(start=start, decay=decay, gain=gain, evaluate=evaluate, scale=np.sqrt(1 - after))


def measure_time(chosen: argparse.Namespace) -> dict[str, Any]:
    """A few rounds at each window, in turn with as many sequential steps."""
    system = random_system(chosen)
    count = 3
    timings = []
    step = Picard(window=1, tolerance=0.0, max_rounds=4 * count)
    for window in chosen.windows:
        rounds = Picard(window=window, tolerance=0.0, max_rounds=count)
        for solver in (step, rounds):
            seconds_of(solver, system)
        pairs = [(seconds_of(step, system), seconds_of(rounds, system)) for _ in range(chosen.repeats)]
        of_step, of_round = (float(np.median(part)) for part in zip(*pairs, strict=True))
        of_step, of_round = of_step / (4 * count), of_round / count
        timings.append(
            Timing(
                window=window,
                round_seconds=of_round,
                evaluation_seconds=of_round / window,
                sequential_step_seconds=of_step,
                rounds_that_break_even=system.num_steps * of_step / of_round,
            )
        )
    print(f"{chosen.unet}, {chosen.dtype} on {chosen.device}, {system.num_steps} steps, random weights")
    print(f"{'window':>7} {'round, ms':>10} {'evaluation, ms':>15} {'step, ms':>9} {'rounds that break even':>23}")
    for row in timings:
        milliseconds = [1000 * s for s in (row.round_seconds, row.evaluation_seconds, row.sequential_step_seconds)]
        print(
            f"{row.window:7d} {milliseconds[0]:10.1f} {milliseconds[1]:15.2f} {milliseconds[2]:9.2f}"
            f" {row.rounds_that_break_even:23.1f}"
        )
    return {"timings": [asdict(row) for row in timings]}


def seconds_of(solver: Solver, system: TriangularSystem) -> float:
    """Of one call."""
    wait = torch.cuda.synchronize if system.start.device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    solver(system)
    wait()
    return time.perf_counter() - started


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="data/world-base", help="a pipeline folder or Hub id")
    parser.add_argument("--buckets", help="a concepts table with columns concept and category")
    parser.add_argument("--num-prompts", type=int, default=8, help="of each category")
    parser.add_argument("--num-inference-steps", type=int, default=100)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--window", type=int, default=40, help="of the solvers that have one, besides all steps")
    parser.add_argument("--unet", help="time a UNet of this configuration folder instead, with random weights")
    parser.add_argument("--windows", type=int, nargs="+", default=[10, 20, 50, 100], help="for --unet")
    parser.add_argument("--repeats", type=int, default=5, help="for --unet")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="where to write the figures")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    chosen = arguments()
    figures = measure_time(chosen) if chosen.unet else measure_rounds(chosen)
    if chosen.json:
        write_json(Path(chosen.json), {"settings": vars(chosen)} | figures)
        print(f"\nwritten to {chosen.json}")


if __name__ == "__main__":
    main()
