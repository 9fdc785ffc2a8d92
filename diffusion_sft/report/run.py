"""What a study's folder holds: the tables and records of its stages, read once, with what is missing named.

Nothing is recomputed and nothing is filled in: a table that is absent, unreadable or without its columns is None
here, and a sentence in `missing` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import read_json, read_table
from ..records import RULES, UNKNOWN
from .wording import BASE, Estimate

SCORES = ("example_id", "concept", "estimator", "num_draws", "num_dims", "error_nats", "gain_nats")
ANSWERS = ("concept", "rendering", "num_candidates", "answer", "correct")
SAMPLES = ("concept", "rendering", "sample", "answer", "correct")
CONCEPTS = (
    *("concept", "words", "exposure", "num_examples", "error_nats", "gain_nats", "gain_se_nats", "opinion_nats"),
    *("relative_error", "greedy_share", "sampled_share", "category", "category_confidence", "misknown", "bucket"),
    *(f"known_{rule}" for rule in RULES),
)
EVALUATIONS = (
    "update",
    "role",
    "category",
    "num_examples",
    "num_correct",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
)
MEASURES = ("model", "bucket", "metric", "value", "low", "high", "num_real", "num_generated", "extractor", "note")
ACCURACY = ("model", "concept", "bucket", "category", "num_images", "num_correct", "accuracy")


@dataclass(frozen=True, kw_only=True)
class MixRun:
    """One fine-tuning run: its evaluation points, and the summary it wrote at the end (empty where there is none)."""

    name: str
    evaluations: pd.DataFrame | None
    summary: Mapping[str, Any]

    @property
    def composition(self) -> dict[str, list[str]]:
        """The names of the concepts that were trained on, by category; empty where the summary does not say."""
        given = self.summary.get("concepts")
        if not isinstance(given, dict):
            return {}
        return {
            str(label): [str(name) for name in names] for label, names in given.items() if isinstance(names, list)
        }

    @property
    def unknown_share(self) -> float:
        """The share of Unknown among the concepts trained on; NaN where the summary does not say."""
        sizes = {label: len(names) for label, names in self.composition.items()}
        total = sum(sizes.values())
        return sizes.get(UNKNOWN, 0) / total if total else float("nan")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the page may show; a part that could not be read is None or empty, and named in `missing`."""

    folder: Path
    scores: pd.DataFrame | None
    answers: pd.DataFrame | None
    samples: pd.DataFrame | None
    concepts: pd.DataFrame | None
    buckets: Mapping[str, Any]
    mixes: tuple[MixRun, ...]
    measures: pd.DataFrame | None
    accuracy: pd.DataFrame | None
    study: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The base and every mix, in the order of the share of Unknown; then models that were only evaluated."""
        found = [mix.name for mix in self.mixes]
        for table in (self.measures, self.accuracy):
            found += [] if table is None else sorted(table["model"].unique())
        return tuple(dict.fromkeys([BASE, *found]))

    @cached_property
    def estimates(self) -> dict[tuple[str, str, str], Estimate]:
        """The measured numbers of the evaluation by model, bucket and metric; those that are NaN are not in it."""
        if self.measures is None:
            return {}
        columns = (self.measures[name] for name in ("model", "bucket", "metric", "value", "low", "high"))
        return {
            (str(model), str(bucket), str(metric)): Estimate(value=float(value), low=float(low), high=float(high))
            for model, bucket, metric, value, low, high in zip(*columns, strict=True)
            if not pd.isna(value)
        }


def read_run(folder: Path) -> Run:
    """Read a study's folder.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; run the study first")
    missing: list[str] = []
    mixes = [_read_mix(path, folder, missing) for path in sorted((folder / "finetune").glob("*")) if path.is_dir()]
    if not mixes:
        missing.append("finetune: no mix was fine-tuned, so there is nothing to say about learning")
    mixes.sort(key=lambda mix: (mix.unknown_share != mix.unknown_share, mix.unknown_share, mix.name))
    return Run(
        folder=folder,
        scores=_table(folder, "probe/scores.parquet", SCORES, missing),
        answers=_table(folder, "probe/answers.parquet", ANSWERS, missing),
        samples=_table(folder, "probe/samples.parquet", SAMPLES, missing, may_be_empty=True),
        concepts=_table(folder, "buckets/concepts.parquet", CONCEPTS, missing),
        buckets=_record(folder, "buckets/buckets.json", missing),
        mixes=tuple(mixes),
        measures=_table(folder, "evaluate/measures.parquet", MEASURES, missing),
        accuracy=_table(folder, "evaluate/concept_accuracy.parquet", ACCURACY, missing),
        study=_record(folder, "study.json", missing),
        missing=tuple(missing),
    )


