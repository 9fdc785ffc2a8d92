"""The drawings of single concepts and runs: score against exposure, learning curves, accuracy before and after.

Each panel is a small drawing of one width, so that a row of them wraps on a narrow screen instead of shrinking. No
text of a user's goes into a drawing (names of mixes and concepts stand in the page's own text and in tooltips).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from ..records import CATEGORIES, identity_seed
from .drawing import NORMAL, WIDE, Panel, draw_curve, draw_points, jitter, panel_axes, tick, updates_axis
from .mix_run import MixRun
from .nouns import PICTURES, Nouns
from .svg import COLOURS, MUTED, SHADE, inline_svg
from .wording import cut, number, plural, printable, share

POINTS = 1500
"""More concepts than these are drawn as a sample of this many, chosen by a hash of their names."""

SCORE_OF_RULE = {
    "error": ("error_nats", "error (nats)"),
    "relative": ("relative_error", "error with words / without"),
    "gain": ("gain_nats", "gain (nats)"),
    "slick": ("greedy_share", "share of correct greedy answers"),
}
"""For each rule the column it judges by and how the axis is labelled."""
SCORE_OF_RECONSTRUCTION = {
    "error": ("reconstruction_error", "reconstruction error a dimension"),
    "relative": ("reconstruction_relative", "reconstruction error with words / without"),
    "gain": ("reconstruction_gain", "gain (reconstruction error)"),
}
"""The same where the probe measured a reconstruction (error kinds inversion and sdedit), which the rules then go by."""


def exposure_panel(
    concepts: pd.DataFrame, rule: str, remark: str, nouns: Nouns = PICTURES, prefix: str = ""
) -> Panel:
    """A rule's score of every concept against how often the base saw it; unseen concepts in a lane of their own.

    Args:
        concepts: of at most `POINTS` rows (`drawn_concepts`).
        prefix: what the drawing's identity begins with.
    """
    column, label = _score_of(rule, concepts.columns)
    shown = concepts[np.isfinite(concepts[column].astype(float))]
    tooltips = {}
    with panel_axes(WIDE, left=68, bottom=52) as (figure, axes):
        places = _exposure_axis(axes, shown)
        reference = {"relative": 1.0, "gain": 0.0}.get(rule)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1.0)
        for category in CATEGORIES:
            here = (shown["category"] == category).to_numpy()
            values, known = shown[column].to_numpy(float), shown[f"known_{rule}"].to_numpy(bool)
            if rule == "gain":
                spread = "gain_se_nats" if column == "gain_nats" else f"{column}_se"
                reach = 1.96 * shown[spread].to_numpy(float)[here]
                axes.errorbar(
                    places[here], values[here], reach, fmt="none", color=COLOURS[category], alpha=0.45, lw=1
                )
            for filled in (True, False):
                points = here & (known == filled)
                if points.any():
                    group = f"points-{category}-{filled}"
                    draw_points(axes, places[points], values[points], category, filled, group)
                    tooltips[group] = [_point_text(row, rule) for _, row in shown[points].iterrows()]
        _score_axis(axes, shown, column, label)
    description = f"{label} of {plural(len(shown), nouns.concept)} against exposure, by category"
    return Panel(title=rule, remark=remark, svg=inline_svg(figure, f"{prefix}exposure-{rule}", description, tooltips))


def drawn_concepts(concepts: pd.DataFrame) -> pd.DataFrame:
    """The concepts that drawings show: all, or a sample of `POINTS` that depends on their names alone."""
    if len(concepts) <= POINTS:
        return concepts
    places = pd.Series([identity_seed(0, "drawn", str(name)) for name in concepts["concept"]], index=concepts.index)
    return concepts.loc[places.nsmallest(POINTS).index.sort_values()]


def learning_panels(mix: MixRun, number_of_mix: int, prefix: str = "") -> list[Panel]:
    """Share of correct answers per category over updates: one panel for each role of one run."""
    assert mix.evaluations is not None
    last = max(1, mix.evaluations["update"].max())
    panels = []
    for role, title in mix.nouns.roles.items():
        rows = mix.evaluations[mix.evaluations["role"] == role]
        if rows.empty:
            continue
        with panel_axes(NORMAL, left=48, bottom=42) as (figure, axes):
            for category, line in rows.sort_values("update").groupby("category", sort=False):
                draw_curve(axes, str(category), line)
            if isinstance(early := mix.summary.get("early_stop_update"), int):
                axes.axvline(early, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
            updates_axis(axes, last)
        sizes = rows[rows["update"] == rows["update"].min()]["num_examples"].sum()
        identity = f"{prefix}learning-{number_of_mix}-{role}"
        svg = inline_svg(figure, identity, f"{title}: share correct by category over updates")
        panels.append(Panel(title=title, remark=f"{plural(int(sizes), mix.nouns.example)} asked", svg=svg))
    return panels


def accuracy_panel(title: str, identity: str, pairs: pd.DataFrame, trained: set[str]) -> Panel:
    """Each concept's accuracy after against before; above the diagonal it gained, below it lost.

    Args:
        pairs: concept, category, before, after (shares).
        trained: the concepts of the mix, drawn filled.
    """
    tooltips = {}
    with panel_axes(NORMAL, left=62, bottom=42) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2)
        filled = pairs["concept"].isin(trained).to_numpy()
        before = pairs["before"].to_numpy(float) + jitter(pairs["concept"], "before", 0.018)
        after = pairs["after"].to_numpy(float) + jitter(pairs["concept"], "after", 0.018)
        for category in CATEGORIES:
            here = (pairs["category"] == category).to_numpy()
            for inside in (True, False):
                points = here & (filled == inside)
                if points.any():
                    group = f"points-{category}-{inside}"
                    draw_points(axes, before[points], after[points], category, inside, group)
                    tooltips[group] = [
                        f"{_name(row)}: {share(row['before'])} before, {share(row['after'])} after"
                        for _, row in pairs[points].iterrows()
                    ]
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xlabel="correct before", ylabel="correct after")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    description = f"{title}: accuracy of {len(pairs)} concepts after against before"
    return Panel(title=title, svg=inline_svg(figure, identity, description, tooltips))


def _exposure_axis(axes: Axes, concepts: pd.DataFrame) -> np.ndarray:
    """Where each concept stands: log10 of its exposure, or a lane at the left (unseen, or not recorded)."""
    exposure = concepts["exposure"].astype("Float64").to_numpy(float, na_value=np.nan)
    seen = exposure > 0
    places = np.full(len(concepts), np.nan)
    places[seen] = np.log10(exposure[seen])
    first = np.floor(places[seen].min() * 2) / 2 if seen.any() else 0.0
    last = max(places[seen].max() if seen.any() else first, first + 1)
    decades = range(int(np.ceil(first)), int(np.floor(last)) + 1) if seen.any() else range(0)
    ticks = {float(decade): f"{10**decade:,}" for decade in decades}
    left, lane = first, max(0.8, 0.2 * (last - first))
    for label, members in (("unseen", exposure == 0), ("not\nrecorded", np.isnan(exposure))):
        if members.any():
            left -= lane
            axes.axvspan(left - 0.36 * lane, left + 0.36 * lane, color=SHADE, linewidth=0, zorder=0)
            places[members] = left + jitter(concepts["concept"][members], "lane", 0.26 * lane)
            ticks[left] = label
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlim=(left - 0.5 * lane, last + 0.2), xlabel="times seen in pretraining")
    axes.grid(False, axis="x")
    return places


def _score_axis(axes: Axes, concepts: pd.DataFrame, column: str, label: str) -> None:
    values = concepts[column].to_numpy(float)
    typical = float(np.median(np.abs(values))) if len(values) else 0.0
    if column == "greedy_share":
        axes.set(ylim=(-0.04, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    else:
        if column == "gain_nats" and typical > 0 and np.abs(values).max() > 30 * typical:
            # a few words that mislead the base by hundreds of nats would flatten everybody else
            unit = 10 ** np.ceil(np.log10(typical))
            axes.set_yscale("symlog", linthresh=unit, linscale=0.6)
            label += ", logarithmic"
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_ylabel(label)


def _score_of(rule: str, columns: Iterable[Any]) -> tuple[str, str]:
    """The column that a rule went by in this table, and its label."""
    reconstructed = SCORE_OF_RECONSTRUCTION.get(rule)
    return reconstructed if reconstructed and reconstructed[0] in columns else SCORE_OF_RULE[rule]


def _point_text(row: Mapping[str, Any] | pd.Series, rule: str) -> str:
    column, _ = _score_of(rule, row.keys())
    score = column.removesuffix("_nats").replace("_", " ")
    seen = "exposure not recorded" if pd.isna(row["exposure"]) else f"seen {int(row['exposure']):,} times"
    return f"{_name(row)}: {row['category']}, {seen}, {score} {number(row[column])}"


def _name(row: Mapping[str, Any] | pd.Series) -> str:
    return printable(cut(str(row["concept"])))
