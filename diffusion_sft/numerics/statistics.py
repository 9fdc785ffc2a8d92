"""How sure is a number? Intervals and agreement, thin over scipy.

Every interval is two-sided at `confidence`; its ends are NaN where the data cannot give one. A value that is NaN makes
what is computed from it NaN, or is refused: none is ever left out. A mean of infinite values has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(num_successes: int, num_trials: int, confidence: float = 0.95) -> Interval:
    """A share and its score interval (Wilson, 1927); all NaN for no trials.

    Raises:
        ValueError: not 0 <= num_successes <= num_trials.
    """
    if num_trials == 0 and num_successes == 0:
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    ends = stats.binomtest(num_successes, num_trials).proportion_ci(confidence, method="wilson")
    return Interval(value=num_successes / num_trials, low=float(ends.low), high=float(ends.high))


def student_mean(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of independent values and Student's interval, mean ± t s / sqrt(n) with n - 1 degrees of freedom.

    The ends are NaN for one value, and where all are equal: values that happen to agree do not show their spread.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = _mean(values)
    spread = float(values.std(ddof=1)) if math.isfinite(mean) and values.min() < values.max() else math.nan
    reach = (
        float(stats.t.ppf((1 + confidence) / 2, max(len(values) - 1, 1))) * spread / math.sqrt(max(len(values), 1))
    )
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def bootstrap_mean(
    values: np.ndarray, groups: Sequence[str | int], *, num_bootstrap: int, seed: int, confidence: float = 0.95
) -> Interval:
    """The mean of all values, with the percentile interval of a bootstrap that draws whole groups.

    Args:
        values: (num_values,).
        groups: the group of each value; values of one group are not independent (images of one concept).
    """
    values = np.asarray(values, dtype=np.float64)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    mean = _mean(values)
    if len(names) < 2 or not math.isfinite(mean):
        return Interval(value=mean, low=math.nan, high=math.nan)
    sums, counts = np.bincount(group_of, weights=values), np.bincount(group_of)
    drawn = np.random.default_rng(seed).integers(0, len(names), (num_bootstrap, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=mean, low=float(low), high=float(high))


def _mean(values: np.ndarray) -> float:
    """The mean, of +∞ and −∞ together and of nothing NaN."""
    if not len(values) or (np.isposinf(values).any() and np.isneginf(values).any()):
        return math.nan
    return float(values.mean())


def standard_error_of_mean(values: np.ndarray, standard_errors: np.ndarray) -> np.ndarray:
    """Standard error of the mean of noisy values, sqrt(max(s², mean se²) / n), per column.

    s² (n - 1 in the denominator) already contains the noise of each value on average; with one value, or where
    the values happen to lie closer together than their own noise, the noise takes its place.

    Args:
        values: (n, num_columns).
        standard_errors: each value's own standard error, same shape.

    Raises:
        ValueError: no values, or not as many errors.
    """
    _check_noisy(values, standard_errors)
    return np.sqrt((_spread(values, standard_errors) ** 2 + (standard_errors**2).mean(axis=0)) / len(values))


def bootstrap_noisy_means(
    values: np.ndarray, standard_errors: np.ndarray, num_bootstrap: int, generator: np.random.Generator
) -> np.ndarray:
    """Resampled means of noisy values: whole rows are drawn with replacement and each value's own noise is added.

    The deviations from the mean are scaled to the spread that remains after taking the noise out, so that the
    variance of the resampled means is `standard_error_of_mean` squared, down to a single row. Percentile intervals
    from few rows are too narrow where the rows differ by much more than their noise: 95 % ones were found to hold
    the truth 94 % of the time for 20 rows, 88 % for 5 and 73 % for 2 (simulated, spread three times the noise).

    Args:
        values: (n, num_columns); rows are drawn together, noise is independent between columns.
        standard_errors: same shape.

    Returns:
        (num_bootstrap, num_columns).

    Raises:
        ValueError: no values, or not as many errors.
    """
    _check_noisy(values, standard_errors)
    num_rows = len(values)
    mean = values.mean(axis=0)
    plain = values.std(axis=0)
    scale = np.divide(_spread(values, standard_errors), plain, out=np.zeros_like(plain), where=plain > 0)
    drawn = generator.integers(0, num_rows, (num_bootstrap, num_rows))
    noise_variance = (standard_errors**2)[drawn].mean(axis=1) / num_rows
    noise = np.sqrt(noise_variance) * generator.standard_normal(noise_variance.shape)
    return mean + scale * (values[drawn].mean(axis=1) - mean) + noise


def _check_noisy(values: np.ndarray, standard_errors: np.ndarray) -> None:
    """Raise ValueError for no values, and where not each has its error."""
    if not len(values) or values.shape != standard_errors.shape:
        raise ValueError(f"values of shape {values.shape} with standard errors of shape {standard_errors.shape}")


def _spread(values: np.ndarray, standard_errors: np.ndarray) -> np.ndarray:
    """Standard deviation between rows with the noise taken out, sqrt(max(0, s² - mean se²)); 0 for one row."""
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return np.sqrt(np.maximum(values.var(axis=0, ddof=1) - (standard_errors**2).mean(axis=0), 0))


def auroc(positives: np.ndarray, negatives: np.ndarray, confidence: float = 0.95) -> Interval:
    """The probability that a positive's score exceeds a negative's (ties count half), with a score interval.

    The interval holds every θ with |θ̂ - θ| <= z sqrt(V(θ)), where
    V(θ) = θ (1 - θ) [1 + h (1 - θ)/(2 - θ) + h θ/(1 + θ)] / (m n) and h = (m + n)/2 - 1
    (Newcombe, Statistics in Medicine 2006, method 5; Hanley & McNeil's variance). Unlike DeLong's or a
    bootstrap's it keeps a width at θ̂ = 1.

    Args:
        positives, negatives: scores, (m,) and (n,).

    Raises:
        ValueError: no positives or no negatives, or a score that is NaN.
    """
    m, n = len(positives), len(negatives)
    if m == 0 or n == 0:
        raise ValueError(f"AUROC needs scores on both sides, not {m} and {n}")
    scores = np.concatenate([positives, negatives])
    if np.isnan(scores).any():
        raise ValueError("AUROC of scores that are NaN")
    value = float((stats.rankdata(scores)[:m].sum() - m * (m + 1) / 2) / (m * n))
    z = float(stats.norm.ppf((1 + confidence) / 2))

    def excess(theta: float) -> float:
        half = (m + n) / 2 - 1
        bracket = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        return (value - theta) ** 2 - z**2 * theta * (1 - theta) * bracket / (m * n)

    # excess is positive at 0 and 1 (or zero there, where the value is) and negative between the interval's ends
    low = 0.0 if value == 0 else float(optimize.brentq(excess, 0.0, value - 1e-12 if value == 1 else value))
    high = 1.0 if value == 1 else float(optimize.brentq(excess, value + 1e-12 if value == 0 else value, 1.0))
    return Interval(value=value, low=low, high=high)


def spearman(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Interval:
    """Spearman's rank correlation; interval tanh(artanh ρ ± z sqrt((1 + ρ²/2)/(n - 3))) (Bonett & Wright, 2000).

    NaN where either side is constant or holds a NaN; the ends are NaN for fewer than four pairs.

    Raises:
        ValueError: not as many values on either side.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) != len(second):
        raise ValueError(f"pairs are needed, not {len(first)} and {len(second)} values")
    if len(first) < 2 or not all(side.min() < side.max() for side in (first, second)):
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    value = float(np.clip(stats.spearmanr(first, second).statistic, -1, 1))
    if len(first) < 4:
        return Interval(value=value, low=math.nan, high=math.nan)
    half_width = stats.norm.ppf((1 + confidence) / 2) * math.sqrt((1 + value**2 / 2) / (len(first) - 3))
    centre = math.atanh(np.clip(value, -1 + 1e-15, 1 - 1e-15))
    ends = math.tanh(centre - half_width), math.tanh(centre + half_width)
    return Interval(value=value, low=min(ends[0], value), high=max(ends[1], value))  # Rounding may leave 1 outside.


def cohen_kappa(first: Sequence[object], second: Sequence[object]) -> float:
    """Agreement of two labellings beyond chance, (p_o - p_e)/(1 - p_e); NaN where both are one constant label."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"kappa needs two labellings of the same things, not {len(first)} and {len(second)} labels")
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    labels = set(first) | set(second)
    expected = sum(list(first).count(label) * list(second).count(label) for label in labels) / len(first) ** 2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)
