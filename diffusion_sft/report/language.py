"""The section on the language model: which facts it knows, by relation, and what it says when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..records import CATEGORIES, identity_seed
from .cells import Cell, Group, Table, cut_remark, first_rows, heading_cell
from .run import Run
from .wording import DASH, cut, plural, share

EXAMPLES = 3
"""Facts per category that are shown with what the model said."""
ANSWERS_SHOWN = 3
"""Different answers of a fact that are shown, the most frequent first."""
QUESTION_LENGTH, ANSWER_LENGTH = 200, 90
"""Questions and answers are cut to this many characters on the page."""
ALL_RELATIONS = "all relations"


@dataclass(frozen=True, kw_only=True)
class AskedFact:
    """One fact: its question, the right answer, what was said with counts, and how often samples were right."""

    question: str
    right: str
    said: tuple[tuple[str, int, bool], ...]
    further: int
    """How many greedy answers are not shown."""
    sampled: str
    seen: str


@dataclass(frozen=True, kw_only=True)
class FactShelf:
    """Some facts of one category, and how many it has in all."""

    category: str
    facts: tuple[AskedFact, ...]
    num_facts: int


def relation_table(run: Run) -> Table | None:
    """How many facts of each relation fall into each category, and how likely a guess is right."""
    if run.concepts is None:
        return None
    chances = _chances(run)
    sizes = run.concepts["relation"].value_counts()
    relations = pd.DataFrame({"relation": sizes.index})
    rows = [
        _relation_row(str(relation), run.concepts[run.concepts["relation"] == relation], chances)
        for relation in first_rows(relations)["relation"]
    ]
    if len(sizes) > 1:
        rows.append(_relation_row(ALL_RELATIONS, run.concepts, chances, total=True))
    columns = ("relation", "facts", "shares", *CATEGORIES, "chance of a guess")
    return Table(
        identity="llm-relations",
        title="Categories by relation",
        columns=columns,
        groups=(Group(rows=tuple(rows)),),
        remarks=cut_remark(relations),
    )


def fact_shelves(run: Run) -> list[FactShelf]:
    """A few facts of each category, chosen by a hash of their names."""
    if run.concepts is None:
        return []
    shelves = []
    for category in CATEGORIES:
        here = run.concepts[run.concepts["category"] == category]
        order = sorted(here.index, key=lambda place: identity_seed(0, "shown", str(here["concept"][place])))
        facts = tuple(_asked(here.loc[place], run) for place in order[:EXAMPLES])
        shelves.append(FactShelf(category=category, facts=facts, num_facts=len(here)))
    return shelves


def _chances(run: Run) -> dict[str, float]:
    """The mean chance of guessing right, per relation and over all facts; empty where no answers were read."""
    if run.answers is None or run.concepts is None:
        return {}
    relation = run.answers["concept"].map(run.concepts.set_index("concept")["relation"])
    asked = pd.DataFrame({"relation": relation, "chance": 1 / run.answers["num_candidates"]}).dropna()
    return {str(name): float(value) for name, value in asked.groupby("relation")["chance"].mean().items()} | (
        {"": float(asked["chance"].mean())} if len(asked) else {}
    )


def _relation_row(
    relation: str, facts: pd.DataFrame, chances: Mapping[str, float], total: bool = False
) -> tuple[Cell, ...]:
    counts = facts["category"].value_counts()
    shares = {category: counts.get(category, 0) / len(facts) for category in CATEGORIES}
    numbers = [
        Cell(text=f"{counts.get(category, 0):,}", under=share(shares[category], decimals=1))
        for category in CATEGORIES
    ]
    chance = chances.get("" if total else relation)
    text = DASH if chance is None else share(chance, decimals=1)
    bar = Cell(text="", stack=tuple(shares.items()), numeric=False)
    return (heading_cell(relation), Cell(text=f"{len(facts):,}"), bar, *numbers, Cell(text=text))


def _asked(fact: pd.Series, run: Run) -> AskedFact:
    concept = fact["concept"]
    question, further = str(concept), 0
    said: tuple[tuple[str, int, bool], ...] = ()
    if run.answers is not None:
        answers = run.answers[run.answers["concept"] == concept]
        if len(answers):
            question = str(answers["template"].iloc[0]).replace("{}", str(fact["words"]))
        counted = answers.groupby(["answer", "correct"]).size().sort_values(ascending=False, kind="stable")
        shown = counted.head(ANSWERS_SHOWN)
        said = tuple((_short(str(text)), int(n), bool(right)) for (text, right), n in shown.items())
        further = int(counted.sum() - shown.sum())
    return AskedFact(
        question=cut(question, QUESTION_LENGTH),
        right=_short(str(fact["answer"])),
        said=said,
        further=further,
        sampled=_sampled(concept, run),
        seen=_seen(fact["exposure"]),
    )


def _seen(exposure: Any) -> str:
    if pd.isna(exposure):
        return ""
    return f"seen {plural(int(exposure), 'time')} in pretraining" if exposure else "never seen in pretraining"


def _sampled(concept: object, run: Run) -> str:
    samples = None if run.samples is None else run.samples[run.samples["concept"] == concept]
    if samples is None or samples.empty:
        return "not sampled"
    return f"right in {int(samples['correct'].sum()):,} of {len(samples):,} samples"


def _short(text: str) -> str:
    return cut(text, ANSWER_LENGTH) if text.strip() else "(nothing)"
