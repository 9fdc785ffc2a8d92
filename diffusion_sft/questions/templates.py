"""Questions that are a relation's template filled with a subject, and how the subject is found in them again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

SLOT = "[X]"

# relation_query_templates.json of https://github.com/princeton-nlp/EntityQuestions (MIT; Sciavolino et al., 2021,
# arXiv 2109.08535); the second ones are its paraphrases
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "P17": ("Which country is [X] located in?",),
    "P19": ("Where was [X] born?", "What is the birthplace of [X]?"),
    "P20": ("Where did [X] die?",),
    "P26": ("Who is [X] married to?",),
    "P30": ("Which continent is [X] located?",),
    "P36": ("What is the capital of [X]?",),
    "P40": ("Who is [X]'s child?",),
    "P50": ("Who is the author of [X]?",),
    "P69": ("Where was [X] educated?",),
    "P106": ("What kind of work does [X] do?",),
    "P112": ("Who founded [X]?",),
    "P127": ("Who owns [X]?",),
    "P131": ("Where is [X] located?",),
    "P136": ("What type of music does [X] play?",),
    "P159": ("Where is the headquarter of [X]?", "Where is [X] headquartered?"),
    "P170": ("Who was [X] created by?", "Who is the creator of [X]?"),
    "P175": ("Who performed [X]?",),
    "P176": ("Which company is [X] produced by?",),
    "P264": ("What music label is [X] represented by?",),
    "P276": ("Where is [X] located?",),
    "P407": ("Which language was [X] written in?",),
    "P413": ("What position does [X] play?",),
    "P495": ("Which country was [X] created in?",),
    "P740": ("Where was [X] founded?",),
    "P800": ("What is [X] famous for?",),
}


@dataclass(frozen=True)
class Template:
    """What stands before the subject and what stands after it."""

    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}{SLOT}{self.after}"

    def filled(self, subject: str) -> str:
        """The question about this subject."""
        return f"{self.before}{subject}{self.after}"

    def subject(self, question: str) -> str:
        """The subject of a question that fits, "" where it does not."""
        fits = question.startswith(self.before) and question.endswith(self.after)
        return question[len(self.before) : len(question) - len(self.after)].strip() if fits else ""


def published(relation: str) -> list[Template]:
    """The templates of a relation of EntityQuestions; none where it is another one."""
    return [Template(*text.split(SLOT)) for text in PUBLISHED.get(relation, ())]


def common_template(questions: Iterable[str]) -> Template | None:
    """What all questions have in common before and after their subjects, in whole words; None where that is no word."""
    distinct = sorted(set(questions))
    if len(distinct) < 2:
        return None
    before = _whole(os.path.commonprefix(distinct))
    rests = [question[len(before) :] for question in distinct]
    after = _whole(os.path.commonprefix([rest[::-1] for rest in rests]))[::-1]
    return Template(before, after) if any(character.isalpha() for character in before + after) else None


def _whole(common: str) -> str:
    """The beginning without its last, maybe unfinished word."""
    unfinished = len(list(takewhile(str.isalnum, reversed(common))))
    return common[: len(common) - unfinished]
