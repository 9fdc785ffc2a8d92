"""The one long table: a row for each learner, metric and category, with its interval, its n and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..records import CATEGORIES, LEARNERS
from .estimates import Estimate
from .metrics import METRICS

MEASURED, EXTERNAL, PUBLISHED = "measured", "external", "published"
SOURCES = (MEASURED, EXTERNAL, PUBLISHED)
MISSING = "missing: "
"""What the note of a row without a value begins with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number; `value` is NaN where it is missing, and the note then says why."""

    learner: str
    metric: str
    category: str = ""
    """Empty where the number is of no single category."""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    n_of: str = ""
    """What n counts: concepts, facts, examples, runs, seeds."""
    num_runs: int = 0
    """Of how many runs; a run is a study's folder for what is read off the base, else a fine-tuning run."""
    unit: str = ""
    interval: str = ""
    """What the interval is, and over what; empty without one."""
    source: str = MEASURED
    note: str = ""


FIELDS = tuple(field.name for field in fields(Row))
COLUMNS = (*FIELDS[:2], "family", "name", *FIELDS[2:])
"""Of the table: a row's fields, and the metric's family and name in words."""
KEY = ("learner", "source", "metric", "category")


def missing_row(learner: str, metric: str, reason: str, category: str = "") -> Row:
    """A number that there is not, and why."""
    unit = METRICS[metric].unit_of(learner)
    return Row(learner=learner, metric=metric, category=category, unit=unit, note=f"{MISSING}{reason}")


def row_of(
    learner: str,
    metric: str,
    found: Estimate,
    *,
    n: int,
    n_of: str,
    note: str,
    category: str = "",
    num_runs: int | None = None,
) -> Row:
    """A measured number; of so many runs as the estimate says, unless told."""
    return Row(
        learner=learner,
        metric=metric,
        category=category,
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        n_of=n_of,
        num_runs=found.num_runs if num_runs is None else num_runs,
        unit=METRICS[metric].unit_of(learner),
        interval=found.interval,
        note=note,
    )


def make_table(rows: Iterable[Row]) -> pd.DataFrame:
    """The table of these rows in the order of METRICS, sources, learners and categories.

    Raises:
        UserError: two rows of one learner, source, metric and category, or a number that may not be what it is.
    """
    records = [asdict(row) for row in rows]
    table = pd.DataFrame(records, columns=list(FIELDS))
    table["family"] = [METRICS[metric].family for metric in table["metric"]]
    table["name"] = [METRICS[metric].name for metric in table["metric"]]
    table = table.astype(dict.fromkeys(("value", "low", "high"), float) | dict.fromkeys(("n", "num_runs"), np.int64))
    check_rows(table, "the comparison")
    places = pd.DataFrame(
        {
            "metric": table["metric"].map({name: place for place, name in enumerate(METRICS)}),
            "source": table["source"].map({name: place for place, name in enumerate(SOURCES)}),
            "learner": table["learner"].map(learner_place(table["learner"])),
            "category": table["category"].map({name: place for place, name in enumerate(("", *CATEGORIES))}),
        }
    )
    order = places.sort_values(list(places.columns), kind="stable").index
    return table.loc[order, list(COLUMNS)].reset_index(drop=True)


def learner_place(learners: Iterable[str]) -> dict[str, int]:
    """The place of each learner: the project's two, then others in the order of their names."""
    found = set(learners)
    names = [name for name in LEARNERS if name in found] + sorted(found - set(LEARNERS))
    return {name: place for place, name in enumerate(names)}


def check_rows(table: pd.DataFrame, where: str) -> None:
    """Raise UserError for the first duplicate, infinite number, value without a reason, or interval out of order."""
    twice = table[table.duplicated(list(KEY))]
    if len(twice):
        row: Any = twice.iloc[0]
        named = " of ".join(filter(None, (row.metric, row.category)))
        raise UserError(f"{where}: {row.learner} ({row.source}) has {named} twice; give each number once")
    for place, row in zip(table.index, table.itertuples(index=False), strict=True):
        if problem := _problem(row):
            named = " of ".join(filter(None, (row.metric, row.category)))
            raise UserError(f"{where}, row {place + 1} ({row.learner}, {named}): {problem}")


def _problem(row: Any) -> str:
    numbers = {name: float(getattr(row, name)) for name in ("value", "low", "high")}
    for name, number in numbers.items():
        if math.isinf(number):
            return f"{name} is infinite; leave it empty and say why in the note"
    if math.isnan(numbers["value"]) and not row.note.startswith(MISSING):
        return f"value is not a number; where there is none, the note begins with {MISSING!r} and the reason"
    low, value, high = (numbers[name] for name in ("low", "value", "high"))
    if low > value or value > high or low > high:
        return f"the interval [{low:g}, {high:g}] does not hold the value {value:g}"
    return ""
