"""The systems of equations in words: what each measure is called, and sentences that follow sign and interval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..numerics.association import contingency_table, cramers_v, permutation_p
from ..records import CATEGORIES, DIFFUSION, HELDOUT, HIGHLY_KNOWN, LLM, TEST, TRAINED, UNKNOWN, UNTOUCHED
from .run import Run
from .wording import NO_BREAK, Estimate, fixed, listing, number, plural, reading

ALL = "all"
"""All questions of a role together."""
LAST, EARLY = "last", "early"
ACCURACY, ERROR = "accuracy", "error_nats"
"""What was foretold of a role's questions."""
FORECAST, START = "forecast", "start"
"""What it was foretold from: the linearised model, or where the base stood."""
CLASSES = {"one": "right in every draw", "many": "right in some draws", "none": "right in no draw"}
"""Solution classes, in the order of the categories that the hypothesis sets beside them."""
PERMUTATIONS = 9999
SIGNIFICANT = 0.05
"""Below this p the association is said to be one."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a measure is called and what it counts; `of` where the learners count differently."""

    name: str
    under: str = ""
    of: Mapping[str, str] = field(default_factory=dict)

    def remark(self, learner: str) -> str:
        """What it counts, of this learner."""
        return self.of.get(learner, self.under)


@dataclass(frozen=True, kw_only=True)
class System:
    """One way of reading the base as equations."""

    name: str
    measures: Mapping[str, Measure]


SYSTEMS = {
    "generation": System(
        name="S1, generation",
        measures={
            "rounds": Measure(name="rounds R", under="parallel passes until nothing changes"),
            "rounds_per_step": Measure(
                name="R / N", of={DIFFUSION: "N steps of the sampler", LLM: "N tokens of the answer"}
            ),
            "slope": Measure(name="early slope", under="powers of ten that the residual changes by per round"),
            "first_passage_share": Measure(name="answer stands", under="after this share of the rounds"),
            "sensitivity": Measure(
                name="sensitivity",
                of={
                    DIFFUSION: "largest Lyapunov exponent, nats per step",
                    LLM: "share of later tokens that one changed token changes",
                },
            ),
            "effective_answers": Measure(
                name="different answers", under="effective number over the draws: exp of their entropy"
            ),
            "recovery": Measure(
                name="recovery",
                of={
                    DIFFUSION: "share of the log-SNR range to be given",
                    LLM: "share of the answer tokens to be given",
                },
            ),
        },
    ),
    "inputs": System(
        name="S2, the input side",
        measures={
            "residual_floor": Measure(
                name="residual left", of={DIFFUSION: "squared error per dimension", LLM: "nats per answer token"}
            ),
            "distance": Measure(name="distance", under="from the named input, relative to its norm"),
            "num_input_steps": Measure(name="steps", under="until within a tenth of the residual left"),
            "solution_dimension": Measure(
                name="solution dimension", under="free numbers less the rank at the solution"
            ),
            "inversion_residual": Measure(
                name="inversion residual", under="of a picture from the noise it was inverted to, per dimension"
            ),
        },
    ),
    "weights": System(
        name="S3, the weight side",
        measures={
            "residual_10": Measure(name="residual left", under="after 10 Krylov steps, relative to r"),
            "solution_norm": Measure(name="‖δ‖", under="change of the weights, at the last step"),
            "solvable_share": Measure(name="solvable share", under="of the gradient that moves nothing known"),
        },
    ),
}
"""The measures that the page shows, by the names that the tables give systems and measures."""

TOLD = {TRAINED: "fit", HELDOUT: "transfer", TEST: "forgetting", UNTOUCHED: "forgetting"}
"""What the change of a role's accuracy tells of."""


def category_of(run: Run) -> dict[str, str]:
    """The category of each concept that was solved."""
    table = run.solved["systems"]
    table = table[table["category"].isin(CATEGORIES)].drop_duplicates("concept")
    return dict(zip(table["concept"], table["category"], strict=True))


