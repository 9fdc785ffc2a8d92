"""From a set of questions to a concept set: read the rows, gather the facts, part and filter them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from ..errors import UserError
from ..parsing import Problem, closest, few, printable, problems_table, problems_text
from ..records import EXEMPLAR, HELDOUT, OTHER_RELATIONS, TEST, TRAIN, Concept, ConceptSet, Example, Fact
from .config import QuestionsConfig
from .facts import AskedFact, gather
from .layouts import read_listing
from .parts import PARTS, assign_parts, check_exemplars, filter_facts


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions as a concept set, remarks on how they were read, and what was left out as bad."""

    concept_set: ConceptSet
    """One concept per fact, called relation/subject; its examples have the question as their caption."""
    notes: list[str] = field(default_factory=list)
    problems: tuple[Problem, ...] = ()

    def problems_table(self) -> pd.DataFrame:
        """One row per skipped row or file: where, file, reason."""
        return problems_table(self.problems)


def read_questions(config: QuestionsConfig) -> QuestionSet:
    """Read a set of questions, part its facts, and drop those that Gekhman et al. (2024, arXiv 2405.05904) drop.

    A training fact is a TRAIN example and, under the same id, a HELDOUT one; its paraphrases are HELDOUT only. Facts of
    the other parts are one example each. Concepts and examples are in the order of relation and subject.

    Args:
        config: the set and how to read it.

    Raises:
        UserError: no such set, a file that cannot be read, any bad row (all of them in one message) unless `on_bad` is
            skip, no such relation, too few development facts for prompts, or nothing left.
    """
    title = printable(str(config.path or ""))
    listing = read_listing(config)
    rows = [row for row in listing.rows if not config.relations or row.relation in config.relations]
    facts, contradictions, notes = gather(rows)
    problems = [*listing.problems, *contradictions]
    if problems and config.on_bad == "stop":
        raise UserError(problems_text(title, problems))
    _check_relations(title, config, listing.relations)
    facts, part_notes = assign_parts(facts, config)
    facts, filter_notes = filter_facts(facts, config)
    if not facts:
        skipped = f" ({len(problems)} bad ones skipped)" if problems else ""
        raise UserError(f"{title}: no question is left of {len(rows)} usable rows{skipped}")
    check_exemplars(title, facts)
    _check_ids(title, facts)
    return QuestionSet(
        concept_set=ConceptSet(
            concepts=tuple(_concept(fact) for fact in facts),
            examples=tuple(example for fact in facts for example in _examples(fact)),
        ),
        notes=[*listing.notes, *notes, *part_notes, *filter_notes, *_counts(facts)],
        problems=tuple(problems),
    )


def _check_relations(title: str, config: QuestionsConfig, there: tuple[str, ...]) -> None:
    for setting in ("relations", "heldout_relations"):
        for name in getattr(config, setting):
            if name not in there:
                near = closest(name, there, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {few(list(there))}"
                raise UserError(printable(f"{title}: {setting} has {name!r}, which the set does not have; {hint}"))


def _check_ids(title: str, facts: list[AskedFact]) -> None:
    """Demand that no subject ends like the number of another subject's paraphrase."""
    names = {fact.name for fact in facts}
    for fact in facts:
        for number in range(1, len(fact.questions)):
            if _id(fact, number) in names:
                raise UserError(
                    printable(
                        f"{title}: {_id(fact, number)!r} is a fact and a paraphrase of {fact.name!r}; rename one"
                    )
                )


def _id(fact: AskedFact, number: int) -> str:
    return f"{fact.name}/{number:02d}" if number else fact.name


def _concept(fact: AskedFact) -> Concept:
    known = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answers[0], "part": str(fact.part)}
    return Concept(name=fact.name, words=fact.subject, exposure=fact.exposure, attributes={**known, **fact.columns})


def _examples(fact: AskedFact) -> list[Example]:
    """The main question in its splits; of a training fact, the paraphrases too."""
    splits = (TRAIN, HELDOUT) if fact.part == TRAIN else (str(fact.part),)
    asked = [(0, split) for split in splits]
    if fact.part == TRAIN:
        asked += [(number, HELDOUT) for number in range(1, len(fact.questions))]
    return [
        Example(
            id=_id(fact, number),
            concept=fact.name,
            caption=fact.questions[number].text,
            split=split,
            fact=Fact(
                subject=fact.subject,
                relation=fact.relation,
                answers=fact.right,
                null_question=fact.questions[number].null,
            ),
        )
        for number, split in asked
    ]


def _counts(facts: list[AskedFact]) -> list[str]:
    """One remark per relation: its facts in each part."""
    counts = Counter((fact.relation, str(fact.part)) for fact in facts)
    words = {OTHER_RELATIONS: f"{TEST} (never trained on)", EXEMPLAR: f"{EXEMPLAR} (never trained on)"}
    lines = []
    for relation in dict.fromkeys(fact.relation for fact in facts):
        there = [f"{counts[relation, part]} {words.get(part, part)}" for part in PARTS if counts[relation, part]]
        lines.append(f"{few([relation])}: {', '.join(there)}")
    if not any(fact.part == TRAIN for fact in facts):
        lines.append("no fact to train on")
    if not any(fact.part in (TEST, OTHER_RELATIONS) for fact in facts):
        lines.append("no fact for the test")
    return lines
