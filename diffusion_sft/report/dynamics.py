"""The section on learning dynamics: what each half measured, and beside it, apart, what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..records import OTHER_RELATIONS, TEST, UNKNOWN, UNTOUCHED
from ..reference import STOPPINGS, Reference
from .cells import Table
from .drawing import Interval, Panel
from .dynamics_figures import SharePoint, coefficient_panel, fit_panel, share_panel
from .dynamics_tables import (
    DISTRIBUTION_NAMES,
    FULL,
    SIGNED,
    TERMS,
    asked_roles,
    by_share,
    estimate_of,
    missing_dynamics,
    model_table,
    published_model_table,
    published_share_table,
    published_single_table,
    share_table,
    single_category_table,
    treatments,
)
from .dynamics_words import dynamics_sentences
from .run import Run
from .wording import Estimate, cut, printable

PARTS = {
    "fit": ("fit_curves",),
    "single": ("runs", "accuracy_by_mix"),
    "shares": ("runs", "accuracy_by_mix"),
    "model": ("linear_model",),
}
"""The tables that each part of the section needs."""
LEVELLED = (TEST, UNTOUCHED)
"""Roles beside whose accuracies published ones are drawn: the questions that stand for what was not trained on."""
UNTRAINED = (TEST, OTHER_RELATIONS, UNTOUCHED)
"""Roles whose coefficients are drawn: nothing of them was trained on, and none of them decided the early stop."""


@dataclass(frozen=True, kw_only=True)
class HalfDynamics:
    """What one half shows; `missing` says for each part that it cannot show what it lacks."""

    heading: str
    sentences: tuple[str, ...]
    fit: tuple[Panel, ...]
    single: tuple[Table, ...]
    share_panels: tuple[Panel, ...]
    shares: tuple[Table, ...]
    untreated: tuple[str, ...]
    model_panels: tuple[Panel, ...]
    model: Table | None
    missing: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published figures, as tables of their own, and where they are from."""

    citation: str
    authors: str
    title: str
    venue: str
    setup: str
    fit_speed: str
    largest_drop: str
    single: Table
    shares: Table
    model: Table
    sources: Mapping[str, str]


def half_dynamics(run: Run, reference: Reference) -> HalfDynamics:
    """The part of the section of a half that has some of the tables."""
    missing = missing_dynamics(run, PARTS)
    roles = asked_roles(run) if "single" not in missing else []
    changed = treatments(run)
    return HalfDynamics(
        heading=run.nouns.model.capitalize() + (f", method {run.method}" if run.method else ""),
        sentences=tuple(dynamics_sentences(run)),
        fit=() if "fit" in missing else tuple(_fit_panels(run)),
        single=tuple(table for role in roles if (table := single_category_table(run, role))),
        share_panels=tuple(_share_panels(run, reference, roles)),
        shares=tuple(table for role in roles if (table := share_table(run, role))),
        untreated=tuple(f"{mix} ({what})" for mix, what in changed.items()),
        model_panels=() if "model" in missing else tuple(_model_panels(run, reference)),
        model=None if "model" in missing else model_table(run),
        missing=missing,
    )


def published(reference: Reference) -> Published:
    """The published figures as the page shows them."""
    citation, drop = reference.citation, reference.largest_drop
    return Published(
        citation=citation.short,
        authors=citation.authors,
        title=citation.title,
        venue=f"{citation.venue}, arXiv {citation.arxiv}",
        setup=f"{reference.setup['base']}, {reference.setup['dataset']}",
        fit_speed=reference.fit_speed,
        largest_drop=f"up to {drop['in_distribution']:g} points on the same relations and {drop['out_of_distribution']:g}"
        " on others",
        single=published_single_table(reference),
        shares=published_share_table(reference),
        model=published_model_table(reference),
        sources=reference.sources,
    )


def _fit_panels(run: Run) -> list[Panel]:
    curves = run.dynamics["fit_curves"]
    return [
        fit_panel(here, str(mix), f"{run.prefix}fit-{place}")
        for place, (mix, here) in enumerate(curves.groupby("mix", sort=False))
    ]


def _share_panels(run: Run, reference: Reference, roles: Sequence[str]) -> list[Panel]:
    """One panel for each role, all with the same axes."""
    shown = [*roles, *([OTHER_RELATIONS] if TEST in roles else [])]
    points = {role: _measured_points(run, role) for role in shown}
    beside = {role: _published_points(reference) if role in LEVELLED else [] for role in shown}
    everything = [point.estimate.estimate for role in shown if points[role] for point in points[role] + beside[role]]
    limits = _share_limits(everything)
    return [
        share_panel(
            run.nouns.role(role).capitalize(), f"{run.prefix}shares-plot-{role}", points[role], beside[role], limits
        )
        for role in shown
        if points[role]
    ]


def _measured_points(run: Run, role: str) -> list[SharePoint]:
    changed = set(treatments(run))
    return [
        SharePoint(
            unknown_share=float(row["unknown_share"]),
            stopping=str(row["stopping"]),
            estimate=Interval(label=printable(cut(str(row["mix"]))), estimate=estimate_of(row)),
        )
        for _, row in by_share(run, role).iterrows()
        if str(row["mix"]) not in changed
    ]


def _share_limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Around all values and intervals, whole tens of per cent and a margin."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if np.isfinite(end)] or [0.0, 1.0]
    return float(np.floor(10 * min(ends)) / 10 - 0.02), float(np.ceil(10 * max(ends)) / 10 + 0.02)


def _published_points(reference: Reference) -> list[SharePoint]:
    points = []
    for stopping in STOPPINGS:
        half = reference.relabel[stopping]["plain"].accuracy_percent
        whole = reference.single_category[stopping][UNKNOWN][FULL]
        for unknown_share, percent in ((0.5, half), (1.0, whole)):
            estimate = Interval(label="", estimate=Estimate(value=percent / 100))
            points.append(SharePoint(unknown_share=unknown_share, stopping=stopping, estimate=estimate))
    return points


def _model_panels(run: Run, reference: Reference) -> list[Panel]:
    """One panel for each coefficient, in percentage points."""
    table = run.dynamics["linear_model"]
    panels, rows = [], {}
    for term in SIGNED:
        measured = [
            Interval(label=run.nouns.role(str(row["role"])), estimate=_points(estimate_of(row, "estimate")))
            for _, row in table[(table["term"] == term) & table["role"].isin(UNTRAINED)].iterrows()
        ]
        beside = [
            Interval(label=f"published, {DISTRIBUTION_NAMES[name]}", estimate=Estimate(value=points))
            for name, model in reference.linear_model.items()
            for points in [model.b_known_points if term == "b_known" else model.b_unknown_points]
        ]
        rows[term] = (measured, beside)
    limits = _limits([row.estimate for both in rows.values() for part in both for row in part])
    for term, (measured, beside) in rows.items():
        identity = f"{run.prefix}model-{term}"
        panels.append(coefficient_panel(f"{TERMS[term]}, points", identity, measured, beside, limits))
    return panels


def _points(share: Estimate) -> Estimate:
    return Estimate(value=100 * share.value, low=100 * share.low, high=100 * share.high)


def _limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Around every value, and around the intervals as far as three times the largest value, so that one interval of
    few runs does not flatten the others."""
    largest = max([abs(e.value) for e in estimates if np.isfinite(e.value)] + [1.0])
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if np.isfinite(end)]
    reach = 1.08 * min(max(map(abs, ends)), 3 * largest)
    return -reach, reach
