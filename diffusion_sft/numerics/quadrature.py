"""At which noise levels a network is read, with what weights, and how sure the resulting integral is.

The integral is ½∫dα f(α) over the trained log-SNR range, by the trapezoidal rule on the trained timesteps:
½ Σ_t Δα_t f(α_t), Δα_t half the distance between the neighbours of α_t. An estimator draws timesteps with
probabilities P_t and averages (½Δα_t / P_t) f: the weight is ½/density taken at the rounded level, where the noise
is added too, so that rounding costs no bias. The plain uniform-t mean has the weights (1/T) / P_t.

Importance density: the logistic of Kong, Brekelmans & Ver Steeg (2023, section 3.2; arXiv 2302.03792), with the
location and scale of Kong et al. (2024, arXiv 2310.07972) for Stable Diffusion, cut to the trained range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.special import expit, logit

from .noise import uniform
from .schedule import Schedule

LOCATION, SCALE = 1.0, 2.0
"""Of the logistic density from which log-SNRs are drawn."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How the levels and the noise of one integral are drawn."""

    levels: Literal["systematic", "independent", "grid"]
    """systematic: u_i = (u0 + i/n) mod 1 (Kingma et al., 2021, appendix I.1) through the inverse of the logistic.
    independent: the same density, without order. grid: the middles of n even blocks of timesteps, none at random."""
    antithetic: bool
    """Each level is read twice, with ε and with −ε."""
    common: bool
    """The same levels and noise for all cues and the empty caption, so that only what they differ in varies."""
    control: bool
    """Errors are read against a control variate, see `Levels.control`."""


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "default": Estimator(levels="systematic", antithetic=True, common=True, control=True),
        # Nothing shared, nothing spread: what repeating the training loss under each caption amounts to.
        "naive": Estimator(levels="independent", antithetic=False, common=False, control=False),
        # Li et al. (2023, section 3.2): fixed (t, ε) pairs on an even grid, shared by all captions.
        "classifier": Estimator(levels="grid", antithetic=False, common=True, control=False),
        # One ingredient at a time, for the benchmark.
        "common": Estimator(levels="independent", antithetic=False, common=True, control=False),
        "common_antithetic": Estimator(levels="independent", antithetic=True, common=True, control=False),
        "common_systematic": Estimator(levels="systematic", antithetic=False, common=True, control=False),
        "common_control": Estimator(levels="independent", antithetic=False, common=True, control=True),
    }
)
EXEMPLARS = Estimator(levels="independent", antithetic=False, common=True, control=False)
"""Of questions in words, which have no levels: a draw is a set of exemplars, the same before every cue."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The noise levels of one integral, one entry a draw, in the order of falling noise.

    Where an estimator is antithetic, draws 2k and 2k + 1 share a level and take noise of opposite sign.

    Attributes:
        timesteps: trained timesteps, int64 (num_draws,).
        log_snr: their log-SNRs.
        weights: nats per unit of squared error, ½·Δα/P; the integral is the mean of weight times value.
        uniform_weights: the mean of weight times value is the plain mean over uniform timesteps.
        baseline: the mean over draws of weight times σ(log_snr) if there were infinitely many, in nats.
        uniform_baseline: the same of the uniform weights.
    """

    timesteps: np.ndarray
    log_snr: np.ndarray
    weights: np.ndarray
    uniform_weights: np.ndarray
    baseline: float
    uniform_baseline: float

    def control(self, noise_norm: np.ndarray, num_dims: int) -> np.ndarray:
        """What to take off weight times squared error: of mean zero, and varying from draw to draw as it does.

        It is what a denoiser of standard normal data would show: num_dims·σ(α) on average (the baseline of Kong,
        Brekelmans & Ver Steeg, 2023, equation 8), moving by σ(α)² with ‖ε‖². Any network's error approaches this
        towards clean levels, where the weights and ‖ε‖² make most of the variance.

        Args:
            noise_norm: ‖ε‖² of each draw, summed over dimensions (num_draws,).
            num_dims: the number of dimensions.
        """
        return self._control(self.weights, self.baseline, noise_norm, num_dims)

    def uniform_control(self, noise_norm: np.ndarray, num_dims: int) -> np.ndarray:
        """`control` for the uniform weights."""
        return self._control(self.uniform_weights, self.uniform_baseline, noise_norm, num_dims)

    def at(self, numbers: Sequence[int]) -> Levels:
        """The levels of some of the draws, with the weights that they have among all: the mean of weight times value is
        an estimate of the integral still, where these are spread as in `nested_draws`."""
        chosen = np.asarray(numbers)
        return replace(
            self,
            timesteps=self.timesteps[chosen],
            log_snr=self.log_snr[chosen],
            weights=self.weights[chosen],
            uniform_weights=self.uniform_weights[chosen],
        )

    def _control(self, weights: np.ndarray, baseline: float, noise_norm: np.ndarray, num_dims: int) -> np.ndarray:
        signal = expit(self.log_snr)
        expected = num_dims * signal + signal**2 * (noise_norm - num_dims)
        return np.asarray(weights * expected - num_dims * baseline)


