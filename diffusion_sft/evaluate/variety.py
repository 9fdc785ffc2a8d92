"""Are the generated images varied, within the real ones, and new? Neighbour counts, Vendi and copies."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binomtest

from ..numerics.neighbours import NEIGHBOUR_METRICS, is_copy, neighbour_replicates, vendi_score
from ..numerics.resampling import Rows, replicate, split_groups, subsample
from .comparison import Comparison
from .distances import estimate
from .rows import Estimate, Row, figure, missing

MAX_NEIGHBOUR_IMAGES = 2000
"""Neighbour counts take a random subsample of a larger bucket: their cost is quadratic."""


def neighbours(comparison: Comparison) -> list[Row]:
    """Precision, recall, density and coverage; they depend on the number of images."""
    config, generator = comparison.config, np.random.default_rng(comparison.seed("neighbours"))
    slots = subsample(comparison.strata, min(comparison.num_images, MAX_NEIGHBOUR_IMAGES), generator)
    groups = split_groups(comparison.strata[slots], config.num_groups, comparison.seed("neighbours"))
    counts = (len(slots), len(slots))
    try:
        found = neighbour_replicates(
            comparison.real[slots], comparison.generated[slots], groups, config.num_neighbours
        )
    except ValueError as reason:
        return [missing(metric, counts, str(reason)) for metric in NEIGHBOUR_METRICS]
    note = f"k = {config.num_neighbours}"
    return [
        figure(metric, estimate(result), counts, note, (0.0, math.inf if metric == "density" else 1.0))
        for metric, result in found.items()
    ]


def vendi(comparison: Comparison) -> list[Row]:
    """The effective number of different generated and of different real images, at the common number of images."""
    return [
        _vendi(comparison, "vendi", comparison.generated, generated=True),
        _vendi(comparison, "vendi_real", comparison.real, generated=False),
    ]


def _vendi(comparison: Comparison, metric: str, features: np.ndarray, *, generated: bool) -> Row:
    matched, config = comparison.ground.matched_images, comparison.config
    if matched is None or len(features) < matched:
        return missing(metric, _one_side(len(features), generated), comparison.ground.below_matched)

    def score(slots: Rows) -> float:
        return vendi_score(features[slots])

    # The same subsamples for either side and every model.
    random = np.random.default_rng(comparison.seed("vendi"))
    repeats = 1 if len(features) == matched else config.num_splits
    draws = [subsample(comparison.strata, matched, random) for _ in range(repeats)]
    groups = split_groups(comparison.strata[draws[0]], config.num_groups, comparison.seed("vendi"))
    counts = _one_side(matched, generated)
    try:
        one = replicate(score, [draws[0][group] for group in groups])
        value = float(np.mean([one.value, *(score(draw) for draw in draws[1:])]))
    except ValueError as reason:
        return missing(metric, counts, str(reason))
    found = Estimate(value=value, standard_error=one.standard_error, degrees_of_freedom=one.degrees_of_freedom)
    note = f"effective number of different images among {matched}"
    return figure(metric, found, counts, note, (1.0, float(matched)))


def copies(comparison: Comparison) -> list[Row]:
    """The share of generated images that are nearer to a training image than any other training image is to that
    one (1 - AuthPct), and the same for the reference images: what unseen images score."""
    return [
        _copies("nearest_train_share", comparison.generated, comparison.train, generated=True),
        _copies("nearest_train_share_real", comparison.real, comparison.train, generated=False),
    ]


def _copies(metric: str, features: np.ndarray, train: np.ndarray, *, generated: bool) -> Row:
    counts = _one_side(len(features), generated)
    if len(train) < 2 or len(features) == 0:
        return missing(metric, counts, f"{len(train)} training and {len(features)} other images; needs 2 and 1")
    copied = is_copy(features, train)
    bounds = binomtest(int(copied.sum()), len(copied)).proportion_ci(method="wilson")
    share = float(copied.mean())
    return Row(
        metric=metric,
        value=share,
        standard_error=math.sqrt(share * (1 - share) / len(copied)),
        low=float(bounds.low),
        high=float(bounds.high),
        num_real=counts[0],
        num_generated=counts[1],
        note=f"against {len(train)} training images",
    )


def _one_side(count: int, generated: bool) -> tuple[int, int]:
    return (0, count) if generated else (count, 0)
