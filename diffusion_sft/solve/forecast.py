"""What would fine-tuning do? f(θ0) + J δ on held-out examples, before anything is trained; and then, what did it do?

δ is where k steps of LSMR on the mix's own equations end. The same questions are asked of the linearised model that the
run's evaluations asked of the real one, so that fit, held-out accuracy and forgetting stand side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..errors import UserError
from ..learner import Answer, Question
from ..numerics.krylov import least_squares
from ..numerics.statistics import Interval, spearman
from ..records import CATEGORIES, Example, identity_seed
from ..systems import Equations, ForecastRun, WeightSide
from .config import WeightsConfig
from .weights import ADVICE, NOT_FINITE, checked

ALL = "all"
OUTCOMES = ("early", "last")
"""The evaluation at the early stop, and the last one."""
MEASURES = {"accuracy": "", "error_nats": "_error_nats"}
"""What is foretold of a role's questions, the share answered rightly and the mean error of what is true; how the columns
of each end."""


def forecast_run(weights: WeightSide, run: ForecastRun, config: WeightsConfig, seed: int) -> pd.DataFrame:
    """One row for each number of Krylov steps, role and category (and for all of them): accuracy of the base, of the
    linearised model and of the real one, and how good the linearisation is at either step.

    `forecast` is the linearised model's accuracy, `base` that of the same model at δ = 0 and `linear_at_real` at the
    step that the run really took, which tells a wrong δ from a wrong linearisation; `before`, `early` and `last` are the
    run's own evaluations, at update 0, at the early stop and at the end. Each has a twin that ends in `_error_nats`.
    """
    examples = _spread(run.examples, config.max_forecast_examples, seed)
    equations = checked(weights.lessons(examples), examples)
    steps = sorted(config.forecast_steps)
    found = least_squares(equations.jacobian, equations.residual, num_steps=steps[-1], keep=steps)
    if found.stopped == NOT_FINITE:
        raise UserError(f"{run.concept}: a step that fits its examples is not finite; {ADVICE}")
    real = run.real_step(weights.parameters)
    nothing = torch.zeros_like(found.solution)
    asked = {
        role: (
            questions,
            weights.answers_at(nothing, questions, run.draws),
            None if real is None else weights.answers_at(real, questions, run.draws),
        )
        for role, questions in run.questions.items()
    }
    tables = []
    for step in steps:
        solution = found.kept.get(step, found.solution)
        about = {
            "run": run.concept,
            "seed": run.draws.seed,
            "krylov_steps": step,
            "num_examples": len(equations.blocks),
            **_linearity(weights, equations, solution, real),
        }
        for role, (questions, base, at_real) in asked.items():
            then = weights.answers_at(solution, questions, run.draws)
            answers = _answers(run, questions, {"base": base, "forecast": then, "linear_at_real": at_real})
            tables += [about | {"role": role} | row | _outcomes(run, role, row["category"]) for row in answers]
    return pd.DataFrame(tables)


def _linearity(
    weights: WeightSide, equations: Equations, step: torch.Tensor, real: torch.Tensor | None
) -> dict[str, float]:
    left = equations.residual - equations.jacobian.jvp(step)
    found = {
        "relative_residual": _ratio(left, equations.residual),
        "step_norm": float(step.norm()),
        "step_error": weights.linearisation_error(equations, step),
        "real_step_norm": math.nan,
        "real_step_error": math.nan,
        "real_residual": math.nan,
        "cosine": math.nan,
    }
    if real is not None:
        found |= {
            "real_step_norm": float(real.norm()),
            "real_step_error": weights.linearisation_error(equations, real),
            "real_residual": _ratio(equations.residual - equations.jacobian.jvp(real), equations.residual),
            "cosine": float(torch.nn.functional.cosine_similarity(step.double(), real.double(), dim=0)),
        }
    return found


def _answers(
    run: ForecastRun, questions: Sequence[Question], answers: Mapping[str, Sequence[Answer] | None]
) -> list[dict[str, Any]]:
    """For each category the mean of what is right among each kind of answers, and the error of what is true in nats."""
    table = pd.DataFrame({"category": [run.categories[q.concept] for q in questions]})
    for name, own in answers.items():
        table[name] = math.nan if own is None else [float(answer.correct) for answer in own]
        table[f"{name}_error_nats"] = math.nan if own is None else [answer.error_nats for answer in own]
    rows = []
    for category in (*CATEGORIES, ALL):
        here = table if category == ALL else table[table.category == category]
        if len(here):
            means = here.drop(columns="category").mean(skipna=False)
            rows.append({"category": category, "num_questions": len(here), **{str(k): v for k, v in means.items()}})
    return rows


def rank_correlations(forecasts: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation over runs of what is foretold and the real change, by role and category.

    Predictors are the forecast change and, for comparison, where the base stood (`start`, negative: what starts high has
    far to fall), which takes no forecast at all.

    Runs of other seeds may be asked other questions, so that part of a correlation is that of the questions;
    `within_seeds` is the correlation of ranks taken among the runs of one seed.

    Columns: krylov_steps, role, category, outcome (`early`, `last`), measure (`accuracy`, `error_nats`), predictor
    (`forecast`, `start`), num_runs, value, low, high, within_seeds.
    """
    rows = []
    for about, own in forecasts.groupby(["krylov_steps", "role", "category"], sort=False):
        for outcome, (measure, ending) in itertools.product(OUTCOMES, MEASURES.items()):
            kept = own[own[outcome + ending].notna()]
            start, change = kept["base" + ending], kept[outcome + ending] - kept["before" + ending]
            for predictor, foretold in (("forecast", kept["forecast" + ending] - start), ("start", -start)):
                found, within = _ranked(foretold, change), _ranked_within(foretold, change, kept["seed"])
                numbers = (len(kept), found.value, found.low, found.high, within)
                rows.append((*about, outcome, measure, predictor, *numbers))
    columns = ["krylov_steps", "role", "category", "outcome", "measure", "predictor"]
    return pd.DataFrame(rows, columns=[*columns, "num_runs", "value", "low", "high", "within_seeds"])


