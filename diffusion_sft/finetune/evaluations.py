"""What a network in training knows at one update: fitted, held-out and untouched examples, by category.

Every example is asked once, under its own caption: which of the candidates' words is it, or what is the answer in
words? (`Learner.answer`). The same noise is drawn at every update and for every mix, so that changes are changes of the
network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from ..answers import AnswerConfig, make_questions
from ..learner import Learner, Question
from ..records import (
    CATEGORIES,
    DEVELOPMENT,
    HELDOUT,
    OTHER_RELATIONS,
    TEST,
    TRAINED,
    UNKNOWN,
    UNTOUCHED,
    ConceptSet,
    Draws,
    Example,
)
from .config import FinetuneConfig
from .labels import ALL, concept_labels
from .mix import Mix
from .mixes import by_concept, concept_order, first_examples

OUTSIDE = (DEVELOPMENT, TEST, OTHER_RELATIONS)
ROLES = (TRAINED, HELDOUT, UNTOUCHED, *OUTSIDE)
"""trained: examples of the mix. heldout: other images of its concepts, or their questions in other words. untouched:
held-out examples of base-known concepts that are not trained on; what is lost there is the analogue of hallucination. The
others are the splits of that name, all categories of them, the same for every mix."""
COLUMNS = (
    "update",
    "role",
    "category",
    "num_examples",
    "num_correct",
    "num_answered",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "gain_nats",
    "error_nats",
)


ASKED_COLUMNS = ("concept", "example_id", "answer", "correct", "answered", "gain_nats", "error_nats")


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked at every evaluation: questions by role, and the category of each of their concepts."""

    questions: Mapping[str, Sequence[Question]]
    categories: Mapping[str, str]


def make_exam(
    mix: Mix,
    concepts_table: pd.DataFrame | None,
    concept_set: ConceptSet,
    config: FinetuneConfig,
    answers: AnswerConfig,
) -> Exam:
    """Choose what is asked, for each role; roles without any example are left out, all where nothing is evaluated.

    The untouched concepts are the last ones in the order that mixes are taken from, so that mixes of one size are
    mostly asked about the same ones.

    Args:
        answers: which candidates a question has; each example is one question here, whatever `num_renderings` says.
    """
    if not config.validation_steps:
        return Exam(questions={}, categories={})
    labels = concept_labels(concepts_table, concept_set)
    trained = {example.id for example in mix.examples}
    held_out = by_concept(example for example in concept_set.split(HELDOUT) if example.id not in trained)
    taught = mix.taught
    outside = [
        name
        for name in reversed(concept_order(labels.index, config.seed))
        if name not in taught and labels.category[name] not in (UNKNOWN, ALL) and name in held_out
    ][: config.validation_untouched_concepts]
    inside = list(mix.categories)
    sources = {
        TRAINED: (by_concept(mix.examples), inside),
        HELDOUT: (held_out, inside),
        UNTOUCHED: (held_out, outside),
    }
    for split in OUTSIDE:
        grouped = by_concept(concept_set.split(split))
        sources[split] = (grouped, [name for name in grouped if name in labels.index])
    questions = {}
    for role, (grouped, names) in sources.items():
        chosen = first_examples(grouped, names, config.validation_examples_per_concept, config.seed)
        if chosen:
            questions[role] = _one_question_each(chosen, concept_set, answers, config.seed)
    asked = dict.fromkeys(name for _, names in sources.values() for name in names)
    return Exam(questions=questions, categories={name: str(labels.category[name]) for name in asked})


