"""Are generated images where real ones are, everywhere real ones are, varied, and new? Counts of near neighbours.

The k-ball of a row reaches to its k-th nearest neighbour on its own side, the row itself left out.

    precision = share of generated rows inside some real k-ball      (Kynkäänniemi et al., 2019, eq. 2)
    recall    = share of real rows inside some generated k-ball
    density   = 1/(k·M) Σ over generated rows of the real k-balls that hold it     (Naeem et al., 2020, eq. 3)
    coverage  = share of real rows whose k-ball holds a generated row              (Naeem et al., 2020, eq. 4)

Equal distributions give density 1 and coverage 1 - (N-1)…(N-k)/((M+N-1)…(M+N-k)); precision and recall have no such
reference, and all four depend on the numbers of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .resampling import Replicates, Rows, without

SPARE_NEIGHBOURS = 12
"""How many neighbours beyond the k-th are kept in order, in case a leave-out takes nearer ones away."""
BLOCK_ROWS = 2048
"""Rows of either side whose distances are held at once, where nearest rows alone are looked for."""
NO_ROWS: Rows = np.zeros(0, dtype=np.int64)
NEIGHBOUR_METRICS = ("precision", "recall", "density", "coverage")


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|x - y|² for all pairs of rows of (n, d) and (m, d), float64; what is within rounding of 0 is 0.

    Raises:
        ValueError: a value that is not finite, of which no neighbour could be told.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("the features hold a value that is not finite")
    origin = first.mean(axis=0)
    first, second = first - origin, second - origin
    norms = np.einsum("id,id->i", first, first)[:, None] + np.einsum("id,id->i", second, second)
    distances = norms - 2 * first @ second.T
    distances[distances < 1e-12 * norms] = 0
    return distances


def precision_recall_density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> dict[str, float]:
    """The four shares of `NEIGHBOUR_METRICS` for (N, d) real and (M, d) generated features, N, M > k.

    Raises:
        ValueError: k rows or fewer on a side.
    """
    real_radii, generated_radii = (_Neighbours.of(side, k).radii(k) for side in (real, generated))
    shares = _shares(squared_distances(real, generated), real_radii, generated_radii, k)
    return dict(zip(NEIGHBOUR_METRICS, shares, strict=True))


def neighbour_replicates(
    real: np.ndarray, generated: np.ndarray, groups: Sequence[Rows], k: int = 5
) -> dict[str, Replicates]:
    """The four shares of (n, d) real and (n, d) generated features, and without each group of slots on both sides.

    Raises:
        ValueError: k rows or fewer left on a side.
    """
    near_real, near_generated = _Neighbours.of(real, k), _Neighbours.of(generated, k)
    across = squared_distances(real, generated)
    value = _shares(across, near_real.radii(k), near_generated.radii(k), k)
    left = []
    for number, group in enumerate(groups):
        kept = without(groups, number)
        real_radii, generated_radii = near_real.radii(k, group)[kept], near_generated.radii(k, group)[kept]
        left.append(_shares(across[np.ix_(kept, kept)], real_radii, generated_radii, k))
    leave_outs = np.array(left)
    return {
        name: Replicates(value=value[column], leave_outs=leave_outs[:, column])
        for column, name in enumerate(NEIGHBOUR_METRICS)
    }


def vendi_score(features: np.ndarray) -> float:
    """The effective number of different rows: exp of the entropy of the eigenvalues of the cosine Gram matrix over n.

    Between 1 (all rows point the same way) and min(n, d), so only comparable at one n.
    Friedman & Dieng (2023), "The Vendi Score", definition 3.1.
    """
    features = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("a row of features is zero or not finite and points nowhere")
    rows = features / norms
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    shares = np.linalg.eigvalsh(gram) / len(rows)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def is_copy(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Whether each row is nearer to its nearest training row than any other training row is, (n,) bool.

    The share of such rows is 1 - AuthPct (Alaa et al., 2022, "How faithful is your synthetic data?", section 4):
    of a model that copies it is near 1, and what unseen real rows score is what to hold it against.

    Args:
        features: (n, d).
        train: (m, d), m >= 2.
    """
    if len(train) < 2:
        raise ValueError("the nearest other training row needs at least two training rows")
    nearest, distances = _nearest(features, train)
    copied, place = np.unique(nearest, return_inverse=True)
    _, among = _nearest(train[copied], train, left_out=copied)
    return distances <= among[place]


def _nearest(rows: np.ndarray, others: np.ndarray, left_out: Rows | None = None) -> tuple[Rows, np.ndarray]:
    """The nearest of the other rows to each row, the first of equally near ones, and its squared distance; `left_out`
    is a row of the others that does not count, for each row."""
    places, gaps = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), np.inf)
    for start in range(0, len(rows), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        for first in range(0, len(others), BLOCK_ROWS):
            distances = squared_distances(rows[here], others[first : first + BLOCK_ROWS])
            if left_out is not None:
                own = left_out[here] - first
                inside = np.flatnonzero((own >= 0) & (own < distances.shape[1]))
                distances[inside, own[inside]] = np.inf
            place = distances.argmin(axis=1)
            gap = distances[np.arange(len(place)), place]
            nearer = gap < gaps[here]
            places[here] = np.where(nearer, place + first, places[here])
            gaps[here] = np.where(nearer, gap, gaps[here])
    return places, gaps


@dataclass(frozen=True)
class _Neighbours:
    """The nearest other rows of each row, nearest first, as deep as leave-outs will ask but for very rare rows."""

    among: np.ndarray  # (n, n), infinite on the diagonal
    nearest: np.ndarray  # (n, depth)

    @classmethod
    def of(cls, features: np.ndarray, k: int) -> _Neighbours:
        among = squared_distances(features, features)
        if len(among) <= k:
            raise ValueError(f"the {k}-th neighbour needs more than {k} rows, not {len(among)}")
        np.fill_diagonal(among, np.inf)
        depth = min(k + SPARE_NEIGHBOURS, len(among) - 1)
        chosen = np.argpartition(among, depth - 1, axis=1)[:, :depth]
        order = np.argsort(np.take_along_axis(among, chosen, axis=1), axis=1, kind="stable")
        return cls(among, np.take_along_axis(chosen, order, axis=1))

    def radii(self, k: int, left_out: Rows = NO_ROWS) -> np.ndarray:
        """The squared distance of each row to its k-th nearest among the rows that are not left out, (n,)."""
        if len(self.among) - len(left_out) <= k:
            raise ValueError(f"the {k}-th neighbour needs more than {k} rows, not {len(self.among) - len(left_out)}")
        stays = np.ones(len(self.among), dtype=bool)
        stays[left_out] = False
        rank = np.cumsum(stays[self.nearest], axis=1)
        place = np.take_along_axis(self.nearest, (rank >= k).argmax(axis=1)[:, None], axis=1)
        radii = np.take_along_axis(self.among, place, axis=1)[:, 0]
        for row in np.flatnonzero(rank[:, -1] < k):
            radii[row] = np.partition(self.among[row, stays], k - 1)[k - 1]
        return radii


def _shares(across: np.ndarray, real_radii: np.ndarray, generated_radii: np.ndarray, k: int) -> tuple[float, ...]:
    inside = across <= real_radii[:, None]
    precision = inside.any(axis=0).mean()
    recall = (across <= generated_radii[None, :]).any(axis=1).mean()
    density = inside.sum() / (k * across.shape[1])
    coverage = inside.any(axis=1).mean()
    return float(precision), float(recall), float(density), float(coverage)
