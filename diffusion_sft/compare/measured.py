"""All rows of one learner: its readings by category, then what is one number for a whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from ..records import CATEGORIES, TEST
from .estimates import Draws, mean_of, median_of, within
from .half import Half, Lacking
from .metrics import METRICS
from .readings import STEPS, Readings, most_unknown
from .rows import Row, missing_row, row_of
from .scalars import forecast_rows, model_rows, set_rows


def measured_rows(learner: str, halves: Sequence[Half], readings: Readings, draws: Draws) -> list[Row]:
    """Every metric of METRICS, in one row for each category or in one; what is missing in a row that says why."""
    rows = []
    for metric, about in METRICS.items():
        if about.kind == "scalar":
            continue
        own = readings.table[readings.table["metric"] == metric]
        if own.empty:
            rows.append(missing_row(learner, metric, "; ".join(readings.lacking.get(metric, ("no half has it",)))))
            continue
        note = _note(metric, halves, readings)
        noun = halves[0].noun
        for category in CATEGORIES:
            here = own[own["category"] == category]
            rows.append(_row(learner, metric, category, here, noun, note, draws))
    rows += [*model_rows(learner, halves, draws), *set_rows(learner, halves), *forecast_rows(learner, halves)]
    return [_budgeted(row, halves) for row in rows]


def _row(learner: str, metric: str, category: str, readings: pd.DataFrame, noun: str, note: str, draws: Draws) -> Row:
    about = METRICS[metric]
    if readings.empty:
        return missing_row(learner, metric, f"no {noun[:-1]} of this category was read", category)
    found = median_of(readings, draws) if about.kind == "median" else mean_of(readings, draws, about.kind)
    count = f"{len(readings)} readings" if len(readings) > found.num_concepts else ""
    if math.isinf(found.value):
        reason = f"half of the {len(readings)} trained examples were never fitted"
        return missing_row(learner, metric, reason, category)
    found = within(found, about.bounds)
    notes = [count, note]
    if math.isinf(found.high):
        found = replace(found, high=math.nan)
        notes.append("the upper end is beyond the end of training")
    told = "; ".join(filter(None, notes))
    return row_of(learner, metric, found, category=category, n=found.num_concepts, n_of=noun, note=told)


def _note(metric: str, halves: Sequence[Half], readings: Readings) -> str:
    """Where a metric is missing, and what it was asked of."""
    parts = []
    if metric.startswith(("outside_change", "late_change", "natural_accuracy")):
        parts.append(" and ".join(_outside_roles(halves)))
    if metric in ("outside_change_early_stop", "outside_change_convergence"):
        parts += [text for half in halves if (text := _most(half))]
    if metric in readings.lacking:
        parts.append(f"missing in {'; '.join(readings.lacking[metric])}")
    return "; ".join(filter(None, parts))


def _outside_roles(halves: Sequence[Half]) -> list[str]:
    found = []
    for half in halves:
        try:
            found.append("test facts" if TEST in set(half.outcomes["role"]) else f"known {half.noun} outside the mix")
        except Lacking:
            continue
    return list(dict.fromkeys(found))


def _most(half: Half) -> str:
    try:
        own = most_unknown(half.outcomes)
    except Lacking:
        return ""
    mixes = ", ".join(own["mix"].astype(str).unique())
    return f"{half.label}: {mixes}, {100 * float(own['unknown_share'].iloc[0]):.3g} % Unknown"


def _budgeted(row: Row, halves: Sequence[Half]) -> Row:
    """Residuals are told after 10 steps or, where fewer were taken, after those: the row says so."""
    if row.metric not in ("residual_10", "set_residual_10") or math.isnan(row.value):
        return row
    short = [half for half in halves if half.budget is not None and half.budget < STEPS]
    if not short:
        return row
    told = ", ".join(f"{half.label}: after {half.budget} steps, its whole budget" for half in short)
    return replace(row, note="; ".join(filter(None, (row.note, told))))