def systems_sentences(run: Run) -> list[str]:
    """One sentence for each thing that can be said in one."""
    sentences = [association_sentence(run)] if {"classes", "systems"} <= run.solved.keys() else []
    if "trends" in run.solved:
        sentences += [text for name in SYSTEMS if (text := trend_sentence(run, name))]
    if "correlations" in run.solved and "forecasts" in run.solved:
        sentences.append(forecast_sentence(run))
    return sentences


def association_sentence(run: Run) -> str:
    """Do category and solution class go together? Cramér's V and the permutation p of the table that is shown."""
    classes = run.solved["classes"]
    categories = classes["concept"].map(category_of(run))
    kept = categories.notna() & classes["solution_class"].isin(CLASSES)
    first, second = categories[kept].tolist(), classes["solution_class"][kept].tolist()
    if len(set(first)) < 2 or len(set(second)) < 2:
        return "All concepts are of one category or of one solution class, so there is no association to measure."
    config: Any = run.solving.get("config")
    permutations, seed = (_whole(config, name, least) for name, least in (("num_permutations", 1), ("seed", 0)))
    permutations = min(permutations or PERMUTATIONS, 10 * PERMUTATIONS)
    p = permutation_p(first, second, permutations, seed or 0)
    v = fixed(cramers_v(contingency_table(first, second)), 2)
    numbers = f"Cramér's V = {v}, permutation p = {fixed(p, 4)}, {plural(len(first), run.nouns.concept)}"
    if p < SIGNIFICANT:
        return f"Category and solution class go together ({numbers})."
    return f"Category and solution class do not go together beyond chance ({numbers})."


def trend_sentence(run: Run, system: str) -> str:
    """Which of a system's measures rise or fall from HighlyKnown to Unknown; empty where none was read."""
    table = run.solved["trends"]
    found = {str(row["measure"]): estimate_of(row) for _, row in table[table["system"] == system].iterrows()}
    by_sign: dict[str | None, list[str]] = {}
    for measure, about in SYSTEMS[system].measures.items():
        trend = found.get(measure)
        if trend is not None and pd.notna(trend.value):
            text = f"{about.name} (ρ{NO_BREAK}{spaced(reading(trend, signed=True))})"
            by_sign.setdefault(trend.sign, []).append(text if trend.sign in ("up", "down") else about.name)
    parts = []
    for sign, words in (("up", "higher"), ("down", "lower")):
        if named := by_sign.get(sign):
            parts.append(f"{words}: {', '.join(named)}")
    if undecided := by_sign.get("flat", []) + by_sign.get(None, []):
        parts.append(f"no trend beyond the interval: {', '.join(undecided)}")
    beginning = f"{SYSTEMS[system].name}. From {HIGHLY_KNOWN} to {UNKNOWN},"
    return f"{beginning} {'; '.join(parts)}." if parts else ""


def ranks(run: Run, measure: str, predictor: str = FORECAST) -> pd.DataFrame:
    """Rank correlations at the end of training after the steps that are shown, by role and category."""
    table = run.solved["correlations"]
    kept = (table["measure"] == measure) & (table["predictor"] == predictor) & (table["outcome"] == LAST)
    return table[kept & (table["krylov_steps"] == shown_steps(run))]


def forecast_sentence(run: Run) -> str:
    """How well the forecasts ranked the runs."""
    told = []
    for role in shown_roles(run):
        parts = []
        for measure, name in ((ACCURACY, "accuracy"), (ERROR, "error in nats")):
            table = ranks(run, measure)
            found = table[(table["role"] == role) & (table["category"] == ALL)]
            parts += [f"{name} {rank_text(estimate_of(row))}" for _, row in found.iterrows()]
        if parts:
            told.append(f"{TOLD[role]} ({run.nouns.role(role)}) {', '.join(parts)}")
    if not told:
        return "Missing: rank correlations of forecast and outcome."
    return f"Forecast against outcome, rank correlation over runs at the end of training: {'; '.join(told)}."


