"""FID, its floor, excess, limit and matched figure, FD-PCA-k and KID of one bucket of one model.

Raw FID of some hundreds of images is nearly all bias, and the bias follows the set's spectrum. What may be compared
across buckets is the kernel distance and the Fréchet distance on a few fixed directions (design, section 6).
"""

from __future__ import annotations

import math

import numpy as np

from ..numerics.frechet import PairedPoints, frechet_infinity, half_against_half
from ..numerics.kernels import kernel_replicates
from ..numerics.resampling import Replicates, replicate, split_groups, subsample
from .comparison import Comparison
from .rows import Estimate, Row, figure, missing

Replicated = tuple[Row, Replicates]


def estimate(replicates: Replicates) -> Estimate:
    """The value with its jackknife error."""
    return Estimate(
        value=replicates.value,
        standard_error=replicates.standard_error,
        degrees_of_freedom=replicates.degrees_of_freedom,
    )


def fid(comparison: Comparison, pairs: PairedPoints) -> Replicated:
    """The plug-in Fréchet distance of all images."""
    result = replicate(pairs.distance, comparison.groups)
    note = "the interval is this figure's at this n, not the true distance's"
    if comparison.num_images < (dims := pairs.points.num_dims):
        bias = f"warning: {comparison.num_images} images in {dims} dimensions, raw FID is nearly all bias"
        note = f"{bias}; {note}"
    return figure("fid", estimate(result), comparison.counts, note), result


def floor_and_excess(comparison: Comparison, pairs: PairedPoints) -> list[Row]:
    """At half the images: real against real, generated against real, and by how much the second is larger.

    The standard errors are half-sampling's.
    """
    _, sizes = np.unique(comparison.strata, return_counts=True)
    half, metrics = int(np.sum(sizes // 2)), ("fid_floor", "fid_half", "fid_excess")
    if half < 2:
        reason = f"halves with the same concepts would have {half} images"
        return [missing(metric, comparison.counts, reason) for metric in metrics]
    floors, distances = half_against_half(pairs, comparison.config.num_splits, comparison.seed("halves"))
    notes = ("real against real", "generated against real", "fid_half - fid_floor")
    return [
        figure(metric, _over_splits(values), (half, half), f"{note}, {half} images a side")
        for metric, values, note in zip(metrics, (floors, distances, distances - floors), notes, strict=True)
    ]


def infinity(comparison: Comparison, pairs: PairedPoints, plug_in: Replicates) -> Row:
    """FID extrapolated to infinitely many images, or the reason why it cannot be."""
    try:
        value, fit_error = frechet_infinity(pairs, comparison.seed("infinity"))
    except ValueError as reason:
        return missing("fid_infinity", comparison.counts, str(reason))
    found = Estimate(
        value=value,
        standard_error=math.hypot(plug_in.standard_error, fit_error),
        degrees_of_freedom=plug_in.degrees_of_freedom,
    )
    note = "F(n) = a + b/n over n/2..n; the interval adds the fit's error to the jackknife's"
    return figure("fid_infinity", found, comparison.counts, note)


def matched_fid(comparison: Comparison, pairs: PairedPoints) -> Row:
    """FID at the number of images that all buckets have; the error is that of one subsample."""
    matched = comparison.ground.matched_images
    if matched is None or comparison.num_images < matched:
        return missing("fid_matched", comparison.counts, comparison.ground.below_matched)
    generator = np.random.default_rng(comparison.seed("matched"))
    repeats = 1 if comparison.num_images == matched else comparison.config.num_splits
    draws = [subsample(comparison.strata, matched, generator) for _ in range(repeats)]
    groups = split_groups(comparison.strata[draws[0]], comparison.config.num_groups, comparison.seed("matched"))
    one = replicate(pairs.distance, [draws[0][group] for group in groups])
    found = Estimate(
        value=float(np.mean([one.value, *(pairs.distance(draw) for draw in draws[1:])])),
        standard_error=one.standard_error,
        degrees_of_freedom=one.degrees_of_freedom,
    )
    note = f"mean over subsamples of the {matched} images a side that every bucket has"
    return figure("fid_matched", found, (matched, matched), note)


def few_directions(comparison: Comparison) -> Replicated | Row:
    """FD-PCA-k: the Fréchet distance on the fixed directions, its bias removed by the jackknife."""
    directions, metric = comparison.ground.directions, comparison.ground.pca_metric
    if directions is None:
        return missing(metric, comparison.counts, comparison.ground.no_directions)
    k, n = directions.shape[1], comparison.num_images
    if n <= 1.5 * k:
        return missing(metric, comparison.counts, f"{n} images are not above 1.5 x {k} directions")
    real, generated = (side.astype(np.float64) @ directions for side in (comparison.real, comparison.generated))
    plug_in = replicate(PairedPoints.stack(real, generated, comparison.strata).distance, comparison.groups)
    result = Replicates(value=plug_in.bias_corrected, leave_outs=plug_in.leave_outs)
    note = f"{k} fixed directions, bias removed by the jackknife; blind outside them"
    return figure(metric, estimate(result), comparison.counts, note), result


def kernel(comparison: Comparison) -> Replicated:
    """KID of all images, unbiased at any n."""
    result = kernel_replicates(comparison.real, comparison.generated, comparison.strata, comparison.groups)
    return figure("kid", estimate(result), comparison.counts, "unbiased at any n; not times 1000"), result


def _over_splits(values: np.ndarray) -> Estimate:
    return Estimate(
        value=float(values.mean()),
        standard_error=float(values.std(ddof=1)),
        degrees_of_freedom=len(values) - 1,
    )