def estimator_named(name: str) -> Estimator:
    """The estimator of this name; ValueError naming the known ones."""
    if name == "exemplars":
        return EXEMPLARS
    if name not in ESTIMATORS:
        raise ValueError(f"estimator {name!r} is none of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def draw_levels(estimator: Estimator, schedule: Schedule, count: int, seed: int) -> Levels:
    """Choose `count` noise levels and their weights.

    Raises:
        ValueError: an odd count where draws come in pairs, or a grid finer than the schedule.
    """
    if estimator.antithetic and count % 2:
        raise ValueError(f"antithetic draws come in pairs: num_draws must be even, not {count}")
    if estimator.levels == "grid":
        return _grid_levels(schedule, count)
    num_levels = count // 2 if estimator.antithetic else count
    if estimator.levels == "systematic":
        points = (uniform(1, seed) + np.arange(num_levels) / num_levels) % 1
    else:
        points = uniform(num_levels, seed)
    timesteps = schedule.nearest_timestep(inverse_cumulative(np.sort(points), schedule))
    if estimator.antithetic:
        timesteps = np.repeat(timesteps, 2)
    probabilities = timestep_probabilities(schedule)[timesteps]
    weights = 0.5 * level_widths(schedule)[timesteps] / probabilities
    return _weighted(timesteps, weights, 1 / (len(schedule.log_snr) * probabilities), schedule)


def nested_draws(estimator: Estimator, count: int) -> list[tuple[int, ...]]:
    """The numbers of the draws that come new in each of (at most) eight stages, ascending.

    A stage is every eighth level; after one, two, four and eight of them every eighth, fourth, second and single level
    is read, counted from the cleanest one. There errors vary most from noise to noise (a network's residual approaches
    all of ε, and the weights are large), so that what is still unread varies less than what is read. Antithetic pairs
    stay together; stages without a level are left out.
    """
    each = 2 if estimator.antithetic else 1
    from_clean = range(count // each)[::-1]
    stages = [from_clean[place::8] for place in (0, 4, 2, 6, 1, 5, 3, 7)]
    return [
        tuple(sorted(each * level + sign for level in stage for sign in range(each))) for stage in stages if stage
    ]


def linear_factors(estimator: Estimator, numbers: Sequence[int], count: int) -> np.ndarray:
    """Factors of mean 1 for the values of some of `count` draws, (num_chosen,).

    The mean of factor times value is the mean of all draws wherever values lie on a straight line over the levels in
    their order, however one-sided the chosen ones are; the factors of all draws are 1.
    """
    each = 2 if estimator.antithetic else 1
    places = (np.asarray(numbers) // each).astype(np.float64)
    away = places - places.mean()
    missing = (count // each - 1) / 2 - places.mean()
    return np.asarray(1 + missing * away / max(float((away**2).mean()), np.finfo(float).tiny))


def level_widths(schedule: Schedule) -> np.ndarray:
    """Δα_t of the trapezoidal rule in nats, (num_levels,); they sum to the length of the trained range."""
    return -np.diff(_level_edges(schedule))


def timestep_probabilities(schedule: Schedule) -> np.ndarray:
    """P_t: how likely the truncated logistic is to fall nearest to each trained level, (num_levels,)."""
    cumulative = expit((_level_edges(schedule) - LOCATION) / SCALE)
    return -np.diff(cumulative) / (cumulative[0] - cumulative[-1])


def inverse_cumulative(points: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Log-SNRs of the truncated logistic's quantiles; 0 is the noisiest trained level, 1 the cleanest."""
    low, high = expit((np.array(schedule.log_snr_range) - LOCATION) / SCALE)
    return LOCATION + SCALE * logit(low + (high - low) * points)


def standard_error(values: np.ndarray, estimator: Estimator) -> np.ndarray:
    """The standard error of `values.mean(axis=-1)`, values being weight times value in the order of the levels.

    Independent levels: the sample's. Ordered ones: from differences of neighbours, Σ(y_i − 2y_{i−1} + y_{i−2})² /
    (6n(n − 2)), which do not mistake the curve's course for noise (Wolter, 1984, section 2; with fewer than eight
    levels the bend of the curve still shows, and the error comes out too large). An antithetic pair counts as one
    number. NaN where there are too few levels.
    """
    if estimator.antithetic:
        values = values.reshape(*values.shape[:-1], -1, 2).mean(axis=-1)
    count = values.shape[-1]
    if count < (2 if estimator.levels == "independent" else 3):
        return np.full(values.shape[:-1], np.nan)
    if estimator.levels == "independent":
        return np.asarray(values.std(axis=-1, ddof=1) / np.sqrt(count))
    return np.asarray(np.sqrt((np.diff(values, n=2) ** 2).sum(axis=-1) / (6 * (count - 2) * count)))


def _level_edges(schedule: Schedule) -> np.ndarray:
    levels = schedule.log_snr
    return np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2, levels[-1:]])


def _grid_levels(schedule: Schedule, count: int) -> Levels:
    """Middles of even blocks of timesteps, from noisy to clean; each stands for its whole block of the integral."""
    total = len(schedule.log_snr)
    if count > total:
        raise ValueError(f"a grid of {count} timesteps is finer than the schedule's {total}")
    edges = np.arange(count + 1) * total // count
    block_widths = np.add.reduceat(level_widths(schedule), edges[:-1])
    timesteps = (edges[:-1] + edges[1:]) // 2
    uniform_weights = count * np.diff(edges) / total
    return _weighted(timesteps[::-1], (0.5 * count * block_widths)[::-1], uniform_weights[::-1], schedule)


def _weighted(timesteps: np.ndarray, weights: np.ndarray, uniform_weights: np.ndarray, schedule: Schedule) -> Levels:
    signal = expit(schedule.log_snr)
    return Levels(
        timesteps=timesteps.copy(),
        log_snr=schedule.log_snr[timesteps],
        weights=weights.copy(),
        uniform_weights=uniform_weights.copy(),
        baseline=float(0.5 * (level_widths(schedule) * signal).sum()),
        uniform_baseline=float(signal.mean()),
    )
