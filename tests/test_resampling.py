"""Jackknife: exact for means and variances; groups, halves and subsamples that keep the strata's shares."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_sft.numerics.resampling import (
    replicate,
    split_groups,
    split_halves,
    stratified_order,
    subsample,
)

ONE_STRATUM = np.zeros(30)


def test_groups_are_a_partition_of_nearly_equal_sizes() -> None:
    groups = split_groups(np.zeros(47), 20, seed=3)
    assert sorted(np.concatenate(groups).tolist()) == list(range(47))
    assert {len(group) for group in groups} == {2, 3}
    assert len(split_groups(np.zeros(7), 20, seed=3)) == 7
    again = split_groups(np.zeros(47), 20, seed=3)
    assert all(np.array_equal(one, two) for one, two in zip(groups, again, strict=True))


def test_groups_and_subsamples_hold_the_strata_in_their_shares() -> None:
    strata = np.array(["a"] * 40 + ["b"] * 20 + ["c"] * 10)
    for group in split_groups(strata, 10, seed=0):
        counts = {name: int((strata[group] == name).sum()) for name in "abc"}
        assert counts["a"] in (3, 4, 5)
        assert counts["b"] in (1, 2, 3)
        assert counts["c"] in (0, 1, 2)
    drawn = subsample(strata, 35, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 35
    assert abs((strata[drawn] == "a").sum() - 20) <= 1
    # Equal strata, as many groups as slots in each: exactly one of each in every group.
    equal = np.repeat(np.arange(6), 5)
    order = stratified_order(equal, np.random.default_rng(1))
    assert all(len(set(equal[block])) == 6 for block in np.array_split(order, 5))


def test_halves_hold_the_same_number_of_each_stratum() -> None:
    strata = np.array(["a"] * 7 + ["b"] * 4 + ["c"])
    one, other = split_halves(strata, np.random.default_rng(0))
    assert sorted(strata[one]) == sorted(strata[other]) == ["a"] * 3 + ["b"] * 2
    assert not set(one) & set(other)


def test_delete_one_standard_error_of_a_mean_difference_is_the_textbooks() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 30))
    result = replicate(lambda rows: float((first[rows] - second[rows]).mean()), split_groups(ONE_STRATUM, 30, 0))
    assert result.standard_error == pytest.approx((first - second).std(ddof=1) / np.sqrt(30), rel=1e-12)
    assert result.minus(result).standard_error == 0
    assert result.degrees_of_freedom == 29


def test_bias_correction_makes_the_plug_in_variance_unbiased() -> None:
    # With one slot a group, the jackknife turns Σ(x - x̄)²/n into Σ(x - x̄)²/(n - 1), exactly.
    values = np.random.default_rng(1).normal(size=30)
    result = replicate(lambda rows: float(values[rows].var()), split_groups(ONE_STRATUM, 30, 0))
    assert result.value == pytest.approx(values.var(), rel=1e-12)
    assert result.bias_corrected == pytest.approx(values.var(ddof=1), rel=1e-12)


def test_standard_error_of_a_stratified_mean_is_that_within_strata() -> None:
    # 5 in each of 8 strata with means far apart: the spread between strata is no error of the mean.
    generator = np.random.default_rng(2)
    strata = np.repeat(np.arange(8), 5)
    values = 100 * strata + generator.normal(size=40)
    errors = [
        replicate(lambda rows: float(values[rows].mean()), split_groups(strata, 5, seed)).standard_error
        for seed in range(200)
    ]
    within = np.sqrt(np.mean([values[strata == stratum].var(ddof=1) for stratum in range(8)]) / 40)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(within, rel=0.1)
