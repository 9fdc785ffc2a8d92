"""A number over concepts and runs, with the interval that its repeats allow.

Concepts read once each are independent: a bootstrap of them (scipy), or Wilson's interval of a share. Concepts that come
back, in several runs or examples, are clusters: standard errors robust to any dependence within a concept (statsmodels),
and from FEWEST_RUNS runs on within a run too (two-way; Cameron, Gelbach & Miller, 2011), with Student's t of the
smaller number of clusters less one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from ..numerics.statistics import spearman, student_mean, wilson

FEWEST_RUNS = 3
"""From so many runs on their spread is part of the interval; two tell next to nothing about it."""
BOUNDS = ("share", "change")
"""Kinds of numbers that Wilson's interval knows."""
BATCH = 1 << 21
"""Most numbers that a bootstrap holds at a time."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Of resampling."""

    num_resamples: int
    num_permutations: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, the ends of its 95 % interval (NaN without one), and what they are over."""

    value: float
    low: float = math.nan
    high: float = math.nan
    num_concepts: int = 0
    num_runs: int = 0
    interval: str = ""

    @property
    def sign(self) -> int | None:
        """+1 or -1 where the interval is on one side of zero, 0 where it is not, None without one."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean_of(readings: pd.DataFrame, draws: Draws, kind: str = "mean") -> Estimate:
    """The mean over all readings.

    Args:
        readings: `value`, `concept` and `run`, one row each.
        kind: share where the values are 0 and 1, change where they are differences of such: then Wilson's interval
            holds where all values agree, which no other can.
    """
    values = readings["value"].to_numpy(float)
    num_concepts, num_runs = readings["concept"].nunique(), readings["run"].nunique()
    found = Estimate(value=float(values.mean()), num_concepts=num_concepts, num_runs=num_runs)
    alike = np.ptp(values) == 0
    if kind in BOUNDS and (alike or (kind == "share" and num_concepts == len(values))):
        return _with(found, *_wilson(found.value, num_concepts, kind), "Wilson over concepts")
    if alike or num_concepts < 2:
        return found
    if num_concepts == len(values):
        drawn = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=draws.num_resamples,
            batch=max(1, BATCH // len(values)),
            method="percentile",
            rng=np.random.default_rng(draws.seed),
        ).confidence_interval
        return _with(found, float(drawn.low), float(drawn.high), "bootstrap over concepts")
    return _with(found, *robust_interval(np.ones((len(values), 1)), readings, 0))


def _wilson(value: float, num_concepts: int, kind: str) -> tuple[float, float]:
    """Of a share; of a change that all have alike (-1, 0 or 1), from the share of those that moved that way.

    Each concept counts once, whatever repeats.
    """
    moved = wilson(round(abs(value) * num_concepts), num_concepts)
    if kind == "share" or value > 0:
        return moved.low, moved.high
    return (-moved.high, -moved.low) if value < 0 else (-moved.high, moved.high)


def difference_of(first: pd.DataFrame, second: pd.DataFrame) -> Estimate:
    """The mean of the first readings less that of the second, of other runs on the same concepts."""
    both = pd.concat([first, second], ignore_index=True)
    inside = np.repeat([1.0, 0.0], [len(first), len(second)])
    value = float(first["value"].mean() - second["value"].mean())
    found = Estimate(value=value, num_concepts=both["concept"].nunique(), num_runs=both["run"].nunique())
    if np.ptp(both["value"].to_numpy(float)) == 0 or both["concept"].nunique() < 2:
        return found
    return _with(found, *robust_interval(np.column_stack([np.ones(len(both)), inside]), both, 1))


def robust_interval(design: np.ndarray, readings: pd.DataFrame, place: int) -> tuple[float, float, str]:
    """The 95 % interval of one coefficient of `value` on the design, robust to repeats of concepts (and runs).

    Two-way clustering has a variance that may come out below that of the concepts alone; the latter is then taken.
    """
    model = sm.OLS(readings["value"].to_numpy(float), design)
    concepts, runs = (pd.factorize(readings[name])[0] for name in ("concept", "run"))
    single = model.fit(cov_type="cluster", cov_kwds={"groups": concepts}, use_t=True)
    num_runs = len(np.unique(runs))
    if num_runs >= FEWEST_RUNS:
        variance = _two_way(model, concepts, runs)[place]
        if variance >= single.cov_params()[place, place]:
            freedom = min(num_runs, len(np.unique(concepts))) - 1
            reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
            centre = float(single.params[place])
            return centre - reach, centre + reach, "cluster-robust by concept and run"
    low, high = single.conf_int()[place]
    return float(low), float(high), "cluster-robust by concept"


