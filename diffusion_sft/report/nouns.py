"""What the two learners' halves of a study call the same things: a diffusion model's pictures, a language model's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..records import DEVELOPMENT, DIFFUSION, HELDOUT, LLM, OTHER_RELATIONS, TEST, TRAINED, UNTOUCHED


@dataclass(frozen=True, kw_only=True)
class Nouns:
    """The words of one half of a study."""

    model: str
    concept: str
    example: str
    of: str
    """Between an example and its concept."""
    subjects: Mapping[str, str]
    """For each role the subject of a sentence about its answers; `{}` is the category."""
    roles: Mapping[str, str]
    """For each role what it is called in a heading, in the order in which they are shown."""
    names: Mapping[str, str]
    """For each role what it is called inside a sentence or a table."""
    costs: tuple[str, ...]
    """Roles whose known categories tell what a fine-tuning cost."""

    def subject(self, role: str, category: str) -> str:
        """What a sentence about the answers of this role and category is about."""
        given = self.subjects.get(role)
        return given.format(category) if given else f"Accuracy on {category} {self.concept}s ({role})"

    def role(self, role: str) -> str:
        """The role as it stands inside a sentence or a table."""
        return self.names.get(role, role.replace("_", " "))


PICTURES = Nouns(
    model="diffusion model",
    concept="concept",
    example="picture",
    of="of",
    subjects={
        TRAINED: "The fitted share of trained {} pictures",
        HELDOUT: "Accuracy on held-out pictures of trained {} concepts",
        UNTOUCHED: "Accuracy on {} concepts outside the mix",
    },
    roles={
        TRAINED: "Trained pictures: fitted",
        HELDOUT: "Held-out pictures",
        UNTOUCHED: "Known, never trained",
    },
    names={
        TRAINED: "trained pictures",
        HELDOUT: "held-out pictures",
        UNTOUCHED: "known concepts outside the mix",
    },
    costs=(UNTOUCHED,),
)
FACTS = Nouns(
    model="language model",
    concept="fact",
    example="question",
    of="about",
    subjects={
        TRAINED: "The fitted share of trained {} facts",
        HELDOUT: "Accuracy on trained {} facts asked in other words",
        UNTOUCHED: "Accuracy on {} facts outside the mix",
        DEVELOPMENT: "Accuracy on {} development facts",
        TEST: "Accuracy on {} test facts",
        OTHER_RELATIONS: "Accuracy on {} facts of other relations",
    },
    roles={
        TRAINED: "Trained questions: fitted",
        HELDOUT: "The same facts in other words",
        TEST: "Test facts",
        OTHER_RELATIONS: "Facts of other relations",
        UNTOUCHED: "Known, never trained",
    },
    names={
        TRAINED: "trained questions",
        TEST: "test facts",
        OTHER_RELATIONS: "facts of other relations",
        UNTOUCHED: "known facts outside the mix",
        HELDOUT: "trained facts in other words",
        DEVELOPMENT: "development facts",
    },
    costs=(UNTOUCHED, TEST, OTHER_RELATIONS),
)
NOUNS = {DIFFUSION: PICTURES, LLM: FACTS}