def ask(learner: Learner, questions: Sequence[Question], config: FinetuneConfig, batch_size: int) -> pd.DataFrame:
    """One row per question (`ASKED_COLUMNS`): what was said, and gain and error of what is true."""
    draws = Draws(seed=config.seed, count=config.validation_draws)
    answers = learner.answer(questions, draws, batch_size=batch_size)
    rows = [
        (q.concept, q.example.id, a.text, a.correct, a.answered, a.true_gain_nats, a.error_nats)
        for q, a in zip(questions, answers, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(ASKED_COLUMNS))


def evaluation_rows(update: int, answers: Mapping[str, pd.DataFrame], categories: Mapping[str, str]) -> pd.DataFrame:
    """One row per role and category (COLUMNS); intervals are Wilson's at 95 %.

    Args:
        answers: `ask`'s table for each role.
        categories: the category of each concept.
    """
    rows = []
    for role in ROLES:
        if role not in answers:
            continue
        by_category = answers[role].assign(category=answers[role].concept.map(categories)).groupby("category")
        for category in (*CATEGORIES, ALL):
            if category in by_category.groups:
                here = by_category.get_group(category)
                rows.append([update, role, category, *_summary(here)])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def asked_rows(update: int, answers: Mapping[str, pd.DataFrame], categories: Mapping[str, str]) -> pd.DataFrame:
    """One row per question asked: update, role, category, and `ask`'s columns."""
    tables = [
        answers[role].assign(update=update, role=role, category=answers[role].concept.map(categories))
        for role in ROLES
        if role in answers
    ]
    columns = ["update", "role", "category", *ASKED_COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def converged_update(evaluations: pd.DataFrame, first_pass: float) -> int | None:
    """The first evaluation at or after update `first_pass` at which every trained example asked was fitted."""
    trained = evaluations[(evaluations.role == TRAINED) & (evaluations["update"] >= first_pass)]
    sums = trained.groupby("update")[["num_correct", "num_examples"]].sum()
    fitted = sums.index[sums.num_correct == sums.num_examples]
    return int(fitted.min()) if len(fitted) else None


def early_stop_update(evaluations: pd.DataFrame) -> int | None:
    """The update after which held-out questions were answered best: those of the development split where there is one,
    else the other images of trained concepts and the untouched concepts together. Test questions decide nothing.

    Ties go to the lower mean error, then to the earlier update. The base itself (update 0) is no candidate, and no
    update is whose mean error is not finite: its answers are a broken network's. None where there is no candidate.
    """
    deciding = [DEVELOPMENT] if (evaluations.role == DEVELOPMENT).any() else [HELDOUT, UNTOUCHED]
    asked = evaluations[evaluations.role.isin(deciding) & (evaluations["update"] > 0)]
    errors = asked.error_nats.astype(float).fillna(np.inf) * asked.num_examples
    sums = asked.assign(error=errors).groupby("update")[["num_correct", "num_examples", "error"]].sum().astype(float)
    found = pd.DataFrame({"accuracy": sums.num_correct / sums.num_examples, "error": sums.error / sums.num_examples})
    found = found[np.isfinite(found.error)].reset_index()
    best = found.sort_values(["accuracy", "error", "update"], ascending=[False, True, True])
    return int(best["update"].iloc[0]) if len(best) else None


def _one_question_each(
    examples: Sequence[Example], concept_set: ConceptSet, answers: AnswerConfig, seed: int
) -> list[Question]:
    """Each example under its own caption (or the first template), with the same candidates for all of a concept."""
    once = replace(answers, num_renderings=1)
    questions: list[Question] = []
    waiting = {name: list(found) for name, found in by_concept(examples).items()}
    while waiting:
        layer = [found.pop(0) for found in waiting.values()]
        questions += make_questions(concept_set, layer, once, seed)
        waiting = {name: found for name, found in waiting.items() if found}
    return questions


def _summary(answers: pd.DataFrame) -> list[float]:
    count, correct, answered = len(answers), int(answers.correct.sum()), int(answers.answered.sum())
    interval = stats.binomtest(correct, count).proportion_ci(confidence_level=0.95, method="wilson")
    # An answer that is no number is not passed over.
    means = [float(answers[name].mean(skipna=False)) for name in ("gain_nats", "error_nats")]
    return [count, correct, answered, correct / count, float(interval.low), float(interval.high), *means]
