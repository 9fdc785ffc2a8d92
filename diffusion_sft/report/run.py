"""What a study's folder holds: the tables and records of its stages, read once, with what is missing named.

Nothing is recomputed and nothing is filled in: a table that is absent, unreadable or without its columns is None
here, and a sentence in `missing` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import read_json, read_table
from ..records import DIFFUSION, LLM, RULES
from .mix_run import MixRun, thinned
from .nouns import NOUNS, Nouns
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
DYNAMICS = {
    "runs": ("mix", "seed", "kind", "unknown_share", "num_concepts", "in_linear_model"),
    "accuracy_by_mix": (
        *("mix", "stopping", "role", "category", "unknown_share", "num_concepts", "num_seeds", "accuracy", "low"),
        *("high", "accuracy_answered", "answered_share", "change", "change_low", "change_high"),
    ),
    "fit_curves": ("mix", "category", "update", "fitted_share", "low", "high", "num_seeds"),
    "linear_model": ("role", "term", "estimate", "low", "high", "r2", "num_points", "num_runs"),
}
"""The tables of the learning dynamics and the columns of each that the page reads."""
SOLVED = {
    "systems": ("concept", "category"),
    "classes": ("concept", "solution_class", "num_draws"),
    "categories": ("system", "measure", "category", "value", "low", "high", "num_concepts"),
    "trends": ("system", "measure", "value", "low", "high"),
    "generations": ("concept", "num_steps", "residuals"),
    "residuals": ("category", "round", "place", "residual"),
    "inputs": ("kind",),
    "sets": ("concept", "num_examples", "rhs_rms", "residual_10", "solution_norm", "effective_rank", "picard_slope"),
    "curves": ("category", "step", "relative_residual", "solution_norm"),
    "spectra": ("category", "index", "ritz", "coefficient"),
    "forecasts": (
        *("run", "krylov_steps", "role", "category", "base", "forecast", "before", "last", "step_error"),
        *(
            "real_step_error",
            "cosine",
            "base_error_nats",
            "forecast_error_nats",
            "before_error_nats",
            "last_error_nats",
        ),
    ),
    "correlations": (
        *("krylov_steps", "role", "category", "outcome", "measure", "predictor", "num_runs", "value", "low", "high"),
        "within_seeds",
    ),
}
"""The tables of the systems of equations and the columns of each that the page reads."""
MEASURES = ("model", "bucket", "metric", "value", "low", "high", "num_real", "num_generated", "extractor", "note")
ACCURACY = ("model", "concept", "bucket", "category", "num_images", "num_correct", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the page may show; a part that could not be read is None or empty, and named in `missing`."""

    folder: Path
    learner: str
    scores: pd.DataFrame | None
    answers: pd.DataFrame | None
    samples: pd.DataFrame | None
    concepts: pd.DataFrame | None
    buckets: Mapping[str, Any]
    mixes: tuple[MixRun, ...]
    measures: pd.DataFrame | None
    accuracy: pd.DataFrame | None
    dynamics: Mapping[str, pd.DataFrame]
    """The tables of `DYNAMICS` that could be read."""
    solved: Mapping[str, pd.DataFrame]
    """The tables of `SOLVED` that could be read; those of systems that were not asked for are not there."""
    solving: Mapping[str, Any]
    """What the stage wrote about itself; empty where it was not run."""
    study: Mapping[str, Any]
    missing: tuple[str, ...]
    method: str = ""
    """The only one that `dynamics` is about, where the half has several (`by_method`)."""

    @property
    def nouns(self) -> Nouns:
        """What this half calls its examples."""
        return NOUNS[self.learner]

    @property
    def prefix(self) -> str:
        """What the identities of this half's tables and drawings begin with."""
        learner = "" if self.learner == DIFFUSION else f"{self.learner}-"
        return f"{learner}{self.method}-" if self.method else learner

    def by_method(self) -> list[Run]:
        """The same half once for each method that its dynamics are about, with the tables of that method alone."""
        whole = {name: table for name, table in self.dynamics.items() if "method" in table}
        methods = dict.fromkeys(str(method) for table in whole.values() for method in table["method"])
        own = {method: {n: t[t["method"] == method] for n, t in whole.items()} for method in methods}
        return [replace(self, method=m, dynamics=own[m]) for m in methods] if len(methods) > 1 else [self]

    @property
    def first_runs(self) -> tuple[MixRun, ...]:
        """Of each mix the run of its first seed."""
        first: dict[str, MixRun] = {}
        for mix in sorted(self.mixes, key=lambda mix: mix.seed or 0):
            first.setdefault(mix.mix, mix)
        return tuple(mix for mix in self.mixes if first[mix.mix] is mix)

    @property
    def shown_models(self) -> tuple[str, ...]:
        """`models` without the further seeds of a mix."""
        further = {mix.name for mix in self.mixes} - {mix.name for mix in self.first_runs}
        return tuple(model for model in self.models if model not in further)

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


