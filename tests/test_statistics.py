"""Intervals and agreement against closed forms, published values, scikit-learn and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from diffusion_sft.numerics.statistics import (
    auroc,
    bootstrap_mean,
    bootstrap_noisy_means,
    cohen_kappa,
    spearman,
    standard_error_of_mean,
    wilson,
)


def test_wilson_closed_form_and_published_value() -> None:
    share = wilson(81, 263)  # Newcombe 1998, table I, method 3
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    z = 1.959963984540054
    for successes, trials in ((0, 20), (7, 20), (20, 20), (1, 1)):
        p = successes / trials
        centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
        share = wilson(successes, trials)
        np.testing.assert_allclose([share.low, share.high], [centre - half, centre + half], atol=1e-12)
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="k"):
        wilson(3, 2)


def test_auroc_value_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    for m, n in ((1, 1), (5, 9), (60, 40)):
        positives, negatives = generator.integers(0, 6, m) + 1.0, generator.integers(0, 6, n) * 1.0
        labels = [1] * m + [0] * n
        expected = roc_auc_score(labels, np.concatenate([positives, negatives]))
        assert auroc(positives, negatives).value == pytest.approx(expected, abs=1e-12)
        # the other way round is the mirror image
        one, other = auroc(positives, negatives), auroc(negatives, positives)
        np.testing.assert_allclose([one.low, one.high], [1 - other.high, 1 - other.low], atol=1e-9)


def test_auroc_interval_solves_its_equation_and_keeps_a_width_at_one() -> None:
    m, n, z = 12, 30, 1.959963984540054

    def variance(theta: float) -> float:
        # Hanley & McNeil 1982 with both sample sizes replaced by their mean: Q1 = θ/(2 - θ), Q2 = 2θ²/(1 + θ)
        q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
        mean = (m + n) / 2
        return (theta * (1 - theta) + (mean - 1) * (q1 - theta**2) + (mean - 1) * (q2 - theta**2)) / (m * n)

    generator = np.random.default_rng(1)
    for shift in (0.0, 1.0, 50.0):
        found = auroc(generator.normal(shift, 1, m), generator.normal(0, 1, n))
        assert found.low <= found.value <= found.high
        assert abs(found.value - found.low) == pytest.approx(z * math.sqrt(variance(found.low)), rel=1e-6)
        if found.value < 1:
            assert abs(found.high - found.value) == pytest.approx(z * math.sqrt(variance(found.high)), rel=1e-6)
        else:
            assert found.high == 1
            assert 0.7 < found.low < 0.99
    assert auroc(np.zeros(m), np.ones(n)).low == 0
    assert auroc(np.zeros(m), np.zeros(n)).value == 0.5


def test_auroc_coverage() -> None:
    generator = np.random.default_rng(2)
    for truth in (0.6, 0.95):
        shift = math.sqrt(2) * stats.norm.ppf(truth)
        found = [auroc(generator.normal(shift, 1, 25), generator.normal(0, 1, 15)) for _ in range(400)]
        assert 0.92 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.985


def test_auroc_refuses() -> None:
    with pytest.raises(ValueError, match="both sides"):
        auroc(np.array([]), np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        auroc(np.array([np.nan]), np.ones(3))


def test_spearman_value_interval_and_degenerate_cases() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=30)
    y = x + generator.normal(size=30)
    found = spearman(x, y)
    ranks = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    assert found.value == pytest.approx(ranks, abs=1e-12)
    width = 1.959963984540054 * math.sqrt((1 + ranks**2 / 2) / 27)
    np.testing.assert_allclose(
        [found.low, found.high], np.tanh([np.arctanh(ranks) - width, np.arctanh(ranks) + width])
    )
    assert spearman(x, np.exp(x)).value == pytest.approx(1)
    assert spearman(x, np.exp(x)).low > 0.99
    assert math.isnan(spearman(x, np.ones(30)).value)
    assert math.isnan(spearman(x[:3], y[:3]).low)
    assert math.isnan(spearman(x[:1], y[:1]).value)


def test_spearman_coverage() -> None:
    """Normal pairs of correlation r have Spearman's rho (6/π) asin(r/2)."""
    generator = np.random.default_rng(4)
    truth = 6 / math.pi * math.asin(0.6 / 2)
    hits = []
    for _ in range(400):
        x = generator.normal(size=40)
        found = spearman(x, 0.6 * x + 0.8 * generator.normal(size=40))
        hits.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.985


