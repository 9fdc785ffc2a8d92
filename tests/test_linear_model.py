"""Least squares: closed forms, and intervals that hold the truth as often as they say under clustered errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_sft.numerics.linear_model import fit_dynamics, least_squares
from diffusion_sft.numerics.statistics import student_mean


def a_design(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    generator = np.random.default_rng(seed)
    known, unknown = generator.uniform(0, 1, (2, n))
    return known, unknown, generator


def test_an_exact_line_and_what_it_implies() -> None:
    known, unknown, _ = a_design(12)
    fit = fit_dynamics(known, unknown, 0.369 + 0.073 * known - 0.083 * unknown, runs=np.repeat(np.arange(6), 2))
    estimates = [fit.intercept, fit.known, fit.unknown, fit.all_known_fitted, fit.all_unknown_fitted]
    assert [c.estimate for c in estimates] == pytest.approx([0.369, 0.073, -0.083, 0.442, 0.286])
    assert max(c.high - c.low for c in estimates) < 1e-9
    assert fit.r_squared == pytest.approx(1.0)
    assert (fit.num_points, fit.num_runs) == (12, 6)
    assert fit.to_dict()["unknown"]["estimate"] == pytest.approx(-0.083)


def test_plain_intervals_are_those_of_simple_regression() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 4.0])
    fit = least_squares(np.column_stack([np.ones(4), x]), y)
    known = stats.linregress(x, y)
    reach = float(stats.t.ppf(0.975, 2)) * known.stderr
    slope = fit.at((0, 1))
    assert (slope.estimate, slope.low, slope.high) == pytest.approx(
        (known.slope, known.slope - reach, known.slope + reach)
    )
    assert fit.at((1, 0)).estimate == pytest.approx(known.intercept)
    assert fit.r_squared == pytest.approx(known.rvalue**2)


def test_the_clustered_variance_is_the_formula_written_out() -> None:
    """V = G/(G−1)·(n−1)/(n−k) (XᵀX)⁻¹ Σ (X_gᵀe_g)(X_gᵀe_g)ᵀ (XᵀX)⁻¹, cluster by cluster."""
    known, unknown, generator = a_design(20, seed=3)
    clusters = np.array(list("aabbbccccdddddeeffff"))
    accuracy = 0.4 + 0.1 * known - 0.2 * unknown + generator.normal(0, 0.05, 20)
    x = np.column_stack([np.ones(20), known, unknown])
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ accuracy
    middle = np.zeros((3, 3))
    for name in "abcdef":
        inside = clusters == name
        score = x[inside].T @ (accuracy[inside] - x[inside] @ beta)
        middle += np.outer(score, score)
    variance = 6 / 5 * 19 / 17 * inverse @ middle @ inverse
    fit = least_squares(x, accuracy, clusters=clusters)
    assert fit.estimates == pytest.approx(beta)
    assert fit.covariance == pytest.approx(variance)
    assert fit.freedom == 5
    weights = np.array([1.0, 0.0, 1.0])
    reach = float(stats.t.ppf(0.975, 5)) * math.sqrt(weights @ variance @ weights)
    assert fit.at(weights.tolist()).high == pytest.approx(weights @ beta + reach)


def test_of_a_mean_with_clusters_of_one_the_interval_is_students() -> None:
    """With a column of ones alone and a cluster per point, CR1 is s²/n: c = n/(n−1)·(n−1)/(n−1)."""
    values = np.array([3.0, 5.0, 8.0, 8.5])
    fit = least_squares(np.ones((4, 1)), values, clusters=[0, 1, 2, 3]).at((1.0,))
    mean = student_mean(values)
    assert (fit.estimate, fit.low, fit.high) == pytest.approx((mean.value, mean.low, mean.high))
    known = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((known.low, known.high))


def test_under_errors_that_add_up_within_runs_only_robust_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    runs, points, trials = 30, 15, 300
    time, unknown_share = np.linspace(0.1, 1, points), np.tile([0.0, 0.25, 0.5, 0.75, 1.0], runs // 5)
    known = np.outer(1 - unknown_share, 1 - np.exp(-6 * time)).ravel()
    unknown = np.outer(unknown_share, 1 - np.exp(-2 * time)).ravel()
    run = np.repeat(np.arange(runs), points)
    held = {"robust": 0, "plain": 0}
    for _ in range(trials):
        drift = np.cumsum(generator.normal(0, 0.01, (runs, points)), axis=1).ravel()
        accuracy = 0.37 + 0.07 * known - 0.08 * unknown + drift
        fits = {
            "robust": fit_dynamics(known, unknown, accuracy, runs=run),
            "plain": fit_dynamics(known, unknown, accuracy),
        }
        for name, fit in fits.items():
            held[name] += fit.unknown.low <= -0.08 <= fit.unknown.high
    assert abs(held["robust"] / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
    assert held["plain"] / trials < 0.8


def test_what_cannot_be_told_is_nan() -> None:
    known, unknown, generator = a_design(9)
    accuracy = generator.uniform(0, 1, 9)
    three_runs = fit_dynamics(known, unknown, accuracy, runs=np.repeat(["a", "b", "c"], 3))
    assert three_runs.unknown.estimate == fit_dynamics(known, unknown, accuracy).unknown.estimate
    assert math.isnan(three_runs.unknown.low)
    together = fit_dynamics(known, 2 * known, accuracy, runs=np.arange(9))
    assert math.isnan(together.known.estimate)
    assert math.isnan(together.r_squared)
    nothing = fit_dynamics(np.array([]), np.array([]), np.array([]))
    assert math.isnan(nothing.intercept.estimate)
    assert nothing.num_points == 0


def test_values_that_agree_or_stand_alone_show_no_spread() -> None:
    for values in ([0.3], [0.3, 0.3, 0.3]):
        mean = student_mean(np.array(values))
        assert mean.value == pytest.approx(0.3)
        assert math.isnan(mean.low)
        assert math.isnan(mean.high)


def test_the_dynamics_model_recovers_an_exact_line() -> None:
    generator = np.random.default_rng(0)
    known, unknown = generator.uniform(0, 1, (2, 12))
    fit = fit_dynamics(known, unknown, 0.369 + 0.073 * known - 0.083 * unknown)
    assert (fit.intercept.estimate, fit.known.estimate, fit.unknown.estimate) == pytest.approx((0.369, 0.073, -0.083))
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.unknown.high - fit.unknown.low < 1e-9


def test_the_dynamics_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    known, unknown = generator.uniform(0, 1, (2, 10))
    held = 0
    for _ in range(400):
        accuracy = 0.4 + 0.1 * known - 0.2 * unknown + generator.normal(0, 0.05, 10)
        coefficient = fit_dynamics(known, unknown, accuracy).unknown
        held += coefficient.low <= -0.2 <= coefficient.high
    assert abs(held / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)


def test_what_the_points_cannot_tell_is_nan() -> None:
    fit = fit_dynamics(np.zeros(8), np.linspace(0, 1, 8), np.linspace(1, 0, 8))
    assert math.isnan(fit.known.estimate)
    assert math.isnan(fit.r_squared)
    assert fit.num_points == 8
