"""The shared metrics: what each is called, its unit, and what kind of number it is. docs/comparison.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..records import DIFFUSION, LLM

SHARE, CHANGE = "share", "change of share"
"""Units of numbers in 0..1 and of differences between two of them."""
BASE, LEARNING, MODEL = "Reading the base", "Learning and its cost", "The dynamics model"
GENERATION, INPUTS, WEIGHTS = "S1, generation", "S2, the input side", "S3, the weight side"
FORECASTS = "Forecast against outcome (rank correlation over runs)"
FAMILIES = (BASE, LEARNING, MODEL, GENERATION, INPUTS, WEIGHTS, FORECASTS)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table."""

    name: str
    """In words."""
    family: str
    unit: str
    units: Mapping[str, str] | None = None
    """By learner, where they differ; only order and sign are then comparable."""
    kind: Literal["mean", "share", "change", "median", "scalar"] = "mean"
    """What the number of a category is of its concepts' readings; scalar: one number for a whole run."""
    categories: bool = True
    """Whether it is told for each category."""
    trend: bool = True
    """Whether its rise or fall over the categories, or its sign, means something."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """What the number can be; intervals are cut to it."""

    def unit_of(self, learner: str) -> str:
        """The unit of this learner's numbers."""
        return (self.units or {}).get(learner, self.unit)


def _share(name: str, family: str, *, trend: bool = True) -> Metric:
    return Metric(name=name, family=family, unit=SHARE, kind="share", trend=trend, bounds=(0.0, 1.0))


def _change(name: str) -> Metric:
    return Metric(name=name, family=LEARNING, unit=CHANGE, kind="change", bounds=(-1.0, 1.0))


def _scalar(name: str, family: str, unit: str, *, categories: bool = False, trend: bool = True) -> Metric:
    return Metric(name=name, family=family, unit=unit, kind="scalar", categories=categories, trend=trend)


def _stopped(key: str, name: str, unit: str = CHANGE) -> dict[str, Metric]:
    """The metric at both stoppings."""
    names = {f"{key}_{stop}": f"{name}, {told}" for stop, told in STOPPINGS.items()}
    return {key: _change(name) if unit == CHANGE else _share(name, LEARNING) for key, name in names.items()}


STOPPINGS = {"early_stop": "early stop", "convergence": "convergence"}
ROLES = ("fit", "transfer", "forgetting")
"""What is forecast: the trained examples, the same in other renderings, and what was not trained on."""
MEASURES = {"accuracy": "accuracy", "error_nats": "error in nats"}
INPUT_UNITS = {DIFFUSION: "squared error per dimension", LLM: "nats per answer token"}
PREDICTORS = {"forecast": "forecast", "start": "from the start alone"}

METRICS: dict[str, Metric] = {
    "category_share": _share("share of the concepts", BASE),
    "prior_error": Metric(name="prior error", family=BASE, unit="nats"),
    "prior_error_per_dim": Metric(
        name="prior error per dimension",
        family=BASE,
        unit="nats per dimension",
        units={LLM: "nats per answer token", DIFFUSION: "nats per latent dimension"},
    ),
    "relative_error": Metric(name="prior error over that without words", family=BASE, unit="ratio"),
    "gain": Metric(name="information gain", family=BASE, unit="nats"),
    "updates_to_fit": Metric(name="updates to fit, median", family=LEARNING, unit="updates", kind="median"),
    "passes_to_fit": Metric(name="passes to fit, median", family=LEARNING, unit="passes", kind="median"),
    **_stopped("fitted_share", "fitted share", SHARE),
    **_stopped("heldout_change", "held-out change"),
    **_stopped("outside_change", "outside change, most Unknown"),
    **_stopped("outside_change_known", "outside change, known only"),
    "late_change": _change("late outside change, Unknown only"),
    **_stopped("natural_accuracy", "outside accuracy, natural mix", SHARE),
    "b_known": _scalar("b_known", MODEL, "accuracy per fitted share"),
    "b_unknown": _scalar("b_unknown", MODEL, "accuracy per fitted share"),
    "r2": _scalar("R²", MODEL, "ratio", trend=False),
    "b_known_other_relations": _scalar("b_known, other relations", MODEL, "accuracy per fitted share"),
    "b_unknown_other_relations": _scalar("b_unknown, other relations", MODEL, "accuracy per fitted share"),
    "r2_other_relations": _scalar("R², other relations", MODEL, "ratio", trend=False),
    "rounds_per_step": Metric(name="rounds over sequential steps, R/T", family=GENERATION, unit="ratio"),
    "slope": Metric(name="early slope of the log residual", family=GENERATION, unit="powers of ten per round"),
    "effective_answers": Metric(name="multiplicity: effective answers", family=GENERATION, unit="answers"),
    "class_one": _share("solution class one", GENERATION),
    "class_many": _share("solution class many", GENERATION),
    "class_none": _share("solution class none", GENERATION),
    "recovery": Metric(name="recovery", family=GENERATION, unit="share of the answer given", bounds=(0.0, 1.0)),
    "residual_floor": Metric(
        name="residual floor, wider block",
        family=INPUTS,
        unit="residual",
        units=INPUT_UNITS,
    ),
    "block_residual": Metric(
        name="residual floor, the answer's own block",
        family=INPUTS,
        unit="residual",
        units=INPUT_UNITS,
    ),
    "input_distance": Metric(name="distance from the named input", family=INPUTS, unit="relative to its norm"),
    "residual_10": Metric(name="residual after 10 steps, each example", family=WEIGHTS, unit="relative to r"),
    "solution_norm": Metric(name="norm of δ, each example", family=WEIGHTS, unit="weights' own"),
    "solvable_share": Metric(
        name="gradient outside what is known",
        family=WEIGHTS,
        unit="share of the gradient",
        bounds=(0.0, 1.0),
    ),
    "set_residual_10": _scalar("residual after 10 steps, sets", WEIGHTS, "relative to r", categories=True),
    "side_effect": _scalar("interference: side effect, sets", WEIGHTS, "relative to own", categories=True),
    "constrained_residual": _scalar("residual with the known held, sets", WEIGHTS, "relative to r", categories=True),
    **{
        f"{predictor}_{role}_{measure}": _scalar(
            f"{role}, {told}" + ("" if predictor == "forecast" else f", {PREDICTORS[predictor]}"),
            FORECASTS,
            "ρ",
        )
        for role in ROLES
        for measure, told in MEASURES.items()
        for predictor in PREDICTORS
    },
}
"""By the name that they have in the tables, in the order in which they are shown."""
