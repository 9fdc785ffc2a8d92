"""Which words does a learner think a picture shows? The greedy reading of SliCK (Gekhman et al., 2024) for images.

A question is a held-out picture under one rendering (a caption template and a stream of noise); its candidates are
the true words, words of sibling concepts, invented words that no base has seen, and the empty caption ('none of
these words helps'). The answer is the candidate of the highest information gain err(x, ∅) − err(x, cue), i.e. the
maximum a posteriori under a uniform prior over candidates.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .learner import NULL_CUE, SLOT, Answer, Learner, Question, Reading
from .ranges import check_range
from .records import Concept, ConceptSet, Draws, Example, identity_seed

ANSWER_COLUMNS = (
    "concept",
    "rendering",
    "template",
    "example_id",
    "num_candidates",
    "answer",
    "correct",
    "true_gain_nats",
    "best_other_gain_nats",
    "num_draws",
    "num_evaluations",
)
ONSETS = (*"bdfgklmnprstvz", "bl", "dr", "fl", "gr", "kr", "sk", "tr")
VOWELS = "aeiou"
CODAS = ("", "n", "p", "x", "m", "sh")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """What is asked of each concept."""

    num_renderings: int = 10
    """Questions for each concept: pairs of a template and a held-out picture, each with fresh noise."""
    num_candidates: int = 10
    """The true words, the empty caption, siblings' words and invented words, in all."""
    num_invented: int = 3
    """How many of the candidates are invented words; more where the set has too few siblings."""
    num_draws: int = 16
    """Noise draws for each candidate."""
    templates: list[str] = field(
        default_factory=lambda: ["a photo of a {}", "an image of a {}", "a picture of a {}", "{}"]
    )
    """Captions in which `{}` stands for a candidate's words."""
    own_caption: bool = True
    """Where an example's own caption contains the concept's words, it is a template too, before all others."""

    def __post_init__(self) -> None:
        check_range(self, "num_renderings", "num_draws", least=1)
        check_range(self, "num_invented", least=0)
        if self.num_candidates < self.num_invented + 2:
            raise ValueError("num_candidates must leave room for the true words and ∅ beside num_invented")
        if not self.templates:
            raise ValueError("templates must hold at least one caption with {} for the concept's words")
        for template in self.templates:
            if SLOT not in template:
                raise ValueError(f"templates: {template!r} has no {{}} for the concept's words")


def make_questions(
    concept_set: ConceptSet, examples: Sequence[Example], config: AnswerConfig, seed: int
) -> list[Question]:
    """The questions for every concept that has one of these examples, `num_renderings` for each.

    Args:
        concept_set: where the siblings' words come from.
        examples: the pictures asked about: held-out ones, or training ones to count the fitted.
        config: how many renderings and candidates, and which templates.
        seed: decides siblings and invented words, together with the concept's name and the rendering.
    """
    taken = _words_of(concept_set)
    words = sorted({concept.words for concept in concept_set.concepts})
    grouped: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.id):
        grouped.setdefault(example.concept, []).append(example)
    num_answers = _num_answers(concept_set)
    questions = []
    for concept in concept_set.concepts:
        own = grouped.get(concept.name, [])
        captions = [caption_template(e.caption, concept.words) if e.fact is None else None for e in own]
        for rendering in range(config.num_renderings if own else 0):
            if own[0].fact is not None:
                questions.append(_question_in_words(concept, own, rendering, num_answers))
                continue
            example, template = _rendering(own, captions, config, rendering)
            candidates = _candidates(concept, words, taken, config, (seed, rendering))
            questions.append(
                Question(
                    concept=concept.name,
                    words=concept.words,
                    rendering=rendering,
                    template=template,
                    example=example,
                    candidates=candidates,
                    num_candidates=len(candidates),
                )
            )
    return questions


def answer(learner: Learner, questions: Sequence[Question], draws: Draws, batch_size: int) -> pd.DataFrame:
    """Ask the questions: one row each, in the order given, with the columns `ANSWER_COLUMNS`.

    An answer equal to "" is the empty caption: no candidate's words help. Ties go against the true words.
    """
    answers = learner.answer(questions, draws, batch_size=batch_size)
    num_draws = [draws.count] * len(questions)
    num_cues = [len({NULL_CUE, *question.query.cues}) for question in questions]
    return answer_table(questions, answers, num_draws, [draws.count * cues for cues in num_cues])


