"""How near is one bucket's generated set to its real one? All figures of one model, each with an honest interval.

A figure that a set is too small for is NaN with the reason beside it, never an error and never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..numerics.frechet import PairedPoints
from ..numerics.neighbours import NEIGHBOUR_METRICS
from ..numerics.resampling import Replicates
from .comparison import Comparison
from .distances import estimate, few_directions, fid, floor_and_excess, infinity, kernel, matched_fid
from .rows import Row, figure, missing
from .variety import copies, neighbours, vendi

MIN_IMAGES = 4
"""Below this many images on a side no distance is measured: a leave-out must keep three."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The rows of one model and bucket, and the leave-outs from which a paired change to another model follows."""

    rows: tuple[Row, ...]
    replicates: dict[str, Replicates]
    """By metric; the values are those of the rows."""


def measure(comparison: Comparison) -> Measured:
    """Every figure of one bucket of one model but accuracy."""
    if comparison.num_images < MIN_IMAGES:
        distances = ("fid", "fid_floor", "fid_half", "fid_excess", "fid_infinity", "fid_matched")
        metrics = (*distances, comparison.ground.pca_metric, "kid", *NEIGHBOUR_METRICS)
        reason = f"fewer than {MIN_IMAGES} images on a side"
        rows = [missing(metric, comparison.counts, reason) for metric in (*metrics, "vendi", "vendi_real")]
        return Measured(rows=(*rows, *copies(comparison)), replicates={})
    rows, replicates = _distances(comparison)
    rows += [*neighbours(comparison), *vendi(comparison), *copies(comparison)]
    return Measured(rows=tuple(rows), replicates=replicates)


def paired_changes(before: Measured, after: Measured, counts: tuple[int, int]) -> list[Row]:
    """The changes between two models on the same prompts, seeds and reference, with the joint leave-outs' errors."""
    rows = []
    for metric, replicates in after.replicates.items():
        note = "paired; shrunk by the bias, sign and order stand" if metric == "fid" else "paired"
        change = replicates.minus(before.replicates[metric])
        rows.append(figure(f"{metric}_change", estimate(change), counts, note))
    return rows


def _distances(comparison: Comparison) -> tuple[list[Row], dict[str, Replicates]]:
    pairs = PairedPoints.stack(comparison.real, comparison.generated, comparison.strata)
    fid_row, fid_replicates = fid(comparison, pairs)
    rows = [
        fid_row,
        *floor_and_excess(comparison, pairs),
        infinity(comparison, pairs, fid_replicates),
        matched_fid(comparison, pairs),
    ]
    replicates = {"fid": fid_replicates}
    for found in (few_directions(comparison), kernel(comparison)):
        if isinstance(found, Row):
            rows.append(found)
        else:
            rows.append(found[0])
            replicates[found[0].metric] = found[1]
    return rows, replicates
