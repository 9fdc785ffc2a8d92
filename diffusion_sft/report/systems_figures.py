"""The drawings of the systems of equations: residuals over rounds and steps, spectra, forecast against outcome.

Lines are drawn in the categories' colours; the shuffled control is grey and dashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ..records import CATEGORIES
from .drawing import NORMAL, Panel, panel_axes, tick
from .svg import COLOURS, INK, MARKERS, MUTED, OTHER, PAPER, inline_svg
from .systems_words import ALL
from .wording import NO_BREAK, cut, number, printable, share

CONTROL = "shuffled"
"""What the tables call known examples with each other's captions or answers."""
DRAWN = (*CATEGORIES, CONTROL)
DECADES = 6
"""A logarithmic axis goes down so far below its largest value at most."""
SMALL = (210, 190)
"""Of a panel that stands five in a row."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around a drawing."""

    title: str
    identity: str
    across: str
    """What the horizontal axis counts."""
    remark: str = ""
    logarithmic: bool = True


def line_panel(frame: Frame, lines: pd.DataFrame, x: str, y: str) -> Panel:
    """One line per category of `lines`: y over x."""
    texts = []
    with panel_axes(NORMAL, left=48, bottom=42) as (figure, axes):
        for category in DRAWN:
            here = lines[lines["category"] == category].sort_values(x)
            if len(here):
                places, values = here[x].to_numpy(float), here[y].to_numpy(float)
                draw_line(axes, category, places, _drawable(values, frame.logarithmic))
                texts.append(f"{category} from {number(values[0])} to {number(values[-1])}")
        _finish(axes, lines[y].to_numpy(float), frame)
    description = f"{frame.title}, by {frame.across}. {'; '.join(texts)}"
    return Panel(title=frame.title, remark=frame.remark, svg=inline_svg(figure, frame.identity, description))


def picard_panels(spectra: pd.DataFrame, prefix: str) -> list[Panel]:
    """Of each category σ_i as a line and |u_iᵀ r| as points over i, all on the same axes."""
    frame = Frame(title="", identity="", across="i")
    panels = []
    for place, category in enumerate(DRAWN):
        here = spectra[spectra["category"] == category].sort_values("index")
        if here.empty:
            continue
        colour, places = COLOURS.get(category, OTHER), here["index"].to_numpy(float) + 1
        with panel_axes(SMALL, left=40, bottom=36) as (figure, axes):
            draw_line(axes, category, places, _drawable(here["ritz"].to_numpy(float), True), marked=False)
            points = _drawable(here["coefficient"].to_numpy(float), True)
            axes.scatter(places, points, s=20, marker=MARKERS.get(category, "X"), color=colour, zorder=3)
            _finish(axes, spectra[["ritz", "coefficient"]].to_numpy(float).ravel(), frame)
            axes.set_xlim(0, float(spectra["index"].max()) + 2)
        description = f"Picard plot of {category}: singular values and coefficients of r over i"
        svg = inline_svg(figure, f"{prefix}picard-{place}", description)
        panels.append(Panel(title=category, svg=svg))
    return panels


def forecast_panel(frame: Frame, points: Mapping[str, pd.DataFrame], in_points: bool) -> Panel:
    """One point per run, its real change over its forecast one, by category; on the diagonal the forecast was right.

    Args:
        frame: what stands around it.
        points: by category (or all of them) run, forecast, real.
        in_points: whether these are shares, told in points, or nats.
    """
    scale, unit = (100, "points") if in_points else (1, "nats")
    tooltips = {}
    ends = np.concatenate([table[["forecast", "real"]].to_numpy(float).ravel() for table in points.values()])
    low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    margin = 0.07 * (high - low) or 0.01
    with panel_axes(NORMAL, left=52, bottom=42) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for category, table in points.items():
            colour = COLOURS.get(category, INK)
            style: dict[str, Any] = {"facecolor": colour, "edgecolor": colour, "marker": MARKERS.get(category, "o")}
            if category == ALL:
                style["facecolor"] = PAPER
            group = f"runs-{category}"
            axes.scatter(table["forecast"], table["real"], s=32, linewidth=1.4, zorder=3, gid=group, **style)
            tooltips[group] = [_run_text(row, category, unit) for _, row in table.iterrows()]
        axes.set(xlim=limits, ylim=limits, xlabel=f"{frame.across}, {unit}", ylabel=f"real change, {unit}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(scale * value, 6), signed=True)))
    description = f"{frame.title}: real change in {unit} over the forecast one, {len(tooltips)} kinds of points"
    svg = inline_svg(figure, frame.identity, description, tooltips)
    return Panel(title=frame.title, remark=frame.remark, svg=svg)


def draw_line(axes: Axes, category: str, places: np.ndarray, values: np.ndarray, marked: bool = True) -> None:
    """A line in its category's colour; the control's is grey and dashed."""
    style: dict[str, Any] = {"color": COLOURS.get(category, OTHER), "marker": MARKERS.get(category, "X"), "zorder": 3}
    if not marked or len(places) > 25:
        style["marker"] = ""
    if category == CONTROL:
        style |= {"linestyle": (0, (5, 2)), "zorder": 2}
    axes.plot(places, values, clip_on=False, **style)


def _drawable(values: np.ndarray, logarithmic: bool) -> np.ndarray:
    """NaN for what has no place on the axis: on a logarithmic one what is 0 or DECADES below the largest value."""
    if not logarithmic:
        return np.where(np.isfinite(values), values, np.nan)
    bar = values.max(initial=0.0, where=np.isfinite(values)) * 10.0**-DECADES
    return np.where(np.isfinite(values) & (values > 0) & (values >= bar), values, np.nan)


def _finish(axes: Axes, values: np.ndarray, frame: Frame) -> None:
    axes.set_xlabel(frame.across)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not frame.logarithmic:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        return
    kept = _drawable(values, True)
    kept = kept[np.isfinite(kept)]
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (0.1, 1.0)
    # At least one whole power of ten is on the axis.
    bottom = low / 1.5 if np.floor(np.log10(high)) >= np.log10(low) else 10.0 ** np.floor(np.log10(low)) / 1.1
    axes.set_yscale("log")
    axes.set_ylim(bottom, high * 1.5)
    axes.yaxis.set_major_locator(LogLocator(numticks=DECADES + 2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.minorticks_off()


def _power(value: float) -> str:
    """A power of ten beside an axis: 0.01, 1, 100, else with its exponent."""
    exponent = round(float(np.log10(value)))
    if -2 <= exponent <= 3:
        return tick(10.0**exponent)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _run_text(row: pd.Series, category: str, unit: str) -> str:
    values = [float(row[name]) for name in ("forecast", "real")]
    if unit == "points":
        changes = [share(value, signed=True, decimals=1) for value in values]
    else:
        changes = [f"{number(value, signed=True)}{NO_BREAK}{unit}" for value in values]
    return f"{printable(cut(str(row['run'])))}, {category}: forecast {changes[0]}, real {changes[1]}"