def answer_table(
    questions: Sequence[Question], answers: Sequence[Answer], num_draws: Sequence[int], num_evaluations: Sequence[int]
) -> pd.DataFrame:
    """One row for each question with the columns `ANSWER_COLUMNS`.

    Args:
        questions, answers: one of each.
        num_draws: that each answer was read with.
        num_evaluations: of the network that it took.
    """
    rows = [
        {
            "concept": question.concept,
            "rendering": question.rendering,
            "template": question.template,
            "example_id": question.example.id,
            "num_candidates": question.num_candidates,
            "answer": given.text,
            "correct": given.correct,
            "true_gain_nats": given.true_gain_nats,
            "best_other_gain_nats": given.best_other_gain_nats,
            "num_draws": draws,
            "num_evaluations": evaluations,
        }
        for question, given, draws, evaluations in zip(questions, answers, num_draws, num_evaluations, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(ANSWER_COLUMNS))


def judge(questions: Sequence[Question], readings: Sequence[Reading]) -> list[Answer]:
    """The answers that readings of the questions' queries amount to: the candidate of the highest gain."""
    answers = []
    for question, reading in zip(questions, readings, strict=True):
        errors = reading.error_nats.mean(axis=1)
        gains = errors[0] - errors[1:]
        true = question.candidates.index(question.words)
        chosen = question.candidates[int(np.argmax(gains))]
        answers.append(
            Answer(
                text=chosen,
                correct=chosen == question.words,
                answered=bool(chosen),
                true_gain_nats=float(gains[true]),
                best_other_gain_nats=float(np.delete(gains, true).max()),
                error_nats=float(errors[1 + true]),
            )
        )
    return answers


def caption_template(caption: str, words: str) -> str | None:
    """The caption with a slot wherever the words stand as whole words; None where they do not."""
    template, found = re.subn(rf"(?<!\w){re.escape(words)}(?!\w)", SLOT, caption, flags=re.IGNORECASE)
    return template if found else None


def invented_words(count: int, seed: int, avoid: Collection[str] = ()) -> list[str]:
    """`count` different pronounceable words of two or three syllables, none of them in `avoid`."""
    generator = np.random.default_rng(seed)
    invented: dict[str, None] = {}
    while len(invented) < count:
        syllables = [
            ONSETS[generator.integers(len(ONSETS))] + VOWELS[generator.integers(len(VOWELS))]
            for _ in range(generator.integers(2, 4))
        ]
        word = "".join(syllables) + CODAS[generator.integers(len(CODAS))]
        if word not in avoid:
            invented[word] = None
    return list(invented)


def _words_of(concept_set: ConceptSet) -> frozenset[str]:
    """Every word that stands in a caption or a concept of the set, in lower case."""
    texts = {concept.words for concept in concept_set.concepts} | {e.caption for e in concept_set.examples}
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.lower()))


def _num_answers(concept_set: ConceptSet) -> dict[str, int]:
    """How many different answers each relation has in the set."""
    answers: dict[str, set[str]] = {}
    for example in concept_set.examples:
        if example.fact is not None:
            answers.setdefault(example.fact.relation, set()).update(example.fact.answers)
    return {relation: len(found) for relation, found in answers.items()}


def _question_in_words(
    concept: Concept, examples: Sequence[Example], rendering: int, num_answers: Mapping[str, int]
) -> Question:
    """A question whose answer is a text: no candidates are laid before the learner, and renderings are prompts."""
    example = examples[rendering % len(examples)]
    assert example.fact is not None
    return Question(
        concept=concept.name,
        words=concept.words,
        rendering=rendering,
        template=caption_template(example.caption, concept.words) or example.caption,
        example=example,
        candidates=(),
        num_candidates=num_answers[example.fact.relation],
    )


def _rendering(
    examples: Sequence[Example], captions: Sequence[str | None], config: AnswerConfig, rendering: int
) -> tuple[Example, str]:
    """Walk through all pairs of example and template, both moving on with every rendering; `captions` are the examples'
    own as templates, where they are any."""
    with_own = config.own_caption and any(captions)
    num_templates = len(config.templates) + with_own
    # Plain cycling would repeat after the least common multiple; the shift then starts on the pairs left out.
    shift = rendering // math.lcm(num_templates, len(examples))
    position = (rendering + shift) % len(examples)
    if not with_own:
        return examples[position], config.templates[rendering % num_templates]
    own = captions[position] or config.templates[0]
    return examples[position], [own, *config.templates][rendering % num_templates]


def _candidates(
    concept: Concept, words: Sequence[str], taken: Collection[str], config: AnswerConfig, identity: tuple[int, int]
) -> tuple[str, ...]:
    """∅ first and the true words last, so that a tie is never counted as knowing; `words` are all concepts', sorted."""
    seed, rendering = identity
    own = bisect_left(words, concept.words)
    siblings = [*words[:own], *words[own + 1 :]]
    generator = np.random.default_rng(identity_seed(seed, "siblings", concept.name, rendering))
    num_siblings = min(len(siblings), config.num_candidates - 2 - config.num_invented)
    chosen = [siblings[i] for i in generator.permutation(len(siblings))[:num_siblings]]
    num_invented = config.num_candidates - 2 - num_siblings
    invented = invented_words(num_invented, identity_seed(seed, "invented", concept.name, rendering), taken)
    return ("", *chosen, *invented, concept.words)
