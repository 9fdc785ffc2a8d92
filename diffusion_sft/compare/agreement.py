"""Do two learners agree, metric by metric: in sign, in order over the categories, and in their trend over concepts?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from ..numerics.statistics import spearman
from ..records import CATEGORIES
from .estimates import Draws, Trend, exact_p, trend_of
from .metrics import METRICS
from .rows import MEASURED, PUBLISHED, SOURCES, learner_place

PLACES = {category: place for place, category in enumerate(CATEGORIES)}
FEWEST = 2
"""Categories below which there is no order."""
TREND = ("rho", "rho_low", "rho_high", "num_concepts", "p", "p_holm")
AGREEMENT_COLUMNS = (
    *("metric", "first", "second", "num_categories", "first_trend", "second_trend", "same_sign"),
    *("spearman", "same_order", "p_exact", "smallest_p"),
    *(f"{side}_{name}" for side in ("first", "second") for name in TREND),
    *("both_exclude_zero", "note"),
)
"""first_trend and second_trend are Spearman's correlations of the values with the categories' place (of metrics without
categories the value itself), from HighlyKnown to Unknown; spearman is that of the two learners' values over the
categories. rho and what follows are over concepts; p_holm corrects p for all metrics of that learner (Holm).
both_exclude_zero says whether the intervals of both trends (or values) are on the same side of zero; missing where
either has none."""
FEW_CATEGORIES = "of {n} categories no order has an exact p below {p:.2g}"


def series_name(learner: str, source: str) -> str:
    """What a learner is called where sources stand side by side."""
    return learner if source == MEASURED else f"{learner} ({source})"


def trends_of(readings: Mapping[str, pd.DataFrame], draws: Draws) -> dict[tuple[str, str], Trend]:
    """The trend of every metric over the concepts of each learner."""
    found = {}
    for learner, table in readings.items():
        for metric, own in table.groupby("metric", sort=False):
            if METRICS[str(metric)].trend and metric != "category_share":
                found[learner, str(metric)] = trend_of(own, PLACES, draws)
    return found


def corrected(trends: Mapping[tuple[str, str], Trend]) -> dict[tuple[str, str], float]:
    """Holm's adjusted p of every trend, among all metrics of its learner; NaN where there is no p."""
    found = dict.fromkeys(trends, math.nan)
    for learner in dict.fromkeys(learner for learner, _ in trends):
        keys = [key for key, trend in trends.items() if key[0] == learner and math.isfinite(trend.p)]
        if keys:
            adjusted = multipletests([trends[key].p for key in keys], method="holm")[1]
            found |= dict(zip(keys, map(float, adjusted), strict=True))
    return found


def trend_table(trends: Mapping[tuple[str, str], Trend]) -> pd.DataFrame:
    """One row for each learner and metric with a trend (learner, metric, TREND)."""
    holm = corrected(trends)
    rows = [
        (learner, metric, found.value, found.low, found.high, found.num_concepts, found.p, holm[learner, metric])
        for (learner, metric), found in trends.items()
        if math.isfinite(found.value)
    ]
    return pd.DataFrame(rows, columns=["learner", "metric", *TREND])


def agreement_table(table: pd.DataFrame, trends: pd.DataFrame) -> pd.DataFrame:
    """One row for each metric and pair of series (learner and source) that both have it (AGREEMENT_COLUMNS).

    Args:
        table: the long table.
        trends: `trend_table`, of what was measured here.
    """
    found = {(str(row["learner"]), str(row["metric"])): row for row in trends.to_dict("records")}
    table = table[table["value"].notna()]
    places = learner_place(table["learner"])
    rows = []
    for metric, own in table.groupby("metric", sort=False):
        if not METRICS[str(metric)].trend:
            continue
        series = {
            (str(learner), str(source)): here.set_index("category")
            for (learner, source), here in own.groupby(["learner", "source"], sort=False)
        }
        ordered = sorted(series, key=lambda key: (SOURCES.index(key[1]), places[key[0]]))
        for first, second in itertools.combinations(ordered, 2):
            if first[1] == PUBLISHED:
                continue
            row = _compared(str(metric), series[first], series[second])
            sides = {"first": first, "second": second}
            row |= {side: series_name(*key) for side, key in sides.items()}
            for side, key in sides.items():
                trend = found.get((key[0], str(metric)), {}) if key[1] == MEASURED else {}
                row |= {f"{side}_{name}": trend[name] for name in TREND if name in trend}
            rows.append(row | {"both_exclude_zero": _both(row, series[first], series[second])})
    frame = pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))
    booleans = dict.fromkeys(("same_sign", "same_order", "both_exclude_zero"), "boolean")
    counts = dict.fromkeys(("num_categories", "first_num_concepts", "second_num_concepts"), "Int64")
    return frame.astype(booleans | counts)


def _compared(metric: str, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(AGREEMENT_COLUMNS) | {"metric": metric, "note": ""}
    if not METRICS[metric].categories:
        sides = [float(side["value"].iloc[0]) for side in (first, second)]
        row |= {"num_categories": 0, "first_trend": sides[0], "second_trend": sides[1]}
        return row | {"same_sign": _same_sign(*sides), "note": "no categories: the sign of the numbers themselves"}
    common = [category for category in CATEGORIES if category in first.index and category in second.index]
    row["num_categories"] = len(common)
    if len(common) < FEWEST:
        return row | {"note": "fewer than two categories in common"}
    x, y = (side.loc[common, "value"].to_numpy(float) for side in (first, second))
    place = np.array([PLACES[category] for category in common], float)
    trends = [spearman(place, values).value for values in (x, y)]
    row |= {"first_trend": trends[0], "second_trend": trends[1], "same_sign": _same_sign(*trends)}
    smallest = min(1.0, 2 / math.factorial(len(common)))
    row |= {"smallest_p": smallest, "note": FEW_CATEGORIES.format(n=len(common), p=smallest)}
    found = spearman(x, y).value
    if math.isfinite(found):
        row |= {"spearman": found, "same_order": bool(found > 1 - 1e-12), "p_exact": exact_p(x, y)}
    return row


def _both(row: Mapping[str, Any], first: pd.DataFrame, second: pd.DataFrame) -> bool | None:
    """Whether both intervals exclude zero on the same side: of the trends over concepts, or of single numbers."""
    if METRICS[str(row["metric"])].categories:
        ends = [(row[f"{side}_rho_low"], row[f"{side}_rho_high"]) for side in ("first", "second")]
    else:
        ends = [(float(side["low"].iloc[0]), float(side["high"].iloc[0])) for side in (first, second)]
    if any(end is None or not math.isfinite(end) for pair in ends for end in pair):
        return None
    return all(low > 0 for low, _ in ends) or all(high < 0 for _, high in ends)


def _same_sign(first: float, second: float) -> bool | None:
    if not (math.isfinite(first) and math.isfinite(second)) or first == 0 or second == 0:
        return None
    return (first > 0) == (second > 0)
