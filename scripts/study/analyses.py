"""What the tables answer beyond means: what FID does not see, and what chance does to categories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion_sft.numerics.statistics import spearman, wilson
from diffusion_sft.records import DIFFUSION, HIGHLY_KNOWN, UNKNOWN
from diffusion_sft.report.wording import Estimate

from .halves import Half, estimate
from .numbers import Published

CLEAR_LOSS = -0.1
"""Ten points fewer of the pictures read right are called a loss."""


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
        correlation=estimate(found),
    )


def never_read(half: Half) -> dict[str, Estimate]:
    """Of the names that the base never read: the share that is not Unknown, and the share that each rule calls known."""
    table = half.table("buckets/concepts")
    table = table[table["exposure"] == 0]
    answers = {"category": table["category"] != UNKNOWN} | {
        rule: table[f"known_{rule}"] for rule in ("error", "relative", "gain", "slick")
    }
    return {name: estimate(wilson(int(np.sum(values)), len(table))) for name, values in answers.items()}
