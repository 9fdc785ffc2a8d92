"""What the tables answer beyond means: which concepts are lost, what FID does not see, and what chance does to categories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from diffusion_sft.numerics.statistics import spearman, wilson
from diffusion_sft.records import DIFFUSION, HIGHLY_KNOWN, UNKNOWN
from diffusion_sft.report.wording import Estimate

from .halves import MAIN, RUN, Half, over_runs
from .numbers import Published

ATTRIBUTES = ("shape", "colour", "pattern")
CLEAR_LOSS = -0.1
"""Ten points fewer of the pictures read right are called a loss."""


def concept_changes(half: Half) -> pd.DataFrame:
    """One row for each run and HighlyKnown concept that it was not taught: the change of its pictures read right, what the
    base's reading was, and how many attributes it shares with the concept taught that is most like it."""
    accuracy = half.table("evaluate/concept_accuracy")
    concepts = half.table("buckets/concepts").set_index("concept")
    base = accuracy[accuracy["model"] == "base"].set_index("concept")["accuracy"]
    known = concepts.index[concepts["category"] == HIGHLY_KNOWN]
    rows = []
    for run in half.runs.to_dict("records"):
        after = accuracy[accuracy["model"] == run["run"]].set_index("concept")["accuracy"]
        names = [name for name in known if name not in run["taught"]]
        taught = concepts.loc[sorted(run["taught"]), list(ATTRIBUTES)].to_numpy()
        own = concepts.loc[names, [*ATTRIBUTES, "exposure", "gain_nats", "error_nats", "relative_error"]]
        same = (own[list(ATTRIBUTES)].to_numpy()[:, None] == taught[None]).sum(axis=2).max(axis=1)
        change = after.loc[names].to_numpy() - base.loc[names].to_numpy()
        table = own.assign(change=change, shared=same).reset_index()
        rows.append(table.assign(**{name: run[name] for name in RUN}))
    return pd.concat(rows, ignore_index=True)


def loss_by(published: Published, column: str, mixes: Iterable[str], worlds: Iterable[str] = ()) -> Estimate:
    """Over runs: the rank correlation, among HighlyKnown concepts that were not taught, of the change with a reading."""
    found = []
    for table in _changes(published, mixes, worlds):
        kept = table[table[column].notna()]
        found.append(spearman(kept[column].to_numpy(), kept["change"].to_numpy()).value)
    return over_runs(found)


def loss_by_overlap(published: Published, mixes: Iterable[str], worlds: Iterable[str] = ()) -> dict[int, Estimate]:
    """Over runs: the mean change of HighlyKnown concepts not taught, by how many attributes they share with one taught."""
    shares: dict[int, list[float]] = {}
    for table in _changes(published, mixes, worlds):
        for shared, own in table.groupby("shared"):
            shares.setdefault(int(str(shared)), []).append(float(own["change"].mean()))
    return {shared: over_runs(values) for shared, values in sorted(shares.items())}


def _changes(published: Published, mixes: Iterable[str], worlds: Iterable[str]) -> Iterable[pd.DataFrame]:
    for world in worlds or published.worlds_of(DIFFUSION):
        table = concept_changes(published.half(DIFFUSION, world))
        table = table[table["mix"].isin(list(mixes)) & (table["how"] == MAIN)]
        for _, own in table.groupby("run"):
            yield own


@dataclass(frozen=True, kw_only=True)
class Blind:
    """How many runs lost a tenth or more of what was HighlyKnown, and in how many of these a distance did not show it."""

    num_runs: int
    num_lost: int
    num_unseen: int
    correlation: Estimate


def blind(published: Published, metric: str, bucket: str = "known") -> Blind:
    """Hold a distance's paired change against the pictures that are read wrong afterwards.

    A distance does not show a loss where its interval holds 0 or lies below.
    """
    pictures = published.frame(DIFFUSION, "pictures")
    lost = pictures[pictures["category"] == HIGHLY_KNOWN].set_index(["world", "run"])["change"]
    distances = published.frame(DIFFUSION, "distances")
    own = distances[(distances["metric"] == metric) & (distances["bucket"] == bucket)].set_index(["world", "run"])
    own = own.join(lost)
    clear = own[own["change"] <= CLEAR_LOSS]
    found = spearman(own["value"].to_numpy(), own["change"].to_numpy())
    return Blind(
        num_runs=len(own),
        num_lost=len(clear),
        num_unseen=int((clear["low"] <= 0).sum()),
        correlation=Estimate(value=found.value, low=found.low, high=found.high),
    )


def never_read(half: Half) -> dict[str, Estimate]:
    """Of the names that the base never read: the share that is not Unknown, and the share that each rule calls known."""
    table = half.table("buckets/concepts")
    table = table[table["exposure"] == 0]
    answers = {"category": table["category"] != UNKNOWN} | {
        rule: table[f"known_{rule}"] for rule in ("error", "relative", "gain", "slick")
    }
    found = {name: wilson(int(np.sum(values)), len(table)) for name, values in answers.items()}
    return {name: Estimate(value=own.value, low=own.low, high=own.high) for name, own in found.items()}
