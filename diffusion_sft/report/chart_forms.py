"""The forms of charts: a specification each of points, curves, intervals and residuals, in the page's colours.

A specification holds its rows. What a reader may set is a parameter: `hidden`, the categories not to show, and `shown`,
the number of the mix or metric to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from ..records import CATEGORIES
from .svg import COLOURS, MARKERS, OTHER, VARIABLES
from .systems_figures import CONTROL, DECADES

SHAPES = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "X": "cross"}
"""Vega's names of the markers."""
LANE = 0.35
"""Unseen concepts stand this far around 0 on the axis of exposure, so as not to cover each other."""
ROWS = alt.NamedData("rows")
"""Where a specification has its rows."""
HEIGHT, ROW_HEIGHT = 240, 22
"""Pixels of a chart, and of a row of a chart of rows."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart: its heading, what a reader who cannot see it is told, and its specification."""

    identity: str
    title: str
    spec: Mapping[str, Any]


def points_chart(identity: str, title: str, points: pd.DataFrame, across: alt.X) -> Chart:
    """One point per concept, its gain over `across`.

    Args:
        points: page, name, category, bucket, exposure, gain, interval, error, and what `across` needs.
    """
    domain = _range(points["gain"])
    chart = (
        alt.Chart(ROWS)
        .mark_point(filled=True, size=48, opacity=0.85, cursor="pointer")
        .encode(
            x=across,
            y=alt.Y("gain:Q", title="gain (nats)", scale=alt.Scale(domain=domain, nice=True)),
            color=_colour(),
            shape=alt.Shape("category:N", legend=None, scale=_scale([SHAPES[MARKERS[c]] for c in CATEGORIES])),
            tooltip=[
                alt.Tooltip("name:N", title="name"),
                alt.Tooltip("category:N"),
                alt.Tooltip("bucket:N"),
                alt.Tooltip("exposure:Q", title="seen", format=","),
                alt.Tooltip("gain:Q", format=".3~g"),
                alt.Tooltip("interval:N", title="95 % interval"),
                alt.Tooltip("error:Q", format=".4~g"),
            ],
        )
    )
    return _finished(identity, title, chart, points, [_hidden()], _visible())


def error_axis() -> alt.X:
    """The axis of the error."""
    return alt.X("error:Q", title="error (nats)", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))


def exposure_axis(points: pd.DataFrame) -> alt.X:
    """The axis of exposure: logarithmic, with a place for 0."""
    most = max(1.0, float(points["place"].max()))
    decades = [0, *(10**power for power in range(int(np.log10(most)) + 1))]
    scale = alt.Scale(type="symlog", constant=1, domain=[-2 * LANE, 1.3 * most], nice=False)
    return alt.X(
        "place:Q",
        title="times seen in pretraining",
        scale=scale,
        axis=alt.Axis(values=decades, labelExpr="format(datum.value, ',')"),
    )


def curves_chart(identity: str, title: str, rows: pd.DataFrame, last: int) -> Chart:
    """A share per category over updates with the band of its intervals, of the chosen mix.

    Args:
        rows: option, update, category, accuracy, low, high, num_correct, num_examples.
        last: where the axis of updates ends.
    """
    over = alt.X("update:Q", title="updates", scale=alt.Scale(domain=[0, last], nice=False))
    share = alt.Scale(domain=[0, 1])
    base = alt.Chart(ROWS).encode(x=over, color=_colour())
    band = base.mark_area(opacity=0.13).encode(y=alt.Y("low:Q", scale=share, title=None), y2="high:Q")
    line = base.mark_line(strokeWidth=1.8).encode(y=alt.Y("accuracy:Q", scale=share, axis=alt.Axis(format=".0%")))
    points = base.mark_point(filled=True, size=34, opacity=1).encode(
        y=alt.Y("accuracy:Q", scale=share, title=None),
        shape=alt.Shape("category:N", legend=None, scale=_scale([SHAPES[MARKERS[c]] for c in CATEGORIES])),
        tooltip=[
            alt.Tooltip("category:N"),
            alt.Tooltip("update:Q"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
            alt.Tooltip("num_correct:Q", title="right"),
            alt.Tooltip("num_examples:Q", title="asked"),
        ],
    )
    return _finished(
        identity, title, alt.layer(band, line, points), rows, [_hidden(), _chosen()], _visible(), _is_chosen()
    )


def bucket_chart(identity: str, bucket: str, rows: pd.DataFrame, order: Sequence[str]) -> Chart:
    """The chosen measure of one bucket with its interval, a row for each model.

    Args:
        rows: option, shown (the model's name), value, low, high, num_real, num_generated.
        order: the models from top to bottom.
    """
    colour = _css(COLOURS.get(bucket, OTHER))
    value = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=4))
    base = alt.Chart(ROWS).encode(y=alt.Y("shown:N", sort=list(order), title=None))
    rule = base.mark_rule(color=colour, strokeWidth=2.4).encode(
        x=alt.X("low:Q", title=None, axis=alt.Axis(tickCount=4)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=60, color=colour, opacity=1).encode(
        x=value,
        tooltip=[
            alt.Tooltip("shown:N", title="model"),
            *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("value", "low", "high")),
            alt.Tooltip("num_real:Q", title="real images"),
            alt.Tooltip("num_generated:Q", title="drawn images"),
        ],
    )
    height = ROW_HEIGHT * len(order)
    return _finished(identity, bucket, alt.layer(rule, points), rows, [_chosen()], _is_chosen(), height=height)


