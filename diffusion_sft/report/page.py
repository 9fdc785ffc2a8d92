"""The report: one HTML file that shows what a study measured, and needs nothing beside it but a browser.

It reads the stages' tables and the concept set's pictures and computes nothing that they do not say. Parts that are
missing are named. No scripts, no network, every foreign text escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from tqdm import tqdm

from ..files import write_text
from ..records import CATEGORIES, RULES, ConceptSet
from .figures import Interval, Panel, accuracy_panel, exposure_panel, interval_panel, learning_panels, shared_limits
from .findings import findings, measure, metric_name
from .grids import PICTURE_BYTES, Album, Picture, real_pictures, sample_grids
from .methods import method_sentences, recorded_settings
from .run import Run, auroc, rank_correlation, read_run, seen_at_least
from .svg import MARKERS
from .tables import (
    BUCKETS,
    accuracy_table,
    concept_table,
    fid_table,
    gain_text,
    measure_table,
    rule_table,
    verdict_table,
)
from .wording import BASE, cut, model_name, number, plural, printable, reading, share

REPORT = "report.html"
CARDS = 24
"""Concepts per category that are shown as a card with a picture; the table below the cards has all of them."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One concept with its picture and its readings."""

    concept: str
    picture: Picture | None
    error: str
    gain: str
    confidence: str
    misknown: bool


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The cards of one category, and how many concepts it has in all."""

    category: str
    cards: tuple[Card, ...]
    num_concepts: int


@dataclass(frozen=True, kw_only=True)
class PanelRow:
    """Panels under one heading; the name is a mix's or a metric's."""

    name: str
    panels: tuple[Panel, ...]


def write_report(run_folder: Path, concept_set: ConceptSet, title: str) -> Path:
    """Write `<run_folder>/report.html` from the tables that the stages left in the folder.

    Args:
        run_folder: the study's folder; parts that are missing in it are named on the page.
        concept_set: the set that was probed, for the real pictures.
        title: the page's heading, as plain text.

    Raises:
        UserError: the folder does not exist.
    """
    run = read_run(run_folder)
    album, missing = Album(budget=PICTURE_BYTES), list(run.missing)
    parts: dict[str, Callable[[], Any]] = {
        "shelves": lambda: concept_shelves(run, concept_set, album),
        "grids": lambda: sample_grids(run, concept_set, album, missing),
        "exposure": lambda: exposure_panels(run),
        "learning": lambda: learning_rows(run),
        "changes": lambda: change_rows(run),
        "accuracy": lambda: accuracy_panels(run),
        "tables": lambda: _tables(run),
        "findings": lambda: findings(run),
        "facts": lambda: key_facts(run),
        "methods": lambda: method_sentences(run),
        "settings": lambda: recorded_settings(run),
        "files": lambda: table_files(run_folder),
    }
    made = {name: make() for name, make in tqdm(parts.items(), desc="report", disable=None, leave=False)}
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    template = _environment().get_template("page.html.j2")
    path = run_folder / REPORT
    write_text(path, template.render(made, title=title, style=style, run=run, album=album, missing=missing))
    return path


def key_facts(run: Run) -> list[tuple[str, str]]:
    """A few numbers for the head of the page, each with what it counts."""
    facts = []
    if run.concepts is not None:
        known = int((run.concepts["bucket"] == "known").sum())
        facts += [(f"{len(run.concepts):,}", "concepts"), (f"{known:,}", "known to the base")]
        facts.append((f"{len(run.concepts) - known:,}", "unknown to it"))
    if run.mixes:
        facts.append((str(len(run.mixes)), "mix fine-tuned" if len(run.mixes) == 1 else "mixes fine-tuned"))
    if run.accuracy is not None:
        facts.append((f"{int(run.accuracy['num_images'].sum()):,}", "images generated"))
    return facts


def concept_shelves(run: Run, concept_set: ConceptSet, album: Album) -> list[Shelf]:
    """One shelf of cards per category, the highest gain first."""
    if run.concepts is None:
        return []
    pictures = real_pictures(concept_set)
    shelves = []
    for category in CATEGORIES:
        here = run.concepts[run.concepts["category"] == category].sort_values("gain_nats", ascending=False)
        cards = tuple(_card(row, pictures, album) for _, row in here.head(CARDS).iterrows())
        shelves.append(Shelf(category=category, cards=cards, num_concepts=len(here)))
    return shelves


def exposure_panels(run: Run) -> list[Panel]:
    """The four rules' scores against exposure."""
    if run.concepts is None:
        return []
    return [exposure_panel(run.concepts, rule, _auroc_remark(run, rule)) for rule in RULES]


