"""Plain sets: one JSON object with a question, its answer, its relation and its subject on each line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..parsing import Problem, Record, closest, count_of, described, few, json_lines, scalar, text_bytes
from .config import QuestionsConfig
from .rows import (
    LONGEST,
    SPLIT_WORDS,
    Listing,
    Row,
    answers_of,
    check_columns,
    nullified,
    relation_of,
    required_text,
    text_of,
)

FILE_NAME = "questions.jsonl"
OPTIONAL = ("split", "null_question", "exposure")
_READ = {"question", "answer", "answers", "relation", "subject", *OPTIONAL}
_RESERVED = {"concept", "words", "part"}
"""Columns of the tables that concepts are written to."""


def read_plain(file: Path, config: QuestionsConfig) -> Listing:
    """Read a file of JSON lines; further columns of plain values become attributes.

    Raises:
        UserError: the file cannot be opened, or a column is missing.
    """
    problems: list[Problem] = []
    records: list[Record] = []
    for item in json_lines(file.name, text_bytes(file), '{"question": ...}'):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            records.append(item)
    columns = list(dict.fromkeys(column for _, record in records for column in record))
    if records:
        check_columns(str(file), columns, [("question",), ("answer", "answers"), ("relation",), ("subject",)])
    rows = []
    for where, record in records:
        try:
            rows.append(_row(where, record, "split" in columns, config.null_subject))
        except ValueError as error:
            problems.append(Problem(where=where, reason=str(error)))
    relations = tuple(sorted({row.relation for row in rows}))
    return Listing(rows=rows, problems=problems, notes=_notes(file.name, columns), relations=relations)


def _notes(name: str, columns: list[str]) -> list[str]:
    notes = [
        f"{name}: column {few([repr(near)])} is not read as {wanted!r}; rename it if that is meant"
        for wanted in OPTIONAL
        if wanted not in columns
        for near in closest(wanted, columns, 0.85)
    ]
    if taken := [column for column in columns if column in _RESERVED]:
        notes.append(f"{name}: no attributes, because tables have columns of these names already: {few(taken)}")
    return notes


def _row(where: str, record: Mapping[str, Any], with_split: bool, null_subject: str) -> Row:
    """One row; ValueError says what is wrong with it."""
    question, subject = required_text(record, "question"), required_text(record, "subject")
    return Row(
        where=where,
        question=question,
        relation=relation_of(record, "relation"),
        subject=subject,
        answers=answers_of(record),
        null_question=text_of(record, "null_question") or nullified(question, subject, null_subject),
        split=_split(record.get("split")) if with_split else None,
        exposure=_exposure(record.get("exposure")),
        columns={
            column: _attribute(column, value)
            for column, value in record.items()
            if column and column not in _READ | _RESERVED and not isinstance(value, (list, dict))
        },
    )


def _split(value: Any) -> str:
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in SPLIT_WORDS:
        raise ValueError(f"split {described(value)} is none of {', '.join(SPLIT_WORDS)}")
    return SPLIT_WORDS[word]


def _exposure(value: Any) -> int | None:
    if isinstance(value, (list, dict)) or (isinstance(value, str) and len(value) > LONGEST):
        raise ValueError(f"exposure is not a count but {described(value)}")
    return count_of(value, "exposure")


def _attribute(column: str, value: Any) -> str:
    """The cell as text; ValueError where it or the column's name cannot be written to a table."""
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"{described(column)} has {len(value)} characters; at most {LONGEST} are read")
    scalar(column)
    return scalar(value)
