"""How far apart are two sets of features? The Fréchet distance between the Gaussians fitted to them.

    F = |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^{1/2},    tr (C1 C2)^{1/2} = ‖A1 A2ᵀ‖_*

with A = (X - m)/sqrt(n - 1): the nuclear norm (sum of singular values) of an n1 × n2 matrix, exact at any rank,
with no square root of a matrix and no covariance. A side with more rows than dimensions is first reduced to the
d × d triangle of its QR decomposition, which leaves the singular values as they are. (Cholesky factors would be
twice as fast there, but fail on a dead feature and square the condition number.)

All values are raw: float64, not clamped, so equal sets may read -1e-14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .resampling import Rows, split_halves, subsample

MAX_GRAM_ROWS = 8192
"""Above this many rows (512 MiB of inner products) distances are taken from the features instead."""
LARGEST = 1e50
"""Cubes of inner products and their sums stay below float64's end (1.8e308); features are float32, which ends at 3e38."""
INFINITY_ROWS_PER_DIM = 2.5
"""Below this many rows per dimension the distance is not yet linear in 1/n, and cannot be extrapolated."""


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance between two sets of features, raw.

    Args:
        first, second: (n1, d) and (n2, d), n1, n2 >= 2, any real type.

    Raises:
        ValueError: fewer than two rows, different d, or a value that is not finite.
    """
    first, second = checked_features(first), checked_features(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and of {second.shape[1]} dimensions")
    difference = first.mean(axis=0) - second.mean(axis=0)
    one, two = _factor(first), _factor(second)
    traces = np.vdot(one, one) + np.vdot(two, two)
    return float(difference @ difference + traces - 2 * _nuclear_norm(one @ two.T))


class FrechetPoints:
    """Rows of features of any number of sets, ready for the distance between any two subsets of rows.

    Below d rows a side, everything is a function of the inner products of the rows, which are taken once:
    subsamples, jackknives and matched-n repeats then never touch the d dimensions again.
    """

    def __init__(self, features: np.ndarray) -> None:
        features = checked_features(features)
        # The distance does not depend on the origin, but rounding does.
        self._features = features - features.mean(axis=0)
        self.num_dims = features.shape[1]

    @cached_property
    def _inner_products(self) -> np.ndarray:
        return self._features @ self._features.T

    def distance(self, first: Rows, second: Rows) -> float:
        """The Fréchet distance between two subsets of the rows, raw.

        Raises:
            ValueError: fewer than two rows on a side.
        """
        if min(len(first), len(second)) > self.num_dims or len(self._features) > MAX_GRAM_ROWS:
            return frechet_distance(self._features[first], self._features[second])
        if min(len(first), len(second)) < 2:
            raise ValueError("a covariance needs at least two rows")
        inner = self._inner_products
        cross = inner[np.ix_(first, second)]
        scale = np.sqrt((len(first) - 1) * (len(second) - 1))
        row_means, column_means, cross_mean = cross.mean(axis=1, keepdims=True), cross.mean(axis=0), cross.mean()
        norms = [inner[np.ix_(rows, rows)].mean() for rows in (first, second)]
        traces = [
            (inner[rows, rows].sum() - len(rows) * norm) / (len(rows) - 1)
            for rows, norm in zip((first, second), norms, strict=True)
        ]
        root = _nuclear_norm(cross - row_means - column_means + cross_mean) / scale
        return float(sum(norms) - 2 * cross_mean + sum(traces) - 2 * root)


@dataclass(frozen=True, kw_only=True)
class PairedPoints:
    """A real and a generated set with one row of either to each slot, both of the slot's stratum."""

    points: FrechetPoints
    real: Rows
    generated: Rows
    strata: np.ndarray

    @classmethod
    def stack(cls, real: np.ndarray, generated: np.ndarray, strata: np.ndarray) -> PairedPoints:
        """Features (n, d) of either side and the stratum of each slot, (n,)."""
        slots = np.arange(len(strata))
        points = FrechetPoints(np.concatenate([real, generated]))
        return cls(points=points, real=slots, generated=slots + len(real), strata=strata)

    def distance(self, slots: Rows) -> float:
        """The Fréchet distance between the two sides of these slots."""
        return self.points.distance(self.real[slots], self.generated[slots])


def half_against_half(pairs: PairedPoints, num_splits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The distance of a random half of the real rows from the other half, and of as many generated rows from it.

    Every half holds half of each stratum (rounded down). Both are (num_splits,), the floor first; the excess is their
    difference. The spread over splits is half-sampling's standard error.

    Raises:
        ValueError: fewer than two rows in a half.
    """
    generator = np.random.default_rng(seed)
    floors, distances = np.empty(num_splits), np.empty(num_splits)
    for split in range(num_splits):
        one, other = split_halves(pairs.strata, generator)
        made, _ = split_halves(pairs.strata, generator)
        floors[split] = pairs.points.distance(pairs.real[one], pairs.real[other])
        distances[split] = pairs.points.distance(pairs.real[one], pairs.generated[made])
    return floors, distances


def frechet_infinity(pairs: PairedPoints, seed: int, num_sizes: int = 15) -> tuple[float, float]:
    """Extrapolate the distance to infinitely many rows: F(n) = a + b/n over subsamples of n/2 to n slots.

    Returns:
        a and the standard error of the fit alone. Chong & Forsyth (2020), "Effectively unbiased FID", section 3.

    Raises:
        ValueError: fewer than 2.5 rows per dimension, where the line does not hold yet (the reason is the message).
    """
    rows, needed = len(pairs.strata), math.ceil(INFINITY_ROWS_PER_DIM * pairs.points.num_dims)
    if rows < needed:
        raise ValueError(
            f"{rows} images are fewer than {needed} (2.5 per dimension), where the distance is not yet linear in 1/n"
        )
    generator = np.random.default_rng(seed)
    sizes = np.round(np.linspace(0.5, 1, num_sizes) * rows).astype(int)
    values = np.array([pairs.distance(subsample(pairs.strata, int(size), generator)) for size in sizes])
    design = np.stack([np.ones(num_sizes), 1 / sizes], axis=1)
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ solution
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / (num_sizes - 2)
    return float(solution[0]), float(np.sqrt(covariance[0, 0]))


def principal_directions(features: np.ndarray, num_directions: int) -> np.ndarray:
    """The leading principal directions of a pool of features, (d, num_directions), orthonormal columns.

    The pool must not contain the rows that are compared later: directions that were fitted to one of the two sides
    hold more of that side's variance than of the other's, and equal populations then look different.

    Raises:
        ValueError: fewer than num_directions + 1 rows, or more directions than dimensions.
    """
    features = checked_features(features)
    if not 1 <= num_directions <= min(len(features) - 1, features.shape[1]):
        raise ValueError(
            f"{num_directions} directions from {features.shape[0]} rows of {features.shape[1]} dimensions"
        )
    _, _, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return np.ascontiguousarray(directions[:num_directions].T)


def checked_features(features: np.ndarray) -> np.ndarray:
    """Features as finite float64 (n, d), n of at least 2, no number beyond `LARGEST`; ValueError otherwise."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected at least two rows of features, not an array of shape {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("the features hold a value that is not finite")
    if features.size and max(features.max(), -features.min()) > LARGEST:
        raise ValueError(f"the features hold a value beyond {LARGEST:g}, whose products leave the range of float64")
    return features


def _factor(features: np.ndarray) -> np.ndarray:
    """A with AᵀA = C, and no more rows than columns."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _nuclear_norm(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum())
