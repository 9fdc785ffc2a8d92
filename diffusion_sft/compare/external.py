"""Results made elsewhere: CSV or parquet files in the columns of the long table, checked on reading."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import read_table
from ..parsing import printable
from ..records import CATEGORIES
from .metrics import CHANGE, METRICS, SHARE
from .rows import EXTERNAL, MISSING, Row, check_rows

REQUIRED = ("learner", "metric", "category", "value")
OPTIONAL = ("low", "high", "n", "n_of", "unit", "interval", "note")
NUMBERS = ("value", "low", "high", "n")
LONGEST_NAME = 60
"""Characters of a learner's name."""


def external_rows(files: Sequence[str]) -> list[Row]:
    """The rows of all files.

    Raises:
        UserError: which file, which column or row, and what is wrong with it.
    """
    rows = [row for file in files for row in _rows(Path(file))]
    counts = Counter((row.learner, row.metric, row.category) for row in rows)
    for (learner, metric, category), count in counts.items():
        if count > 1:
            named = " of ".join(filter(None, (metric, category)))
            raise UserError(f"{', '.join(files)}: {learner} has {named} twice; give each number once")
    return rows


def _rows(path: Path) -> list[Row]:
    table = _read(path)
    absent = [name for name in REQUIRED if name not in table]
    if absent:
        raise UserError(f"{path}: no column {', '.join(absent)}; needed are {', '.join(REQUIRED)}")
    further = [str(name) for name in table if name not in (*REQUIRED, *OPTIONAL)]
    if further:
        near = difflib.get_close_matches(further[0], OPTIONAL, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join((*REQUIRED, *OPTIONAL))}"
        raise UserError(f"{path}: column {printable(further[0])!r} is not known; {hint}")
    if table.empty:
        raise UserError(f"{path}: no rows")
    rows = [_row(path, place, record) for place, record in enumerate(table.to_dict("records"), start=1)]
    check_rows(pd.DataFrame([asdict(row) for row in rows]), str(path))
    return rows


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return read_table(path)
    if path.suffix != ".csv":
        raise UserError(f"{path}: a .csv or .parquet file is expected")
    try:
        # As text: what is not a number is then named with its row.
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable CSV file ({' '.join(str(error).split())})") from None


def _row(path: Path, place: int, record: dict[Any, Any]) -> Row:
    where = f"{path}, row {place}"
    texts = {name: _text(record.get(name)) for name in (*REQUIRED, *OPTIONAL) if name not in NUMBERS}
    numbers = {name: _number(where, name, record.get(name)) for name in NUMBERS}
    learner, metric, category = texts["learner"], texts["metric"], texts["category"]
    if not learner or len(learner) > LONGEST_NAME or printable(learner) != learner:
        raise UserError(
            f"{where}, column learner: 1 to {LONGEST_NAME} printable characters are needed, not {learner!r:.80}"
        )
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/comparison.md lists them"
        raise UserError(f"{where}, column metric: {metric!r:.80} is not a metric; {hint}")
    wanted = CATEGORIES if METRICS[metric].categories else ("",)
    if category not in wanted:
        told = f"one of {', '.join(CATEGORIES)}" if METRICS[metric].categories else "nothing, it has no categories"
        raise UserError(f"{where}, column category: {metric} needs {told}, not {category!r:.80}")
    unit = METRICS[metric].unit_of(learner)
    if METRICS[metric].units is None and texts["unit"] not in ("", unit):
        raise UserError(f"{where}, column unit: {metric} is told in {unit!r}, not {texts['unit']!r:.80}")
    return Row(
        learner=learner,
        metric=metric,
        category=category,
        value=_in_range(where, metric, numbers["value"]),
        low=numbers["low"],
        high=numbers["high"],
        n=_count(where, numbers["n"]),
        n_of=texts["n_of"],
        unit=texts["unit"] or unit,
        interval=texts["interval"],
        source=EXTERNAL,
        note=_told(texts["note"], numbers["value"], path),
    )


def _told(note: str, value: float, path: Path) -> str:
    if not math.isnan(value):
        return "; ".join(filter(None, (printable(note), path.name)))
    return note if note.startswith(MISSING) else f"{MISSING}{note or f'no value in {path.name}'}"


def _text(given: Any) -> str:
    return "" if given is None or (isinstance(given, float) and math.isnan(given)) else str(given).strip()


def _number(where: str, name: str, given: Any) -> float:
    text = _text(given)
    try:
        found = float(text) if text else math.nan
    except ValueError:
        raise UserError(f"{where}, column {name}: {text!r:.80} is not a number") from None
    if math.isinf(found) or (name == "value" and text and math.isnan(found)):
        raise UserError(f"{where}, column {name}: {text!r} is not finite; leave it empty where there is none")
    return found


def _count(where: str, found: float) -> int:
    if math.isnan(found):
        return 0
    if found < 0 or found != int(found):
        raise UserError(f"{where}, column n: a count is needed, not {found:g}")
    return int(found)


def _in_range(where: str, metric: str, value: float) -> float:
    least = {SHARE: 0.0, CHANGE: -1.0}.get(METRICS[metric].unit)
    if least is not None and not math.isnan(value) and not least <= value <= 1:
        raise UserError(
            f"{where}, column value: {metric} lies in {least:g}..1, not {value:g}; percent are not shares"
        )
    return value
