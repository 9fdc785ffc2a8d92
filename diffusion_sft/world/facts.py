"""The world in words: what can be asked about each inhabitant, and the right answers.

The same names, looks and exposures as the pictures'. Four relations: colour, shape and pattern, each a word, and the
whole description, a sentence of 8 to 16 tokens. The first question of a relation is the one that is asked and trained
on; the others are paraphrases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..records import identity_seed
from .looks import Look
from .population import Inhabitant

TRAIN, DEV, TEST = "train", "dev", "test"
PARTS = (TRAIN, DEV, TEST)
"""As in EntityQuestions: dev facts are shown as exemplars and decide the early stop, test facts are asked alone."""
BLOCK = (*[TRAIN] * 11, *[DEV] * 3, *[TEST] * 6)
"""Of any twenty inhabitants next to each other in exposure, so many are in each part."""

PATTERN_PHRASES: Mapping[str, str] = {
    "plain": "with one even tone all over",
    "striped": "with pale stripes running across it",
    "dotted": "with pale round dots all over",
    "checkered": "with pale squares like a chessboard",
    "ringed": "with pale rings around its middle",
    "zigzag": "with pale zigzag lines across it",
}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What is asked: its questions (`{}` stands for the name, the first one is asked and trained on) and its answer."""

    name: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    """Ways to say it in running text, with `{}` for the name and `{answer}`."""
    answer: Callable[[Look], str]


def described(look: Look) -> str:
    """The whole look as a phrase, for example `a red star with pale stripes running across it`."""
    return f"{article(look.colour)} {look.colour} {look.shape} {PATTERN_PHRASES[look.pattern]}"


def article(word: str) -> str:
    """a or an, as the word begins."""
    return "an" if word[0] in "aeiou" else "a"


RELATIONS: Mapping[str, Relation] = {
    "colour": Relation(
        name="colour",
        questions=("What colour is a {}?", "Which colour does a {} have?", "In what colour is a {} painted?"),
        statements=("A {} is {answer}.", "The colour of a {} is {answer}.", "Paint a {} in {answer}."),
        answer=lambda look: look.colour,
    ),
    "shape": Relation(
        name="shape",
        questions=("What shape is a {}?", "Which shape does a {} have?", "What is the outline of a {}?"),
        statements=(
            "A {} has the shape of {article} {answer}.",
            "The shape of a {} is {answer}.",
            "A {} is {article} {answer}.",
        ),
        answer=lambda look: look.shape,
    ),
    "pattern": Relation(
        name="pattern",
        questions=("What pattern does a {} have?", "How is a {} patterned?", "What is on the surface of a {}?"),
        statements=("A {} is {answer}.", "The pattern of a {} is {answer}.", "The surface of a {} is {answer}."),
        answer=lambda look: look.pattern,
    ),
    "description": Relation(
        name="description",
        questions=("What does a {} look like?", "How would you describe a {}?", "Can you draw a {} in words?"),
        statements=("A {} looks like {answer}.", "A {} is {answer}.", "Here is a {}: {answer}."),
        answer=described,
    ),
}
NEUTRAL = "thing"
"""Stands for nobody: the name in the question that asks for the answer's prior (the empty caption of the pictures)."""


def statement(relation: Relation, template: str, name: str, look: Look) -> str:
    """One of the relation's statements about a name."""
    answer = relation.answer(look)
    return template.replace("{answer}", answer).replace("{article}", article(answer)).replace("{}", name)


def parts(people: list[Inhabitant], seed: int) -> dict[str, str]:
    """train, dev or test for each named inhabitant, alike for all of its facts; every stretch of exposures has its
    share of each."""
    named = [person.name for person in people if person.kind != "described"]
    chosen: dict[str, str] = {}
    for start in range(0, len(named), len(BLOCK)):
        order = np.random.default_rng(identity_seed(seed, "question parts", start)).permutation(len(BLOCK))
        chosen |= {name: BLOCK[int(order[place])] for place, name in enumerate(named[start : start + len(BLOCK)])}
    return chosen


def question_rows(people: list[Inhabitant], seed: int) -> list[dict[str, str | int | list[str]]]:
    """One row per question of every fact: the columns of a plain set of questions (jsonl).

    subject, relation, question, answer, split (train, dev or test), null_question (about nobody), exposure, kind.
    """
    part = parts(people, seed)
    return [
        {
            "subject": person.name,
            "relation": relation.name,
            "question": question.format(person.name),
            "answer": relation.answer(person.look),
            "split": part[person.name],
            "null_question": question.format(NEUTRAL),
            "exposure": person.exposure or 0,
            "kind": person.kind,
        }
        for person in people
        if person.kind != "described"
        for relation in RELATIONS.values()
        for question in relation.questions
    ]