def test_kappa_is_scikit_learns() -> None:
    generator = np.random.default_rng(5)
    for labels in (2, 4):
        first = generator.integers(0, labels, 50)
        second = np.where(generator.random(50) < 0.6, first, generator.integers(0, labels, 50))
        expected = cohen_kappa_score(first, second)
        assert cohen_kappa(first.tolist(), second.tolist()) == pytest.approx(expected, abs=1e-12)
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"]))
    assert cohen_kappa(["a", "a"], ["b", "b"]) == 0
    with pytest.raises(ValueError, match="same things"):
        cohen_kappa(["a"], [])


def test_bootstrap_mean_over_groups() -> None:
    generator = np.random.default_rng(6)
    groups = np.repeat(np.arange(200), 5)
    values = generator.normal(size=200)[groups]  # five equal values each: only 200 are independent
    found = bootstrap_mean(values, groups.tolist(), num_bootstrap=4000, seed=0)
    half = 1.96 * values[::5].std() / math.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.1 * half)
    again = bootstrap_mean(values, groups.tolist(), num_bootstrap=4000, seed=0)
    assert again == found
    assert math.isnan(bootstrap_mean(values[:5], [0] * 5, num_bootstrap=10, seed=0).low)


def test_bootstrap_mean_weighs_values_and_not_groups() -> None:
    found = bootstrap_mean(np.array([0.0, 0, 0, 4]), ["a", "a", "a", "b"], num_bootstrap=2000, seed=0)
    assert (found.value, found.low, found.high) == (1, 0, 4)


@pytest.mark.parametrize(("between", "noise"), [(1.0, 0.1), (1.0, 1.0), (0.0, 1.0)])
def test_noisy_means_have_the_stated_standard_error(between: float, noise: float) -> None:
    generator = np.random.default_rng(7)
    values = generator.normal(0, math.hypot(between, noise), (8, 2))
    own = np.full((8, 2), noise)
    error = standard_error_of_mean(values, own)
    expected = np.sqrt(np.maximum(values.var(axis=0, ddof=1), noise**2) / 8)
    np.testing.assert_allclose(error, expected)
    means = bootstrap_noisy_means(values, own, 20_000, generator)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=4 * error.max() / math.sqrt(20_000))
    np.testing.assert_allclose(means.std(axis=0), error, rtol=0.03)


def test_one_noisy_value_is_as_sure_as_its_own_error() -> None:
    values, own = np.array([[3.0]]), np.array([[0.5]])
    assert standard_error_of_mean(values, own) == 0.5
    means = bootstrap_noisy_means(values, own, 20_000, np.random.default_rng(8))
    assert means.std() == pytest.approx(0.5, rel=0.03)
    assert standard_error_of_mean(values, np.zeros((1, 1))) == 0


@pytest.mark.parametrize(("num_rows", "low", "high"), [(20, 0.91, 0.97), (2, 0.65, 0.82)])
def test_coverage_is_the_one_that_the_docstring_states(num_rows: int, low: float, high: float) -> None:
    """Rows that differ three times as much as their noise: honest for many rows, too sure for two."""
    generator = np.random.default_rng(9)
    hits = []
    for _ in range(300):
        values = generator.normal(0, math.hypot(3, 1), (num_rows, 1))
        means = bootstrap_noisy_means(values, np.ones((num_rows, 1)), 400, generator)
        ends = np.quantile(means, [0.025, 0.975])
        hits.append(ends[0] <= 0 <= ends[1])
    assert low <= np.mean(hits) <= high


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", range(4, 40))
def test_a_perfect_rank_correlation_lies_in_its_interval(count: int, sign: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    found = spearman(values, sign * values)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(sign)
