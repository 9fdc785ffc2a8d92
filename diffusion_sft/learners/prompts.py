"""In which words a language model is asked: few-shot prompts for a base, an instruction for a fine-tuned model.

Gekhman et al. (2024, section 3 and appendix A): four exemplars of the question's own relation from the development
split, as lines `Q: ...` and `A: ...`, and the question with an empty `A:`; fine-tuning and what follows it put one
line of instruction before the question. The answer follows after a space, which is how vocabularies of word pieces
begin a word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import UserError
from ..records import DEVELOPMENT, EXEMPLAR, ConceptSet, Example, identity_seed

INSTRUCTION = "Answer the following question."


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What stands before the answer, and which prompts begin alike."""

    text: str
    group: str
    """Prompts of one group share their beginning, which then is read once."""


class Prompts(ABC):
    """A way of asking."""

    num_renderings: int | None
    """In how many ways a question can be asked; None: as many as one likes."""

    @abstractmethod
    def prompt(self, example: Example, question: str, rendering: int) -> Prompt:
        """The prompt of a question of this example's relation, in one rendering."""


@dataclass(frozen=True, kw_only=True)
class ClosedBook(Prompts):
    """The instruction and the question: the layout of fine-tuning."""

    num_renderings: int | None = 1

    def prompt(self, example: Example, question: str, rendering: int) -> Prompt:
        """The same for every rendering."""
        return Prompt(text=f"{INSTRUCTION}\n{question}\n", group="")


@dataclass(frozen=True, kw_only=True)
class FewShot(Prompts):
    """Exemplars of the same relation before the question; rendering r shows the r-th random set of them."""

    exemplars: Mapping[str, Sequence[Example]]
    """By relation, in a fixed order."""
    shots: int = 4
    seed: int = 0
    num_renderings: int | None = None

    @classmethod
    def of(cls, concept_set: ConceptSet, *, shots: int, seed: int) -> FewShot:
        """From the development facts of a set; UserError naming a relation that has too few of them."""
        exemplars: dict[str, list[Example]] = {}
        for example in concept_set.split(DEVELOPMENT, EXEMPLAR):
            if example.fact is not None:
                exemplars.setdefault(example.fact.relation, []).append(example)
        relations = {e.fact.relation for e in concept_set.examples if e.fact is not None}
        for relation in sorted(relations):
            found = len(exemplars.get(relation, []))
            if found <= shots:
                raise UserError(
                    f"relation {relation}: {found} development facts, and {shots} shots need {shots + 1} of them; "
                    "give more, or fewer shots"
                )
        return cls(exemplars=exemplars, shots=shots, seed=seed)

    def prompt(self, example: Example, question: str, rendering: int) -> Prompt:
        """The exemplars' lines and the question; a development fact is never among its own exemplars."""
        assert example.fact is not None
        chosen = self.chosen(example.fact.relation, example.fact.subject, rendering)
        lines = "".join(f"Q: {e.caption}\nA: {e.fact.answers[0]}\n" for e in chosen if e.fact is not None)
        group = "\x1f".join([example.fact.relation, str(rendering), *(e.id for e in chosen)])
        return Prompt(text=f"{lines}Q: {question}\nA:", group=group)

    def chosen(self, relation: str, subject: str, rendering: int) -> tuple[Example, ...]:
        """The exemplars of one rendering: the first of a random order that are about somebody else."""
        order = _order(self.seed, relation, rendering, len(self.exemplars[relation]))
        pool = [self.exemplars[relation][place] for place in order[: self.shots + 1]]
        others = [e for e in pool if e.fact is not None and e.fact.subject != subject]
        return tuple(others[: self.shots])


@lru_cache(maxsize=4096)
def _order(seed: int, relation: str, rendering: int, count: int) -> tuple[int, ...]:
    generator = np.random.default_rng(identity_seed(seed, "exemplars", relation, rendering))
    return tuple(int(place) for place in generator.permutation(count))