def linearisation_sentence(run: Run) -> str:
    """How good the linear model is at the forecast's own step and at the one that fine-tuning took."""
    table = run.solved["forecasts"]
    table = table[table["krylov_steps"] == shown_steps(run)].drop_duplicates("run")
    own, real, cosine = (float(table[name].median()) for name in ("step_error", "real_step_error", "cosine"))
    error = "Error of the linear model, ‖f(θ₀ + δ) − f(θ₀) − J δ‖ / ‖J δ‖, median of"
    beginning = f"{error} {plural(len(table), 'run')}: {number(own, 2)} at the forecast's own step"
    if pd.isna(real):
        return f"{beginning}. Missing: the step that fine-tuning took in these weights."
    return (
        f"{beginning}, {number(real, 2)} at the step that fine-tuning took; at 1 it is as large as the change that the"
        f" model says. The cosine of the two steps is {fixed(cosine, 2)}."
    )


def budget_sentence(run: Run) -> str:
    """Under which budgets the systems were solved, as far as the settings say; empty where they do not."""
    told = {
        "generation": "S1 in {num_renderings} renderings from {num_starts} random starts each",
        "inputs": "S2 in at most {num_steps} steps from each of {num_starts} random starts",
        "weights": "S3 in {num_steps} Krylov steps, with up to {examples_per_category} examples of each category and"
        " {num_known} known ones",
    }
    config = run.solving.get("config")
    parts = []
    for system, text in told.items():
        given = config.get(system) if isinstance(config, dict) else None
        counts = {name: _whole(given, name, 1) for name in re.findall(r"{(\w+)}", text)}
        if None not in counts.values() and _solved(run, system):
            parts.append(text.format(**counts))
    return f"Systems: {'; '.join(parts)}." if parts else ""


def _solved(run: Run, system: str) -> bool:
    means = run.solved.get("categories")
    return means is not None and bool((means["system"] == system).any())


def shown_steps(run: Run) -> int:
    """After how many Krylov steps the forecasts are that the page draws: the most that were taken."""
    return int(run.solved["forecasts"]["krylov_steps"].max())


def shown_roles(run: Run) -> list[str]:
    """What was trained on, the same in other pictures or words, and what was not trained on."""
    found = set(run.solved["forecasts"]["role"])
    outside = [role for role in (TEST, UNTOUCHED) if role in found][:1]
    return [role for role in (TRAINED, HELDOUT) if role in found] + outside


def rank_text(estimate: Estimate) -> str:
    """`ρ +0.83 [+0.52, +0.95]`, or that there is none."""
    if pd.isna(estimate.value):
        return "ρ not defined"
    return f"ρ{NO_BREAK}{spaced(reading(estimate, signed=True))}"


def estimate_of(row: Any) -> Estimate:
    """A row's value with its interval."""
    return Estimate(value=float(row["value"]), low=float(row["low"]), high=float(row["high"]))


def spaced(parts: Sequence[str]) -> str:
    """A value and its interval, where it has one."""
    return " ".join(filter(None, parts))


def sizes(counts: pd.Series, noun: str) -> str:
    """Of how many concepts of each category the means are: `8 concepts each`, `2 to 8 concepts each`."""
    low, high = int(counts.min()), int(counts.max())
    return f"{plural(low, noun)} each" if low == high else f"{low:,} to {high:,} {noun}s each"


def kinds(run: Run) -> str:
    """Which kinds of input were solved for."""
    table = run.solved.get("inputs")
    return "" if table is None else listing([str(kind).replace("_", " ") for kind in table["kind"].unique()])


def _whole(config: Any, name: str, least: int) -> int | None:
    given = config.get(name) if isinstance(config, dict) else None
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= least else None
