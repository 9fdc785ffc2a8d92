"""How large are the singular values of a matrix that is never formed, and how many of them count?

Randomised subspace iteration (Halko, Martinsson & Tropp, 2011, SIAM Review 53(2), algorithm 4.4) and the SVD of the
small matrix that is left (their algorithm 5.1):

    Q = orth(J Ω),  then q times  Q = orth(J orth(Jᵀ Q)),   σ(J) ≈ σ(Qᵀ J)

with a Gaussian Ω of a few columns more than the values asked for. Every σ(Qᵀ J) is at most the true one.
"""

from __future__ import annotations

import numpy as np
import torch

from .linear_map import LinearMap, Transposed
from .noise import normal


def randomised_singular_values(
    map: LinearMap,
    *,
    num_values: int,
    seed: int,
    num_oversamples: int = 8,
    num_power_iterations: int = 1,
    like: torch.Tensor,
    chunk_size: int | None = None,
) -> np.ndarray:
    """The largest singular values.

    Args:
        map: J. Where the probes are as many as its rows or columns, the matrix is formed and the values are exact.
        num_values: how many are asked for; fewer come back where J has fewer rows or columns.
        seed: of Ω.
        num_oversamples: columns of Ω beyond that.
        num_power_iterations: q above; more where the values fall slowly.
        like: a tensor of the map's device and type.
        chunk_size: how many products `torch.vmap` takes at once; None: one product after another, for maps that it
            cannot go through.

    Returns:
        Float64 (at most num_values,), falling.
    """
    if num_values < 1:
        raise ValueError(f"num_values must be at least 1, not {num_values}")
    num_probes, smaller = num_values + num_oversamples, min(map.num_rows, map.num_columns)
    if smaller == 0:
        return np.zeros(0)
    if num_probes >= smaller:
        tall = map if map.num_columns <= map.num_rows else Transposed(map)
        identity = torch.eye(smaller, dtype=like.dtype, device=like.device)
        return _values(_products(tall, identity, chunk_size), num_values)
    probes = normal((map.num_columns, num_probes), seed).to(like)
    basis = _orthonormal(_products(map, probes, chunk_size))
    for _ in range(num_power_iterations):
        basis = _orthonormal(_products(Transposed(map), basis, chunk_size))
        basis = _orthonormal(_products(map, basis, chunk_size))
    return _values(_products(Transposed(map), basis, chunk_size), num_values)


def resolved_singular_values(
    map: LinearMap,
    *,
    relative_tolerance: float,
    seed: int,
    num_values: int = 24,
    num_power_iterations: int = 1,
    like: torch.Tensor,
    chunk_size: int | None = None,
) -> np.ndarray:
    """So many of the largest singular values that the last is below the tolerance times the first, or all of them.

    Args:
        map, seed, num_power_iterations, like, chunk_size: as in `randomised_singular_values`.
        relative_tolerance: what counts, as in `numerical_rank`.
        num_values: how many are tried at first; doubled until they are enough.
    """
    smaller = min(map.num_rows, map.num_columns)
    while True:
        values = randomised_singular_values(
            map,
            num_values=num_values,
            seed=seed,
            num_power_iterations=num_power_iterations,
            like=like,
            chunk_size=chunk_size,
        )
        if len(values) == smaller or numerical_rank(values, relative_tolerance) < len(values):
            return values
        num_values *= 2


def numerical_rank(singular_values: np.ndarray, relative_tolerance: float) -> int:
    """How many values are above the tolerance times the largest; 0 of nothing but zeros."""
    largest = singular_values.max(initial=0.0)
    return int((singular_values > relative_tolerance * largest).sum()) if largest > 0 else 0


def condition_number(singular_values: np.ndarray, relative_tolerance: float) -> float:
    """The largest over the smallest value within the numerical rank; NaN where that is 0."""
    rank = numerical_rank(singular_values, relative_tolerance)
    falling = np.sort(singular_values)[::-1]
    return float(falling[0] / falling[rank - 1]) if rank else float("nan")


def _products(map: LinearMap, columns: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
    """J C, (num_rows, num_probes)."""
    if chunk_size is None:
        return torch.stack([map.jvp(column) for column in columns.T], dim=1)
    products: torch.Tensor = torch.vmap(map.jvp, in_dims=1, out_dims=1, chunk_size=chunk_size)(columns)
    return products


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(columns).Q


def _values(matrix: torch.Tensor, num_values: int) -> np.ndarray:
    found: np.ndarray = torch.linalg.svdvals(matrix.double()).cpu().numpy()
    return found[:num_values]
