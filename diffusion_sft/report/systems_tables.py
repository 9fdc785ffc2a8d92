"""The tables of the systems of equations: solution classes, measures by category, sets of examples, rank correlations."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..records import CATEGORIES
from .cells import Cell, Group, Table, heading_cell
from .run import Run
from .systems_figures import CONTROL, DRAWN
from .systems_words import (
    ACCURACY,
    ALL,
    CLASSES,
    EARLY,
    ERROR,
    FORECAST,
    LAST,
    START,
    SYSTEMS,
    category_of,
    estimate_of,
    kinds,
    shown_roles,
    sizes,
)
from .wording import DASH, NO_BREAK, Estimate, fixed, listing, number, plural, reading, share

FORECASTS = {
    (ACCURACY, FORECAST, EARLY): "accuracy, early stop",
    (ACCURACY, FORECAST, LAST): "accuracy, end",
    (ERROR, FORECAST, EARLY): "error, early stop",
    (ERROR, FORECAST, LAST): "error, end",
    (ERROR, START, LAST): "error, end, from the start alone",
}
"""The columns of the table of forecasts: measure, predictor, outcome."""
SETS = {
    "num_examples": "examples",
    "rhs_rms": "r, RMS",
    "residual_10": "residual after 10 steps",
    "solution_norm": "‖δ‖",
    "effective_rank": "effective rank",
    "picard_slope": "Picard slope",
    "side_effect": "side effect",
    "constrained_residual": "residual, known held",
}
"""Columns of the table of sets; those that a table lacks are left out."""


@dataclass(frozen=True, kw_only=True)
class ClassCell:
    """How many concepts of a category have one solution class, and which share of them."""

    count: int
    share: str
    heat: int
    """The share in whole per cent, for the tint."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One category."""

    category: str
    cells: tuple[ClassCell, ...]
    total: int


def class_rows(run: Run) -> tuple[ClassRow, ...]:
    """How many concepts of each category have each solution class."""
    classes = run.solved["classes"]
    counts = pd.crosstab(classes["concept"].map(category_of(run)), classes["solution_class"])
    counts = counts.reindex(index=list(CATEGORIES), columns=list(CLASSES), fill_value=0)
    return tuple(
        _class_row(str(category), counted)
        for category, counted in zip(counts.index, counts.to_numpy().tolist(), strict=True)
    )


def _class_row(category: str, counts: list[int]) -> ClassRow:
    total = sum(counts)
    cells = tuple(
        ClassCell(
            count=count,
            share=share(count / total) if total else DASH,
            heat=round(100 * count / total) if total else 0,
        )
        for count in counts
    )
    return ClassRow(category=category, cells=cells, total=total)


def systems_table(run: Run) -> Table | None:
    """The means of the main measures over the concepts of each category, and their trend over the categories."""
    means, trends = run.solved["categories"], run.solved["trends"]
    groups, lacking = [], []
    for system, about in SYSTEMS.items():
        own = means[(means["system"] == system) & means["measure"].isin(about.measures)]
        if own.empty:
            lacking.append(about.name)
            continue
        rows = [
            _measure_row(run, system, measure, own[own["measure"] == measure], trends)
            for measure in about.measures
            if measure in set(own["measure"])
        ]
        kind = f" ({kinds(run)})" if system == "inputs" and kinds(run) else ""
        heading = f"{about.name}{kind}: {sizes(own['num_concepts'], run.nouns.concept)}"
        groups.append(Group(rows=tuple(rows), heading=heading))
    if not groups:
        return None
    return Table(
        identity=f"{run.prefix}systems",
        title=f"Measures by category, {run.nouns.model}",
        columns=("measure", *CATEGORIES, "ρ with category"),
        groups=tuple(groups),
        remarks=(f"Not solved for in this study: {listing(lacking)}.",) if lacking else (),
    )


