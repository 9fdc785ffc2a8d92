"""The report: one HTML file that shows what a study measured, and needs nothing beside it but a browser.

It reads the stages' tables and the concept set's pictures and computes little that they do not say. Of the two halves
of a study it shows those that were asked for or left something; parts that are missing are named. Published figures
stand apart from measured ones. No network, every foreign text escaped; scripts add a list of all concepts and charts to
what stands there without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from tqdm import tqdm

from ..files import write_text
from ..records import CATEGORIES, DIFFUSION, LLM, ConceptSet
from ..reference import load_reference
from .agreement import seen_at_least
from .charts import ChartGroup, chart_groups
from .comparison import comparison_section
from .dynamics import HalfDynamics, half_dynamics, published
from .embedded import script_json
from .explorer import explorer
from .figure_files import write_figures
from .findings import findings
from .grids import PICTURE_BYTES, Album, Picture, real_pictures, sample_grids
from .language import fact_shelves, relation_table
from .methods import method_sentences, recorded_settings
from .run import Run, learners_of, read_run
from .scripts import content_policy, page_scripts
from .sections import (
    accuracy_panels,
    change_rows,
    exposure_panels,
    exposure_remark,
    key_facts,
    learning_rows,
    seed_remark,
    table_files,
)
from .svg import MARKERS
from .systems import HalfSystems, half_systems
from .systems_words import CLASSES
from .tables import accuracy_table, concept_table, fid_table, gain_text, measure_table, rule_table, verdict_table
from .wording import cut, listing, model_name, number, plural, printable, share

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


def write_report(run_folder: Path, concept_set: ConceptSet, title: str, *, figures: bool = False) -> Path:
    """Write `<run_folder>/report.html` from the tables that the stages left in the folder.

    Args:
        run_folder: the study's folder; parts that are missing in it are named on the page.
        concept_set: the set that was probed, for the real pictures; an empty one where there are none.
        title: the page's heading, as plain text.
        figures: whether every drawing is also written to `<run_folder>/figures/` as PNG and PDF, about 0.2 seconds each.

    Raises:
        UserError: the folder does not exist.
    """
    runs = {learner: read_run(run_folder, learner) for learner in learners_of(run_folder)}
    missing = [note for run in runs.values() for note in run.missing]
    album = Album(budget=PICTURE_BYTES)
    parts: dict[str, Callable[[], Any]] = {
        "answers": lambda: [_answer(run) for run in runs.values()],
        "diffusion": lambda: _diffusion(runs.get(DIFFUSION), concept_set, album, missing),
        "language": lambda: _language(runs.get(LLM)),
        "dynamics": lambda: _dynamics(runs),
        "published": lambda: published(load_reference()) if any(run.dynamics for run in runs.values()) else None,
        "systems": lambda: _systems(runs),
        "comparison": lambda: comparison_section(run_folder),
        "explorer": lambda: explorer(runs, concept_set, missing),
        "charts": lambda: chart_groups(runs),
        "facts": lambda: key_facts(runs),
        "methods": lambda: {run.nouns.model: method_sentences(run) for run in runs.values()},
        "settings": lambda: recorded_settings(runs),
        "files": lambda: table_files(run_folder),
    }
    made = {name: make() for name, make in tqdm(parts.items(), desc="report", disable=None, leave=False)}
    made |= {"figures": write_figures(made, run_folder) if figures else []} | _scripted(made)
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    template = _environment().get_template("page.html.j2")
    models = listing([f"a {run.nouns.model}" for run in runs.values()])
    given = {"title": title, "style": style, "album": album, "missing": missing, "models": models}
    path = run_folder / REPORT
    write_text(path, template.render(made, **given))
    return path


def _scripted(made: Mapping[str, Any]) -> dict[str, Any]:
    """The scripts, what they draw, and the policy that allows them."""
    charts: list[ChartGroup] = made["charts"]
    scripts = page_scripts(with_list=made["explorer"] is not None, with_charts=bool(charts))
    specs = {chart.identity: chart.spec for group in charts for chart in group.charts}
    return {"scripts": scripts, "policy": content_policy(scripts), "specs": script_json(specs)}


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


def _answer(run: Run) -> dict[str, Any]:
    """What one half says to the study's question."""
    return {"nouns": run.nouns, "findings": findings(run), "verdicts": verdict_table(run), "seeds": seed_remark(run)}


def _diffusion(run: Run | None, concept_set: ConceptSet, album: Album, missing: list[str]) -> dict[str, Any] | None:
    """The sections of the diffusion half; None where that was not asked for."""
    if run is None:
        return None
    return _shared(run) | {
        "shelves": concept_shelves(run, concept_set, album),
        "grids": sample_grids(run, concept_set, album, missing),
        "changes": change_rows(run),
        "accuracy": accuracy_panels(run),
        "concepts": None if run.concepts is None else concept_table(run.concepts),
        "fid": None if run.measures is None else fid_table(run.measures, run),
        "measures": None if run.measures is None else measure_table(run.measures, run),
        "accuracies": None if run.accuracy is None else accuracy_table(run.accuracy, run),
    }


def _language(run: Run | None) -> dict[str, Any] | None:
    """The section of the language model's half; None where that was not asked for."""
    if run is None:
        return None
    return _shared(run) | {"relations": relation_table(run), "shelves": fact_shelves(run)}


def _shared(run: Run) -> dict[str, Any]:
    """What both halves show in the same form."""
    return {
        "run": run,
        "rules": rule_table(run),
        "exposure": exposure_panels(run),
        "exposure_remark": exposure_remark(run),
        "learning": learning_rows(run),
        "seeds": seed_remark(run),
    }


def _dynamics(runs: Mapping[str, Run]) -> list[HalfDynamics]:
    """The halves whose fine-tuning runs were summarised, one for each method where there are several."""
    return [half_dynamics(own, load_reference()) for run in runs.values() if run.dynamics for own in run.by_method()]


def _systems(runs: Mapping[str, Run]) -> list[HalfSystems]:
    """The halves whose systems of equations were solved."""
    return [half_systems(run) for run in runs.values() if run.solved]


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
    environment.globals["classes"] = CLASSES
    environment.filters |= {"cut": cut, "coded": _coded, "plural": plural, "model": model_name}
    return environment


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _coded(text: str) -> Markup:
    """The text, escaped, with `words in backquotes` set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(printable(text)))))
