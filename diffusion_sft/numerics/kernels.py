"""How far apart are two sets of features, without bias at any size? The kernel distance (KID).

With k(x, y) = (x·y/d + 1)³ (Bińkowski et al., 2018, "Demystifying MMD GANs", section 4)

    U = Σ_{i≠j} k(x_i, x_j)/(n(n-1)) + Σ_{i≠j} k(y_i, y_j)/(m(m-1)) - 2 Σ k(x_i, y_j)/(nm)

over the whole sample once: unbiased for any n, m >= 2, so it may be negative, and of lower variance than any average
over blocks. Everything, leave-outs included, follows from the sums of k over pairs of groups of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .resampling import Replicates, Rows

BLOCK_ROWS = 1024
"""Rows of the kernel matrix that are held at once; it does not change the value."""


def cubic_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ for all pairs of rows of (n, d) and (m, d): (n, m)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """KID: the full-sample U-statistic of the squared maximum mean discrepancy, raw (papers print it times 1000).

    Args:
        real, generated: (n, d) and (m, d), n, m >= 2.
    """
    real, generated = _checked(real), _checked(generated)
    blocks = [np.array_split(np.arange(len(side)), -(-len(side) // BLOCK_ROWS)) for side in (real, generated)]
    one, two = _SideSums.of(real, blocks[0]), _SideSums.of(generated, blocks[1])
    across = _group_sums(real, generated, *blocks)
    return one.mean() + two.mean() - 2 * float(across.sum()) / (one.count * two.count)


def kernel_replicates(real: np.ndarray, generated: np.ndarray, groups: Sequence[Rows]) -> Replicates:
    """KID of all rows, and of all but each group's on both sides, from one pass over pairs of groups.

    Args:
        real, generated: (n, d) each.
        groups: a partition of the n slots; all but any one group are at least two slots.
    """
    real, generated = _checked(real), _checked(generated)
    one, two = _SideSums.of(real, groups), _SideSums.of(generated, groups)
    across = _group_sums(real, generated, groups, groups)
    left = across.sum() - across.sum(axis=0) - across.sum(axis=1) + np.diag(across)
    return Replicates(
        value=one.mean() + two.mean() - 2 * float(across.sum()) / one.count**2,
        leave_outs=one.means_without() + two.means_without() - 2 * left / (one.count - one.sizes) ** 2,
    )


def hoeffding_standard_error(real: np.ndarray, generated: np.ndarray) -> float:
    """KID's standard error from the first order of its Hoeffding expansion, 2·sqrt(var(h_x)/n + var(h_y)/m).

    h_x(i) = mean_{j≠i} k(x_i, x_j) - mean_j k(x_i, y_j), and h_y alike. It is for independent rows (no strata),
    and misses the second order, which is all there is between equal populations.
    """
    real, generated = _checked(real), _checked(generated)
    across = cubic_kernel(real, generated)
    variance = 0.0
    for side, other_means in ((real, across.mean(axis=1)), (generated, across.mean(axis=0))):
        within = cubic_kernel(side, side)
        own_means = (within.sum(axis=1) - np.diag(within)) / (len(side) - 1)
        variance += float(np.var(own_means - other_means, ddof=1)) / len(side)
    return 2 * float(np.sqrt(variance))


@dataclass(frozen=True)
class _SideSums:
    """Sums of k(x_i, x_j), i ≠ j, within one side, by pair of groups."""

    sums: np.ndarray  # (num_groups, num_groups)
    sizes: np.ndarray  # (num_groups,)

    @classmethod
    def of(cls, features: np.ndarray, groups: Sequence[Rows]) -> _SideSums:
        sums = _group_sums(features, features, groups, groups)
        own = (np.einsum("id,id->i", features, features) / features.shape[1] + 1) ** 3
        sums[np.diag_indices(len(groups))] -= [own[group].sum() for group in groups]
        return cls(sums, np.array([len(group) for group in groups]))

    @property
    def count(self) -> int:
        return int(self.sizes.sum())

    def mean(self) -> float:
        return float(self.sums.sum()) / (self.count * (self.count - 1))

    def means_without(self) -> np.ndarray:
        """The mean over the pairs that are left when each group in turn is left out."""
        left = self.sums.sum() - 2 * self.sums.sum(axis=1) + np.diag(self.sums)
        counts = self.count - self.sizes
        return left / (counts * (counts - 1))


def _group_sums(
    first: np.ndarray, second: np.ndarray, first_groups: Sequence[Rows], second_groups: Sequence[Rows]
) -> np.ndarray:
    """Σ k over each pair of groups, (num_first_groups, num_second_groups), one group's kernel rows at a time."""
    ordered = second[np.concatenate(second_groups)]
    starts = np.cumsum([0, *(len(group) for group in second_groups[:-1])])
    return np.stack(
        [np.add.reduceat(cubic_kernel(first[group], ordered).sum(axis=0), starts) for group in first_groups]
    )


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected at least two rows of features, not an array of shape {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("the features hold a value that is not finite")
    return features