def _measure_row(run: Run, system: str, measure: str, means: pd.DataFrame, trends: pd.DataFrame) -> tuple[Cell, ...]:
    about = SYSTEMS[system].measures[measure]
    by_category = {str(row["category"]): estimate_of(row) for _, row in means.iterrows()}
    found = trends[(trends["system"] == system) & (trends["measure"] == measure)]
    trend = estimate_of(found.iloc[0]) if len(found) else None
    cells = [estimate_cell(by_category.get(category)) for category in CATEGORIES]
    return (heading_cell(about.name, under=about.remark(run.learner)), *cells, estimate_cell(trend, signed=True))


def estimate_cell(estimate: Estimate | None, signed: bool = False) -> Cell:
    """A number with its interval under it, also where that has no width; a dash where there is none."""
    if estimate is None or pd.isna(estimate.value):
        return Cell(text=DASH)
    text, under = reading(estimate, signed=signed)
    if not under and estimate.has_interval:
        under = f"[{number(estimate.low, signed=signed)},{NO_BREAK}{number(estimate.high, signed=signed)}]"
    return Cell(text=text, under=under)


def sets_table(run: Run) -> Table | None:
    """What as many examples of each category take when they are solved together, beside the shuffled control."""
    table = run.solved["sets"]
    sets = {str(row["concept"]): row for _, row in table.iterrows()}
    shown = {column: name for column, name in SETS.items() if column in table}
    rows = [
        (
            heading_cell(name, label=name if name in CATEGORIES else "", under="control" if name == CONTROL else ""),
            *(Cell(text=_counted(float(sets[name][column]), column)) for column in shown),
        )
        for name in DRAWN
        if name in sets
    ]
    if not rows:
        return None
    columns, group = ("examples of", *shown.values()), Group(rows=tuple(rows))
    identity, title = f"{run.prefix}sets", f"Examples solved together, {run.nouns.model}"
    return Table(identity=identity, title=title, columns=columns, groups=(group,))


def _counted(value: float, column: str) -> str:
    return fixed(value, 0) if column == "num_examples" else number(value)


def correlation_table(run: Run) -> Table | None:
    """Spearman's ρ of forecast and real change over runs, for each number of Krylov steps, measure and outcome; beside
    it that of where the base stood."""
    table = run.solved["correlations"]
    table = table[table["category"] == ALL]
    roles, groups = shown_roles(run), []
    for steps in sorted({int(count) for count in table["krylov_steps"]}):
        here = table[table["krylov_steps"] == steps]
        rows = []
        for role in roles:
            own = here[here["role"] == role]
            if len(own):
                keys = zip(own["measure"], own["predictor"], own["outcome"], strict=True)
                found = dict(zip(keys, (estimate_of(row) for _, row in own.iterrows()), strict=True))
                cells = [estimate_cell(found.get(key), signed=True) for key in FORECASTS]
                cells.append(_within_cell(own))
                rows.append((heading_cell(run.nouns.role(role)), *cells, Cell(text=f"{int(own['num_runs'].max())}")))
        if rows:
            groups.append(Group(rows=tuple(rows), heading=plural(steps, "Krylov step")))
    if not groups:
        return None
    columns = ("asked", *(f"ρ {name}" for name in FORECASTS.values()), "ρ error, end, within seeds", "runs")
    identity, title = f"{run.prefix}forecasts", f"Forecast against outcome, {run.nouns.model}"
    return Table(identity=identity, title=title, columns=columns, groups=tuple(groups))


def _within_cell(correlations: pd.DataFrame) -> Cell:
    """The rank correlation of the error at the end among the runs of one seed."""
    kinds = zip(correlations["measure"], correlations["predictor"], correlations["outcome"], strict=True)
    kept = correlations["within_seeds"][[kind == (ERROR, FORECAST, LAST) for kind in kinds]]
    return Cell(text=fixed(float(kept.iloc[0]), 2, signed=True) if len(kept) else DASH)
