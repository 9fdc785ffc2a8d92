"""Charts that answer to the pointer: Vega-Lite specifications with their data inside, drawn by the page's own script.

They repeat in another form what the still drawings show, and a point leads to the page of its concept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..records import CATEGORIES
from .changes import metric_name
from .chart_forms import (
    LANE,
    Chart,
    bucket_chart,
    curves_chart,
    error_axis,
    exposure_axis,
    points_chart,
    residual_chart,
)
from .drawing import jitter
from .explorer import concept_numbers
from .figures import drawn_concepts
from .run import Run
from .systems import round_residuals
from .systems_figures import CONTROL
from .systems_words import category_of
from .tables import BUCKETS
from .wording import Estimate, cut, model_name, plural, printable, reading

MOST_MIXES = 40
"""More mixes than these are too many to choose from in a list."""


@dataclass(frozen=True, kw_only=True)
class ChartGroup:
    """Charts that are set together: by a legend of categories, and by a list of which one is chosen."""

    identity: str
    title: str
    remark: str
    charts: tuple[Chart, ...]
    legend: tuple[str, ...] = ()
    asked: str = ""
    """What is chosen from the list."""
    options: tuple[str, ...] = ()


def chart_groups(runs: Mapping[str, Run]) -> list[ChartGroup]:
    """The charts of every half, as far as there are tables for them."""
    groups = []
    numbers = concept_numbers(runs)
    for run in runs.values():
        groups += [_gains(run, numbers), _learning(run), _distances(run), _residuals(run)]
    return [group for group in groups if group is not None and group.charts]


def _gains(run: Run, numbers: Mapping[tuple[str, str], int]) -> ChartGroup | None:
    """Gain against exposure and against error, one point per concept that leads to its page."""
    if run.concepts is None:
        return None
    shown = drawn_concepts(run.concepts)
    reach = 1.96 * shown["gain_se_nats"]
    points = pd.DataFrame(
        {
            "page": [f"#concept/{numbers[run.learner, str(name)]}" for name in shown["concept"]],
            "name": [_name(name) for name in shown["concept"]],
            "category": shown["category"].astype(str),
            "bucket": shown["bucket"].astype(str),
            "exposure": shown["exposure"].astype("Float64"),
            "place": _exposure_places(shown),
            "gain": shown["gain_nats"],
            "interval": [_ends(g, r) for g, r in zip(shown["gain_nats"], reach, strict=True)],
            "error": shown["error_nats"],
        }
    )
    noun = run.nouns.concept
    charts = [points_chart(f"{run.prefix}gain-error", f"Gain against error, {noun}s", points, error_axis())]
    if points["place"].notna().any():
        across, title = exposure_axis(points), f"Gain against exposure, {noun}s"
        charts.insert(0, points_chart(f"{run.prefix}gain-exposure", title, points, across))
    return ChartGroup(
        identity=f"{run.prefix}gains",
        title=f"Gain of every {noun}",
        remark=f"{plural(len(points), noun)} drawn. A click on a point opens the page of its {noun}; the list above leads to the"
        " same pages by keyboard. Never-seen ones stand around 0, spread sideways only to be visible.",
        charts=tuple(charts),
        legend=CATEGORIES,
    )


def _ends(gain: float, reach: float) -> str:
    return reading(Estimate(value=gain, low=gain - reach, high=gain + reach))[1]


def _exposure_places(concepts: pd.DataFrame) -> np.ndarray:
    exposure = concepts["exposure"].astype("Float64").to_numpy(float, na_value=np.nan)
    return np.where(exposure == 0, jitter(concepts["concept"], "chart", LANE), exposure)


def _learning(run: Run) -> ChartGroup | None:
    """Accuracy over updates of one mix, a chart for each role; the mix is chosen from a list."""
    mixes = [mix for mix in run.first_runs if mix.evaluations is not None][:MOST_MIXES]
    if not mixes:
        return None
    tables = [mix.evaluations.assign(option=n) for n, mix in enumerate(mixes) if mix.evaluations is not None]
    rows = pd.concat(tables)
    rows = rows.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    rows = rows[rows["category"].isin(CATEGORIES)]
    last = max(1, int(rows["update"].max())) if len(rows) else 1
    columns = ["option", "update", "category", "accuracy", "low", "high", "num_correct", "num_examples"]
    charts = [
        curves_chart(f"{run.prefix}learning-chart-{role}", title, here[columns], last)
        for role, title in run.nouns.roles.items()
        if len(here := rows[rows["role"] == role])
    ]
    further = len(run.first_runs) - len(mixes)
    return ChartGroup(
        identity=f"{run.prefix}learning-charts",
        title=f"Right answers of the {run.nouns.model} over updates",
        remark="Bands are 95 % intervals. A chart without lines: this mix was not asked that."
        + (f" {plural(further, 'mix')} left out." if further else ""),
        charts=tuple(charts),
        legend=CATEGORIES,
        asked="Mix",
        options=tuple(_name(mix.name) for mix in mixes),
    )


def _distances(run: Run) -> ChartGroup | None:
    """A measure of the evaluation per bucket, with its interval for every model; the measure is chosen from a list."""
    if run.measures is None:
        return None
    rows = run.measures[run.measures["model"].isin(run.shown_models) & run.measures["value"].notna()]
    metrics = list(dict.fromkeys(rows["metric"].astype(str)))
    metrics.sort(key=lambda metric: (metric != "fid", not metric.startswith(("fid", "fd_", "kid"))))
    rows = rows.assign(
        option=rows["metric"].map({metric: place for place, metric in enumerate(metrics)}),
        shown=[_name(model_name(model)) for model in rows["model"]],
    )
    order = [_name(model_name(model)) for model in run.shown_models]
    columns = ["option", "shown", "value", "low", "high", "num_real", "num_generated"]
    charts = [
        bucket_chart(f"fid-chart-{place}", bucket, here[columns], order)
        for place, bucket in enumerate(BUCKETS)
        if len(here := rows[rows["bucket"] == bucket])
    ]
    return ChartGroup(
        identity="fid-charts",
        title="FID and other measures per bucket",
        remark="Each bucket has its own axis: raw FIDs of two buckets must never be compared.",
        charts=tuple(charts),
        asked="Measure",
        options=tuple(metric_name(metric) for metric in metrics),
    )


def _residuals(run: Run) -> ChartGroup | None:
    """The residual over parallel rounds, and over Krylov steps."""
    charts = []
    if {"generations", "systems"} <= run.solved.keys():
        lines = round_residuals(run.solved["generations"], category_of(run))
        lines = lines.rename(columns={"round": "step"})
        charts.append(residual_chart(f"{run.prefix}rounds-chart", "Residual over rounds", lines, "rounds done"))
    if "curves" in run.solved:
        lines = run.solved["curves"].rename(columns={"relative_residual": "residual"})
        title = "Residual left of r = J δ"
        charts.append(residual_chart(f"{run.prefix}krylov-chart", title, lines, "Krylov steps"))
    drawn = [chart for chart in charts if chart is not None]
    control = any(CONTROL in set(table["category"]) for name, table in run.solved.items() if name == "curves")
    return ChartGroup(
        identity=f"{run.prefix}residual-charts",
        title=f"Residuals of the {run.nouns.model}'s systems",
        remark="Logarithmic; what is solved exactly has no place on the axis.",
        charts=tuple(drawn),
        legend=(*CATEGORIES, CONTROL) if control else CATEGORIES,
    )


def _name(text: object) -> str:
    return printable(cut(str(text)))
