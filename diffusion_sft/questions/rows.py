"""What the readers of all formats hand on: one row per question, and how its cells are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..parsing import Problem, closest, described, few, printable, scalar, shortened
from ..records import DEVELOPMENT, TEST, TRAIN

SPLIT_WORDS = {
    "train": TRAIN,
    "dev": DEVELOPMENT,
    "development": DEVELOPMENT,
    "validation": DEVELOPMENT,
    "val": DEVELOPMENT,
    "test": TEST,
}
"""Words that a split may be called by, in any case, and the part each one means."""
LONGEST = 2000
"""Characters of a question, an answer or any other text; more is something else."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question as the set has it; `split` is None where the set leaves the parting to us.

    `where` is where a user would mend the row ("questions.jsonl line 3"). `aliases` are other words for the answers.
    """

    where: str
    question: str
    relation: str
    subject: str
    answers: tuple[str, ...]
    null_question: str
    aliases: tuple[str, ...] = ()
    split: str | None = None
    exposure: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a reader found: usable rows, problems, remarks that the user should see, and all names of relations."""

    rows: list[Row]
    problems: list[Problem]
    notes: list[str]
    relations: tuple[str, ...]


def key(text: str) -> str:
    """The form in which subjects and answers are compared: case and blanks do not matter."""
    return " ".join(text.casefold().split())


def text_of(record: Mapping[str, Any], column: str) -> str:
    """The cell as one line of text, "" where it is missing; ValueError where it is no text or far too long."""
    return _text(record.get(column), column)


def required_text(record: Mapping[str, Any], column: str) -> str:
    """The cell as one line of text; ValueError where it is missing, empty, no text or far too long."""
    text = text_of(record, column)
    if not text:
        raise ValueError(f"{column} is empty or missing")
    return text


def relation_of(record: Mapping[str, Any], column: str) -> str:
    """The relation's name; ValueError where it is missing, or has what parts it from the subject in a fact's name."""
    relation = required_text(record, column)
    if "/" in relation:
        raise ValueError(f"{column} {described(relation)} contains '/', which parts it from the subject; rename it")
    return relation


def texts_of(cells: Any, column: str) -> tuple[str, ...]:
    """The texts of a list that is not empty, each once; ValueError where it is something else."""
    if not isinstance(cells, list):
        raise ValueError(f"{column} is not a list of texts but {described(cells)}")
    texts: dict[str, str] = {}
    for number, cell in enumerate(cells):
        text = _text(cell, f"{column}[{number}]")
        if not text:
            raise ValueError(f"{column}[{number}] is empty")
        texts.setdefault(key(text), text)
    if not texts:
        raise ValueError(f"{column} is empty or missing")
    return tuple(texts.values())


def answers_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The right answers, out of `answers` (a list) or `answer` (one text); ValueError where neither has any."""
    one, several = record.get("answer"), record.get("answers")
    if one not in (None, "") and several not in (None, "", []):
        raise ValueError("has both answer and answers; keep one of them")
    if several is not None:
        return texts_of(several, "answers")
    if isinstance(one, list):
        raise ValueError("answer is not text but a list; call the column answers")
    return (required_text(record, "answer"),)


def check_columns(where: str, columns: list[str], required: list[tuple[str, ...]]) -> None:
    """Demand one column out of each tuple.

    Raises:
        UserError: none is there; it names what was found and the nearest name.
    """
    for wanted in required:
        if not set(wanted) & set(columns):
            near = [near for name in wanted for near in closest(name, columns, 0.6)]
            hint = printable(f"; rename {near[0]!r} if that is the one") if near else ""
            names = " or ".join(repr(name) for name in wanted)
            raise UserError(f"{where}: no column {names}; found {few(columns)}{hint}")


def nullified(question: str, subject: str, null_subject: str) -> str:
    """The question about nobody: `null_subject` wherever the subject stands as a word, in any case.

    Raises:
        ValueError: the question does not contain its subject.
    """
    pattern = r"\s+".join(re.escape(part) for part in subject.split())
    asked, count = re.subn(rf"(?<!\w){pattern}(?!\w)", lambda _: null_subject, question, flags=re.IGNORECASE)
    if not count:
        raise ValueError(
            f"question does not contain its subject {shortened(subject)!r} as a word; give a null_question beside it"
        )
    return asked


def _text(value: Any, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column} is not text but {described(value)}")
    if value and len(value) > LONGEST:
        raise ValueError(f"{column} has {len(value)} characters; at most {LONGEST} are read")
    return " ".join(scalar(value).split())