def _ranked(foretold: pd.Series, change: pd.Series) -> Interval:
    if len(change) > 2:
        return spearman(foretold.to_numpy(), change.to_numpy())
    return Interval(value=math.nan, low=math.nan, high=math.nan)


def _ranked_within(foretold: pd.Series, change: pd.Series, seeds: pd.Series) -> float:
    """Correlation of the ranks within each seed, less their seed's mean; NaN where neither varies within a seed."""
    ranks = pd.DataFrame({"foretold": foretold, "change": change}).groupby(seeds).rank()
    centred = ranks - ranks.groupby(seeds).transform("mean")
    if len(centred) < 3 or (centred.abs().max() == 0).any():
        return math.nan
    return float(centred["foretold"].corr(centred["change"]))


def _outcomes(run: ForecastRun, role: str, category: str) -> dict[str, float]:
    own = run.evaluations[run.evaluations.role == role]
    if category != ALL:
        own = own[own.category == category]
    last = own["update"].max() if len(own) else None
    found = {}
    for outcome, update in (("before", 0), ("early", run.early_update), ("last", last)):
        here = own[own["update"] == update]
        counts = here.num_examples
        found[outcome] = float(here.num_correct.sum() / counts.sum()) if len(here) else math.nan
        found[f"{outcome}_error_nats"] = float(np.average(here.error_nats, weights=counts)) if len(here) else math.nan
    return found


def _spread(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most so many of the examples, taken in turn from the concepts, those of one concept in a random order."""
    ranked = sorted(examples, key=lambda e: (identity_seed(seed, "forecast", e.id), e.id))
    turns: dict[str, int] = {}
    order = []
    for example in ranked:
        turns[example.concept] = turns.get(example.concept, -1) + 1
        order.append(turns[example.concept])
    chosen = sorted(np.argsort(order, kind="stable")[:most])
    return [ranked[place] for place in chosen]


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    size = float(whole.norm())
    return float(part.norm()) / size if size > 0 else math.nan
