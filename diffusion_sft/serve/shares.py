"""What a run got right at its evaluations (`evaluations.parquet`), and what it said at the last one (`answers/`; of a
finished run `answers.parquet`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ..records import CATEGORIES
from .place import Place, Remembered

LARGEST_TABLE, MOST_ROWS = 32 << 20, 2_000_000
"""Tables of more bytes or rows are not read."""
DRAWN = 160
"""So many evaluations are drawn at most: the first, the last, and others evenly between them."""
ROWS = 20_000
"""Of one evaluation table no more rows are drawn."""
SAID = 12
"""Answers of a run's last evaluation that are shown."""
ROLES = {
    "trained": "Trained: fitted",
    "heldout": "Held out",
    "development": "Development",
    "test": "Test",
    "other_relations": "Other relations",
    "untouched": "Known, never trained",
}
"""Headings of what is asked at an evaluation, in the order in which it is shown."""
LABELS = 12
"""More categories than these are none of this project's."""


@dataclass(frozen=True)
class Share:
    """Share of right answers at one evaluation, with its interval."""

    update: int
    share: float
    low: float
    high: float


Curves = Mapping[str, Sequence[Share]]
"""Shares over updates by category."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer of an evaluation."""

    update_number: int
    role: str
    category: str
    concept: str
    answer: str
    correct: bool


def read_shares(table: Place) -> dict[str, Curves] | None:
    """Shares of right answers by role and category; None where there is no table that can be read."""
    return _SHARES.of(table, lambda: _shares(table))


_SHARES: Remembered[dict[str, Curves] | None] = Remembered(512)


def _opened(table: Place) -> BinaryIO | None:
    """A parquet table, open; None where there is none, or one that is too large or broken."""
    status, stream = table.status, table.open()
    if status is None or stream is None:
        return None
    try:
        if status.st_size <= LARGEST_TABLE and pq.ParquetFile(stream).metadata.num_rows <= MOST_ROWS:
            stream.seek(0)
            return stream
    except Exception:  # a file of anybody's may fail in any way, and the page goes on without it
        pass
    stream.close()
    return None


def _shares(table: Place) -> dict[str, Curves] | None:
    names = ["update", "role", "category", "accuracy", "accuracy_low", "accuracy_high"]
    stream = _opened(table)
    if stream is None:
        return None
    with stream:
        try:
            read = pd.read_parquet(stream, columns=names)
            numbers = read[["update", *names[3:]]].apply(pd.to_numeric, errors="coerce").dropna()
        except Exception:  # a file of anybody's may fail in any way, and the page goes on without it
            return None
    numbers = numbers[numbers["update"].isin(_drawn(numbers["update"].unique()))].head(ROWS)
    found: dict[str, dict[str, list[Share]]] = {}
    for index, (update, share, low, high) in zip(numbers.index, numbers.to_numpy(float), strict=True):
        role, category = str(read["role"][index]), str(read["category"][index])
        if role in ROLES and 0 <= update < 2**53 and 0 <= low <= share <= high <= 1:
            curve = found.setdefault(role, {}).setdefault(category, [])
            curve.append(Share(int(update), float(share), float(low), float(high)))
    return {role: _ordered(found[role]) for role in ROLES if role in found}


def _drawn(updates: np.ndarray) -> np.ndarray:
    """Of the updates of evaluations those that are drawn, `DRAWN` at most."""
    ordered = np.sort(updates)
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, min(DRAWN, len(ordered))).round().astype(int))]


def _ordered(curves: Mapping[str, list[Share]]) -> Curves:
    """Best known first, then what is none of the categories; each by updates."""
    names = [name for name in CATEGORIES if name in curves] + sorted(set(curves) - set(CATEGORIES))
    return {name: sorted(curves[name], key=lambda point: point.update) for name in names[:LABELS]}


def last_answers(run: Place) -> list[Said]:
    """What a run said at its last evaluation, some of each role and category; empty where it is not recorded."""
    named = (
        (re.fullmatch(r"update-(\d{1,15})\.parquet", entry.name), entry) for entry in (run / "answers").entries()
    )
    parts = [(int(name[1]), entry) for name, entry in named if name]
    table = max(parts, key=lambda part: part[0])[1] if parts else run / "answers.parquet"
    return _SAID.of(table, lambda: _last_answers(table))


_SAID: Remembered[list[Said]] = Remembered(64)


def _last_answers(table: Place) -> list[Said]:
    stream = _opened(table)
    if stream is None:
        return []
    with stream:
        try:
            rows = pd.read_parquet(stream, columns=["update", "role", "category", "concept", "answer", "correct"])
            rows = rows[(rows["update"] == rows["update"].max()) & rows["role"].isin(list(ROLES))]
            # Of each role as many, and of its categories one after the other.
            turn = rows.groupby(["role", "category"], sort=False).cumcount().sort_values(kind="stable").index
            place = rows.loc[turn].groupby("role", sort=False).cumcount().sort_values(kind="stable")
            first = rows.loc[place.index[:SAID]].sort_index()
            return [_said(row) for row in first.itertuples()]
        except Exception:  # a file of anybody's may fail in any way, and the page goes on without it
            return []


def _said(row: Any) -> Said:
    return Said(
        update_number=int(row.update),
        role=ROLES[row.role],
        category=str(row.category),
        concept=str(row.concept),
        answer=str(row.answer),
        correct=bool(row.correct),
    )
