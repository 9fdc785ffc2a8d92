"""The drawings of the learning dynamics: fit speed, accuracy against the share of Unknown, the linear model.

Measured figures are filled; published ones are hollow, grey, of other shapes, and in a lane of their own where they
stand in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..records import CATEGORIES
from ..reference import STOPPINGS
from .drawing import NORMAL, WIDE, Interval, Panel, draw_curve, panel_axes, tick, updates_axis
from .svg import EARLY, INK, LATE, MUTED, PAPER, PUBLISHED, SHADE, inline_svg
from .wording import DASH, reading, share, share_reading

EARLY_STOP, CONVERGENCE = STOPPINGS
STOPPING_NAMES = {EARLY_STOP: "early stop", CONVERGENCE: "convergence"}
MEASURED_MARKS = {EARLY_STOP: ("o", EARLY, -0.012), CONVERGENCE: ("s", LATE, 0.012)}
"""Shape, colour, and how far beside its place a point stands, so that the two of a mix do not cover each other."""
PUBLISHED_MARKS = {EARLY_STOP: ("^", -0.045), CONVERGENCE: ("v", 0.045)}


@dataclass(frozen=True, kw_only=True)
class SharePoint:
    """An accuracy at a share of Unknown; without an interval it is a published one."""

    unknown_share: float
    stopping: str
    estimate: Interval


def fit_panel(curves: pd.DataFrame, title: str, identity: str) -> Panel:
    """The fitted share of a mix's training examples per category over updates, with the band over its seeds."""
    last = max(1, int(curves["update"].max()))
    names = {"fitted_share": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    with panel_axes(NORMAL, left=48, bottom=42) as (figure, axes):
        for category in CATEGORIES:
            line = curves[curves["category"] == category].sort_values("update")
            if len(line):
                draw_curve(axes, category, line.rename(columns=names))
        updates_axis(axes, last)
    fewest, most = int(curves["num_seeds"].min()), int(curves["num_seeds"].max())
    seeds = f"{most} seed" + ("" if most == 1 else "s") + (f", at the end {fewest}" if fewest < most else "")
    description = "fitted share of trained examples by category over updates"
    return Panel(title=title, remark=seeds, svg=inline_svg(figure, identity, description))


def share_panel(
    title: str,
    identity: str,
    measured: Sequence[SharePoint],
    published: Sequence[SharePoint],
    limits: tuple[float, float],
) -> Panel:
    """Accuracy (between `limits`) against the share of Unknown in the mix, at both stoppings."""
    tooltips = {}
    with panel_axes(NORMAL, left=52, bottom=42) as (figure, axes):
        for stopping, (marker, colour, aside) in MEASURED_MARKS.items():
            here = [point for point in measured if point.stopping == stopping]
            for point in here:
                estimate, place = point.estimate.estimate, point.unknown_share + aside
                if estimate.has_interval:
                    axes.plot([place, place], [estimate.low, estimate.high], color=colour, linewidth=1.6)
            if here:
                places = [point.unknown_share + aside for point in here]
                values = [point.estimate.estimate.value for point in here]
                group = f"measured-{stopping}"
                axes.scatter(places, values, s=38, marker=marker, color=colour, zorder=3, gid=group)
                tooltips[group] = [_share_text(point) for point in here]
        for stopping, (marker, aside) in PUBLISHED_MARKS.items():
            if here := [point for point in published if point.stopping == stopping]:
                tooltips[f"published-{stopping}"] = [f"published: {_share_text(point)}" for point in here]
                places, values = ([p.unknown_share + aside for p in here], [p.estimate.estimate.value for p in here])
                style: dict[str, Any] = {"facecolor": "none", "edgecolor": PUBLISHED, "linewidth": 1.5, "zorder": 2}
                axes.scatter(places, values, s=62, marker=marker, gid=f"published-{stopping}", **style)
        axes.set(xlim=(-0.09, 1.09), ylim=limits, xlabel="Unknown in the mix")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    texts = [text for group in tooltips.values() for text in group]
    return Panel(title=title, svg=inline_svg(figure, identity, f"{title}. " + "; ".join(texts), tooltips))


def coefficient_panel(
    title: str,
    identity: str,
    measured: Sequence[Interval],
    published: Sequence[Interval],
    limits: tuple[float, float],
) -> Panel:
    """A coefficient by what was asked: filled with its interval where measured, hollow in a lane where published."""
    rows = [*measured, *published]
    first = len(measured)
    with panel_axes((WIDE[0], 40 + 26 * len(rows)), left=192, bottom=30) as (figure, axes):
        axes.axhspan(first - 0.5, len(rows) - 0.5, color=SHADE, linewidth=0, zorder=0)
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for place, row in enumerate(rows):
            estimate = row.estimate
            if not np.isfinite(estimate.value):
                axes.text(0, place, " not estimated", color=MUTED, va="center", fontsize=10)
                continue
            if estimate.has_interval:
                ends = np.clip([estimate.low, estimate.high], *limits)
                axes.plot(ends, [place, place], color=EARLY, linewidth=2.2)
                for end, limit, marker in ((estimate.low, limits[0], "<"), (estimate.high, limits[1], ">")):
                    if abs(end) > abs(limit):  # the interval goes on beyond the drawing
                        axes.scatter([limit], [place], s=34, marker=marker, color=EARLY, clip_on=False, zorder=3)
            style: dict[str, Any] = {"facecolor": EARLY, "edgecolor": EARLY, "marker": "o"}
            if place >= first:
                style = {"facecolor": PAPER, "edgecolor": PUBLISHED, "marker": "D"}
            axes.scatter([estimate.value], [place], s=42, linewidth=1.6, zorder=3, gid=f"row-{place}", **style)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=limits)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, signed=True)))
    texts = [f"{row.label}: {' '.join(reading(row.estimate, signed=True))} points".strip() for row in rows]
    shown = [place for place, row in enumerate(rows) if np.isfinite(row.estimate.value)]
    tooltips = {f"row-{place}": [texts[place]] for place in shown}
    return Panel(title=title, svg=inline_svg(figure, identity, f"{title}. " + "; ".join(texts), tooltips))


def _share_text(point: SharePoint) -> str:
    amount = " ".join(filter(None, share_reading(point.estimate.estimate, decimals=1))) or DASH
    name = f"{point.estimate.label}, " if point.estimate.label else ""
    return f"{name}{share(point.unknown_share)} Unknown, {STOPPING_NAMES[point.stopping]}: {amount}"
