"""Chances against simulation, exact cases by hand, and draws that nest as they are said to."""

from __future__ import annotations

import numpy as np
import pytest
from test_schedule import stable_diffusion

from diffusion_sft.learner import Reading
from diffusion_sft.numerics.quadrature import ESTIMATORS, draw_levels, estimator_named, linear_factors, nested_draws
from diffusion_sft.probe.settling import (
    PRIOR_LEVELS,
    category_is_settled,
    chance_of_winning,
    duels,
    gain_is_settled,
    gain_variance,
    mean_variance,
    needed_rivals,
)
from diffusion_sft.records import Draws

# --- nested draws ---


@pytest.mark.parametrize("name", ["default", "classifier", "common_systematic"])
@pytest.mark.parametrize("count", [2, 6, 8, 16, 24, 32, 64])
def test_stages_part_the_draws_and_begin_at_the_cleanest_level(name: str, count: int) -> None:
    estimator = estimator_named(name)
    stages = nested_draws(estimator, count)
    assert sorted(number for stage in stages for number in stage) == list(range(count))
    assert all(list(stage) == sorted(stage) for stage in stages)
    assert count - 1 in stages[0]
    if estimator.antithetic:
        assert all(number ^ 1 in stage for stage in stages for number in stage)


def test_after_one_two_four_and_eight_stages_levels_are_evenly_spread() -> None:
    stages = nested_draws(ESTIMATORS["default"], 32)
    assert len(stages) == 8
    for num_stages, stride in ((1, 8), (2, 4), (4, 2), (8, 1)):
        levels = sorted({number // 2 for stage in stages[:num_stages] for number in stage})
        assert levels == list(range(stride - 1, 16, stride))


def test_levels_of_some_draws_are_those_of_all() -> None:
    levels = draw_levels(ESTIMATORS["default"], stable_diffusion(), 16, seed=3)
    some = levels.at((6, 7, 14, 15))
    assert (some.timesteps == levels.timesteps[[6, 7, 14, 15]]).all()
    assert (some.weights == levels.weights[[6, 7, 14, 15]]).all()
    norms = np.arange(16.0)
    assert (some.control(norms[[6, 7, 14, 15]], 8) == levels.control(norms, 8)[[6, 7, 14, 15]]).all()
    assert (some.uniform_control(norms[:4], 8) != 0).all()


def test_factors_keep_the_mean_of_a_straight_line() -> None:
    estimator = ESTIMATORS["default"]
    line = np.repeat(3.0 - 2.0 * np.arange(16), 2)  # the same for both of a pair
    for numbers in ((6, 7, 14, 15, 22, 23, 30, 31), (0, 1, 2, 3), (30, 31, 4, 5, 10, 11)):
        factors = linear_factors(estimator, numbers, 32)
        assert factors.mean() == pytest.approx(1)
        assert (factors * line[list(numbers)]).mean() == pytest.approx(line.mean())
    assert (linear_factors(estimator, range(32), 32) == 1).all()
    assert linear_factors(ESTIMATORS["classifier"], [5], 32).tolist() == [1.0]


@pytest.mark.parametrize("chosen", [(), (1, 1), (2, 1), (-1, 0), (0, 8)])
def test_chosen_draws_ascend_within_the_count(chosen: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Draws(seed=0, count=8, chosen=chosen)


def test_all_draws_are_chosen_unless_said_otherwise() -> None:
    assert list(Draws(seed=0, count=3).numbers) == [0, 1, 2]
    assert list(Draws(seed=0, count=8, chosen=(2, 5)).numbers) == [2, 5]


# --- variances ---


def reading(weights: np.ndarray, squared_error: np.ndarray, opinion: np.ndarray) -> Reading:
    zeros = np.zeros_like(weights)
    return Reading(
        squared_error=squared_error,
        weights=weights,
        uniform_weights=zeros,
        control=zeros,
        uniform_control=zeros,
        opinion=opinion,
        log_snr=zeros,
        num_dims=NUM_DIMS,
    )


NUM_DIMS = 64


def test_the_formula_is_the_variance_that_isotropic_residuals_show() -> None:
    """err(∅) − err(c) = w(‖r‖² − ‖r − δ‖²) with r ~ N(0, ρ² I): the gain's variance is 4 w² ‖δ‖² ρ²."""
    generator = np.random.default_rng(0)
    moved = 0.05 * generator.normal(size=NUM_DIMS)
    residual = 0.3 * generator.normal(size=(200_000, NUM_DIMS))
    weight = 2.5
    errors = np.stack([(residual**2).sum(1), ((residual - moved) ** 2).sum(1)])
    gains = weight * (errors[0] - errors[1])
    opinion = np.stack([np.zeros(len(residual)), np.full(len(residual), (moved**2).sum())])
    stated = gain_variance(reading(np.full_like(errors, weight), errors, opinion))
    assert stated.mean() == pytest.approx(gains.var(), rel=0.02)


def test_the_mean_of_a_part_is_off_the_mean_of_all_as_stated() -> None:
    generator = np.random.default_rng(1)
    gains = generator.normal(size=(50_000, 8))
    variances = np.ones_like(gains)
    off = gains[:, :2].mean(1) - gains.mean(1)
    assert mean_variance(gains[:, :2], variances[:, :2], 8).mean() == pytest.approx(off.var(), rel=0.02)
    assert (mean_variance(gains, variances, 8) == 0).all()
    assert mean_variance(gains[:3, :1], variances[:3, :1], 8) == pytest.approx(np.full(3, 7 / 8))


def test_the_spread_between_levels_is_weighed_with_the_formula() -> None:
    gains = np.array([[0.0, 2.0]])
    expected = (PRIOR_LEVELS * 1 + 1 * 2) / (PRIOR_LEVELS + 1) * (1 / 2 - 1 / 4)
    assert mean_variance(gains, np.ones((1, 2)), 4) == pytest.approx([expected])


# --- chances ---


def test_the_chance_of_winning_is_that_of_simulated_noise() -> None:
    generator = np.random.default_rng(2)
    margins, rivals, own = np.array([0.5, -0.2, 1.5]), np.array([0.4, 1.0, 0.0]), 0.8
    count = 400_000
    shared = np.sqrt(own) * generator.normal(size=(count, 1))
    final = margins + shared + np.sqrt(rivals) * generator.normal(size=(count, 3))
    assert chance_of_winning(duels(margins, rivals, own)) == pytest.approx((final > 0).all(1).mean(), abs=0.003)


def test_without_noise_the_present_order_stands_and_ties_are_lost() -> None:
    nothing = np.zeros(2)
    assert chance_of_winning(duels(np.array([0.1, 3.0]), nothing, 0.0)) == pytest.approx(1, abs=1e-9)
    assert chance_of_winning(duels(np.array([0.0, 3.0]), nothing, 0.0)) == 0


def test_equal_candidates_have_equal_chances() -> None:
    """Ten candidates in a tie, each with its own noise: one in ten."""
    assert chance_of_winning(duels(np.zeros(9), np.ones(9), 1.0)) == pytest.approx(0.1, abs=1e-3)


def test_rivals_that_decide_nothing_are_not_needed() -> None:
    # 0 is beaten, 1 leads, 2 wins wherever 1 does (both are without noise of their own), 3 may or may not win.
    wins = duels(np.array([30.0, -0.5, -0.4, 0.1]), np.array([1.0, 0.0, 0.0, 1.0]), 1.0)
    assert needed_rivals(wins, leader=1, risk=1e-4).tolist() == [1, 3]
    assert needed_rivals(wins, leader=1, risk=1.0).tolist() == [1]


def test_rivals_that_stand_in_for_each_other_are_not_left_out_together() -> None:
    """Either of two equal rivals decides as much as both; the leader loses now and then where they do not."""
    wins = duels(np.array([-0.2, -0.2, -0.5]), np.array([0.0, 0.0, 4.0]), 1.0)
    assert needed_rivals(wins, leader=2, risk=1e-4).tolist() in ([0, 2], [1, 2])


@pytest.mark.parametrize("seed", range(20))
def test_leaving_rivals_out_raises_the_chance_by_no_more_than_was_allowed(seed: int) -> None:
    generator = np.random.default_rng(seed)
    wins = duels(generator.normal(1, 3, size=9), generator.exponential(size=9), float(generator.exponential()))
    kept = needed_rivals(wins, leader=4, risk=0.001)
    assert 4 in kept
    assert 0 <= chance_of_winning(wins[kept]) - chance_of_winning(wins) <= 0.001 * (9 - len(kept)) + 1e-12


# --- labels ---


@pytest.mark.parametrize(
    ("chances", "correct", "settled"),
    [
        ([0.999] * 10, [True] * 10, True),  # all of them right but for 1 %
        ([0.998] * 10, [True] * 10, False),
        ([0.0009] * 10, [False] * 10, True),
        ([0.0009] * 9 + [0.4], [False] * 10, False),
        ([0.995, 0.004] + [0.5] * 8, [True, False] + [False] * 8, True),  # one right and one wrong will do
        ([0.98] * 5 + [0.001] * 5, [True] * 5 + [False] * 5, False),  # not sure of any right one
        ([1.0], [True], True),
        ([0.0], [False], True),
    ],
)
def test_categories_are_settled_by_the_union_bound(chances: list[float], correct: list[bool], settled: bool) -> None:
    assert category_is_settled(np.array(chances), np.array(correct), risk=0.0101) is settled


def test_gains_are_settled_where_the_rest_cannot_turn_them() -> None:
    def ask(mean: float, noise: float, share: float = 0.25) -> bool:
        gains = mean + np.array([-0.1, 0.1] * 4)
        return gain_is_settled(gains, np.full(8, noise), share, interval=0.95, risk=0.01)

    assert ask(20, 3)
    assert ask(-5, 1)
    assert ask(-0.5, 1)  # well below what an interval above 0 takes
    assert not ask(0.8, 1)
    assert not ask(1.0, 1)
    assert ask(0.8, 1, share=1.0)  # nothing left to come
    assert not ask(20, np.nan)
    assert gain_is_settled(np.array([9.0]), np.array([1.0]), 0.5, interval=0.95, risk=0.01)


def test_settled_gains_keep_their_label() -> None:
    """Concepts near the threshold: of those that stop at a quarter, no more change their label than the risk allows."""
    generator = np.random.default_rng(4)
    stopped = turned = 0
    for _ in range(4000):
        truth = generator.normal(0, 2)
        draws = truth + 0.2 * generator.normal(size=(8, 1)) + 3 * generator.normal(size=(8, 16))

        def known(some: np.ndarray) -> bool:
            means, noise = some.mean(1), (some.var(1, ddof=1) / some.shape[1]).mean()
            between = max(means.var(ddof=1) - noise, 0)
            return bool(means.mean() > 1.96 * np.sqrt((between + noise) / 8))

        part = draws[:, :4]
        errors = part.std(1, ddof=1) / 2
        if gain_is_settled(part.mean(1), errors, share=0.25, interval=0.95, risk=0.05):
            stopped += 1
            turned += known(part) != known(draws)
    assert stopped > 1000
    assert turned / stopped < 0.05
