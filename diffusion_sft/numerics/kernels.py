"""How far apart are two sets of features, without bias at any size? The kernel distance (KID).

With k(x, y) = (x·y/d + 1)³ (Bińkowski et al., 2018, "Demystifying MMD GANs", section 4)

    U = Σ_{i≠j} k(x_i, x_j)/(n(n-1)) + Σ_{i≠j} k(y_i, y_j)/(m(m-1)) - 2 Σ k(x_i, y_j)/(nm)

over the whole sample once: unbiased for any n, m >= 2, so it may be negative, and of lower variance than any average
over blocks. Where both sides hold m_c rows of each stratum c (images of one concept), a row has fewer partners of
its own stratum on its own side, m_c - 1, than on the other, m_c, and U reads too low; pairs within a stratum then
weigh m_c/(m_c - 1) as much, and a stratum of one row is compared with the others only. One stratum is U itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .frechet import checked_features
from .resampling import Replicates, Rows

BLOCK_ROWS = 1024
"""Rows of the kernel matrix that are held at once; it does not change the value."""


def cubic_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ for all pairs of rows of (n, d) and (m, d): (n, m)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """KID: the full-sample U-statistic of the squared maximum mean discrepancy, raw (papers print it times 1000).

    Args:
        real, generated: (n, d) and (m, d) rows drawn independently, n, m >= 2.
    """
    real, generated = checked_features(real), checked_features(generated)
    within = 0.0
    for side in (real, generated):
        everyone = np.zeros(len(side), dtype=np.int64)
        within += float(_within(side, everyone, 1).sum()) / (len(side) * (len(side) - 1))
    groups = (np.zeros(len(real), dtype=np.int64), np.zeros(len(generated), dtype=np.int64))
    return within - 2 * float(_group_sums(real, generated, groups, 1).sum()) / (len(real) * len(generated))


def kernel_replicates(
    real: np.ndarray, generated: np.ndarray, strata: np.ndarray, groups: Sequence[Rows]
) -> Replicates:
    """The stratified KID of all slots, and without each group on both sides, from one pass over the pairs.

    Args:
        real, generated: (n, d) each.
        strata: (n,) labels; slot i is a row of either side, both of this stratum.
        groups: a partition of the slots.

    Raises:
        ValueError: a leave-out without two slots of one stratum or of two.
    """
    real, generated = checked_features(real), checked_features(generated)
    group_of = np.empty(len(real), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[group] = number
    count = len(groups)
    pairs = _left(_within(real, group_of, count) + _within(generated, group_of, count))
    across = _left(_group_sums(real, generated, (group_of, group_of), count))
    mass = _left(np.outer(*[np.bincount(group_of, minlength=count)] * 2))
    for stratum in np.unique(strata):
        slots = np.flatnonzero(strata == stratum)
        member, one, two = group_of[slots], real[slots], generated[slots]
        own = _left(_within(one, member, count) + _within(two, member, count))
        sizes = np.sqrt(_left(np.outer(*[np.bincount(member, minlength=count)] * 2)))
        single = np.round(sizes) == 1
        pairs += np.divide(own, sizes - 1, out=np.zeros(count + 1), where=sizes > 1.5)
        across -= np.where(single, _left(_group_sums(one, two, (member, member), count)), 0)
        mass -= single
    if (mass <= 0).any():
        raise ValueError("a kernel distance needs two slots of one stratum, or of two")
    values = (pairs - 2 * across) / mass
    return Replicates(value=float(values[0]), leave_outs=values[1:])


def hoeffding_standard_error(real: np.ndarray, generated: np.ndarray) -> float:
    """KID's standard error from the first order of its Hoeffding expansion, 2·sqrt(var(h_x)/n + var(h_y)/m).

    h_x(i) = mean_{j≠i} k(x_i, x_j) - mean_j k(x_i, y_j), and h_y alike. It is for independent rows (no strata),
    and misses the second order, which is all there is between equal populations.
    """
    real, generated = checked_features(real), checked_features(generated)
    across = cubic_kernel(real, generated)
    variance = 0.0
    for side, other_means in ((real, across.mean(axis=1)), (generated, across.mean(axis=0))):
        within = cubic_kernel(side, side)
        own_means = (within.sum(axis=1) - np.diag(within)) / (len(side) - 1)
        variance += float(np.var(own_means - other_means, ddof=1)) / len(side)
    return 2 * float(np.sqrt(variance))


def _group_sums(
    first: np.ndarray, second: np.ndarray, groups: tuple[np.ndarray, np.ndarray], num_groups: int
) -> np.ndarray:
    """Σ k over the pairs of each two groups, (num_groups, num_groups); `groups` number each row's group."""
    rows, columns = (np.eye(num_groups)[group] for group in groups)
    sums = np.zeros((num_groups, num_groups))
    for start in range(0, len(first), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        sums += rows[block].T @ (cubic_kernel(first[block], second) @ columns)
    return sums


def _within(side: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Σ_{i≠j} k(x_i, x_j) over the pairs of each two groups of one side."""
    own = (np.einsum("id,id->i", side, side) / side.shape[1] + 1) ** 3
    sums = _group_sums(side, side, (groups, groups), num_groups)
    return sums - np.diag(np.bincount(groups, weights=own, minlength=num_groups))


def _left(sums: np.ndarray) -> np.ndarray:
    """From sums over pairs of groups: the sum over all, then over what is left without each group, (1 + groups,)."""
    total = sums.sum()
    left = total - sums.sum(axis=0) - sums.sum(axis=1) + np.diag(sums)
    return np.concatenate([[total], left]).astype(np.float64)
