"""What a fine-tuning run left, read once: counts per evaluation, role and category, and where the run stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..files import read_json, read_table
from ..records import CATEGORIES, DEVELOPMENT, HELDOUT, OTHER_RELATIONS, TEST, TRAINED, UNKNOWN, UNTOUCHED

ROLES = (TRAINED, TEST, OTHER_RELATIONS, UNTOUCHED, HELDOUT, DEVELOPMENT)
"""What is asked: the training examples; other facts of the same relations (test) and of others; base-known concepts
outside the mix (untouched); other examples of the trained concepts (heldout); what decides the early stop."""
FULL = "Full"
"""All questions of a role together."""
ALL = "all"
"""The category of everything where nothing was bucketed."""
NATURAL = "Natural"
EARLY_STOP, CONVERGENCE = "early_stop", "convergence"
STOPPINGS = (EARLY_STOP, CONVERGENCE)
COUNTS = ("num_examples", "num_correct", "num_answered")


@dataclass(frozen=True)
class TunedRun:
    """One fine-tuning run: which mix, which seed, which method, and the folder that holds its files."""

    mix: str
    seed: int
    folder: Path
    in_linear_model: bool = True
    """Whether its evaluations enter the dynamics model. Not for runs on other answers (Unknown ones relabelled), where a
    fitted example is something else, and not for those that are trained on more than their mix."""
    method: str = "full"
    """What was trained, as the tables call it."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The files of one run, checked and counted."""

    name: str
    """The folder's."""
    mix: str
    method: str
    seed: int
    counts: pd.DataFrame
    """update, role, category (the four and Full), num_examples, num_correct, num_answered."""
    answers: pd.DataFrame | None
    """One row per question asked (`answers.parquet`); None for runs that did not keep them."""
    stops: Mapping[str, int]
    """The update of the early stop, where anything decided it, and the last evaluation's (STOPPINGS)."""
    concepts: Mapping[str, int]
    """How many concepts of each category were trained on."""
    passes_per_update: float
    """How much of the training set one update goes through."""
    converged_update: int | None
    in_linear_model: bool
    guard: str = ""
    """What was trained on besides the mix (`Mix.guard`)."""

    @property
    def num_concepts(self) -> int:
        """How many concepts were trained on."""
        return sum(self.concepts.values())

    @property
    def unknown_share(self) -> float:
        """The share of Unknown among them; NaN where nothing was bucketed."""
        return float("nan") if ALL in self.concepts else self.concepts.get(UNKNOWN, 0) / self.num_concepts

    @property
    def kind(self) -> str:
        """The one category that all that is trained on is of, Natural for the mix of that name, else nothing."""
        if self.mix.lower() == NATURAL.lower():
            return NATURAL
        there = [category for category, count in self.concepts.items() if count]
        return there[0] if len(there) == 1 and there[0] != ALL and not self.guard else ""


def read_runs(runs: Sequence[TunedRun]) -> tuple[FinishedRun, ...]:
    """Read every run's files.

    Raises:
        UserError: no runs, the same run twice, or files that are missing or lack something.
    """
    if not runs:
        raise UserError("no fine-tuning runs to summarise; fine-tune on a mix first")
    names = [(run.mix, run.seed, run.method) for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        mix, seed, method = sorted(twice)[0]
        raise UserError(f"mix {mix}, seed {seed}: given twice with the method {method}; give each run once")
    return tuple(_read(run) for run in runs)


def _read(run: TunedRun) -> FinishedRun:
    summary = read_json(run.folder / "finetune.json")
    wanted = ("early_stop_update", "converged_update", "concepts", "examples_per_update", "num_examples")
    absent = [key for key in wanted if key not in summary]
    if absent:
        raise UserError(f"{run.folder / 'finetune.json'}: no {', '.join(absent)}; fine-tune this mix again")
    concepts = {category: len(names) for category, names in summary["concepts"].items() if names}
    if not concepts:
        raise UserError(f"{run.folder / 'finetune.json'}: the mix has no concepts; fine-tune it again")
    path = run.folder / "evaluations.parquet"
    counts = count_by_category(read_table(path), path)
    answers = run.folder / "answers.parquet"
    return FinishedRun(
        name=run.folder.name,
        mix=run.mix,
        method=run.method,
        seed=run.seed,
        counts=counts,
        answers=read_table(answers) if answers.is_file() else None,
        stops=_stops(summary, counts, path),
        concepts=concepts,
        passes_per_update=summary["examples_per_update"] / summary["num_examples"],
        converged_update=summary["converged_update"],
        in_linear_model=run.in_linear_model,
        guard=str(summary.get("guard", "")),
    )


def count_by_category(evaluations: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The counts of every evaluation, in the order of updates, ROLES and categories, with the row Full of each role.

    Args:
        evaluations: `evaluations.parquet`. Without `num_answered` (or where it is missing) every question was answered.
        path: the table's, for error messages.
    """
    needed = ("update", "role", "category", "num_examples", "num_correct")
    absent = [name for name in needed if name not in evaluations]
    if absent:
        raise UserError(f"{path}: no column {', '.join(absent)}; fine-tune this mix again")
    if evaluations.empty:
        raise UserError(f"{path}: nothing was evaluated; fine-tune with validation_steps set")
    table = evaluations[list(needed)].copy()
    answered = evaluations.get("num_answered")
    table["num_answered"] = table.num_examples if answered is None else answered.fillna(table.num_examples)
    keys = ["update", "role", "category"]
    if table.duplicated(keys).any():
        raise UserError(f"{path}: an evaluation stands in it twice; fine-tune this mix again")
    full = table.groupby(["update", "role"], as_index=False)[list(COUNTS)].sum().assign(category=FULL)
    table = pd.concat([full[table.columns], table[table.category.isin(CATEGORIES)]], ignore_index=True)
    table[list(COUNTS)] = table[list(COUNTS)].astype(np.int64)
    order = pd.DataFrame(
        {
            "update": table["update"],
            "role": table.role.map({role: place for place, role in enumerate(ROLES)}),
            "category": table.category.map({name: place for place, name in enumerate((FULL, *CATEGORIES))}),
        }
    )
    return table.loc[order.sort_values(keys).index].reset_index(drop=True)


def _stops(summary: Mapping[str, Any], counts: pd.DataFrame, path: Path) -> dict[str, int]:
    last = int(counts["update"].max())
    early = summary["early_stop_update"]
    if early is None:
        return {CONVERGENCE: last}
    if early not in set(counts["update"]):
        raise UserError(f"{path}: no evaluation at update {early}, where the early stop is; fine-tune this mix again")
    return {EARLY_STOP: int(early), CONVERGENCE: last}
