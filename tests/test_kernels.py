"""The kernel distance against its definition, by hand, and on populations of known distance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from diffusion_sft.numerics.kernels import (
    cubic_kernel,
    hoeffding_standard_error,
    kernel_distance,
    kernel_replicates,
)
from diffusion_sft.numerics.resampling import replicate, split_groups


def by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """The U-statistic with loops over pairs."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within = [np.mean([k(x, y) for x, y in permutations(side, 2)]) for side in (first, second)]
    return float(sum(within) - 2 * np.mean([k(x, y) for x in first for y in second]))


def test_equals_the_definition_at_any_sizes() -> None:
    generator = np.random.default_rng(0)
    for n, m, dims in ((2, 2, 3), (5, 9, 4), (12, 3, 1)):
        first, second = generator.normal(size=(n, dims)), generator.normal(size=(m, dims)) + 0.3
        assert kernel_distance(first, second) == pytest.approx(by_definition(first, second), rel=1e-12)


def test_two_rows_a_side_by_hand() -> None:
    # d = 1, x = (0, 1), y = (1, 2): k(0, 1) = 1, k(1, 2) = 27, across (1, 1, 8, 27).
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kernel_distance(first, second) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, rel=1e-14)


def test_identical_sets_read_below_zero_by_the_diagonal() -> None:
    features = np.random.default_rng(1).normal(size=(40, 6))
    kernel = cubic_kernel(features, features)
    off_diagonal = (kernel.sum() - np.trace(kernel)) / (40 * 39)
    assert kernel_distance(features, features) == pytest.approx(2 * (off_diagonal - kernel.mean()), rel=1e-12)
    assert kernel_distance(features, features) < 0


def test_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(37, 5)), generator.normal(size=(50, 5))
    whole = kernel_distance(first, second)
    monkeypatch.setattr("diffusion_sft.numerics.kernels.BLOCK_ROWS", 8)
    assert kernel_distance(first, second) == pytest.approx(whole, rel=1e-12)


def test_leave_outs_from_group_sums_equal_leaving_rows_out() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(43, 5)), generator.normal(size=(43, 5)) + 0.2
    groups = split_groups(np.repeat(["a", "b"], [20, 23]), 8, 0)
    fast = kernel_replicates(first, second, groups)
    slow = replicate(lambda rows: kernel_distance(first[rows], second[rows]), groups)
    assert fast.value == pytest.approx(slow.value, rel=1e-12)
    np.testing.assert_allclose(fast.leave_outs, slow.leave_outs, rtol=1e-11)


def test_unbiased_and_both_standard_errors_honest() -> None:
    # E k over Gaussian x ~ N(a, I), y ~ N(b, I): with z = x·y/d + 1 a sum over dimensions, from a large sample.
    generator = np.random.default_rng(4)
    dims, rows, shift = 8, 60, 0.5
    big = kernel_distance(*(generator.normal(size=(6000, dims)) + offset for offset in (0, shift)))
    values, jackknife, hoeffding = [], [], []
    for seed in range(200):
        first, second = generator.normal(size=(rows, dims)), generator.normal(size=(rows, dims)) + shift
        result = kernel_replicates(first, second, split_groups(np.zeros(rows), 20, seed))
        values.append(result.value)
        jackknife.append(result.standard_error)
        hoeffding.append(hoeffding_standard_error(first, second))
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - big) < 4 * spread / np.sqrt(200)
    assert 0.85 < np.mean(jackknife) / spread < 1.4
    assert 0.7 < np.mean(hoeffding) / spread < 1.3
    covered = np.abs(np.array(values) - big) < 1.96 * np.array(jackknife)
    assert covered.mean() >= 0.9


def test_equal_populations_average_to_zero() -> None:
    generator = np.random.default_rng(5)
    values = [kernel_distance(*generator.normal(size=(2, 30, 6))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)


def test_clean_fids_function_is_the_same_number_when_its_block_is_the_whole_set() -> None:
    from cleanfid.fid import kernel_distance as clean_fids

    generator = np.random.default_rng(6)
    first, second = generator.normal(size=(50, 12)), generator.normal(size=(50, 12)) + 0.4
    assert kernel_distance(first, second) == pytest.approx(clean_fids(first, second, num_subsets=2), rel=1e-10)


def test_too_few_or_broken_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        kernel_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(np.full((3, 3), np.inf), np.zeros((4, 3)))
