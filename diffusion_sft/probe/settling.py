"""How sure is it, after some of the draws, what all of them will say?

A draw of err(∅) − err(c) is w(2⟨r, δ⟩ − ‖δ‖²): r = ε − ε̂(∅) is what the network leaves of the noise, δ = ε̂(c) − ε̂(∅) what
the words move, w the weight. Over noises its variance is about 4 w² ‖δ‖² ρ², ρ² the residual per dimension; an
antithetic pair counts as one draw. So one reading tells its own noise, from the opinion w‖δ‖² and the error, down to a
single level. After n of N levels the mean is off the mean of all by a variance of v(1/n − 1/N): what is asked is what
the remaining draws will do to the answer, not whether the answer is true, so that looking often costs no correction.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.special import ndtr

from ..learner import Reading

_STEP = 0.05
_COMMON = np.arange(-8, 8 + _STEP / 2, _STEP)
_COMMON_WEIGHTS = _STEP * stats.norm.pdf(_COMMON)
"""The standard normal law on a grid."""
PRIOR_LEVELS = 4
"""For how many levels' worth of evidence the formula's variance stands beside the spread between levels."""


def gain_variance(reading: Reading) -> np.ndarray:
    """The variance of one draw's gain of each cue by the formula, (num_cues, num_draws) nats²."""
    residual = reading.squared_error[:1] / reading.num_dims
    return np.asarray(4 * reading.weights[1:] ** 2 * reading.opinion[1:] * residual)


def mean_variance(gains: np.ndarray, variances: np.ndarray, num_levels: int) -> np.ndarray:
    """By what variance the mean of the levels read so far is off the mean of all `num_levels`, per row.

    Args:
        gains: of each level, (num_rows, num_read) nats.
        variances: by the formula, same shape. The spread between levels, where there are two or more, is weighed with
            it (Smyth, 2004): it also sees what the formula does not, and takes the curve's course for noise.
        num_levels: of the whole budget.
    """
    num_read = gains.shape[1]
    variance = variances.mean(axis=1)
    if num_read > 1:
        spread = gains.var(axis=1, ddof=1)
        variance = (PRIOR_LEVELS * variance + (num_read - 1) * spread) / (PRIOR_LEVELS + num_read - 1)
    return np.asarray(variance * (1 / num_read - 1 / num_levels))


def duels(margins: np.ndarray, rival_variances: np.ndarray, own_variance: float) -> np.ndarray:
    """The chance that each margin ends above 0, given one's own noise, (num_rivals, grid of that noise).

    A margin is normal about its present value; what one's own noise moves it by is common to all of them, the rivals'
    noise is each one's own. Where there is no noise a margin of 0 is a defeat.

    Args:
        margins: over each rival, (num_rivals,).
        rival_variances: of each rival's noise, same shape.
        own_variance: of the common noise.
    """
    shifted = margins[:, None] + np.sqrt(own_variance) * _COMMON
    noise = np.sqrt(rival_variances)[:, None]
    return np.where(noise > 0, ndtr(shifted / np.where(noise > 0, noise, 1)), (shifted > 0).astype(float))


def chance_of_winning(wins: np.ndarray) -> float:
    """The chance that all margins of these `duels` end above 0; 1 for none."""
    return min(float(wins.prod(axis=0) @ _COMMON_WEIGHTS), 1.0)


def needed_rivals(wins: np.ndarray, leader: int, risk: float) -> np.ndarray:
    """The rivals on whom the chance of winning depends, ascending numbers, the leader always among them.

    One after another those are left out whose absence raises the chance least, and by no more than `risk` each: a rival
    that is beaten, and one that wins only where another one does.
    """
    kept = list(range(len(wins)))
    chance = chance_of_winning(wins)
    while len(kept) > 1:
        without = {
            one: chance_of_winning(wins[[other for other in kept if other != one]]) for one in kept if one != leader
        }
        least = min(without, key=without.__getitem__)
        if without[least] - chance > risk:
            break
        kept.remove(least)
        chance = without[least]
    return np.array(kept)


def category_is_settled(chances: np.ndarray, correct: np.ndarray, risk: float) -> bool:
    """Whether the rest of the budget would leave all, some or none of a concept's answers right, but for this risk.

    By the union bound, since answers about one concept are not independent: for `some`, one right and one wrong answer
    suffice.

    Args:
        chances: that each answer is right in the end, (num_renderings,).
        correct: whether it is right now.
        risk: of being wrong.
    """
    if correct.all():
        return float((1 - chances).sum()) <= risk
    if not correct.any():
        return float(chances.sum()) <= risk
    return float(1 - chances.max() + chances.min()) <= risk


def gain_is_settled(gains: np.ndarray, errors: np.ndarray, share: float, interval: float, risk: float) -> bool:
    """Whether the rest of the budget would leave the rule `gain` at its label, but for this risk.

    Args:
        gains: of a concept's examples so far, in nats, (num_examples,).
        errors: their standard errors.
        share: of the budget that they were read with.
        interval: confidence of the rule's two-sided interval.
        risk: of being wrong.
    """
    mean, count, noise = gains.mean(), len(gains), float((errors**2).mean())
    if not np.isfinite(noise):
        return False
    between = max(float(gains.var(ddof=1)) - noise, 0.0) if count > 1 else 0.0
    z = stats.norm.ppf((1 + interval) / 2)
    known = mean > z * np.sqrt((between + noise) / count)
    later = mean - z * np.sqrt((between + noise * share) / count)
    spread = np.sqrt(noise * (1 - share) / count)
    chance = float(ndtr(later / spread)) if spread > 0 else float(later > 0)
    return bool(chance >= 1 - risk) if known else bool(chance <= risk)
