"""One figure with its interval, or the reason why there is none: a row of `measures.parquet`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one model and bucket; `low` and `high` bound it at 95 %."""

    metric: str
    value: float
    standard_error: float
    low: float
    high: float
    num_real: int
    num_generated: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its standard error, and how many degrees of freedom that error has."""

    value: float
    standard_error: float
    degrees_of_freedom: int


def figure(
    metric: str,
    estimate: Estimate,
    counts: tuple[int, int],
    note: str = "",
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Row:
    """A figure with its t interval, kept within what the figure can be; the ends are NaN where there is no error.

    Args:
        counts: the numbers of real and of generated images behind it.
    """
    half_width = float(t.ppf(0.975, estimate.degrees_of_freedom)) * estimate.standard_error
    return Row(
        metric=metric,
        value=estimate.value,
        standard_error=estimate.standard_error,
        # In this order NaN is kept.
        low=max(estimate.value - half_width, bounds[0]),
        high=min(estimate.value + half_width, bounds[1]),
        num_real=counts[0],
        num_generated=counts[1],
        note=note,
    )


def missing(metric: str, counts: tuple[int, int], reason: str) -> Row:
    """A figure that could not be measured, and why."""
    nan = math.nan
    return Row(
        metric=metric,
        value=nan,
        standard_error=nan,
        low=nan,
        high=nan,
        num_real=counts[0],
        num_generated=counts[1],
        note=f"not measured: {reason}",
    )