def _two_way(model: sm.OLS, concepts: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Variances of the coefficients."""
    groups = np.column_stack([concepts, runs])
    with np.errstate(invalid="ignore"):
        found = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    return np.nan_to_num(np.diag(found.cov_params()), nan=-1.0)


def median_of(readings: pd.DataFrame, draws: Draws) -> Estimate:
    """The median over all readings, infinite ones (never reached) included; bootstrap of whole concepts.

    The value, or the upper end, is infinite where as much of the distribution is.
    """
    order = np.argsort(readings["value"].to_numpy(float), kind="stable")
    values = readings["value"].to_numpy(float)[order]
    codes, names = pd.factorize(readings["concept"])
    codes = codes[order]
    found = Estimate(
        value=_median(values, np.ones(len(values), int)), num_concepts=len(names), num_runs=readings["run"].nunique()
    )
    if len(names) < 2 or values[0] == values[-1]:
        return found

    def statistic(chosen: np.ndarray) -> float:
        return _median(values, np.bincount(chosen, minlength=len(names))[codes])

    with np.errstate(invalid="ignore"):  # scipy's own interval, which is not used, would subtract infinities
        drawn = resampled(len(names), statistic, draws)
    # By order statistics: between finite and infinite there is nothing to interpolate.
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return _with(found, float(low), float(high), "bootstrap over concepts")


def resampled(count: int, statistic: Callable[[np.ndarray], float], draws: Draws) -> np.ndarray:
    """A statistic of the numbers 0 to `count` - 1, which stand for whole clusters, in every bootstrap resample of them."""
    drawn: np.ndarray = stats.bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=draws.num_resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(draws.seed),
    ).bootstrap_distribution
    return drawn


def _median(values: np.ndarray, counts: np.ndarray) -> float:
    """The median of sorted values that stand `counts` times each."""
    ends = np.cumsum(counts)
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    lower, upper = values[np.searchsorted(ends, middle, side="right")]
    return float(lower) if lower == upper else float((lower + upper) / 2)


def over_runs(values: Sequence[float]) -> Estimate:
    """The mean of one number for each run, with Student's interval over runs; none for fewer than FEWEST_RUNS."""
    found = student_mean(np.asarray(values, float))
    mean = Estimate(value=found.value, num_runs=len(values))
    if len(values) < FEWEST_RUNS or math.isnan(found.low):
        return mean
    return _with(mean, found.low, found.high, "Student over runs")


def within(found: Estimate, bounds: tuple[float, float]) -> Estimate:
    """The estimate with its interval cut to what the number can be."""
    low, high = (float(np.clip(end, *bounds)) for end in (found.low, found.high))
    return replace(found, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Spearman's correlation of concepts' values with their category's place, and its permutation p."""

    value: float
    low: float
    high: float
    num_concepts: int
    p: float

    @property
    def sign(self) -> int | None:
        """As `Estimate.sign`."""
        return Estimate(value=self.value, low=self.low, high=self.high).sign


def trend_of(readings: pd.DataFrame, places: dict[str, int], draws: Draws) -> Trend:
    """One point for each concept, its means over runs and examples, so that points are independent.

    Args:
        readings: `value` (infinite for never reached), `concept` and `category`.
        places: of each category.
    """
    values = readings["value"]
    latest = values[np.isfinite(values)].max()
    table = readings.assign(
        place=readings["category"].map(places), value=values.where(~np.isposinf(values), latest + 1)
    )
    points = table.groupby("concept", sort=True)[["place", "value"]].mean()
    place, value = points["place"].to_numpy(float), points["value"].to_numpy(float)
    found = spearman(place, value)
    p = _permutation_p(place, value, draws) if math.isfinite(found.value) else math.nan
    return Trend(value=found.value, low=found.low, high=found.high, num_concepts=len(points), p=p)


def _permutation_p(first: np.ndarray, second: np.ndarray, draws: Draws) -> float:
    """Two-sided p of Spearman's correlation; all orders where there are no more than so many permutations."""
    fixed, moved = (stats.rankdata(side) - (len(side) + 1) / 2 for side in (first, second))
    found = stats.permutation_test(
        (moved,),
        lambda ranks, axis: (ranks * fixed).sum(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=draws.num_permutations,
        batch=max(1, BATCH // len(fixed)),
        rng=np.random.default_rng(draws.seed),
    )
    return float(found.pvalue)


def exact_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of Spearman's correlation over all orders; for a handful of categories."""
    fixed, moved = (stats.rankdata(side) - (len(side) + 1) / 2 for side in (first, second))
    found = stats.permutation_test(
        (moved,),
        lambda ranks: float(ranks @ fixed),
        permutation_type="pairings",
        vectorized=False,
        n_resamples=np.inf,
    )
    return float(found.pvalue)


def _with(found: Estimate, low: float, high: float, interval: str) -> Estimate:
    return replace(found, low=low, high=high, interval=interval)