def residual_chart(identity: str, title: str, lines: pd.DataFrame, across: str) -> Chart | None:
    """A residual per category over steps, logarithmic; None where nothing of it has a place there.

    Args:
        lines: category, step, residual.
        across: what the steps count.
    """
    values = lines["residual"].astype(float)
    lines = lines[(values > 0) & np.isfinite(values) & (values >= values.max() * 10.0**-DECADES)]
    if lines.empty:
        return None
    scale = alt.Scale(type="log", domain=[float(lines["residual"].min()) / 1.3, float(lines["residual"].max()) * 1.3])
    lines = lines[["category", "step", "residual"]]
    base = alt.Chart(ROWS).encode(
        x=alt.X("step:Q", title=across, axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("residual:Q", title=None, scale=scale, axis=alt.Axis(format="~g", tickCount=DECADES)),
        color=_colour(control=True),
    )
    shapes = _scale([*(SHAPES[MARKERS[c]] for c in CATEGORIES), SHAPES["X"]], control=True)
    points = base.mark_point(filled=True, size=34, opacity=1).encode(
        shape=alt.Shape("category:N", legend=None, scale=shapes),
        tooltip=[alt.Tooltip("category:N"), alt.Tooltip("step:Q"), alt.Tooltip("residual:Q", format=".3~g")],
    )
    return _finished(
        identity, title, alt.layer(base.mark_line(strokeWidth=1.8), points), lines, [_hidden()], _visible()
    )


def _finished(
    identity: str,
    title: str,
    chart: Any,
    rows: pd.DataFrame,
    params: Sequence[Any],
    *kept: str,
    height: int = HEIGHT,
) -> Chart:
    """The specification: its rows, parameters, what is kept of the rows, the page's look.

    What goes into it is checked by the test that compiles it and not whenever a page is written.
    """
    for condition in kept:
        chart = chart.transform_filter(condition)
    chart = chart.add_params(*params)
    chart = chart.properties(width="container", height=height, description=title, background="transparent")
    chart.autosize = alt.AutoSizeParams(type="fit-x", contains="padding")
    spec = chart.configure(**_config()).to_dict(validate=False)
    return Chart(identity=identity, title=title, spec=spec | {"datasets": {ROWS.name: _records(rows)}})


def _config() -> dict[str, Any]:
    muted, rule = "var(--muted)", "var(--rule)"
    axis = {
        "labelColor": muted,
        "titleColor": muted,
        "gridColor": rule,
        "domain": False,
        "ticks": False,
        "labelFlush": False,
    }
    axis |= {"labelFontSize": 11.5, "titleFontSize": 11.5, "titleFontWeight": "normal", "labelPadding": 6}
    return {"axis": axis, "view": {"stroke": None}, "font": "system-ui, sans-serif"}


def _hidden() -> Any:
    return alt.param(name="hidden", value=[])


def _chosen() -> Any:
    return alt.param(name="shown", value=0)


def _visible() -> str:
    return "indexof(hidden, datum.category) < 0"


def _is_chosen() -> str:
    return "datum.option === shown"


def _colour(control: bool = False) -> alt.Color:
    colours = [*(COLOURS[category] for category in CATEGORIES), *([OTHER] if control else [])]
    return alt.Color("category:N", legend=None, scale=_scale([_css(colour) for colour in colours], control))


def _scale(values: Sequence[str], control: bool = False) -> alt.Scale:
    return alt.Scale(domain=[*CATEGORIES, *([CONTROL] if control else [])], range=list(values))


def _css(colour: str) -> str:
    return f"var({VARIABLES[colour]}, {colour})"


def _range(values: pd.Series) -> list[float]:
    found = values[np.isfinite(values.astype(float))]
    return [min(0.0, float(found.min())), max(0.0, float(found.max()))] if len(found) else [0.0, 1.0]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them; null for a missing number."""
    columns = [[_plain(value) for value in table[name].tolist()] for name in table]
    return [dict(zip(map(str, table), values, strict=True)) for values in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    return None if pd.isna(value) or value in (np.inf, -np.inf) else value
