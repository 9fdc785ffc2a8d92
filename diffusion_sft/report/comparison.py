"""The section that shows both learners side by side: the verdict, how far they agree, and the table of shared metrics.

It reads what `compare` left in a folder (comparison, agreement and trends as parquet, verdict.json) and says no number
that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import read_json, read_table
from ..records import CATEGORIES, LEARNERS
from .cells import Cell, Group, Table, heading_cell
from .nouns import NOUNS
from .wording import DASH, NO_BREAK, Estimate, fixed, listing, number, plural, reading, share_reading

FOLDER = "compare"
"""Of the tables, in a study's folder."""
COLUMNS = {
    "comparison": (
        *("learner", "metric", "family", "name", "category", "value", "low", "high", "n", "n_of"),
        *("unit", "source", "note"),
    ),
    "agreement": (
        *("metric", "first", "second", "num_categories", "first_trend", "second_trend", "same_sign"),
        *("spearman", "p_exact", "both_exclude_zero"),
    ),
    "trends": ("learner", "metric", "rho", "rho_low", "rho_high", "num_concepts", "p_holm"),
}
MISSING = "missing: "
PERCENT, POINTS = "share", "change of share"
"""Units that the page shows in per cent and in points."""
MEASURED, PUBLISHED = "measured", "published"
SHOWN_UNITS = {PERCENT: "per cent", POINTS: "points"}


@dataclass(frozen=True, kw_only=True)
class HalfVerdict:
    """What one learner says of the hypothesis."""

    heading: str
    word: str
    answer: str
    """Whether fine-tuning was effective where there was no solution, and at what cost."""
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComparisonSection:
    """What the section shows; `missing` holds a line for each thing that it cannot."""

    headline: str
    halves: tuple[HalfVerdict, ...]
    agreement: Table | None
    tables: tuple[Table, ...]
    """One for each family of metrics."""
    missing: tuple[str, ...]
    folder: str
    """Of the files beside the page."""


def comparison_section(study: Path) -> ComparisonSection | None:
    """The section of a study's folder; None where nothing was compared in it."""
    folder = study / FOLDER
    if not folder.is_dir():
        return None
    missing: list[str] = []
    tables = {name: _table(folder, name, columns, missing) for name, columns in COLUMNS.items()}
    verdict = _verdict(folder, missing)
    long, agreed, trends = tables["comparison"], tables["agreement"], tables["trends"]
    shown = () if long is None else tuple(_families(long, trends))
    if long is not None:
        missing += _missing_metrics(long)
    missing += [str(line) for line in _sequence(verdict.get("missing"))]
    return ComparisonSection(
        headline=str(verdict.get("headline", "")),
        halves=tuple(_halves(verdict)),
        agreement=None if agreed is None or long is None else _agreement_table(agreed, long),
        tables=shown,
        missing=tuple(missing),
        folder=f"{FOLDER}/",
    )


def series_name(learner: str, source: str = MEASURED) -> str:
    """What a learner is called in a row's heading: with its source, where it was not measured here."""
    name = NOUNS[learner].model if learner in NOUNS else learner
    return name if source == MEASURED else f"{name}, {source}"


def value_cell(row: Mapping[str, Any]) -> Cell:
    """A number, its interval and its n; a dash where it is missing."""
    estimate = Estimate(value=float(row["value"]), low=float(row["low"]), high=float(row["high"]))
    if pd.isna(estimate.value):
        return Cell(text=DASH)
    unit = row["unit"]
    if unit in (PERCENT, POINTS):
        text, under = share_reading(estimate, signed=unit == POINTS, decimals=1)
    else:
        text, under = reading(estimate)
        if not under and estimate.has_interval:
            under = f"[{number(estimate.low)},{NO_BREAK}{number(estimate.high)}]"
    count = f"{int(row['n']):,} {row['n_of']}" if row["n"] else ""
    return Cell(text=text, under="\n".join(filter(None, (under, count))))


def _families(long: pd.DataFrame, trends: pd.DataFrame | None) -> list[Table]:
    """A table for each family: for each metric a group with a row for each learner and source."""
    tables = []
    for place, (family, own) in enumerate(long.groupby("family", sort=False)):
        there = own[own["value"].notna()]
        if there.empty:
            continue
        by_category = bool(there["category"].isin(CATEGORIES).any())
        groups = [_group(metric, here, trends, by_category) for metric, here in there.groupby("metric", sort=False)]
        columns = (*CATEGORIES, "ρ with category") if by_category else ("value",)
        table = Table(
            identity=f"comparison-{place + 1}",
            title=str(family),
            columns=("learner", *columns),
            groups=tuple(groups),
        )
        tables.append(table)
    return tables