def _read_mix(path: Path, folder: Path, missing: list[str]) -> MixRun:
    name = path.relative_to(folder).as_posix()
    return MixRun(
        name=path.name,
        evaluations=_table(folder, f"{name}/evaluations.parquet", EVALUATIONS, missing),
        summary=_record(folder, f"{name}/finetune.json", missing),
    )


def _table(
    folder: Path, name: str, columns: tuple[str, ...], missing: list[str], may_be_empty: bool = False
) -> pd.DataFrame | None:
    if not (folder / name).is_file():
        missing.append(f"{name}: not written by this run")
        return None
    try:
        table = read_table(folder / name)
    except UserError:
        missing.append(f"{name}: is not a readable table")
        return None
    absent = [column for column in columns if column not in table.columns]
    if absent:
        missing.append(f"{name}: has no column {', '.join(absent)}")
        return None
    if table.empty and not may_be_empty:
        missing.append(f"{name}: has no rows")
        return None
    return table


def _record(folder: Path, name: str, missing: list[str]) -> Mapping[str, Any]:
    if not (folder / name).is_file():
        missing.append(f"{name}: not written by this run")
        return {}
    try:
        content = read_json(folder / name)
    except (UserError, json.JSONDecodeError):
        missing.append(f"{name}: is not a readable JSON file")
        return {}
    if not isinstance(content, dict):
        missing.append(f"{name}: is not a mapping of names to values")
        return {}
    return content


def auroc(buckets: Mapping[str, Any], rule: str) -> Estimate | None:
    """How well a rule's score tells well-seen concepts from unseen ones, as `buckets.json` has it; None without."""
    return _of_exposure(buckets, "auroc", rule)


def rank_correlation(buckets: Mapping[str, Any], rule: str) -> Estimate | None:
    """Spearman's correlation of a rule's score with log exposure among seen concepts; None without."""
    return _of_exposure(buckets, "spearman_with_log_exposure", rule)


def kappa(buckets: Mapping[str, Any], rule: str, other: str) -> float | None:
    """Cohen's kappa of two rules, as `buckets.json` has it; None without."""
    pairs = buckets.get("agreement")
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, dict) and {pair.get("first"), pair.get("second")} == {rule, other}:
            return _number(pair.get("kappa"))
    return None


def seen_at_least(buckets: Mapping[str, Any]) -> int | None:
    """From which exposure on a concept counts as well seen; None where no exposure is known."""
    exposure = buckets.get("exposure")
    given = exposure.get("seen_at_least") if isinstance(exposure, dict) else None
    return given if isinstance(given, int) else None


def _of_exposure(buckets: Mapping[str, Any], name: str, rule: str) -> Estimate | None:
    given: Any = buckets.get("exposure")
    for key in (name, rule):
        given = given.get(key) if isinstance(given, dict) else None
    if not isinstance(given, dict) or (value := _number(given.get("value"))) is None:
        return None
    low, high = (_number(given.get(end)) for end in ("low", "high"))
    return Estimate(value=value) if low is None or high is None else Estimate(value=value, low=low, high=high)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
