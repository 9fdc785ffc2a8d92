"""Which concepts and examples are solved: as many of each category, in an order that the seed and names alone decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..answers import AnswerConfig, make_questions
from ..errors import UserError
from ..learner import Question
from ..records import CATEGORIES, PROBED, TRAIN, UNKNOWN, ConceptSet, Example, identity_seed

FIRST_RENDERING = 1000
"""Renderings from here on decided no category, so that solution classes are read on draws of their own."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is solved."""

    categories: dict[str, str]
    """The category of each chosen concept, best known first."""
    known: tuple[Example, ...]
    """Held-out examples of known concepts, none of them chosen for S3's own equations."""
    training: dict[str, tuple[Example, ...]]
    """By category, one training example of each of so many concepts."""

    def first(self, per_category: int) -> list[str]:
        """The first concepts of each category."""
        names: dict[str, list[str]] = {}
        for name, category in self.categories.items():
            names.setdefault(category, []).append(name)
        return [name for own in names.values() for name in own[:per_category]]


def choose(
    labels: pd.DataFrame,
    concept_set: ConceptSet,
    *,
    concepts_per_category: int | None,
    examples_per_category: int,
    num_known: int,
    seed: int,
) -> Chosen:
    """Choose concepts and examples.

    Args:
        labels: one row per concept with `concept` and `category`.
        concepts_per_category: at most so many are solved; None for all.
        examples_per_category: training examples of S3, fewer where a category has fewer.
        num_known: held-out examples of the known concepts that are best known and not trained on here.

    Raises:
        UserError: no concept has a category.
    """
    category_of = dict(zip(labels["concept"], labels["category"], strict=True))
    ranked = sorted(category_of, key=lambda name: (identity_seed(seed, "systems", name), name))
    by_category = {c: [name for name in ranked if category_of[name] == c] for c in CATEGORIES}
    if not any(by_category.values()):
        raise UserError("no concept has a category; run probe and bucket first")
    training = {c: _one_each(concept_set, [TRAIN], names, examples_per_category) for c, names in by_category.items()}
    used = {example.concept for examples in training.values() for example in examples}
    others = [name for c in CATEGORIES if c != UNKNOWN for name in by_category[c] if name not in used]
    # Where there are too few known concepts for both, the last ones of those trained on stand on both sides.
    fallback = [name for c in CATEGORIES if c != UNKNOWN for name in reversed(by_category[c]) if name in used]
    return Chosen(
        categories={name: c for c, names in by_category.items() for name in names[:concepts_per_category]},
        known=_one_each(concept_set, PROBED, [*others, *fallback], num_known),
        training={c: examples for c, examples in training.items() if examples},
    )


def questions_of(
    concept_set: ConceptSet, names: Sequence[str], num_renderings: int, answers: AnswerConfig, seed: int
) -> list[Question]:
    """`num_renderings` questions about each concept, on its held-out examples, in renderings of their own."""
    if not num_renderings:
        return []
    wanted = set(names)
    asked = [example for example in concept_set.split(*PROBED) if example.concept in wanted]
    made = make_questions(concept_set, asked, replace(answers, num_renderings=num_renderings), seed)
    return [replace(question, rendering=FIRST_RENDERING + question.rendering) for question in made]


def shuffled(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The control: every example with the caption, or the answer, of the next one; nothing of it can be known."""
    following = [*examples[1:], *examples[:1]]
    return tuple(
        replace(one, caption=other.caption)
        if one.fact is None or other.fact is None
        else replace(one, fact=replace(one.fact, answers=other.fact.answers))
        for one, other in zip(examples, following, strict=True)
    )


def _one_each(
    concept_set: ConceptSet, splits: Sequence[str], names: Sequence[str], count: int
) -> tuple[Example, ...]:
    first: dict[str, Example] = {}
    for example in sorted(concept_set.split(*splits), key=lambda example: example.id):
        first.setdefault(example.concept, example)
    return tuple(first[name] for name in names if name in first)[:count]
