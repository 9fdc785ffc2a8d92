"""How it was measured: in sentences from the tables, and every recorded setting as it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..records import LLM
from .run import Run
from .systems_words import budget_sentence
from .wording import DASH, listing, number, plural, seconds


def method_sentences(run: Run) -> list[str]:
    """What was scored, asked, drawn and compared, with the numbers of each."""
    sentences = _probing_of_facts(run) if run.learner == LLM else _probing_of_pictures(run)
    if run.accuracy is not None:
        sentences.append(
            f"Evaluation: {_span(run.accuracy['num_images'])} images per concept and model, from the same noise for"
            " every model."
        )
    if run.measures is not None:
        sentences.append(f"Distances: between features of {listing(sorted(run.measures['extractor'].unique()))}.")
    if budget := budget_sentence(run):
        sentences.append(budget)
    spent = run.study.get("seconds")
    if isinstance(spent, dict) and (stages := {k: v for k, v in spent.items() if isinstance(v, int | float)}):
        parts = listing([f"{stage} {seconds(value)}" for stage, value in stages.items()])
        sentences.append(f"Time: {parts}, {seconds(sum(stages.values()))} in all.")
    return sentences


def _probing_of_pictures(run: Run) -> list[str]:
    sentences = []
    if run.scores is not None:
        estimators = listing([f"`{name}`" for name in run.scores["estimator"].unique()])
        sentences.append(
            f"Prior errors and gains: {plural(len(run.scores), 'held-out picture')}, {_span(run.scores['num_draws'])}"
            f" draws of noise each, estimator {estimators}, {_span(run.scores['num_dims'])} dimensions, no guidance."
        )
    if run.answers is not None:
        sentences.append(
            f"Answers: {_span(run.answers.groupby('concept').size())} renderings of the question per concept,"
            f" {_span(run.answers['num_candidates'])} candidates each."
        )
    if run.samples is not None and len(run.samples):
        sentences.append(
            f"Sampled answers, where no answer was right: {plural(len(run.samples), 'image')} of"
            f" {plural(run.samples['concept'].nunique(), 'concept')} drawn and read."
        )
    return sentences


def _probing_of_facts(run: Run) -> list[str]:
    sentences = []
    if run.scores is not None:
        estimators = listing([f"`{name}`" for name in run.scores["estimator"].unique()])
        sentences.append(
            f"Prior errors and gains: {plural(len(run.scores), 'question')} under {_span(run.scores['num_draws'])}"
            f" prompts each, estimator {estimators}, answers of {_span(run.scores['num_dims'])} tokens; without the"
            " subject for the error that a gain is counted from."
        )
    if run.answers is not None:
        sentences.append(
            f"Greedy answers: {_span(run.answers.groupby('concept').size())} prompts per fact, right where the text is"
            f" the right answer; a guess is among {_span(run.answers['num_candidates'])} answers of the relation."
        )
    if run.samples is not None and len(run.samples):
        sentences.append(
            f"Sampled answers, where no greedy one was right: {plural(len(run.samples), 'answer')} to"
            f" {plural(run.samples['concept'].nunique(), 'fact')}."
        )
    return sentences


def recorded_settings(runs: Mapping[str, Run]) -> dict[str, list[tuple[str, str]]]:
    """Everything that the halves wrote about themselves: (dotted key, value) pairs under the heading they are shown
    with; what a further half says in the same words as the first is not said again."""
    found: dict[str, list[tuple[str, str]]] = {}
    said: list[Mapping[str, Any]] = []
    for run in runs.values():
        parts = {heading: content for heading, content in _recorded(run).items() if content not in said}
        said += parts.values()
        beginning = f"{run.nouns.model}: " if len(runs) > 1 and found else ""
        found |= {f"{beginning}{heading}": _flat(content) for heading, content in parts.items() if content}
    return found


def _recorded(run: Run) -> dict[str, Mapping[str, Any]]:
    plain = {key: value for key, value in run.study.items() if not isinstance(value, dict)}
    parts: dict[str, Mapping[str, Any]] = {"study": plain}
    parts |= {key: value for key, value in run.study.items() if isinstance(value, dict)}
    parts |= {f"fine-tuning: {mix.name}": mix.summary for mix in run.mixes}
    return parts | {"buckets": run.buckets, "systems": run.solving}


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            rows += _flat({str(place): item for place, item in enumerate(value)}, f"{name}.")
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: object) -> str:
    if value is None or value == [] or value == {}:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 6) if abs(value) >= 1e-3 or value == 0 else f"{value:g}"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    # A page is passed on; the name of who made it is in the paths below their home.
    return re.sub(rf"(?<![\w/]){re.escape(str(Path.home()))}(?=/|$)", "~", str(value))


def _span(counts: pd.Series) -> str:
    """One number where all are equal, else the smallest and the largest."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
