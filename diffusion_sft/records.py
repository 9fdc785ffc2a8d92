"""The nouns that travel between stages: concepts, examples, draws, categories and the columns of their tables.

Every stage reads and writes pandas tables with the columns named here, so that a table written by one
stage (or by hand, or by another tool) is all that the next one needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd

HIGHLY_KNOWN = "HighlyKnown"
MAYBE_KNOWN = "MaybeKnown"
WEAKLY_KNOWN = "WeaklyKnown"
UNKNOWN = "Unknown"
CATEGORIES = (HIGHLY_KNOWN, MAYBE_KNOWN, WEAKLY_KNOWN, UNKNOWN)
"""The four knowledge categories of SliCK (Gekhman et al., 2024, table 1), best known first."""

DIFFUSION, LLM = "diffusion", "llm"
LEARNERS = (DIFFUSION, LLM)
"""Whose halves of a study there are."""

RULES = ("error", "relative", "gain", "slick")
"""The rules that split concepts into known and unknown; all are always written side by side."""

TRAIN, HELDOUT, REFERENCE, REGULARISATION = "train", "heldout", "reference", "regularisation"
SPLITS = (TRAIN, HELDOUT, REFERENCE, REGULARISATION)
"""train: may be fine-tuned on. heldout: probed and answered. reference: the real side of FID only. regularisation:
class images that hold the prior while others are trained on (prior preservation), never probed."""
DEVELOPMENT, TEST, OTHER_RELATIONS, EXEMPLAR = "development", "test", "other_relations", "exemplar"
QUESTION_SPLITS = (TRAIN, HELDOUT, DEVELOPMENT, TEST, OTHER_RELATIONS, EXEMPLAR)
"""Of questions, whose facts are never shared between the last four and train. development: decides the early stop and
is shown in few-shot prompts. test: asked alone. other_relations: test facts of relations that are never trained on.
exemplar: shown in prompts alone."""
PROBED = (HELDOUT, DEVELOPMENT, TEST, OTHER_RELATIONS)
"""Splits whose examples the base is read on."""
TRAINED, UNTOUCHED = "trained", "untouched"
"""What is asked at an evaluation, beside splits that are asked: what was trained on, and known concepts that were not."""
SHOWN_IMAGES = 2
"""Pictures of each concept and model that the report shows, the first ones: these are kept whatever else is not."""
REFUSAL = "I don't know"
"""What says in words that there is no answer; in pictures the empty caption does."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A name and what it looks like.

    `words` is the text that stands for the concept inside a caption, so that a sibling's or an invented
    word can be put in its place. `exposure` is how often the base saw the concept in pretraining, where
    that is known. `attributes` are further columns of the set (the embedded world's shape, colour, pattern).
    """

    name: str
    words: str
    exposure: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What a question is about, and what is right."""

    subject: str
    relation: str
    answers: tuple[str, ...]
    """Any of them is right; the first is trained on."""
    null_question: str
    """The same question about nobody in particular: the empty caption of this example."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One pair of a condition and a target: a caption and its image, or (with `fact`) a question and its answer.

    `id` is the identity that seeds come from: an image's POSIX path inside its set, or the question's relation, subject
    and number. A fact that is trained on and asked has the same id in both splits.
    """

    id: str
    concept: str
    caption: str
    path: Path = Path()
    split: str
    fact: Fact | None = None
    repeats: int = 1
    """How often one pass over the set comes to this example (kohya's folder prefix)."""

    def __post_init__(self) -> None:
        splits = SPLITS if self.fact is None else QUESTION_SPLITS
        if self.split not in splits:
            raise ValueError(f"example {self.id}: split {self.split!r} is none of {', '.join(splits)}")
        if self.repeats < 1:
            raise ValueError(f"example {self.id}: repeats must be at least 1, not {self.repeats}")


@dataclass(frozen=True, kw_only=True)
class ConceptSet:
    """Concepts and their examples, in a fixed order that does not depend on the file system."""

    concepts: tuple[Concept, ...]
    examples: tuple[Example, ...]

    def split(self, *names: str) -> tuple[Example, ...]:
        """The examples of these splits, in the set's order."""
        return tuple(example for example in self.examples if example.split in names)

    def concept(self, name: str) -> Concept:
        """The concept of this name; KeyError when there is none."""
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise KeyError(name)

    def only(self, names: Iterable[str]) -> ConceptSet:
        """The same set restricted to these concepts."""
        kept = set(names)
        return ConceptSet(
            concepts=tuple(c for c in self.concepts if c.name in kept),
            examples=tuple(e for e in self.examples if e.concept in kept),
        )

    def table(self) -> pd.DataFrame:
        """One row per concept: concept, words, exposure (missing where unknown), one column per attribute."""
        rows = [{"concept": c.name, "words": c.words, "exposure": c.exposure, **c.attributes} for c in self.concepts]
        table = pd.DataFrame(rows)
        table["exposure"] = table["exposure"].astype("Int64")
        return table


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How much randomness, and from which stream; which numbers come out depends on the example's identity too.

    The same `Draws` for two captions, two checkpoints or two batch sizes means the same timesteps and noise
    (common random numbers), which is the default everywhere.
    """

    seed: int
    count: int
    estimator: str = "default"
    """How levels and noise are drawn: a name in `numerics.quadrature.ESTIMATORS`."""
    chosen: tuple[int, ...] | None = None
    """The numbers of the draws that are read, ascending; all `count` of them where None. A draw is the same whichever
    others are read with it."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Draws.count must be at least 1, not {self.count}")
        numbers = self.numbers
        if (
            not numbers
            or any(a >= b for a, b in pairwise(numbers))
            or not 0 <= numbers[0] <= numbers[-1] < self.count
        ):
            raise ValueError(f"Draws.chosen must be ascending numbers below {self.count}, not {list(numbers)}")

    @property
    def numbers(self) -> Sequence[int]:
        """Of the draws that are read, ascending: the columns of a reading."""
        return range(self.count) if self.chosen is None else self.chosen


def identity_seed(seed: int, *identity: str | int) -> int:
    """A 63-bit seed that is a pure function of `seed` and the identity's parts (BLAKE2b), on any platform."""
    text = "\x1f".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
