"""What the tables answer beyond means: what FID does not see, and what chance does to categories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from diffusion_sft.numerics.statistics import spearman, wilson
from diffusion_sft.records import CATEGORIES, DIFFUSION, HELDOUT, TRAINED, UNKNOWN
from diffusion_sft.report.systems_words import SYSTEMS, TOLD
from diffusion_sft.report.wording import Estimate
from diffusion_sft.solve.weights import SHUFFLED

from .halves import OUTSIDE, Half, estimate
from .numbers import Published

MORE_MEASURES = {
    "generation": {"null_distance": "distance from the answer under ∅"},
    "inputs": {"fresh_descent": "error less than the name's, at draws that were not solved for"},
    "weights": {"rhs_rms": "RMS of r"},
}
"""What the study's page tells of systems beyond what every report does."""
READING = ["value", "low", "high"]
CLEAR_LOSS = -0.1
"""Ten points fewer of the pictures read right are called a loss."""
NO_LOSS = -0.05
"""Less than five points fewer are called none."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How well a bucket's distance shows what was lost of what was HighlyKnown and not taught."""

    num_runs: int
    num_lost: int
    """Runs that lost a tenth or more, of pictures read right."""
    num_unseen: int
    """Of these, runs whose distance does not rise beyond its interval."""
    num_kept: int
    """Runs that lost less than a twentieth."""
    num_alarmed: int
    """Of these, runs whose distance rises beyond its interval."""
    correlation: Estimate
    """Spearman's, of the distance's change with that of the pictures read right."""


def sight(published: Published, bucket: str, metric: str = "fid_change") -> Sight:
    """Hold a distance's paired change against the pictures that are read wrong afterwards."""
    table = distances_and_loss(published, bucket, metric)
    rises, lost, kept = table["low"] > 0, table["change"] <= CLEAR_LOSS, table["change"] > NO_LOSS
    return Sight(
        num_runs=len(table),
        num_lost=int(lost.sum()),
        num_unseen=int((lost & ~rises).sum()),
        num_kept=int(kept.sum()),
        num_alarmed=int((kept & rises).sum()),
        correlation=estimate(spearman(table["value"].to_numpy(), table["change"].to_numpy())),
    )


def distances_and_loss(published: Published, bucket: str, metric: str = "fid_change") -> pd.DataFrame:
    """One row for each run, indexed by world and run: a bucket's distance and the loss of what was HighlyKnown."""
    pictures = published.frame(DIFFUSION, "known_untaught").set_index(["world", "run"])
    distances = published.frame(DIFFUSION, "distances")
    own = distances[(distances["metric"] == metric) & (distances["bucket"] == bucket)].set_index(["world", "run"])
    return own.join(pictures[["change", "lost_concepts", "num_concepts"]])


def buckets_together(published: Published, first: str, second: str) -> Estimate:
    """Spearman's correlation over runs of the changes of two buckets' FID."""
    one, other = (distances_and_loss(published, bucket)["value"] for bucket in (first, second))
    return estimate(spearman(one.to_numpy(), other.loc[one.index].to_numpy()))


def never_read(half: Half) -> dict[str, Estimate]:
    """Of the names that the base never read: the share that is not Unknown, and the share that each rule calls known."""
    table = half.table("buckets/concepts")
    table = table[table["exposure"] == 0]
    answers = {"category": table["category"] != UNKNOWN} | {
        rule: table[f"known_{rule}"] for rule in ("error", "relative", "gain", "slick")
    }
    return {name: estimate(wilson(int(np.sum(values)), len(table))) for name, values in answers.items()}


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """A measure of a system in one world: its mean in each category, and Spearman's ρ with the category over concepts."""

    name: str
    world: str
    means: dict[str, Estimate | None]
    rho: Estimate | None


def system_rows(published: Published, learner: str, system: str) -> list[MeasureRow]:
    """What was measured of one system, each measure's worlds together; measures that no concept has are left out."""
    told = {key: f"{m.name}: {m.remark(learner)}" for key, m in SYSTEMS[system].measures.items()}
    halves = [published.half(learner, world) for world in published.worlds_of(learner)]
    rows = [
        _measure_row(half, (system, measure), name)
        for measure, name in (told | MORE_MEASURES[system]).items()
        for half in halves
    ]
    return [row for row in rows if any(row.means.values())]


def _measure_row(half: Half, measure: tuple[str, str], name: str) -> MeasureRow:
    means, trends = (
        half.table(f"solve/{table}").set_index(["system", "measure"]) for table in ("categories", "trends")
    )
    own = means[means.index == measure].set_index("category")[READING].dropna(subset="value")
    trend = trends[trends.index == measure][READING].dropna(subset="value")
    return MeasureRow(
        name=name,
        world=half.world,
        means={c: estimate(own.loc[c]) if c in own.index else None for c in CATEGORIES},
        rho=estimate(trend.iloc[0]) if len(trend) else None,
    )


def forecast_roles(learner: str) -> dict[str, str]:
    """The roles whose change is forecast, and what each tells of."""
    return {role: TOLD[role] for role in (TRAINED, HELDOUT, OUTSIDE[learner])}


def solved_sets(half: Half) -> list[dict[str, object]]:
    """The sets of equations that were solved together, categories in their order and the control last."""
    table = half.table("solve/sets").set_index("concept")
    return [{"set": name} | dict(table.loc[name]) for name in (*CATEGORIES, SHUFFLED) if name in table.index]
