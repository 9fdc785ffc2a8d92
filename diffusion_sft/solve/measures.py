"""All measures in one table: a row for each (learner, concept, measure), and their means over each category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..numerics.statistics import bootstrap_mean, spearman
from ..records import CATEGORIES
from .generation import MEASURES
from .inputs import INPUT_MEASURES

NUM_BOOTSTRAP = 2000
COLUMNS = ["learner", "system", "concept", "category", "measure", "value", "low", "high", "num_draws"]
GENERATION, INPUTS, WEIGHTS = "generation", "inputs", "weights"
"""S1, S2, S3."""
WEIGHT_MEASURES = (
    "rhs_rms",
    "residual_1",
    "residual_2",
    "residual_5",
    "residual_10",
    "solution_norm",
    "solvable_share",
)
BLOCK = "block_"
"""Before the measures of free vectors in the answer's place."""
KEYS = ("concept", "kind", "rendering", "draw")


def systems_table(
    learner: str, tables: Mapping[str, pd.DataFrame], categories: Mapping[str, str], seed: int
) -> pd.DataFrame:
    """One row for each concept and measure (`COLUMNS`): the mean over its draws, with a 95 % bootstrap interval.

    A draw without the measure, or with one that is not finite (two trajectories that meet part at a rate of −∞), has no
    share in the mean; `num_draws` is how many had.

    Args:
        learner: diffusion or llm.
        tables: of what was solved, by name: generations, classes, recoveries, inversions, inputs, examples.
        categories: of each concept.
        seed: of the bootstrap.
    """
    wanted = {
        "generations": (GENERATION, MEASURES),
        "classes": (GENERATION, ("num_answers", "effective_answers")),
        "recoveries": (GENERATION, ("recovery",)),
        "inputs": (INPUTS, INPUT_MEASURES),
        "blocks": (INPUTS, INPUT_MEASURES),
        "inversions": (INPUTS, _numeric(tables.get("inversions"))),
        "examples": (WEIGHTS, WEIGHT_MEASURES),
    }
    rows = []
    for name, (system, measures) in wanted.items():
        table = tables.get(name)
        if table is None or table.empty:
            continue
        for concept, own in table.groupby("concept", sort=False):
            for measure in measures:
                if measure in own:
                    values = own[measure].to_numpy(dtype=float)
                    found = _mean(values[np.isfinite(values)], seed)
                    named = f"{BLOCK}{measure}" if name == "blocks" else measure
                    rows.append([learner, system, concept, categories.get(str(concept), ""), named, *found])
    return pd.DataFrame(rows, columns=COLUMNS)


def category_means(systems: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The mean of each measure over the concepts of each category, with a 95 % bootstrap interval over concepts."""
    rows = []
    for (learner, system, measure), own in systems.groupby(["learner", "system", "measure"], sort=False):
        for category in CATEGORIES:
            values = own.loc[own.category == category, "value"].dropna().to_numpy()
            if len(values):
                rows.append([learner, system, measure, category, *_mean(values, seed)])
    columns = ["learner", "system", "measure", "category", "value", "low", "high", "num_concepts"]
    return pd.DataFrame(rows, columns=columns)


def category_trends(systems: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of each measure with the category's place from HighlyKnown to Unknown, over concepts."""
    place = {category: number for number, category in enumerate(CATEGORIES)}
    rows = []
    for (learner, system, measure), own in systems.groupby(["learner", "system", "measure"], sort=False):
        kept = own[own.value.notna() & own.category.isin(CATEGORIES)]
        found = spearman(kept.category.map(place).to_numpy(dtype=float), kept.value.to_numpy())
        rows.append([learner, system, measure, len(kept), found.value, found.low, found.high])
    return pd.DataFrame(rows, columns=["learner", "system", "measure", "num_concepts", "value", "low", "high"])


def contingency(
    classes: pd.DataFrame, categories: Mapping[str, str], solution_classes: Sequence[str]
) -> pd.DataFrame:
    """How many concepts of each category have each solution class; rows and columns in their order, zeros kept."""
    table = pd.crosstab(classes.concept.map(dict(categories)), classes.solution_class)
    return table.reindex(index=list(CATEGORIES), columns=list(solution_classes), fill_value=0)


def _mean(values: np.ndarray, seed: int) -> list[float]:
    if not len(values):
        return [np.nan, np.nan, np.nan, 0]
    found = bootstrap_mean(values, range(len(values)), num_bootstrap=NUM_BOOTSTRAP, seed=seed)
    return [found.value, found.low, found.high, len(values)]


def _numeric(table: pd.DataFrame | None) -> tuple[str, ...]:
    return () if table is None else tuple(name for name in table.columns if name not in KEYS)
