"""One learner's half of a study: the tables that its stages left, read when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..files import read_json, read_table
from ..records import CATEGORIES, DIFFUSION, LLM

STAGES = ("buckets", "dynamics", "evaluate", "finetune", "solve")
"""The folders whose tables are read."""
FILES = ("*/*.parquet", "solve/solve.json", "finetune/*/answers.parquet", "finetune/*/finetune.json")
OUTCOMES = (
    *("run", "mix", "kind", "unknown_share", "role", "category", "concept", "example_id"),
    *("before", "early_stop", "convergence", "first_fit", "passes_per_update"),
)
"""Columns of `Half.outcomes`: whether a question was answered rightly (0 or 1, NaN where it was not asked) before
training, at the early stop and at the last evaluation; the first update with a right answer, infinite where none had
one; and how much of the training set one update goes through."""


class Lacking(Exception):
    """A part that a half does not have; the message is the reason."""


@dataclass(frozen=True)
class Half:
    """The tables of one learner in one study's folder."""

    learner: str
    label: str
    """What the run is called in tables and notes."""
    folder: Path

    @property
    def noun(self) -> str:
        """What it counts its concepts as."""
        return "facts" if self.learner == LLM else "concepts"

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All that may be read, in order."""
        found = {path for pattern in FILES for path in self.folder.glob(pattern)}
        return tuple(sorted(path for path in found if path.relative_to(self.folder).parts[0] in STAGES))

    def table(self, name: str, *columns: str) -> pd.DataFrame:
        """A stage's table, for example `solve/classes`.

        Raises:
            Lacking: it is not there, not readable, empty, or without one of the columns.
        """
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise Lacking(f"{name}.parquet: not written by this run")
        try:
            table = read_table(path)
        except UserError:
            raise Lacking(f"{name}.parquet: not a readable table") from None
        absent = [column for column in columns if column not in table]
        if absent:
            raise Lacking(f"{name}.parquet: no column {', '.join(absent)}; run its stage again")
        if table.empty:
            raise Lacking(f"{name}.parquet: no rows")
        return table

    @cached_property
    def concepts(self) -> pd.DataFrame:
        """`buckets/concepts` with the four categories alone.

        Raises:
            Lacking: no such table, or nothing in it has a category.
        """
        table = self.table("buckets/concepts", "concept", "category")
        table = table[table["category"].isin(CATEGORIES)]
        if table.empty:
            raise Lacking("buckets/concepts.parquet: no concept has a category")
        return table

    @cached_property
    def budget(self) -> int | None:
        """Krylov steps that S3 was solved in; None where the record does not say."""
        path = self.folder / "solve" / "solve.json"
        found: Any = read_json(path) if path.is_file() else None
        for key in ("config", "weights", "num_steps"):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, int) else None

    @cached_property
    def runs(self) -> pd.DataFrame:
        """`dynamics/runs` of the first method, without the runs on other answers (relabelled Unknown), whose fitted
        examples are something else, those on more than their mix (preservation, replay), and those on sets that were
        not bucketed."""
        columns = ("mix", "seed", "kind", "unknown_share", "early_stop_update", "last_update", "in_linear_model")
        table = of_first_method(self.table("dynamics/runs", *columns))
        table = table[table["in_linear_model"].astype(bool) & table["unknown_share"].notna()]
        if table.empty:
            raise Lacking("dynamics/runs.parquet: no run on a mix of categories")
        return table

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """What was asked in the runs, one row for each run, role and example (OUTCOMES).

        Raises:
            Lacking: no run kept its answers.
        """
        parts, reasons = self._answers
        if not parts:
            raise Lacking("; ".join(dict.fromkeys(reasons)))
        return pd.concat(parts, ignore_index=True)[list(OUTCOMES)]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the runs without answers or a summary lack, and the methods of which none is compared."""
        try:
            first, *others = dict.fromkeys(self.table("dynamics/runs").get("method", ["full"]))
            told = (f"runs of the method {', '.join(others)}: a study is compared by its first, {first}",)
            return (told if others else ()) + self._answers[1]
        except Lacking:
            return ()

    @cached_property
    def _answers(self) -> tuple[list[pd.DataFrame], tuple[str, ...]]:
        parts, reasons = [], []
        for row in self.runs.to_dict("records"):
            try:
                parts.append(self._answered({str(key): value for key, value in row.items()}))
            except Lacking as reason:
                reasons.append(str(reason))
        return parts, tuple(reasons)

    def run_name(self, mix: str, seed: int) -> str:
        """The folder's name of a fine-tuning run whose table does not say it: with the seed where a mix was run with
        several."""
        named = f"{mix}-seed{seed}"
        return named if (self.folder / "finetune" / named).is_dir() else mix

    def _answered(self, run: Mapping[str, Any]) -> pd.DataFrame:
        name = str(run.get("run") or self.run_name(str(run["mix"]), int(run["seed"])))
        where = f"finetune/{name}/answers"
        asked = self.table(where, "update", "role", "category", "concept", "example_id", "correct")
        key = ["role", "example_id"]
        if asked.duplicated([*key, "update"]).any():
            raise UserError(
                f"{self.folder / where}.parquet: a question stands twice in an evaluation; fine-tune again"
            )
        table = asked.drop_duplicates(key).set_index(key)[["category", "concept"]]
        stops = {"before": 0, "early_stop": run["early_stop_update"], "convergence": run["last_update"]}
        for stop, update in stops.items():
            here = asked[asked["update"] == update] if pd.notna(update) else asked.iloc[:0]
            table[stop] = here.set_index(key)["correct"].astype(float)
        first = asked[asked["correct"].astype(bool)].groupby(key)["update"].min()
        table["first_fit"] = first.reindex(table.index).fillna(np.inf).astype(float)
        table = table.reset_index().assign(run=f"{self.label}/{name}", passes_per_update=self._passes(name))
        for column in ("mix", "kind", "unknown_share"):
            table[column] = run[column]
        return table[table["category"].isin(CATEGORIES)]

    def _passes(self, name: str) -> float:
        path = self.folder / "finetune" / name / "finetune.json"
        summary = read_json(path) if path.is_file() else {}
        try:
            return float(summary["examples_per_update"] / summary["num_examples"])
        except (KeyError, TypeError, ZeroDivisionError):
            raise Lacking(f"finetune/{name}/finetune.json: does not say how large an update is") from None


