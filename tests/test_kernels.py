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
    one = np.zeros(43)
    groups = split_groups(one, 8, 0)
    fast = kernel_replicates(first, second, one, groups)
    slow = replicate(lambda rows: kernel_distance(first[rows], second[rows]), groups)
    assert fast.value == pytest.approx(slow.value, rel=1e-12)
    np.testing.assert_allclose(fast.leave_outs, slow.leave_outs, rtol=1e-11)


def test_unbiased_and_both_standard_errors_honest() -> None:
    # x ~ N(0, I), y ~ N(a, I), s = |a|²: Σ_p C(3, p) d^-p |E x^⊗p - E y^⊗p|²
    # = 3s/d + 3s²/d² + (s³ + 6s² + 3sd + 6s)/d³.
    generator = np.random.default_rng(4)
    dims, rows, shift = 8, 60, 0.5
    s = dims * shift**2
    truth = 3 * s / dims + 3 * s**2 / dims**2 + (s**3 + 6 * s**2 + 3 * s * dims + 6 * s) / dims**3
    values, jackknife, hoeffding = [], [], []
    for seed in range(120):
        first, second = generator.normal(size=(rows, dims)), generator.normal(size=(rows, dims)) + shift
        result = kernel_replicates(first, second, np.zeros(rows), split_groups(np.zeros(rows), 20, seed))
        values.append(result.value)
        jackknife.append(result.standard_error)
        hoeffding.append(hoeffding_standard_error(first, second))
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - truth) < 4 * spread / np.sqrt(120)
    assert 0.85 < np.mean(jackknife) / spread < 1.4
    assert 0.7 < np.mean(hoeffding) / spread < 1.3
    covered = np.abs(np.array(values) - truth) < 1.96 * np.array(jackknife)
    assert covered.mean() >= 0.9


def stratified_by_definition(first: np.ndarray, second: np.ndarray, strata: np.ndarray) -> float:
    """Σ over pairs of strata of w_c w_c' (mean within + mean within - 2 mean across), each block's mean unbiased."""
    total, mass = 0.0, 0.0
    for one in np.unique(strata):
        for two in np.unique(strata):
            rows, columns = np.flatnonzero(strata == one), np.flatnonzero(strata == two)
            if one == two and len(rows) == 1:
                continue
            weight = len(rows) * len(columns)
            blocks = [cubic_kernel(side[rows], side[columns]) for side in (first, second)]
            if one == two:
                away = ~np.eye(len(rows), dtype=bool)
                within = sum(block[away].mean() for block in blocks)
            else:
                within = sum(block.mean() for block in blocks)
            # Half of the cross terms from each order of the two strata.
            across = (
                cubic_kernel(first[rows], second[columns]).mean() + cubic_kernel(first[columns], second[rows]).mean()
            )
            total += weight * (within - across)
            mass += weight
    return total / mass


@pytest.mark.parametrize("sizes", [(6, 5, 4), (3, 1, 1, 2), (1,) * 8, (9,)])
def test_strata_weigh_what_they_should(sizes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    strata = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    first, second = generator.normal(size=(2, len(strata), 4)) + 3 * strata[:, None]
    groups = split_groups(strata, 4, 0)
    fast = kernel_replicates(first, second, strata, groups)
    slow = replicate(lambda rows: stratified_by_definition(first[rows], second[rows], strata[rows]), groups)
    assert fast.value == pytest.approx(slow.value, rel=1e-9)
    np.testing.assert_allclose(fast.leave_outs, slow.leave_outs, rtol=1e-9)


@pytest.mark.parametrize(("concepts", "images"), [(5, 12), (30, 2), (60, 1)])
def test_unbiased_where_both_sides_hold_the_same_concepts(concepts: int, images: int) -> None:
    # Plain U reads equal populations as below 0, as the spread between concepts counts for less within a side.
    generator = np.random.default_rng(concepts)
    strata = np.repeat(np.arange(concepts), images)
    values, errors, plain = [], [], []
    for seed in range(40):
        centres = 1.5 * generator.normal(size=(concepts, 6))[strata]
        first, second = centres + 0.5 * generator.normal(size=(2, len(strata), 6))
        result = kernel_replicates(first, second, strata, split_groups(strata, 20, seed))
        values.append(result.value)
        errors.append(result.standard_error)
        plain.append(kernel_distance(first, second))
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values)) < 4 * spread / np.sqrt(40)
    assert np.mean(plain) < -4 * np.std(plain, ddof=1) / np.sqrt(40)
    assert 0.8 < np.mean(errors) / spread < 2


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
