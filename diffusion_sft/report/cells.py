"""What a table of the page consists of: cells of text, groups of rows, remarks; how they look is the template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .changes import Outcome

ROWS = 300
"""A longer table is cut to this many rows on the page; its CSV is not."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its text, a smaller line under it, a label to mark it, a verdict to tint it, a share for a bar, shares of
    the categories for a stacked bar."""

    text: str
    under: str = ""
    label: str = ""
    outcome: Outcome | None = None
    bar: float | None = None
    stack: tuple[tuple[str, float], ...] = ()
    numeric: bool = True
    heading: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows under a heading of their own, which is a bucket or empty."""

    rows: tuple[tuple[Cell, ...], ...]
    heading: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column headings, groups of rows, and remarks below."""

    identity: str
    title: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    remarks: tuple[str, ...] = ()


def heading_cell(text: str, *, label: str = "", under: str = "") -> Cell:
    """The first cell of a row, which says what the row is about."""
    return Cell(text=text, label=label, under=under, heading=True, numeric=False)


def first_rows(table: pd.DataFrame) -> pd.DataFrame:
    """As many rows as the page shows."""
    return table.head(ROWS)


def cut_remark(table: Sequence[Any] | pd.DataFrame) -> tuple[str, ...]:
    """That a table was cut to `ROWS` rows, where it was."""
    return (f"The first {ROWS} of {len(table):,} rows; the CSV has all of them.",) if len(table) > ROWS else ()
