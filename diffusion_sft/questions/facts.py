"""From rows to facts: what is asked about the same subject in the same relation is one fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..parsing import Problem, few
from ..records import DEVELOPMENT, TEST, TRAIN
from .rows import Row, key

_STRONGEST = (TEST, DEVELOPMENT, TRAIN)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A way to ask, about somebody and about nobody."""

    text: str
    null: str


@dataclass(frozen=True, kw_only=True)
class AskedFact:
    """A fact with all that the set says of it; its first question is the main one, the others are paraphrases."""

    relation: str
    subject: str
    part: str | None
    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    aliases: tuple[str, ...]
    exposure: int | None
    columns: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of its concept."""
        return f"{self.relation}/{self.subject}"

    @property
    def right(self) -> tuple[str, ...]:
        """All that is right, the trained answer first."""
        return (*self.answers, *self.aliases)


def gather(rows: list[Row]) -> tuple[list[AskedFact], list[Problem], list[str]]:
    """The facts in the order of relation and subject, rows that contradict their fact, and remarks.

    Where rows of a fact have different answers, it has several. A fact in several parts stays in the strongest of them:
    test before development before train.
    """
    distinct = list(dict.fromkeys(_Whole(row) for row in rows))
    by_name: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for whole in distinct:
        by_name[whole.row.relation, whole.row.subject].append(whole.row)
    varying = _varying(by_name)
    columns = [name for name in dict.fromkeys(name for row in rows for name in row.columns) if name not in varying]
    facts, problems, scattered = [], [], 0
    for _, group in sorted(by_name.items()):
        parts = [part for part in _STRONGEST if any(row.split == part for row in group)]
        scattered += len(parts) > 1
        kept = [row for row in group if not parts or row.split == parts[0]]
        facts.append(_fact(kept, columns))
        problems += _contradictions(kept)
    notes = []
    if len(distinct) < len(rows):
        notes.append(f"{_count(len(rows) - len(distinct), 'row')} said the same as an earlier one; merged with it")
    if scattered:
        notes.append(f"{_count(scattered, 'fact')} in several parts; kept in test before development before train")
    if varying:
        notes.append(f"columns that differ within a fact are no attributes of it: {few(varying)}")
    return facts, problems, notes


class _Whole:
    """A row by its content, wherever it stands."""

    def __init__(self, row: Row) -> None:
        self.row = row
        answers = (tuple(key(text) for text in row.answers), row.aliases, row.null_question)
        columns = tuple(sorted(row.columns.items()))
        self.content = (row.relation, row.subject, row.question, answers, row.split, row.exposure, columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Whole) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def _varying(groups: Mapping[tuple[str, str], list[Row]]) -> list[str]:
    varying: dict[str, None] = {}
    for group in groups.values():
        first = group[0].columns
        for row in group[1:]:
            if row.columns != first:
                names = [*first, *(name for name in row.columns if name not in first)]
                varying |= {name: None for name in names if first.get(name, "") != row.columns.get(name, "")}
    return list(varying)


def _fact(rows: list[Row], columns: list[str]) -> AskedFact:
    answers = _first_of_each(text for row in rows for text in row.answers)
    aliases = _first_of_each(text for row in rows for text in row.aliases)
    nulls: dict[str, str] = {}
    for row in rows:
        nulls.setdefault(row.question, row.null_question)
    return AskedFact(
        relation=rows[0].relation,
        subject=rows[0].subject,
        part=rows[0].split,
        questions=tuple(Question(text=text, null=null) for text, null in nulls.items()),
        answers=tuple(answers.values()),
        aliases=tuple(text for name, text in aliases.items() if name not in answers),
        exposure=rows[0].exposure,
        columns={name: rows[0].columns.get(name, "") for name in columns},
    )


def _first_of_each(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(key(text), text)
    return found


def _contradictions(rows: list[Row]) -> list[Problem]:
    first = rows[0]
    return [
        Problem(
            where=row.where, reason=f"exposure {row.exposure}, but {first.exposure} in {first.where} for this fact"
        )
        for row in rows[1:]
        if row.exposure != first.exposure
    ]


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