def learning_rows(run: Run) -> list[PanelRow]:
    """The learning curves of each mix that was evaluated."""
    evaluated = [(place, mix) for place, mix in enumerate(run.mixes) if mix.evaluations is not None]
    return [PanelRow(name=mix.name, panels=tuple(learning_panels(mix, place))) for place, mix in evaluated]


def change_rows(run: Run) -> list[PanelRow]:
    """For each paired change that was measured, one panel per mix, all on the same axis."""
    if run.measures is None:
        return []
    found = [str(metric) for metric in dict.fromkeys(run.measures["metric"]) if str(metric).endswith("_change")]
    rows = []
    for metric in sorted(found, key=lambda name: (not name.startswith("fid"), name)):
        by_model = {model: _intervals(run, model, metric) for model in run.models if model != BASE}
        limits = shared_limits([row.estimate for intervals in by_model.values() for row in intervals])
        panels = tuple(
            interval_panel(model_name(model), f"change-{metric}-{place}", intervals, limits)
            for place, (model, intervals) in enumerate(by_model.items())
            if intervals
        )
        if panels:
            rows.append(PanelRow(name=metric_name(metric), panels=panels))
    return rows


def accuracy_panels(run: Run) -> list[Panel]:
    """Each concept's accuracy after a mix against before it, one panel per mix."""
    if run.accuracy is None:
        return []
    by_model = run.accuracy.pivot_table(index=["concept", "category"], columns="model", values="accuracy")
    panels = []
    for place, model in enumerate(run.models):
        if model == BASE or not {BASE, model} <= set(by_model.columns):
            continue
        pairs = by_model[[BASE, model]].dropna().reset_index().rename(columns={BASE: "before", model: "after"})
        trained = {
            name for mix in run.mixes if mix.name == model for names in mix.composition.values() for name in names
        }
        if len(pairs):
            panels.append(accuracy_panel(model_name(model), f"accuracy-{place}", pairs, trained))
    return panels


def table_files(run_folder: Path) -> list[tuple[str, str]]:
    """The CSV tables of a run: name and relative link."""
    patterns = ("*.csv", "probe/*.csv", "buckets/*.csv", "finetune/*/*.csv", "evaluate/*.csv")
    found = [
        path.relative_to(run_folder).as_posix() for pattern in patterns for path in sorted(run_folder.glob(pattern))
    ]
    return [(name, quote(name)) for name in found]


def _intervals(run: Run, model: str, metric: str) -> list[Interval]:
    read = ((bucket, measure(run, model, bucket, metric)) for bucket in BUCKETS)
    return [Interval(label=bucket, estimate=estimate) for bucket, estimate in read if estimate is not None]


def _auroc_remark(run: Run, rule: str) -> str:
    area, follows = auroc(run.buckets, rule), rank_correlation(run.buckets, rule)
    parts = [f"AUROC {' '.join(reading(area))}".rstrip() if area else "AUROC not recorded"]
    if follows is not None:
        parts.append(f"rank correlation {' '.join(reading(follows))}".rstrip())
    return ", ".join(parts)


def _card(row: pd.Series, pictures: dict[str, list[Path]], album: Album) -> Card:
    concept = str(row["concept"])
    found = pictures.get(concept, [])
    return Card(
        concept=concept,
        picture=album.picture(found[0], f"real picture of {cut(concept)}") if found else None,
        error=number(float(row["error_nats"]), 4),
        gain=gain_text(row),
        confidence=share(float(row["category_confidence"])),
        misknown=bool(row["misknown"]),
    )


def _tables(run: Run) -> dict[str, Any]:
    return {
        "verdicts": verdict_table(run),
        "concepts": None if run.concepts is None else concept_table(run.concepts),
        "rules": rule_table(run),
        "fid": None if run.measures is None else fid_table(run.measures, run),
        "measures": None if run.measures is None else measure_table(run.measures, run),
        "accuracy": None if run.accuracy is None else accuracy_table(run.accuracy, run),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals |= {"markers": MARKERS, "categories": CATEGORIES, "seen_at_least": seen_at_least}
    environment.filters |= {"cut": cut, "coded": _coded, "plural": plural, "model": model_name}
    return environment


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _coded(text: str) -> Markup:
    """The text, escaped, with `words in backquotes` set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(printable(text)))))