def _group(metric: Any, here: pd.DataFrame, trends: pd.DataFrame | None, by_category: bool) -> Group:
    first = here.iloc[0]
    rows = []
    for (learner, source), own in here.groupby(["learner", "source"], sort=False):
        found = {
            str(row["category"]): value_cell({str(k): v for k, v in row.items()}) for row in own.to_dict("records")
        }
        wanted = CATEGORIES if by_category else ("",)
        cells = [found.get(category, Cell(text=DASH)) for category in wanted]
        if by_category:
            cells.append(_trend_cell(trends, str(learner), str(metric)) if source == MEASURED else Cell(text=DASH))
        rows.append((heading_cell(series_name(str(learner), str(source))), *cells))
    unit = str(first["unit"])
    units = here["unit"].unique()
    told = SHOWN_UNITS.get(unit, unit) if len(units) == 1 else "each in its own"
    return Group(rows=tuple(rows), heading=f"{first['name']} ({told})")


def _trend_cell(trends: pd.DataFrame | None, learner: str, metric: str) -> Cell:
    own = None if trends is None else trends[(trends["learner"] == learner) & (trends["metric"] == metric)]
    if own is None or own.empty:
        return Cell(text=DASH)
    row = own.iloc[0]
    estimate = Estimate(value=float(row["rho"]), low=float(row["rho_low"]), high=float(row["rho_high"]))
    text, under = reading(estimate, signed=True)
    holm = "" if pd.isna(row["p_holm"]) else f"p{NO_BREAK}(Holm){NO_BREAK}{number(float(row['p_holm']), 2)}"
    return Cell(text=text, under="\n".join(filter(None, (under, holm))))


def _agreement_table(agreed: pd.DataFrame, long: pd.DataFrame) -> Table | None:
    """How far the first learner agrees with each of the others, and each with the published figures."""
    names = dict(zip(long["metric"], long["name"], strict=True))
    groups = []
    for (first, second), own in agreed.groupby(["first", "second"], sort=False):
        rows = [_agreed_row(str(names.get(row["metric"], row["metric"])), row) for row in own.to_dict("records")]
        groups.append(Group(rows=tuple(rows), heading=f"{_told(str(first))} and {_told(str(second))}"))
    if not groups:
        return None
    columns = ("metric", "sign", "Spearman over categories", "both beyond zero")
    return Table(identity="comparison-agreement", title="Agreement", columns=columns, groups=tuple(groups))


def _agreed_row(name: str, row: Mapping[Any, Any]) -> tuple[Cell, ...]:
    order = Cell(text=DASH)
    if not pd.isna(row["spearman"]):
        count = plural(int(row["num_categories"]), "category").replace("categorys", "categories")
        p = f"p{NO_BREAK}{number(float(row['p_exact']), 2)}"
        order = Cell(text=fixed(float(row["spearman"]), 2, signed=True), under=f"{count}, {p}")
    sign, both = (_word(row["same_sign"], "same", "opposite"), _word(row["both_exclude_zero"], "yes", "no"))
    return (heading_cell(name), Cell(text=sign, numeric=False), order, Cell(text=both, numeric=False))


def _told(series: str) -> str:
    """A series of the agreement's table, `llm` or `llm (published)`, as the page calls it."""
    for learner in LEARNERS:
        if series == learner or series.startswith(f"{learner} ("):
            return NOUNS[learner].model + series[len(learner) :]
    return series


def _word(given: Any, true: str, false: str) -> str:
    return DASH if pd.isna(given) else true if given else false


def _halves(verdict: Mapping[str, Any]) -> list[HalfVerdict]:
    learners, words = verdict.get("learners"), verdict.get("verdicts")
    found = []
    for learner in LEARNERS:
        own = learners.get(learner) if isinstance(learners, dict) else None
        if isinstance(own, dict):
            found.append(
                HalfVerdict(
                    heading=NOUNS[learner].model.capitalize(),
                    word=str(words.get(learner, "")) if isinstance(words, dict) else "",
                    answer=str(own.get("answer", "")),
                    sentences=tuple(str(text) for text in _sequence(own.get("sentences"))),
                )
            )
    return found


def _missing_metrics(long: pd.DataFrame) -> list[str]:
    """One line for each learner and reason."""
    gone = long[long["value"].isna() & (long["category"] == "")]
    lines = []
    for (learner, note), own in gone.groupby(["learner", "note"], sort=False):
        reason = str(note).removeprefix(MISSING)
        lines.append(f"{series_name(str(learner))}: {listing([str(name) for name in own['name']])}: {reason}")
    return lines


def _verdict(folder: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        found = read_json(folder / "verdict.json")
    except UserError:
        missing.append(f"{FOLDER}/verdict.json: not there, or not readable")
        return {}
    return found if isinstance(found, dict) else {}


def _table(folder: Path, name: str, columns: Sequence[str], missing: list[str]) -> pd.DataFrame | None:
    try:
        table = read_table(folder / f"{name}.parquet")
    except UserError:
        missing.append(f"{FOLDER}/{name}.parquet: not there, or not readable")
        return None
    absent = [column for column in columns if column not in table]
    if absent:
        missing.append(f"{FOLDER}/{name}.parquet: no column {', '.join(absent)}")
        return None
    return table


def _sequence(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list) else ()
