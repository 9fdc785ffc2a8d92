"""Randomised singular values against numpy's, on matrices of planted spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_sft.numerics.linear_map import DenseMap, Transposed
from diffusion_sft.numerics.randomised import (
    condition_number,
    numerical_rank,
    randomised_singular_values,
    resolved_singular_values,
)

LIKE = torch.zeros(0, dtype=torch.float64)


class Counted:
    """A matrix that counts its products."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._map = DenseMap(matrix)
        self.num_rows, self.num_columns, self.num_products = *matrix.shape, 0

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        self.num_products += 1
        return self._map.jvp(columns)

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        self.num_products += 1
        return self._map.vjp(rows)


def planted(num_rows: int, num_columns: int, values: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A matrix of these singular values between random orthonormal bases."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(num_rows, len(values))))[0]
    right = np.linalg.qr(generator.normal(size=(num_columns, len(values))))[0]
    return torch.from_numpy(left * values @ right.T)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(120, 80), (80, 120)])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_planted_rank_is_found_exactly(num_rows: int, num_columns: int, chunk_size: int | None) -> None:
    """With fewer values than probes the range is caught whole."""
    values = 3.0 * 0.6 ** np.arange(12)
    matrix = planted(num_rows, num_columns, values)
    found = randomised_singular_values(DenseMap(matrix), num_values=20, seed=3, like=LIKE, chunk_size=chunk_size)
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)[:20]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[:12], values, rtol=1e-9)
    assert numerical_rank(found, 1e-9) == 12
    assert condition_number(found, 1e-9) == pytest.approx(0.6**-11, rel=1e-8)


def test_power_iterations_sharpen_a_slow_spectrum_from_below() -> None:
    matrix = planted(200, 150, 1 / np.sqrt(1 + np.arange(150)))
    truth = np.linalg.svd(matrix.numpy(), compute_uv=False)[:10]
    worst = []
    for q in (0, 1, 2, 4):
        found = randomised_singular_values(DenseMap(matrix), num_values=10, seed=1, num_power_iterations=q, like=LIKE)
        assert (found <= truth * (1 + 1e-12)).all()
        worst.append((1 - found / truth).max())
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 0.1
    assert worst[-1] < 0.02


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_few_rows_or_columns_are_formed_and_exact(shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(np.random.default_rng(5).normal(size=shape))
    counted = Counted(matrix)
    found = randomised_singular_values(counted, num_values=7, seed=0, like=LIKE)
    np.testing.assert_allclose(found, np.linalg.svd(matrix.numpy(), compute_uv=False), rtol=1e-12)
    assert counted.num_products == 7
    few = randomised_singular_values(DenseMap(matrix), num_values=3, seed=0, like=LIKE)
    np.testing.assert_allclose(few, found[:3], rtol=1e-12)


def test_a_map_and_its_transpose_have_the_same_values_and_seeds_decide() -> None:
    matrix = planted(90, 60, 0.5 ** np.arange(20))
    own = [randomised_singular_values(DenseMap(matrix), num_values=5, seed=s, like=LIKE) for s in (2, 2, 3)]
    other = randomised_singular_values(Transposed(DenseMap(matrix)), num_values=5, seed=2, like=LIKE)
    np.testing.assert_array_equal(own[0], own[1])
    assert (own[0] != own[2]).any()
    np.testing.assert_allclose(other, own[0], rtol=1e-6)


def test_values_are_asked_for_until_the_last_is_too_small_to_count() -> None:
    matrix = planted(300, 200, 0.8 ** np.arange(200))
    counted = Counted(matrix)
    found = resolved_singular_values(counted, relative_tolerance=0.01, seed=0, num_values=5, like=LIKE)
    assert len(found) == 40  # 5, 10, 20 end above the tolerance, 0.8^20 = 0.0115
    assert numerical_rank(found, 0.01) == 21
    assert counted.num_products == 4 * (13 + 18 + 28 + 48)
    whole = resolved_singular_values(DenseMap(matrix[:, :6]), relative_tolerance=0.0, seed=0, num_values=5, like=LIKE)
    assert len(whole) == 6


def test_ranks_and_conditions_of_nothing() -> None:
    assert numerical_rank(np.zeros(4), 0.1) == 0
    assert np.isnan(condition_number(np.zeros(4), 0.1))
    assert numerical_rank(np.zeros(0), 0.1) == 0
    assert condition_number(np.array([1.0, 4.0, 2.0, 1e-9]), 1e-6) == 4
    assert len(randomised_singular_values(DenseMap(torch.zeros(3, 0)), num_values=2, seed=0, like=LIKE)) == 0
    with pytest.raises(ValueError, match="num_values"):
        randomised_singular_values(DenseMap(torch.eye(3)), num_values=0, seed=0, like=LIKE)