def read_run(folder: Path, learner: str = DIFFUSION) -> Run:
    """Read one half of a study.

    Args:
        folder: the study's, in which the language model's half has a folder of its own.
        learner: whose half.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; run the study first")
    missing: list[str] = []
    part = "" if learner == DIFFUSION else f"{learner}/"
    tuned = sorted(path for path in (folder / f"{part}finetune").glob("*") if path.is_dir())
    mixes = [_read_mix(path, folder, NOUNS[learner], missing) for path in tuned]
    if not mixes:
        missing.append(f"{part}finetune: no mix was fine-tuned, so there is nothing to say about learning")
    mixes.sort(key=lambda mix: (mix.unknown_share != mix.unknown_share, mix.unknown_share, mix.mix, mix.seed or 0))
    solved, solving = _read_solved(folder, part, missing)
    pictures = learner == DIFFUSION
    answers = ANSWERS if pictures else (*ANSWERS, "template")
    concepts = CONCEPTS if pictures else (*CONCEPTS, "relation", "answer")
    return Run(
        folder=folder / part,
        learner=learner,
        scores=_table(folder, f"{part}probe/scores.parquet", SCORES, missing),
        answers=_table(folder, f"{part}probe/answers.parquet", answers, missing),
        samples=_table(folder, f"{part}probe/samples.parquet", SAMPLES, missing, may_be_empty=True),
        concepts=_table(folder, f"{part}buckets/concepts.parquet", concepts, missing),
        buckets=_record(folder, f"{part}buckets/buckets.json", missing),
        mixes=tuple(mixes),
        measures=_table(folder, "evaluate/measures.parquet", MEASURES, missing) if pictures else None,
        accuracy=_table(folder, "evaluate/concept_accuracy.parquet", ACCURACY, missing) if pictures else None,
        dynamics=_read_dynamics(folder, part, missing) if mixes else {},
        solved=solved,
        solving=solving,
        study=_record(folder, f"{part}study.json", missing),
        missing=tuple(missing),
    )


def learners_of(folder: Path) -> list[str]:
    """The halves that the page shows: those that were asked for by what `study.json` says, or that left something."""
    asked = set()
    for name in ("study.json", f"{LLM}/study.json"):
        settings = _record(folder, name, []).get("settings")
        given = settings.get("learners", [DIFFUSION]) if isinstance(settings, dict) else []
        asked |= {str(learner) for learner in given} if isinstance(given, list) else set()
    asked |= {LLM} if (folder / LLM).is_dir() else set()
    asked |= {DIFFUSION} if any((folder / part).is_dir() for part in ("probe", "buckets", "evaluate")) else set()
    return [learner for learner in NOUNS if learner in asked] or [DIFFUSION]


def _read_dynamics(folder: Path, part: str, missing: list[str]) -> dict[str, pd.DataFrame]:
    if not (folder / part / "dynamics").is_dir():
        missing.append(f"{part}dynamics: the fine-tuning runs were not summarised, which the stage evaluate does")
        return {}
    found = {name: _table(folder, f"{part}dynamics/{name}.parquet", DYNAMICS[name], missing) for name in DYNAMICS}
    return {name: table for name, table in found.items() if table is not None}


def _read_solved(folder: Path, part: str, missing: list[str]) -> tuple[dict[str, pd.DataFrame], Mapping[str, Any]]:
    """Of systems that were not asked for there are no tables, so that only what cannot be read is missing here."""
    if not (folder / part / "solve").is_dir():
        return {}, {}
    paths = {name: f"{part}solve/{name}.parquet" for name in SOLVED}
    written = {name: path for name, path in paths.items() if (folder / path).is_file()}
    found = {name: _table(folder, path, SOLVED[name], missing) for name, path in written.items()}
    solving = _record(folder, f"{part}solve/solve.json", missing)
    return {name: table for name, table in found.items() if table is not None}, solving


def _read_mix(path: Path, folder: Path, nouns: Nouns, missing: list[str]) -> MixRun:
    name = path.relative_to(folder).as_posix()
    table = _table(folder, f"{name}/evaluations.parquet", EVALUATIONS, missing)
    summary = _record(folder, f"{name}/finetune.json", missing)
    return MixRun(
        name=path.name, evaluations=None if table is None else thinned(table, summary), summary=summary, nouns=nouns
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
