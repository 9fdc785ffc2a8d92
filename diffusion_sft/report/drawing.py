"""What all drawings share: sizes, a plot in its place, ticks, points that can be told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from ..records import identity_seed
from .svg import COLOURS, INK, MARKERS, MUTED, OTHER, PAPER, THEME, inline_svg
from .wording import Estimate, reading

WIDTH, NORMAL = 360, (360, 270)
"""Of a panel, in the drawing's own units; the page shows it at about this many pixels."""

WIDE = (420, 310)
"""Of a panel that stands two in a row."""


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


def interval_panel(title: str, identity: str, rows: Sequence[Interval], limits: tuple[float, float]) -> Panel:
    """A dot and an interval per row around a line at 0; rows share `limits` with their neighbours' panels."""
    with panel_axes((WIDTH, 36 + 28 * max(2, len(rows))), left=94, bottom=26) as (figure, axes):
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, signed=True)))
    texts = [f"{row.label}: {' '.join(reading(row.estimate, signed=True))}" for row in rows]
    tooltips = {f"row-{place}": [text] for place, text in enumerate(texts)}
    return Panel(title=title, svg=inline_svg(figure, identity, f"{title}. " + "; ".join(texts), tooltips))


def shared_limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Limits around 0 and every interval, with a margin; the same ones make neighbouring panels comparable."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if np.isfinite(end)] or [0.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


@contextmanager
def panel_axes(size: tuple[int, int], left: int, bottom: int) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one plot; the margins are fixed, so that the plots of neighbouring panels stand in line."""
    width, height = size
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(width / 72, height / 72))
        yield (
            figure,
            figure.add_axes((left / width, bottom / height, 1 - (left + 14) / width, 1 - (bottom + 8) / height)),
        )


def updates_axis(axes: Axes, last: int) -> None:
    """Updates to the right, shares of one upwards in per cent."""
    axes.set(xlim=(-0.03 * last, 1.03 * last), ylim=(-0.04, 1.04), xlabel="updates")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def draw_points(axes: Axes, x: np.ndarray, y: np.ndarray, category: str, filled: bool, group: str) -> None:
    """One group of points in a category's colour and shape, filled or hollow."""
    colour = COLOURS[category]
    face: Any = colour if filled else PAPER
    axes.scatter(
        x, y, s=30, marker=MARKERS[category], facecolor=face, edgecolor=colour, linewidth=1.3, zorder=3, gid=group
    )


def draw_curve(axes: Axes, category: str, line: pd.DataFrame) -> None:
    """One category's share over updates, with the band of its intervals."""
    colour = COLOURS.get(category, OTHER)
    updates = line["update"].to_numpy(float)
    axes.fill_between(updates, line["accuracy_low"], line["accuracy_high"], color=colour, alpha=0.13, linewidth=0)
    marker = MARKERS.get(category, "o") if len(line) <= 25 else ""
    axes.plot(updates, line["accuracy"], color=colour, marker=marker, clip_on=False, zorder=3)


def tick(value: float, signed: bool = False) -> str:
    """A number beside an axis."""
    thousands = abs(value) >= 10_000
    text = f"{value / 1000 if thousands else value:{'+' if signed and value else ''},.6g}"
    return text.replace("-", "−") + ("k" if thousands else "")


def jitter(names: pd.Series, purpose: str, width: float) -> np.ndarray:
    """A displacement in ±width per name, so that equal values do not cover each other; no information."""
    units = [identity_seed(0, "jitter", purpose, str(name)) / 2**63 for name in names]
    return width * (2 * np.array(units, dtype=float) - 1)
