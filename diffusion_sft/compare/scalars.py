"""Metrics that are one number for a whole run: the dynamics model, sets of equations, forecasts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm

from ..errors import UserError
from ..records import CATEGORIES, HELDOUT, OTHER_RELATIONS, TEST, TRAINED, UNTOUCHED
from .estimates import FEWEST_RUNS, Draws, Estimate, over_runs, resampled
from .half import Half, Lacking, of_first_method
from .metrics import MEASURES, PREDICTORS, ROLES
from .rows import Row, missing_row, row_of

POINTS = ("mix", "seed", "role", "fitted_known_share", "fitted_unknown_share", "accuracy")
SETS = {
    "set_residual_10": "residual_10",
    "side_effect": "side_effect",
    "constrained_residual": "constrained_residual",
}
ALL, LAST = "all", "last"
CORRELATIONS = (
    *("krylov_steps", "role", "category", "outcome", "measure", "predictor", "num_runs", "value", "low", "high"),
)


def model_rows(learner: str, halves: Iterable[Half], draws: Draws) -> list[Row]:
    """b_known, b_unknown and R² of the questions outside the mixes, and of other relations where those were asked."""
    points, reasons = _points(list(halves))
    outside = TEST if TEST in set(points["role"]) else UNTOUCHED
    rows = _model(learner, points[points["role"] == outside], "", outside, reasons, draws)
    if OTHER_RELATIONS in set(points["role"]):
        own = points[points["role"] == OTHER_RELATIONS]
        rows += _model(learner, own, "_other_relations", OTHER_RELATIONS, reasons, draws)
    return rows


def _points(halves: list[Half]) -> tuple[pd.DataFrame, list[str]]:
    parts = [pd.DataFrame(columns=["half", "run", *POINTS])]
    tables, reasons = _tables(halves, "dynamics/linear_model_points", *POINTS)
    for half, every in tables:
        own = of_first_method(every)
        run = half.label + "/" + own["mix"].astype(str) + "/" + own["seed"].astype(str)
        parts.append(own[list(POINTS)].assign(half=half.label, run=run))
    return pd.concat(parts[1:] or parts, ignore_index=True), reasons


def _tables(halves: Iterable[Half], name: str, *columns: str) -> tuple[list[tuple[Half, pd.DataFrame]], list[str]]:
    """A stage's table of every half that has it, and why the others have none."""
    found, reasons = [], []
    for half in halves:
        try:
            found.append((half, half.table(name, *columns)))
        except Lacking as reason:
            reasons.append(f"{half.label}: {reason}")
    return found, reasons


def _model(learner: str, points: pd.DataFrame, ending: str, role: str, reasons: list[str], draws: Draws) -> list[Row]:
    """One regression over all halves, each with an intercept of its own; errors may depend on each other within a run."""
    metrics = [f"{name}{ending}" for name in ("b_known", "b_unknown", "r2")]
    if points.empty:
        reason = "; ".join(reasons) or "no accuracy outside the mixes in dynamics/linear_model_points.parquet"
        return [missing_row(learner, metric, reason) for metric in metrics]
    slopes = points[["fitted_known_share", "fitted_unknown_share"]].to_numpy(float)
    response = points["accuracy"].to_numpy(float)
    if not np.isfinite(slopes).all() or not np.isfinite(response).all():
        raise UserError(
            "dynamics/linear_model_points.parquet: a share that is not a number; summarise the runs again"
        )
    half_of, halves = pd.factorize(points["half"])
    run_of, runs = pd.factorize(points["run"])
    design = np.column_stack([slopes, np.eye(len(halves))[half_of]])
    if len(points) <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        reason = f"{role}: the evaluations cannot tell the coefficients apart"
        return [missing_row(learner, metric, reason) for metric in metrics]
    fit = sm.OLS(response, design).fit(cov_type="cluster", cov_kwds={"groups": run_of}, use_t=True)
    # With as many coefficients as runs their covariance is short of rank.
    told = len(runs) > design.shape[1]
    ends = fit.conf_int() if told else np.full((2, 2), math.nan)
    estimates = [
        Estimate(
            value=float(fit.params[place]),
            low=float(ends[place][0]),
            high=float(ends[place][1]),
            interval="cluster-robust by run" if told else "",
        )
        for place in range(2)
    ]
    estimates.append(_explained(slopes, response, half_of, run_of, draws))
    note = f"{role} questions, {len(points)} evaluations" + (f"; missing in {'; '.join(reasons)}" if reasons else "")
    return [
        missing_row(learner, metric, "the accuracy never changed")
        if math.isnan(found.value)
        else row_of(learner, metric, found, n=len(runs), n_of="runs", note=note, num_runs=len(runs))
        for metric, found in zip(metrics, estimates, strict=True)
    ]


