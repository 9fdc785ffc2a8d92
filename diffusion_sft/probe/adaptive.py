"""The probe's readings with no more draws than a concept's label takes.

Draws are read in nested stages (`nested_draws`), the same numbers that the whole budget reads, for everything that is
asked about some concepts at once. After a stage candidates that cannot decide an answer any more are dropped, answers
that are sure are closed, and concepts whose label is sure are left alone (`settling.py`). Every question is asked for
one stage at least, so that shares stay shares of all renderings. Whatever is decided about a concept depends on its own
numbers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from ..answers import answer_table, judge
from ..buckets import BucketConfig
from ..errors import NotFinite
from ..learner import NULL_CUE, Learner, Query, Question, Reading
from ..numerics.quadrature import Estimator, estimator_named, linear_factors, nested_draws, standard_error
from ..parsing import few
from ..records import Draws
from .config import ProbeConfig
from .settling import (
    category_is_settled,
    chance_of_winning,
    duels,
    gain_is_settled,
    gain_variance,
    mean_variance,
    needed_rivals,
)

PARTS_OF_RISK = 4
"""A concept's risk goes in equal parts to dropped candidates, closed answers, its category, and its label by gain."""
FEWEST_LEVELS = 3
"""A standard error takes so many."""


@dataclass(frozen=True, kw_only=True)
class _Partial:
    """What has been read so far, and which of the draws the columns are."""

    reading: Reading
    numbers: tuple[int, ...]

    def joined(self, later: _Partial) -> _Partial:
        """With the draws of both, ascending."""
        numbers = np.array([*self.numbers, *later.numbers])
        order = np.argsort(numbers)
        both: dict[str, Any] = {
            # `take` leaves rows contiguous, on whose order the last bits of their means depend.
            name: np.take(np.concatenate([values, getattr(later.reading, name)], axis=1), order, axis=1)
            for name, values in _columns(self.reading).items()
        }
        return _Partial(reading=replace(self.reading, **both), numbers=tuple(numbers[order].tolist()))

    def rows(self, kept: Sequence[int]) -> _Partial:
        """Some of the rows alone."""
        some = {name: values[list(kept)] for name, values in _columns(self.reading).items()}
        return replace(self, reading=replace(self.reading, **some))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question with the candidates that are still in the running, and what has been read of it."""

    question: Question
    read: _Partial | None = None
    num_evaluations: int = 0
    chance: float = 0.5
    """That the true words win in the end."""
    correct: bool = False
    """Whether they win so far."""
    open: bool = True


def adaptive_answers(learner: Learner, questions: Sequence[Question], config: ProbeConfig) -> pd.DataFrame:
    """The table of `answers.answer`, read until each concept's category is sure as far as greedy answers decide it.

    A wrong answer's text is the candidate that led when its reading ended. Gains are over the draws read, and the best
    other is the best of those that were in the running to the end.
    """
    draws = Draws(seed=config.seed, count=config.answers.num_draws, estimator=config.estimator)
    risk = (1 - config.adaptive.confidence) / PARTS_OF_RISK
    of_concept: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        of_concept.setdefault(question.concept, []).append(place)
    asked = [_Asked(question=question) for question in questions]
    for numbers in nested_draws(estimator_named(draws.estimator), draws.count):
        now = [place for place, one in enumerate(asked) if one.open]
        if not now:
            break
        queries = [asked[place].question.query for place in now]
        some = replace(draws, chosen=numbers)
        readings = learner.surprise(queries, some, batch_size=config.batch_size)
        check_readings(queries, readings)
        for place, reading in zip(now, readings, strict=True):
            own_risk = risk / len(of_concept[questions[place].concept])
            asked[place] = _weighed(_read_on(asked[place], reading, some), draws, own_risk)
        for places in of_concept.values():
            own = [asked[place] for place in places]
            chances, correct = np.array([one.chance for one in own]), np.array([one.correct for one in own])
            if category_is_settled(chances, correct, risk):
                for place in places:
                    asked[place] = replace(asked[place], open=False)
    return _table(questions, asked)


def adaptive_readings(learner: Learner, queries: Sequence[Query], config: ProbeConfig) -> list[Reading]:
    """A reading of each query, of its one cue and ∅, with draws until the rule `gain` is sure of the concept's label.

    Levels of a reading that ended early are weighed such that its means are right where errors lie on a straight line
    over them; a whole one is what the learner gives for all draws at once.
    """
    draws = Draws(seed=config.seed, count=config.num_draws, estimator=config.estimator)
    estimator = estimator_named(draws.estimator)
    read: dict[int, _Partial] = {}
    of_concept: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        of_concept.setdefault(query.example.concept, []).append(place)
    for numbers in _scoring_stages(estimator, draws.count):
        now = [place for places in of_concept.values() for place in places]
        if not now:
            break
        some = replace(draws, chosen=numbers)
        readings = learner.surprise([queries[p] for p in now], some, batch_size=config.batch_size)
        check_readings([queries[p] for p in now], readings)
        for place, reading in zip(now, readings, strict=True):
            new = _Partial(reading=reading, numbers=numbers)
            read[place] = read[place].joined(new) if place in read else new
        of_concept = {
            concept: places
            for concept, places in of_concept.items()
            if not _gain_settled([_levelled(read[p], draws) for p in places], draws, config)
        }
    return [_levelled(read[place], draws) for place in range(len(queries))]


def check_readings(queries: Sequence[Query], readings: Sequence[Reading]) -> None:
    """Raise NotFinite, naming all examples under one of whose cues an error is no number.

    Nothing follows from such a reading: no mean, and no order of candidates.
    """
    pairs = zip(queries, readings, strict=True)
    bad = [query.example.id for query, reading in pairs if not np.isfinite(reading.error_nats).all()]
    if bad:
        raise NotFinite(f"{few(bad)}: their errors are not finite ({len(bad)} of {len(queries)} readings)")


def _columns(reading: Reading) -> dict[str, Any]:
    """The fields that have a row for each cue and a column for each draw."""
    return {field.name: getattr(reading, field.name) for field in fields(reading) if field.name != "num_dims"}


def _read_on(one: _Asked, reading: Reading, draws: Draws) -> _Asked:
    new = _Partial(reading=reading, numbers=tuple(draws.numbers))
    read = new if one.read is None else one.read.joined(new)
    num_cues = len({NULL_CUE, *one.question.query.cues})
    return replace(one, read=read, num_evaluations=one.num_evaluations + num_cues * len(new.numbers))


def _weighed(one: _Asked, draws: Draws, risk: float) -> _Asked:
    """The chance of the true words, whether that is sure, and without the candidates that it does not depend on."""
    assert one.read is not None
    each = 2 if estimator_named(draws.estimator).antithetic else 1
    candidates, reading = one.question.candidates, one.read.reading
    by_draw = (reading.error_nats[:1] - reading.error_nats[1:], gain_variance(reading))
    gains, variances = (values.reshape(len(candidates), -1, each).mean(axis=2) for values in by_draw)
    noise = mean_variance(gains, variances, draws.count // each)
    means = reading.error_nats.mean(axis=1)  # as `judge` takes them, to the last bit
    gain = means[0] - means[1:]
    own = candidates.index(one.question.words)
    rivals = np.array([place for place in range(len(candidates)) if place != own])
    wins = duels(gain[own] - gain[rivals], noise[rivals], float(noise[own]))
    chance, own_risk = chance_of_winning(wins), risk / (one.question.num_candidates - 1)
    kept = np.sort([own, *rivals[needed_rivals(wins, int(gain[rivals].argmax()), own_risk)]])
    return replace(
        one,
        question=replace(one.question, candidates=tuple(candidates[place] for place in kept)),
        read=one.read.rows([0, *(kept + 1)]),
        chance=chance,
        correct=bool((gain[own] > gain[rivals]).all()),
        open=min(chance, 1 - chance) > risk,
    )


def _table(questions: Sequence[Question], asked: Sequence[_Asked]) -> pd.DataFrame:
    read = [one.read for one in asked if one.read is not None]
    return answer_table(
        questions,
        judge([one.question for one in asked], [partial.reading for partial in read]),
        num_draws=[len(partial.numbers) for partial in read],
        num_evaluations=[one.num_evaluations for one in asked],
    )


def _scoring_stages(estimator: Estimator, count: int) -> list[tuple[int, ...]]:
    """Nested stages, the first of which is large enough for a standard error."""
    each = 2 if estimator.antithetic else 1
    stages = nested_draws(estimator, count)
    while len(stages) > 1 and len(stages[0]) < each * FEWEST_LEVELS:
        stages[:2] = [tuple(sorted(stages[0] + stages[1]))]
    return stages


def _levelled(read: _Partial, draws: Draws) -> Reading:
    reading = read.reading
    if len(read.numbers) == draws.count:
        return reading
    factors = linear_factors(estimator_named(draws.estimator), read.numbers, draws.count)
    names = ("weights", "uniform_weights", "control", "uniform_control")
    return replace(reading, **{name: getattr(reading, name) * factors for name in names})


def _gain_settled(readings: Sequence[Reading], draws: Draws, config: ProbeConfig) -> bool:
    errors = np.array([reading.error_nats for reading in readings])  # (examples, ∅ and cue, draws)
    gains = errors[:, 0] - errors[:, 1]
    return gain_is_settled(
        gains.mean(axis=1),
        standard_error(gains, estimator_named(draws.estimator)),
        share=gains.shape[1] / draws.count,
        interval=BucketConfig.gain_confidence,
        risk=(1 - config.adaptive.confidence) / PARTS_OF_RISK,
    )
