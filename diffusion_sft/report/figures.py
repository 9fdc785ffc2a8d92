"""The drawings: score against exposure, learning curves, paired changes, accuracy before and after.

Each panel is a small drawing of one width, so that a row of them wraps on a narrow screen instead of shrinking. No
text of a user's goes into a drawing (names of mixes and concepts stand in the page's own text and in tooltips).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..records import CATEGORIES, identity_seed
from .run import MixRun
from .svg import COLOURS, INK, MARKERS, MUTED, OTHER, PAPER, SHADE, THEME, inline_svg
from .wording import Estimate, cut, number, plural, printable, reading, share

WIDTH, NORMAL = 360, (360, 270)
"""Of a panel, in the drawing's own units; the page shows it at about this many pixels."""

WIDE = (420, 310)
"""Of a panel that stands two in a row."""

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

ROLES = {"trained": "Trained pictures: fitted", "heldout": "Held-out pictures", "untouched": "Known, never trained"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing with its heading (plain text) and a remark under the heading."""

    title: str
    svg: Markup
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of a dot-and-interval drawing."""

    label: str
    estimate: Estimate


def exposure_panel(concepts: pd.DataFrame, rule: str, remark: str) -> Panel:
    """A rule's score of every concept against how often the base saw it; unseen concepts in a lane of their own."""
    column, label = _score_of(rule, concepts.columns)
    shown = concepts[np.isfinite(concepts[column].astype(float))]
    tooltips = {}
    with _panel(WIDE, left=68, bottom=52) as (figure, axes):
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
                    _points(axes, places[points], values[points], category, filled, group)
                    tooltips[group] = [_point_text(row, rule) for _, row in shown[points].iterrows()]
        _score_axis(axes, shown, column, label)
    description = f"{label} of {len(shown)} concepts against exposure, by category"
    return Panel(title=rule, remark=remark, svg=inline_svg(figure, f"exposure-{rule}", description, tooltips))


def learning_panels(mix: MixRun, number_of_mix: int) -> list[Panel]:
    """Share of correct answers per category over updates: trained, held-out and untouched examples of one mix."""
    assert mix.evaluations is not None
    last = max(1, mix.evaluations["update"].max())
    panels = []
    for role, title in ROLES.items():
        rows = mix.evaluations[mix.evaluations["role"] == role]
        if rows.empty:
            continue
        with _panel(NORMAL, left=48, bottom=42) as (figure, axes):
            for category, line in rows.sort_values("update").groupby("category", sort=False):
                _learning_curve(axes, str(category), line)
            if isinstance(early := mix.summary.get("early_stop_update"), int):
                axes.axvline(early, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
            axes.set(xlim=(-0.03 * last, 1.03 * last), ylim=(-0.04, 1.04), xlabel="updates")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        sizes = rows[rows["update"] == rows["update"].min()]["num_examples"].sum()
        svg = inline_svg(
            figure, f"learning-{number_of_mix}-{role}", f"{title}: share correct by category over updates"
        )
        panels.append(Panel(title=title, remark=f"{plural(int(sizes), 'picture')} asked", svg=svg))
    return panels


def interval_panel(title: str, identity: str, rows: Sequence[Interval], limits: tuple[float, float]) -> Panel:
    """A dot and an interval per row around a line at 0; rows share `limits` with their neighbours' panels."""
    with _panel((WIDTH, 36 + 28 * max(2, len(rows))), left=94, bottom=26) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for place, row in enumerate(rows):
            colour, estimate = COLOURS.get(row.label, OTHER), row.estimate
            if estimate.has_interval:
                axes.plot(
                    [estimate.low, estimate.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round"
                )
            marker = MARKERS.get(row.label, "o")
            face = colour if estimate.sign in ("up", "down") else PAPER
            style: dict[str, Any] = {
                "facecolor": face,
                "edgecolor": colour,
                "linewidth": 1.8,
                "zorder": 3,
                "gid": f"row-{place}",
            }
            axes.scatter([estimate.value], [place], s=46, marker=marker, **style)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=limits)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, signed=True)))
    texts = [f"{row.label}: {' '.join(reading(row.estimate, signed=True))}" for row in rows]
    tooltips = {f"row-{place}": [text] for place, text in enumerate(texts)}
    return Panel(title=title, svg=inline_svg(figure, identity, f"{title}. " + "; ".join(texts), tooltips))


def shared_limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Limits around 0 and every interval, with a margin; the same ones make neighbouring panels comparable."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if np.isfinite(end)] or [0.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def accuracy_panel(title: str, identity: str, pairs: pd.DataFrame, trained: set[str]) -> Panel:
    """Each concept's accuracy after against before; above the diagonal it gained, below it lost.

    Args:
        pairs: concept, category, before, after (shares).
        trained: the concepts of the mix, drawn filled.
    """
    tooltips = {}
    with _panel(NORMAL, left=62, bottom=42) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2)
        filled = pairs["concept"].isin(trained).to_numpy()
        before = pairs["before"].to_numpy(float) + _jitter(pairs["concept"], "before", 0.018)
        after = pairs["after"].to_numpy(float) + _jitter(pairs["concept"], "after", 0.018)
        for category in CATEGORIES:
            here = (pairs["category"] == category).to_numpy()
            for inside in (True, False):
                points = here & (filled == inside)
                if points.any():
                    group = f"points-{category}-{inside}"
                    _points(axes, before[points], after[points], category, inside, group)
                    tooltips[group] = [
                        f"{_name(row)}: {share(row['before'])} before, {share(row['after'])} after"
                        for _, row in pairs[points].iterrows()
                    ]
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xlabel="correct before", ylabel="correct after")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    description = f"{title}: accuracy of {len(pairs)} concepts after against before"
    return Panel(title=title, svg=inline_svg(figure, identity, description, tooltips))


@contextmanager
def _panel(size: tuple[int, int], left: int, bottom: int) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one plot; the margins are fixed, so that the plots of neighbouring panels stand in line."""
    width, height = size
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(width / 72, height / 72))
        yield (
            figure,
            figure.add_axes((left / width, bottom / height, 1 - (left + 14) / width, 1 - (bottom + 8) / height)),
        )


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, category: str, filled: bool, group: str) -> None:
    colour = COLOURS[category]
    face: Any = colour if filled else PAPER
    axes.scatter(
        x, y, s=30, marker=MARKERS[category], facecolor=face, edgecolor=colour, linewidth=1.3, zorder=3, gid=group
    )


def _learning_curve(axes: Axes, category: str, line: pd.DataFrame) -> None:
    colour = COLOURS.get(category, OTHER)
    updates = line["update"].to_numpy(float)
    axes.fill_between(updates, line["accuracy_low"], line["accuracy_high"], color=colour, alpha=0.13, linewidth=0)
    marker = MARKERS.get(category, "o") if len(line) <= 25 else ""
    axes.plot(updates, line["accuracy"], color=colour, marker=marker, clip_on=False, zorder=3)


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
            places[members] = left + _jitter(concepts["concept"][members], "lane", 0.26 * lane)
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
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_ylabel(label)


def _tick(value: float, signed: bool = False) -> str:
    thousands = abs(value) >= 10_000
    text = f"{value / 1000 if thousands else value:{'+' if signed and value else ''},.6g}"
    return text.replace("-", "−") + ("k" if thousands else "")


def _jitter(names: pd.Series, purpose: str, width: float) -> np.ndarray:
    """A displacement in ±width per name, so that equal values do not cover each other; no information."""
    units = [identity_seed(0, "jitter", purpose, str(name)) / 2**63 for name in names]
    return width * (2 * np.array(units, dtype=float) - 1)


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
