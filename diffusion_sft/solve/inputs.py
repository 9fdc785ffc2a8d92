"""S2: the weights are fixed; which input makes the base say b, and at what cost?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..learner import Question
from ..systems import InputSolutions, ReadInputs, ReadInversions

INPUT_MEASURES = (
    "named_residual",
    "input_floor",
    "residual_floor",
    "descent",
    "fresh_descent",
    "num_input_steps",
    "first_solved",
    "distance",
    "solved_share",
    "num_minima",
    "num_free",
    "rank",
    "solution_dimension",
    "log10_condition",
)
"""Of a concept: the floor is the best start's, steps, distance and share are means over starts; descent is the named
input's residual less the best start's, fresh_descent the same at draws that it was not solved for."""


def solve_inputs(read: ReadInputs, questions: Sequence[Question]) -> pd.DataFrame:
    """One row for each concept that these questions are about, with `INPUT_MEASURES` and the kind of input."""
    grouped: dict[str, list[Question]] = {}
    for question in questions:
        grouped.setdefault(question.concept, []).append(question)
    found = read(list(grouped.values()))
    rows = [{"concept": name, **_measures(one)} for name, one in zip(grouped, found, strict=True)]
    return pd.DataFrame(rows)


def solve_inversions(read: ReadInversions, questions: Sequence[Question]) -> pd.DataFrame:
    """One row for each question: its target's way into noise and back."""
    measures = read(questions)
    return pd.DataFrame([{"concept": q.concept, **found} for q, found in zip(questions, measures, strict=True)])


def _measures(found: InputSolutions) -> dict[str, object]:
    starts = found.starts
    best = min(starts, key=lambda start: start.residual)
    solved = [start.first_solved for start in starts if start.first_solved is not None]
    return {
        "kind": found.kind,
        "named_residual": found.named_residual,
        "input_floor": found.floor,
        "residual_floor": best.residual,
        "descent": found.named_residual - best.residual,
        "fresh_descent": found.named_fresh_residual - best.fresh_residual,
        "num_input_steps": float(np.mean([start.num_steps for start in starts])),
        "first_solved": float(np.mean(solved)) if solved else np.nan,
        "distance": float(np.mean([start.distance for start in starts])),
        "solved_share": float(np.mean([start.solved for start in starts])),
        "num_minima": found.num_minima,
        "num_free": found.num_free,
        "rank": found.rank,
        "solution_dimension": found.num_free - found.rank,
        "log10_condition": float(np.log10(found.condition)),
    }
