"""The systems in words and plain tables, for a terminal and `summary.txt`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..numerics.association import cramers_v, permutation_p
from ..records import CATEGORIES
from .generation import SOLUTION_CLASSES
from .measures import GENERATION, INPUTS, WEIGHTS, contingency

TITLES = {
    GENERATION: "S1, generation: all unknowns at once",
    INPUTS: "S2, the input side: which x makes the base say b?",
    WEIGHTS: "S3, the weight side, each example by itself: J δ = r",
}
SET_COLUMNS = (
    "residual_1",
    "residual_5",
    "residual_10",
    "solution_norm",
    "effective_rank",
    "picard_slope",
    "side_effect",
)

SHOWN = (("accuracy", "forecast"), ("error_nats", "forecast"), ("error_nats", "start"))
"""Measure and predictor of the rank correlations that are told."""


def solve_text(
    learner: str, tables: Mapping[str, pd.DataFrame], categories: Mapping[str, str], num_permutations: int, seed: int
) -> str:
    """Everything that was solved, by category."""
    counts = pd.Series(list(categories.values())).value_counts()
    of_each = ", ".join(f"{counts[c]} {c}" for c in CATEGORIES if c in counts)
    parts = [
        f"Systems of the {learner} base: {of_each}\n(mean over concepts; 95 % intervals, bootstrap over concepts)"
    ]
    for system, title in TITLES.items():
        means = tables["categories"]
        own = means[means.system == system]
        if len(own):
            parts.append(_means(title, own, tables["trends"]))
    if "classes" in tables:
        parts.append(_classes(tables["classes"], categories, num_permutations, seed))
    if "sets" in tables:
        parts.append(_sets(tables["sets"]))
    if "correlations" in tables:
        parts.append(_forecasts(tables["correlations"], tables["forecasts"]))
    return "\n\n".join(parts) + "\n"


def association(
    classes: pd.DataFrame, categories: Mapping[str, str], num_permutations: int, seed: int
) -> tuple[float, float]:
    """Cramér's V of category and solution class over concepts, and the permutation p-value of their χ²."""
    table = contingency(classes, categories, SOLUTION_CLASSES).to_numpy()
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape) < 2:
        return float("nan"), float("nan")
    first = classes.concept.map(dict(categories)).tolist()
    return cramers_v(table), permutation_p(first, classes.solution_class.tolist(), num_permutations, seed)


def _means(title: str, means: pd.DataFrame, trends: pd.DataFrame) -> str:
    present = [category for category in CATEGORIES if category in set(means.category)]
    lines = [f"{title}\n{'':24}" + "".join(f" {category:>27}" for category in present) + f"{'ρ with category':>28}"]
    for measure in dict.fromkeys(means.measure):
        own = means[means.measure == measure].set_index("category")
        cells = [_interval(own.loc[c]) if c in own.index else "" for c in present]
        trend = trends[(trends.system == means.system.iloc[0]) & (trends.measure == measure)].iloc[0]
        lines.append(f"{measure:24}" + "".join(f" {cell:>27}" for cell in cells) + f"{_interval(trend):>28}")
    return "\n".join(lines)


def _classes(classes: pd.DataFrame, categories: Mapping[str, str], num_permutations: int, seed: int) -> str:
    table = contingency(classes, categories, SOLUTION_CLASSES)
    lines = [
        f"Is b the solution, over {int(classes.num_draws.median())} draws that decided no category?",
        f"{'':16}" + "".join(f"{name:>8}" for name in SOLUTION_CLASSES),
    ]
    lines += [f"{category:16}" + "".join(f"{int(count):8d}" for count in row) for category, row in table.iterrows()]
    v, p = association(classes, categories, num_permutations, seed)
    told = "one category or one class alone" if np.isnan(v) else f"{v:.2f}, permutation p = {p:.4f}"
    return "\n".join([*lines, f"Cramér's V = {told}"])


def _sets(sets: pd.DataFrame) -> str:
    order = [*CATEGORIES, *(name for name in sets.concept if name not in CATEGORIES)]
    table = sets.set_index("concept")
    columns = ["rhs_rms", *(name for name in SET_COLUMNS if name in table)]
    lines = [
        "S3, as many examples of each category together (residuals relative to r, after so many Krylov steps)",
        f"{'':16}{'examples':>9}" + "".join(f"{name:>16}" for name in columns),
    ]
    for name in order:
        if name in table.index:
            row = table.loc[name]
            lines.append(f"{name:16}{int(row.num_examples):9d}" + "".join(f"{row[c]:16.4g}" for c in columns))
    return "\n".join(lines)


def _forecasts(correlations: pd.DataFrame, forecasts: pd.DataFrame) -> str:
    most = forecasts["krylov_steps"].max()
    errors = forecasts[forecasts["krylov_steps"] == most].drop_duplicates("run")
    lines = [
        f"Forecast against outcome over {forecasts.run.nunique()} runs: Spearman's ρ of the change of accuracy, and of that"
        " of the error in nats\n(within: among the runs of one seed; start: of what the base was like, without a forecast)",
        f"{'steps':>5} {'role':16}{'until':8}{'accuracy':>26}{'error':>26}{'within':>8}{'start':>26}",
    ]
    pooled = correlations[correlations.category == "all"]
    for (steps, role, outcome), own in pooled.groupby(["krylov_steps", "role", "outcome"], sort=False):
        rows = own.set_index(["measure", "predictor"])
        accuracy, error, start = (_interval(rows.loc[key]) for key in SHOWN)
        within = rows["within_seeds"].to_dict()[SHOWN[1]]
        cells = f" {accuracy:>25} {error:>25}{within:8.2f} {start:>25}"
        lines.append(f"{steps:5d} {role:16}{outcome:8}{cells}")
    told = "linearisation error {:.2f} at the step after {:d}, {:.2f} at the real one (medians); cosine of the two {:.2f}"
    linear, real, cosine = (float(errors[c].median()) for c in ("step_error", "real_step_error", "cosine"))
    return "\n".join([*lines, told.format(linear, int(most), real, cosine)])


def _interval(row: object) -> str:
    value, low, high = (float(getattr(row, name)) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    return f"{value:.3g}" if np.isnan(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"
