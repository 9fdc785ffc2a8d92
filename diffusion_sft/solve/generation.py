"""S1: how fast is a generation solved, how many solutions are there over renderings and noises, is the answer one?

    none: the answer is never the solution     one: always     many: sometimes

For one rendering and one noise there is exactly one solution, reached in at most N rounds; what varies is whether it
is the answer, how many different ones appear, and the transient speed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..learner import Question
from ..systems import Generation, ReadGenerations, ReadRecoveries

NONE, MANY, ONE = "none", "many", "one"
SOLUTION_CLASSES = (ONE, MANY, NONE)
"""In the order of the categories that the hypothesis sets beside them."""
MEASURES = (
    "rounds",
    "rounds_per_step",
    "solved_per_round",
    "num_evaluations",
    "slope",
    "first_passage",
    "first_passage_share",
    "sensitivity",
    "null_distance",
    "null_round_difference",
    "share_correct",
)
"""Of one generation; of a concept, their means over its draws."""


def solve_generations(read: ReadGenerations, questions: Sequence[Question]) -> pd.DataFrame:
    """One row for each draw of each question: what it said, and `MEASURES`; residuals as lists."""
    return pd.DataFrame([_row(generation) for generation in read(questions)])


def solve_recoveries(read: ReadRecoveries, questions: Sequence[Question]) -> pd.DataFrame:
    """One row for each question: the share of the answer that must be given."""
    shares = read(questions)
    rows = [(q.concept, q.rendering, share) for q, share in zip(questions, shares, strict=True)]
    return pd.DataFrame(rows, columns=["concept", "rendering", "recovery"])


def slope(residuals: np.ndarray) -> float:
    """How many powers of ten the residual falls by per round at first: the least-squares slope of log10 of the RMS
    over equations, over the first half of the rounds (at least two); NaN for fewer than two rounds with a residual, and
    where one of them is infinite.

    Args:
        residuals: (rounds, num_steps); NaN, an equation solved before, counts as 0; infinite: a value was no number.
    """
    size = np.sqrt(np.square(without_gaps(residuals)).mean(axis=1))
    early = size[: max(2, math.ceil(len(size) / 2))]
    if not np.isfinite(early).all():
        return math.nan
    kept = np.flatnonzero(early > 0)
    if len(kept) < 2:
        return math.nan
    return float(np.polyfit(kept, np.log10(early[kept]), 1)[0])


def without_gaps(residuals: np.ndarray) -> np.ndarray:
    """The residuals with 0 where an equation was solved before the round (NaN); those that are infinite stay so."""
    return np.where(np.isnan(residuals), 0.0, residuals)


def solution_class(correct: Sequence[bool]) -> str:
    """`none`, `one` or `many`, from whether each draw's solution was the answer."""
    return ONE if all(correct) else MANY if any(correct) else NONE


def effective_answers(answers: Sequence[str]) -> float:
    """exp of the answers' entropy: the Vendi score (Friedman & Dieng, 2023) under the kernel 1 for equal answers."""
    shares = pd.Series(list(answers)).value_counts(normalize=True).to_numpy()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def classes_table(generations: pd.DataFrame) -> pd.DataFrame:
    """One row per concept: solution class, draws, how many were right, distinct and effective number of answers."""
    rows = [
        (
            concept,
            solution_class(own.correct.tolist()),
            len(own),
            int(own.correct.sum()),
            own.answer.nunique(),
            effective_answers(own.answer.tolist()),
        )
        for concept, own in generations.groupby("concept", sort=False)
    ]
    columns = ["concept", "solution_class", "num_draws", "num_correct", "num_answers", "effective_answers"]
    return pd.DataFrame(rows, columns=columns)


def residual_profile(generations: pd.DataFrame, categories: Mapping[str, str]) -> pd.DataFrame:
    """Mean residual by category, round and place: the curve over rounds at every noise level or token place.

    Place is n / N in ten parts, from the start noise (0) or the first token to the last equation; the mean is over the
    generations that have an equation there. An equation that is solved before a round has no residual in it and counts
    as 0, as does a generation that has ended.
    """
    rows, counts = [], Counter[tuple[str, int]]()
    for own in generations.to_dict("records"):
        category = categories[own["concept"]]
        matrix = without_gaps(np.array(own["residuals"], dtype=np.float64).reshape(-1, own["num_steps"]))
        places = np.arange(own["num_steps"]) * 10 // own["num_steps"]
        for place in np.unique(places).tolist():
            counts[category, place] += 1
            means = matrix[:, places == place].mean(axis=1)
            rows += [(category, number, place, float(value)) for number, value in enumerate(means)]
    table = pd.DataFrame(rows, columns=["category", "round", "place", "residual"])
    found = table.groupby(["category", "round", "place"], sort=False)["residual"].sum().reset_index()
    sizes = [counts[key] for key in zip(found["category"], found["place"], strict=True)]
    return found.assign(residual=found["residual"] / sizes)


def _row(generation: Generation) -> dict[str, object]:
    rounds, steps = generation.rounds, generation.num_steps
    return {
        "concept": generation.concept,
        "rendering": generation.rendering,
        "draw": generation.draw,
        "answer": generation.answer,
        "correct": generation.correct,
        "num_steps": steps,
        "rounds": rounds,
        "rounds_per_step": rounds / steps,
        "solved_per_round": steps / rounds if rounds else math.nan,
        "num_evaluations": generation.num_evaluations,
        "slope": slope(generation.residuals),
        "first_passage": generation.first_passage,
        "first_passage_share": generation.first_passage / rounds if rounds else math.nan,
        "sensitivity": generation.sensitivity,
        "null_distance": generation.null_distance,
        "null_round_difference": rounds - generation.null_rounds,
        "share_correct": float(generation.correct),
        "residuals": np.asarray(generation.residuals, dtype=np.float64).ravel().tolist(),
    }
