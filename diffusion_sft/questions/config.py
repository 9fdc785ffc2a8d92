"""What a user may say about a set of questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..ranges import check_range

FEWEST_EXEMPLARS = 5
"""Development facts that each relation needs, because they are shown in its few-shot prompts."""


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Where the questions lie, which of them are asked, and how they are parted."""

    path: str | None = None
    """A folder of EntityQuestions (P17.train.json, P17.dev.json, P17.test.json, ... in it, or in its folders train, dev
    and test), PopQA's .tsv, a .jsonl file with the columns question, answer (or answers), relation and subject, or a
    folder with such a file named questions.jsonl."""
    relations: list[str] = field(default_factory=list)
    """Read only these; empty means all."""
    heldout_relations: list[str] = field(default_factory=list)
    """Never trained on: their test facts are asked, and their development facts shown in prompts."""
    max_facts_per_relation: int | None = None
    """The most facts of a relation in each part, the first by a hash of their subjects; unset means all."""
    dev_share: float = 0.1
    """Share of the subjects whose facts are for development, where the set has no splits of its own."""
    test_share: float = 0.2
    """Share of the subjects whose facts are for the test, where the set has no splits of its own."""
    seed: int = 0
    """Seed of the split where the set has none, and of what max_facts_per_relation leaves."""
    null_subject: str = "this"
    """Stands for nobody in particular: what the subject is replaced by where a set has no null_question."""
    keep_several_answers: bool = False
    """Keep facts with more than one right answer, and take any of these for right (Gekhman et al., 2024, drop them)."""
    drop_overlap: bool = True
    """Drop a training fact whose subject is the subject of a test fact of any relation, as Gekhman et al. (2024) do."""
    overlap_by_answers: bool = False
    """With drop_overlap, drop a training fact too whose subject is the answer of a test fact or whose answer is the
    subject of one. Their table of facts comes out without this. An answer that both have is only counted, because a
    relation may have few that are possible."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do about bad rows and files: stop and name them all, or go on without them."""

    def __post_init__(self) -> None:
        check_range(self, "seed", least=0)
        check_range(self, "dev_share", "test_share", above=0, below=1)
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share + test_share must be below 1, or nothing is left to train on")
        if self.max_facts_per_relation is not None and self.max_facts_per_relation < FEWEST_EXEMPLARS:
            raise ValueError(
                f"max_facts_per_relation must be at least {FEWEST_EXEMPLARS}, as many as few-shot prompts need of the"
                f" development facts, not {self.max_facts_per_relation}"
            )
        if not self.null_subject.strip() or not self.null_subject.isprintable():
            raise ValueError(f"null_subject must be a word that stands for nobody, not {self.null_subject!r}")
        strangers = [name for name in self.heldout_relations if self.relations and name not in self.relations]
        if strangers:
            raise ValueError(f"heldout_relations has {strangers[0]!r}, which is not among the relations to read")

    @property
    def given(self) -> bool:
        """Whether a set is named at all."""
        return bool(self.path)