def of_first_method(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a study's first method; all of a table without methods."""
    return table[table["method"] == table["method"].iloc[0]] if "method" in table and len(table) else table


def read_halves(folders: Sequence[str]) -> list[Half]:
    """The halves that these folders hold, in their order.

    Raises:
        UserError: a folder that does not exist, is given twice, or holds no finished stage.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder; give the output folder of a study")
    real = [path.resolve() for path in paths]
    for path in paths:
        if real.count(path.resolve()) > 1:
            raise UserError(f"{path}: given twice; give each run once")
    names = [path.resolve().name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    found = []
    for path, label in zip(paths, labels, strict=True):
        halves = _halves(path, label)
        if not halves:
            raise UserError(f"{path}: no finished stage ({', '.join(STAGES)}) in it; run the study first")
        found += halves
    own = [half.folder.resolve() for half in found]
    for half in found:
        if own.count(half.folder.resolve()) > 1:
            raise UserError(f"{half.folder}: given twice, by itself and with its study; give each run once")
    return found


def _halves(path: Path, label: str) -> list[Half]:
    halves = [Half(DIFFUSION, label, path), Half(LLM, label, path / LLM)]
    halves = [half for half in halves if any(file.suffix == ".parquet" for file in half.files)]
    # The language half's own folder may be given as well as the study's.
    return [Half(_learner_of(half), label, half.folder) for half in halves]


def _learner_of(half: Half) -> str:
    """What the tables say whose they are; without a word of theirs, what the folder's place says."""
    for name in ("dynamics/runs", "solve/systems"):
        try:
            said = str(half.table(name, "learner")["learner"].iloc[0])
        except Lacking:
            continue
        return said if said in (DIFFUSION, LLM) else half.learner
    try:
        return LLM if "relation" in half.concepts and "answer" in half.concepts else half.learner
    except Lacking:
        return half.learner