def _explained(
    slopes: np.ndarray, response: np.ndarray, half_of: np.ndarray, run_of: np.ndarray, draws: Draws
) -> Estimate:
    """R² within halves, with a bootstrap of whole runs from FEWEST_RUNS on; NaN where the response never changes."""
    count = int(run_of.max()) + 1
    members = [np.flatnonzero(run_of == run) for run in range(count)]

    def statistic(chosen: np.ndarray) -> float:
        rows = np.concatenate([members[int(run)] for run in chosen])
        return _r_squared(slopes[rows], response[rows], half_of[rows])

    found = Estimate(value=statistic(np.arange(count)))
    if count < FEWEST_RUNS or math.isnan(found.value):
        return found
    drawn = resampled(count, statistic, draws)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    # R² of a resample is higher on average: an interval that would leave its value out is widened to it.
    low, high = min(float(low), found.value), max(float(high), found.value)
    return replace(found, low=low, high=high, interval="bootstrap over runs")


def _r_squared(slopes: np.ndarray, response: np.ndarray, groups: np.ndarray) -> float:
    """Of least squares after taking each group's mean out of both sides."""
    x, y = slopes.copy(), response.copy()
    for group in np.unique(groups):
        own = groups == group
        x[own] -= x[own].mean(axis=0)
        y[own] -= y[own].mean()
    total = float(y @ y)
    if total <= 1e-12:
        return math.nan
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - float(left @ left) / total


def set_rows(learner: str, halves: Iterable[Half]) -> list[Row]:
    """What as many examples of each category take together; over several halves their mean and Student's interval."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    tables, reasons = _tables(halves, "solve/sets", "concept", "num_examples")
    for _, table in tables:
        for row in table[table["concept"].isin(CATEGORIES)].to_dict("records"):
            for metric, column in SETS.items():
                value = float(row.get(column, math.nan))
                if math.isfinite(value):
                    found.setdefault((metric, str(row["concept"])), []).append((value, int(row["num_examples"])))
    rows = []
    for metric in SETS:
        here = {category: found[metric, category] for category in CATEGORIES if (metric, category) in found}
        rows += [_set_row(learner, metric, category, read) for category, read in here.items()]
        if not here:
            rows.append(missing_row(learner, metric, "; ".join(reasons) or f"solve/sets.parquet: no {SETS[metric]}"))
    return rows


def _set_row(learner: str, metric: str, category: str, read: list[tuple[float, int]]) -> Row:
    about = over_runs([value for value, _ in read])
    values, sizes = zip(*read, strict=True)
    note = "" if len(read) == 1 else f"from {min(values):.3g} to {max(values):.3g} over {len(read)} runs"
    return row_of(learner, metric, about, category=category, n=sum(sizes), n_of="examples", note=note)


def forecast_rows(learner: str, halves: Iterable[Half]) -> list[Row]:
    """Rank correlations of forecast and real change at the end of training, after the most Krylov steps."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    tables, reasons = _tables(halves, "solve/correlations", *CORRELATIONS)
    for _, table in tables:
        table = table[(table["category"] == ALL) & (table["outcome"] == LAST) & table["value"].notna()]
        table = table[table["krylov_steps"] == table["krylov_steps"].max()]
        outside = TEST if TEST in set(table["role"]) else UNTOUCHED
        roles = {"fit": TRAINED, "transfer": HELDOUT, "forgetting": outside}
        for told, role in roles.items():
            for row in table[table["role"] == role].to_dict("records"):
                found.setdefault(f"{row['predictor']}_{told}_{row['measure']}", []).append(
                    {str(key): value for key, value in row.items()}
                )
    metrics = [f"{p}_{role}_{m}" for role in ROLES for m in MEASURES for p in PREDICTORS]
    rows = []
    for metric in metrics:
        why = "; ".join(reasons) or "solve/correlations.parquet: not defined, or not asked"
        own = found.get(metric)
        rows.append(_forecast_row(learner, metric, own) if own else missing_row(learner, metric, why))
    return rows


def _forecast_row(learner: str, metric: str, own: list[Mapping[str, Any]]) -> Row:
    first = own[0]
    note = f"after {int(first['krylov_steps'])} Krylov steps, {first['role']} questions"
    counts = [int(row["num_runs"]) for row in own]
    if len(own) > 1:
        about = over_runs([float(row["value"]) for row in own])
        return row_of(
            learner,
            metric,
            about,
            n=len(own),
            n_of="studies",
            note=f"{note}; means over studies",
            num_runs=sum(counts),
        )
    low, high = float(first["low"]), float(first["high"])
    kind = "Bonett & Wright, runs taken for independent" if math.isfinite(low) else ""
    about = Estimate(value=float(first["value"]), low=low, high=high, interval=kind)
    return row_of(learner, metric, about, n=counts[0], n_of="runs", note=note, num_runs=counts[0])
