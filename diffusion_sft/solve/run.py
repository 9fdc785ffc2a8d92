"""The solve stage: a base's systems, by concept and by category, and the forecasts of its fine-tuning runs.

Several processes share the work and the folder (`parts.py`); finished parts are kept, so that a stage that was stopped
goes on, and one whose settings did not change is read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..answers import AnswerConfig
from ..files import file_hash, read_table, write_table, write_text
from ..manifests import FILES, finished, listed, table_files, write_record
from ..parts import PARTS, Parts, remove_parts
from ..processes import from_main, is_main, wait_for_everyone
from ..records import UNKNOWN, ConceptSet
from ..settings import settings_dict
from ..systems import ForecastRun, Systems, WeightSide
from .choose import Chosen, choose, questions_of, shuffled
from .config import PictureSolveConfig, TextSolveConfig
from .forecast import forecast_run, rank_correlations
from .generation import classes_table, residual_profile, solve_generations, solve_recoveries
from .inputs import solve_inputs, solve_inversions
from .measures import category_means, category_trends, systems_table
from .text import solve_text
from .weights import SHUFFLED, EquationSet, KnownSide, residual_curves, solve_examples, solve_sets, spectra

RECORD, SUMMARY = "solve.json", "summary.txt"
LAYOUT = 3
"""Part of every key: raised when the tables' meaning changes."""
SOLVED = ("generations", "recoveries", "inputs", "blocks", "inversions", "sets", "examples", "forecasts")
"""What is solved, part by part; the other tables are made of these."""
RENDERINGS_OF_AN_INPUT = 4
"""Questions about a concept that one input is solved for."""
Config = PictureSolveConfig | TextSolveConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be solved."""

    learner: str
    """diffusion or llm."""
    concept_set: ConceptSet
    labels: pd.DataFrame
    """One row per concept with `concept` and `category`."""
    answers: AnswerConfig
    """Templates and candidates of the questions."""
    runs: Sequence[ForecastRun] = ()


def solve(
    systems: Systems, task: Task, config: Config, folder: Path, concepts_per_part: int
) -> dict[str, pd.DataFrame]:
    """Solve a base's systems and write all tables to `folder`, `systems.parquet` first among them; nothing where there is
    nothing to read.

    Raises:
        UserError: no concept has a category, or an example that the learner cannot read.
    """
    if systems.nothing:
        return {}
    chosen = choose(
        task.labels,
        task.concept_set,
        concepts_per_category=config.concepts_per_category,
        examples_per_category=config.weights.examples_per_category,
        num_known=config.weights.num_known,
        seed=config.seed,
    )
    key = _key(systems, task, config)
    found = from_main(lambda: finished(folder / RECORD, key))
    if found is not None:
        remove_parts(folder)  # Of a process that was killed just before it did.
        names = [name.removesuffix(".parquet") for name in found[FILES] if name.endswith(".parquet")]
        return {name: read_table(folder / f"{name}.parquet") for name in names}
    with Parts(folder / PARTS / key[:16], concepts_per_part, stage="solve") as parts:
        solved = _solve(systems, task, config, chosen, parts)
    wait_for_everyone()  # all have read the parts, which may now go
    category_of = dict(zip(task.labels["concept"], task.labels["category"], strict=True))
    tables = solved | summarised(task.learner, solved, category_of, config.seed)
    if is_main():
        text = solve_text(task.learner, tables, chosen.categories, config.num_permutations, config.seed)
        (folder / RECORD).unlink(missing_ok=True)  # It must not speak for tables of other settings.
        for old in folder.glob("[!.]*.parquet"):
            if old.stem not in tables:
                old.unlink()
                old.with_suffix(".csv").unlink(missing_ok=True)
        for name, table in tables.items():
            write_table(folder / f"{name}.parquet", table)
        write_text(folder / SUMMARY, text)
        record: dict[str, Any] = {"key": key, "base": dict(systems.identity), "config": settings_dict(config)}
        record |= {"seconds": round(parts.seconds, 3)}
        write_record(folder / RECORD, record, listed(folder, [*table_files(tables), SUMMARY]))
        remove_parts(folder)
    wait_for_everyone()
    return tables


def summarised(
    learner: str, solved: Mapping[str, pd.DataFrame], categories: Mapping[str, str], seed: int
) -> dict[str, pd.DataFrame]:
    """The tables that are made of what was solved; those of nothing are left out."""
    tables: dict[str, pd.DataFrame] = {}
    if "generations" in solved:
        tables["classes"] = classes_table(solved["generations"])
        tables["residuals"] = residual_profile(solved["generations"], categories)
    if "sets" in solved:
        tables |= {"curves": residual_curves(solved["sets"]), "spectra": spectra(solved["sets"])}
    if "forecasts" in solved:
        tables["correlations"] = rank_correlations(solved["forecasts"])
    systems = systems_table(learner, {**solved, **tables}, categories, seed)
    return tables | {
        "systems": systems,
        "categories": category_means(systems, seed),
        "trends": category_trends(systems),
    }


@dataclass(frozen=True)
class _Job:
    """One of the tables of `SOLVED`."""

    name: str
    items: Sequence[Any]
    solve: Callable[[Sequence[Any]], pd.DataFrame]
    rows_each: int
    """About how many rows the network reads for one item."""
    concepts_per_part: int | None = None


def _solve(systems: Systems, task: Task, config: Config, chosen: Chosen, parts: Parts) -> dict[str, pd.DataFrame]:
    """The tables of `SOLVED` that are asked for and not empty."""
    jobs = [
        *_generation_jobs(systems, task, config, chosen),
        *_input_jobs(systems, task, config, chosen),
        *_weight_jobs(systems.weights, task, config, chosen),
    ]
    jobs = [job for job in jobs if len(job.items)]
    parts.expect(sum(len(job.items) * job.rows_each for job in jobs))
    found = {}
    for job in jobs:
        count = partial(_num_rows, job.rows_each)
        found[job.name] = parts.table(job.name, job.items, job.solve, count, job.concepts_per_part)
    return {name: table for name, table in found.items() if len(table)}


def _generation_jobs(systems: Systems, task: Task, config: Config, chosen: Chosen) -> list[_Job]:
    s1, names = config.generation, list(chosen.categories)
    questions = questions_of(task.concept_set, names, s1.num_renderings, task.answers, config.seed)
    jobs = []
    if systems.generations is not None:
        solved = partial(solve_generations, systems.generations)
        jobs.append(_Job("generations", questions, solved, 100 * s1.num_starts))
    if systems.recoveries is not None:
        jobs.append(_Job("recoveries", questions, partial(solve_recoveries, systems.recoveries), 100))
    return jobs


def _input_jobs(systems: Systems, task: Task, config: Config, chosen: Chosen) -> list[_Job]:
    s2, names = config.inputs, chosen.first(config.inputs.concepts_per_category)
    questions = questions_of(task.concept_set, names, RENDERINGS_OF_AN_INPUT, task.answers, config.seed)
    jobs = []
    if systems.inputs is not None:
        rows = s2.num_starts * s2.num_steps // RENDERINGS_OF_AN_INPUT
        jobs.append(_Job("inputs", questions, partial(solve_inputs, systems.inputs), rows, 4))
    if systems.blocks is not None:
        rows = s2.num_starts * s2.num_steps // RENDERINGS_OF_AN_INPUT
        jobs.append(_Job("blocks", questions, partial(solve_inputs, systems.blocks), rows, 4))
    if systems.inversions is not None:
        jobs.append(_Job("inversions", questions, partial(solve_inversions, systems.inversions), 100))
    return jobs


def _weight_jobs(weights: WeightSide | None, task: Task, config: Config, chosen: Chosen) -> list[_Job]:
    own = config.weights
    if weights is None:
        return []
    sets = [EquationSet(concept=c, examples=examples) for c, examples in chosen.training.items()]
    singles = [EquationSet(concept=e.concept, examples=(e,)) for each in sets for e in each.examples]
    known = [e for c, examples in chosen.training.items() if c != UNKNOWN for e in examples]
    if known:
        control = shuffled(known[: own.examples_per_category])
        sets.append(EquationSet(concept=SHUFFLED, examples=control))
    held = KnownSide(weights=weights, examples=chosen.known, num_steps=own.num_steps)
    rows = 5 * own.num_steps * (own.examples_per_category + own.num_known)
    jobs = [
        _Job("sets", sets, partial(solve_sets, weights, held, config=own), rows, 1),
        _Job("examples", singles, partial(solve_examples, weights, held, config=own), rows // 2, 4),
    ]
    if own.forecast_steps:
        rows = 5 * max(own.forecast_steps) * own.max_forecast_examples

        def forecast(runs: Sequence[ForecastRun]) -> pd.DataFrame:
            return pd.concat([forecast_run(weights, run, own, config.seed) for run in runs])

        jobs.append(_Job("forecasts", task.runs, forecast, rows, 1))
    return jobs


def _num_rows(each: int, items: Sequence[Any]) -> int:
    return each * len(items)


def _key(systems: Systems, task: Task, config: Config) -> str:
    """A hash of all that the tables depend on; not of batch sizes."""
    settings: dict[str, Any] = settings_dict(config)
    settings.pop("batch_size")
    settings["weights"].pop("batch_size")
    identity = {name: value for name, value in systems.identity.items() if name != "source"}
    images = {e.path: file_hash(e.path) for e in task.concept_set.examples if e.path.is_file()}
    examples = sorted(
        (e.id, e.concept, e.caption, e.split, e.fact.answers if e.fact else (), images.get(e.path, ""))
        for e in task.concept_set.examples
    )
    labels = sorted(zip(task.labels["concept"], task.labels["category"], strict=True))
    runs = [(run.concept, run.evaluations.to_csv(index=False), run.early_update) for run in task.runs]
    content = [LAYOUT, task.learner, settings, settings_dict(task.answers), identity, examples, labels, runs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
