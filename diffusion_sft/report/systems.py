"""The section on systems of equations: is the answer the solution, what does it take, and what was forecast?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..records import DIFFUSION, HIGHLY_KNOWN, TEST, UNTOUCHED
from .cells import Table
from .drawing import Panel
from .run import SOLVED, Run
from .systems_figures import Frame, forecast_panel, line_panel, picard_panels
from .systems_tables import ClassRow, class_rows, correlation_table, sets_table, systems_table
from .systems_words import (
    ACCURACY,
    ALL,
    ERROR,
    TOLD,
    category_of,
    estimate_of,
    linearisation_sentence,
    rank_text,
    ranks,
    shown_roles,
    shown_steps,
    systems_sentences,
)
from .wording import listing

PARTS = {
    "classes": ("classes", "systems"),
    "measures": ("categories", "trends"),
    "generation": ("generations", "systems"),
    "curves": ("curves",),
    "spectra": ("spectra",),
    "sets": ("sets",),
    "forecasts": ("forecasts",),
    "correlations": ("correlations", "forecasts"),
}
"""The tables that each part of the section needs."""
FORGETTING = (TEST, UNTOUCHED)
"""Roles of what was not trained on, whose HighlyKnown questions are drawn beside all of them."""
FEWEST_PLACES = 4
"""A profile over noise levels of fewer places than these says nothing."""


@dataclass(frozen=True, kw_only=True)
class HalfSystems:
    """What one half shows; `missing` says for each part that it cannot show what it lacks."""

    heading: str
    prefix: str
    """Of the identities on the page."""
    concept: str
    """What it calls a concept."""
    swapped: str
    """What the shuffled control has of other examples."""
    sentences: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    draws: str
    measures: Table | None
    generation: tuple[Panel, ...]
    weights: tuple[Panel, ...]
    picard: tuple[Panel, ...]
    sets: Table | None
    forecasts: tuple[Panel, ...]
    correlations: Table | None
    linearisation: str
    folder: str
    """Of the tables beside the page."""
    missing: Mapping[str, str]


def half_systems(run: Run) -> HalfSystems:
    """The part of the section of a half that has some of the tables."""
    lacking = {part: [name for name in names if name not in run.solved] for part, names in PARTS.items()}
    missing = {part: listing([f"solve/{name}" for name in names]) for part, names in lacking.items() if names}
    return HalfSystems(
        heading=run.nouns.model.capitalize(),
        prefix=run.prefix,
        concept=run.nouns.concept,
        swapped="captions" if run.learner == DIFFUSION else "answers",
        sentences=tuple(systems_sentences(run)),
        classes=() if "classes" in missing else class_rows(run),
        draws="" if "classes" in missing else _draws(run.solved["classes"]),
        measures=None if "measures" in missing else systems_table(run),
        generation=tuple(_generation_panels(run)),
        weights=tuple(_weight_panels(run)),
        picard=() if "spectra" in missing else tuple(picard_panels(run.solved["spectra"], run.prefix)),
        sets=None if "sets" in missing else sets_table(run),
        forecasts=() if "forecasts" in missing else tuple(_forecast_panels(run)),
        correlations=None if "correlations" in missing else correlation_table(run),
        linearisation="" if "forecasts" in missing else linearisation_sentence(run),
        folder=f"{'' if run.learner == DIFFUSION else run.learner + '/'}solve/",
        missing=missing,
    )


def round_residuals(generations: pd.DataFrame, categories: Mapping[str, str]) -> pd.DataFrame:
    """Mean residual by category and round: over a draw's equations, then over draws.

    An equation that was solved before a round counts as 0, as does a draw that has ended.
    """
    found: dict[str, list[np.ndarray]] = {}
    for concept, steps, residuals in zip(
        generations["concept"], generations["num_steps"], generations["residuals"], strict=True
    ):
        if concept in categories and len(residuals):
            matrix = np.asarray(residuals, dtype=np.float64).reshape(-1, int(steps))
            found.setdefault(categories[concept], []).append(np.where(np.isnan(matrix), 0.0, matrix).mean(axis=1))
    rows = []
    for category, curves in found.items():
        total = np.zeros(max(map(len, curves)))
        for curve in curves:
            total[: len(curve)] += curve
        rows += [(category, place, value / len(curves)) for place, value in enumerate(total)]
    return pd.DataFrame(rows, columns=["category", "round", "residual"])


def _generation_panels(run: Run) -> list[Panel]:
    """The residual over rounds and, of pictures, over noise levels in the middle of the rounds."""
    panels = []
    pictures = run.learner == DIFFUSION
    if {"generations", "systems"} <= run.solved.keys():
        lines = round_residuals(run.solved["generations"], category_of(run))
        remark = "relative to the noise level" if pictures else "share of tokens their prefix does not ask for"
        frame = Frame(
            title="Residual over rounds", identity=f"{run.prefix}rounds", across="rounds done", remark=remark
        )
        if len(lines):
            panels.append(line_panel(frame, lines, "round", "residual"))
    if pictures and "residuals" in run.solved:
        profile = run.solved["residuals"]
        left = profile[profile["residual"] > 0]
        middle = int(left["round"].max()) // 2 if len(left) else 0
        here = left[left["round"] == middle]
        if here["place"].nunique() >= FEWEST_PLACES:
            frame = Frame(
                title=f"Residual by noise level after {middle} rounds",
                identity=f"{run.prefix}levels",
                across="from noise (1) to picture (10), in tenths",
                remark="relative to the noise level",
            )
            panels.append(line_panel(frame, here.assign(place=here["place"] + 1), "place", "residual"))
    return panels


def _weight_panels(run: Run) -> list[Panel]:
    """Relative residual and ‖δ‖ over Krylov steps."""
    panels = []
    if "curves" in run.solved:
        curves, steps = run.solved["curves"], "Krylov steps"
        frame = Frame(title="Residual left", identity=f"{run.prefix}krylov", across=steps, remark="‖r − J δ‖ / ‖r‖")
        panels.append(line_panel(frame, curves, "step", "relative_residual"))
        frame = Frame(
            title="Change of the weights", identity=f"{run.prefix}norm", across=steps, remark="‖δ‖", logarithmic=False
        )
        panels.append(line_panel(frame, curves, "step", "solution_norm"))
    return panels


def _forecast_panels(run: Run) -> list[Panel]:
    """Two panels for each role: the real change of accuracy at the end over the forecast one, and that of the error."""
    table = run.solved["forecasts"]
    table = table[table["krylov_steps"] == shown_steps(run)]
    panels = []
    for measure, ending in ((ACCURACY, ""), (ERROR, f"_{ERROR}")):
        forecast, real = table[f"forecast{ending}"] - table[f"base{ending}"], table[f"last{ending}"]
        own = table[["run", "role", "category"]].assign(forecast=forecast, real=real - table[f"before{ending}"])
        own = own.dropna(subset=["forecast", "real"])
        panels += [panel for role in shown_roles(run) if (panel := _forecast_panel(run, own, role, measure))]
    return panels


def _forecast_panel(run: Run, table: pd.DataFrame, role: str, measure: str) -> Panel | None:
    own = table[table["role"] == role]
    wanted = (ALL, HIGHLY_KNOWN) if role in FORGETTING else (ALL,)
    points = {category: here for category in wanted if len(here := own[own["category"] == category])}
    if not points:
        return None
    frame = Frame(
        title=f"{TOLD[role].capitalize()}, {'accuracy' if measure == ACCURACY else 'error'}",
        identity=f"{run.prefix}forecast-{role}" + ("" if measure == ACCURACY else "-error"),
        across="forecast change",
        remark=_ranks(run, role, measure, list(points)),
    )
    return forecast_panel(frame, points, in_points=measure == ACCURACY)


def _ranks(run: Run, role: str, measure: str, categories: list[str]) -> str:
    """What was asked, and Spearman's ρ of what a panel shows with its interval."""
    table = ranks(run, measure) if "correlations" in run.solved else pd.DataFrame(columns=[*SOLVED["correlations"]])
    told = []
    for category in categories:
        own = table[(table["role"] == role) & (table["category"] == category)]
        text = rank_text(estimate_of(own.iloc[0])) if len(own) else "ρ not recorded"
        told.append(text if len(categories) == 1 else f"{category} {text}")
    return f"{run.nouns.role(role)}: {', '.join(told)}"


def _draws(classes: pd.DataFrame) -> str:
    low, high = int(classes["num_draws"].min()), int(classes["num_draws"].max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
