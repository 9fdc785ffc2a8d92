"""Do two labellings of the same things go together? Pearson's χ² as an effect size, and its p-value by permutation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 22
"""Most labels that are permuted at a time."""


def contingency_table(first: Sequence[object], second: Sequence[object]) -> np.ndarray:
    """How often each label of the first meets each of the second, int64; labels in the order of their text.

    Raises:
        ValueError: not as many labels on either side.
    """
    rows, columns = _codes(first), _codes(second)
    if len(rows) != len(columns):
        raise ValueError(f"two labellings of the same things are needed, not {len(rows)} and {len(columns)} labels")
    shape = (rows.max(initial=-1) + 1, columns.max(initial=-1) + 1)
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def cramers_v(table: np.ndarray) -> float:
    """V = sqrt(χ² / (n · (min(r, c) − 1))) of a contingency table (Cramér, 1946, section 21.9), 0 to 1.

    Not corrected for bias: of independent labels V is above 0 on average, the more so the fewer they are. Rows and
    columns of nothing are left out; NaN where fewer than two of either are left.

    Args:
        table: counts, (r, c).

    Raises:
        ValueError: an entry that is no count.
    """
    counts = np.asarray(table, dtype=np.float64)
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError("a contingency table holds counts alone")
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    smaller = min(counts.shape)
    if smaller < 2:
        return math.nan
    return math.sqrt(_chi_squared(counts) / (counts.sum() * (smaller - 1)))


def permutation_p(first: Sequence[object], second: Sequence[object], num_permutations: int, seed: int) -> float:
    """The p-value of χ² where either labelling could stand in any order: (1 + count) / (1 + num_permutations).

    `count` is how many random orders of the second have a χ² at least as large (Phipson & Smyth, 2010, for the ones
    added). 1 where either side has one label only.

    Raises:
        ValueError: not as many labels on either side.
    """
    observed = contingency_table(first, second).astype(np.float64)
    if min(observed.shape) < 2:
        return 1.0
    rows, columns = _codes(first), _codes(second)
    expected = observed.sum(axis=1, keepdims=True) * observed.sum(axis=0) / len(rows)
    cells, width = observed.size, observed.shape[1]
    # Margins never change, so that χ² + n is this sum. What differs by rounding alone is as large.
    bar = (observed**2 / expected).sum() * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    count, left = 0, num_permutations
    while left:
        size = min(left, max(1, CHUNK // len(rows)))
        shuffled = generator.permuted(np.tile(columns, (size, 1)), axis=1)
        places = np.arange(size)[:, None] * cells + rows * width + shuffled
        tables = np.bincount(places.ravel(), minlength=size * cells).reshape(size, *observed.shape)
        count += int(((tables**2 / expected).sum(axis=(1, 2)) >= bar).sum())
        left -= size
    return (1 + count) / (1 + num_permutations)


def _chi_squared(counts: np.ndarray) -> float:
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def _codes(labels: Sequence[object]) -> np.ndarray:
    return np.unique(np.array([str(label) for label in labels], dtype=object), return_inverse=True)[1].reshape(-1)
