"""Levels and weights of the estimators against exact sums and scipy's integrals; standard errors against repeats."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import logistic
from test_schedule import stable_diffusion

from diffusion_sft.numerics.noise import normal, uniform
from diffusion_sft.numerics.quadrature import (
    ESTIMATORS,
    Estimator,
    draw_levels,
    estimator_named,
    inverse_cumulative,
    level_widths,
    standard_error,
    timestep_probabilities,
)

SCHEDULE = stable_diffusion()
LOW, HIGH = SCHEDULE.log_snr_range


def test_widths_are_the_trapezoidal_rule() -> None:
    values = np.sin(SCHEDULE.log_snr)
    trapezoid = np.trapezoid(values[::-1], SCHEDULE.log_snr[::-1])
    assert (level_widths(SCHEDULE) * values).sum() == pytest.approx(trapezoid, rel=1e-12)
    assert trapezoid == pytest.approx(np.cos(LOW) - np.cos(HIGH), abs=1e-2)


def test_levels_follow_the_truncated_logistic() -> None:
    points = np.linspace(0, 1, 11)
    law = logistic(loc=1, scale=2)
    cumulative = (law.cdf(inverse_cumulative(points, SCHEDULE)) - law.cdf(LOW)) / (law.cdf(HIGH) - law.cdf(LOW))
    assert cumulative == pytest.approx(points, abs=1e-12)
    probabilities = timestep_probabilities(SCHEDULE)
    assert probabilities.sum() == pytest.approx(1)
    drawn = SCHEDULE.nearest_timestep(inverse_cumulative((np.arange(200_000) + 0.5) / 200_000, SCHEDULE))
    assert np.bincount(drawn, minlength=1000) / 200_000 == pytest.approx(probabilities, abs=1e-5)
    # The weight of a level is ½ over the density at it, but for the coarse steps at the clean end.
    density = law.pdf(SCHEDULE.log_snr) / (law.cdf(HIGH) - law.cdf(LOW))
    pointwise = 0.5 / density
    assert (0.5 * level_widths(SCHEDULE) / probabilities)[20:-1] == pytest.approx(pointwise[20:-1], rel=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_integrates_the_same_thing(name: str) -> None:
    def error(log_snr: np.ndarray) -> np.ndarray:
        return expit(log_snr - 0.5) ** 2

    truth, _ = quad(lambda a: 0.5 * error(a), LOW, HIGH)
    levels = [draw_levels(ESTIMATORS[name], SCHEDULE, 32, seed) for seed in range(300)]
    estimates = [(level.weights * error(level.log_snr)).mean() for level in levels]
    uniform_estimates = [(level.uniform_weights * error(level.log_snr)).mean() for level in levels]
    # A grid of 32 timesteps is never random: what it gets wrong at the clean end stays wrong.
    tolerance = 0.02 if name == "classifier" else 0.002
    spread = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * spread + tolerance * truth)
    uniform_spread = np.std(uniform_estimates) / np.sqrt(len(estimates))
    uniform_truth = error(SCHEDULE.log_snr).mean()
    assert np.mean(uniform_estimates) == pytest.approx(
        uniform_truth, abs=4 * uniform_spread + tolerance * uniform_truth
    )


def test_a_systematic_sample_visits_every_stratum_once_and_pairs_share_levels() -> None:
    levels = draw_levels(ESTIMATORS["default"], SCHEDULE, 32, seed=3)
    assert (levels.timesteps[::2] == levels.timesteps[1::2]).all()
    assert (np.diff(levels.log_snr) >= 0).all()
    borders = inverse_cumulative(np.arange(17) / 16, SCHEDULE)
    assert (np.histogram(levels.log_snr[::2], borders)[0] == 1).all()
    assert (draw_levels(ESTIMATORS["default"], SCHEDULE, 32, seed=3).timesteps == levels.timesteps).all()
    assert (draw_levels(ESTIMATORS["default"], SCHEDULE, 32, seed=4).timesteps != levels.timesteps).any()


def test_the_classifiers_grid_is_that_of_its_authors() -> None:
    levels = draw_levels(ESTIMATORS["classifier"], SCHEDULE, 10, seed=0)
    assert levels.timesteps.tolist() == list(range(950, 0, -100))
    assert levels.uniform_weights == pytest.approx(np.ones(10))
    assert levels.weights.mean() == pytest.approx((HIGH - LOW) / 2)


@pytest.mark.parametrize("name", ["default", "common_control"])
def test_the_control_variate_has_mean_zero(name: str) -> None:
    estimator = ESTIMATORS[name]
    num_dims, totals = 6, []
    for seed in range(400):
        levels = draw_levels(estimator, SCHEDULE, 16, seed)
        norms = normal((16, num_dims), seed + 1000).square().sum(dim=1).double().numpy()
        totals.append([levels.control(norms, num_dims).mean(), levels.uniform_control(norms, num_dims).mean()])
    means, errors = np.mean(totals, axis=0), np.std(totals, axis=0) / np.sqrt(len(totals))
    assert (np.abs(means) < 4 * errors).all()


def test_the_control_variate_is_a_standard_normals_error() -> None:
    """For x ~ N(0, I) the optimal error given ε is num_dims·σ(α) + σ(α)²(‖ε‖² − num_dims)."""
    levels = draw_levels(ESTIMATORS["default"], SCHEDULE, 8, seed=0)
    noise, data = normal((8, 4), 1).double().numpy(), normal((8, 50_000, 4), 2).double().numpy()
    alpha, sigma = np.sqrt(expit(levels.log_snr))[:, None, None], np.sqrt(expit(-levels.log_snr))[:, None, None]
    predicted = sigma * (alpha * data + sigma * noise[:, None])
    errors = ((noise[:, None] - predicted) ** 2).sum(axis=2).mean(axis=1)
    expected = (levels.control((noise**2).sum(axis=1), 4) + 4 * levels.baseline) / levels.weights
    assert errors == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["default", "naive", "common_systematic"])
def test_the_standard_error_is_what_repeats_show(name: str) -> None:
    estimator = ESTIMATORS[name]
    estimates, claimed = [], []
    for seed in range(500):
        levels = draw_levels(estimator, SCHEDULE, 32, seed)
        noise = np.random.default_rng(seed).normal(size=32)
        values = levels.weights * expit(levels.log_snr) * expit(-levels.log_snr) * (1 + 0.5 * noise)
        estimates.append(values.mean())
        claimed.append(standard_error(values, estimator))
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(estimates), rel=0.15)


def test_the_standard_error_ignores_a_straight_trend() -> None:
    trend = np.linspace(0, 100, 32)
    assert standard_error(trend, ESTIMATORS["common_systematic"]) == pytest.approx(0, abs=1e-12)
    assert standard_error(trend, ESTIMATORS["naive"]) == pytest.approx(np.std(trend, ddof=1) / np.sqrt(32))
    assert np.isnan(standard_error(trend[:4], ESTIMATORS["default"]))
    assert standard_error(np.tile(trend, (3, 1)), ESTIMATORS["default"]).shape == (3,)


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        draw_levels(ESTIMATORS["default"], SCHEDULE, 7, seed=0)
    with pytest.raises(ValueError, match="finer"):
        draw_levels(Estimator(levels="grid", antithetic=False, common=True, control=False), SCHEDULE, 1001, seed=0)
    with pytest.raises(ValueError, match="naive"):
        estimator_named("best")


def test_noise_is_a_function_of_its_seed() -> None:
    assert (normal((3, 2), 5) == normal((3, 2), 5)).all()
    assert (normal((3, 2), 5) != normal((3, 2), 6)).all()
    assert uniform(4, 1).tolist() == uniform(4, 1).tolist()
