"""All tables of a learner's fine-tuning runs, written as parquet and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from ..files import write_table
from .accuracy import accuracy_by_mix, accuracy_table
from .fitting import fit_curves, fit_speed
from .model import linear_model, model_points
from .runs import CONVERGENCE, EARLY_STOP, FinishedRun, TunedRun, read_runs


@dataclass(frozen=True, kw_only=True)
class DynamicsResult:
    """The tables of one learner; each field is a file of that name, and every one says which method a row is about.
    Shares and accuracies are in 0..1."""

    runs: pd.DataFrame
    """One row per run: what its mix consists of, and where it stopped."""
    accuracy: pd.DataFrame
    """`accuracy_table`."""
    accuracy_by_mix: pd.DataFrame
    """The same over seeds."""
    fit_speed: pd.DataFrame
    """When half of the training examples were fitted."""
    fit_curves: pd.DataFrame
    """The fitted share at every evaluation, over seeds."""
    linear_model_points: pd.DataFrame
    """What the linear model is fitted to."""
    linear_model: pd.DataFrame
    """The dynamics model of each method and role."""

    def of_method(self, method: str) -> DynamicsResult:
        """The rows of one method."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return DynamicsResult(**{name: table[table.method == method] for name, table in own.items()})


def summarise_runs(runs: Sequence[TunedRun], learner: str, folder: Path) -> DynamicsResult:
    """Read what fine-tuning runs left and write the tables into `folder`, each as parquet and CSV.

    Args:
        runs: each mix, method and seed once.
        learner: "diffusion" or "llm", as it stands in the tables.
        folder: of these tables alone.

    Raises:
        UserError: a run's files are missing or lack something; says which and what to do.
    """
    found = read_runs(runs)
    accuracy, points = accuracy_table(learner, found), model_points(learner, found)
    result = DynamicsResult(
        runs=_runs_table(learner, found),
        accuracy=accuracy,
        accuracy_by_mix=accuracy_by_mix(accuracy),
        fit_speed=fit_speed(learner, found),
        fit_curves=fit_curves(learner, found),
        linear_model_points=points,
        linear_model=linear_model(points),
    )
    for field in fields(result):
        write_table(folder / f"{field.name}.parquet", getattr(result, field.name))
    return result


def _runs_table(learner: str, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    rows = [
        {
            "learner": learner,
            "run": run.name,
            "mix": run.mix,
            "method": run.method,
            "seed": run.seed,
            "kind": run.kind,
            "unknown_share": run.unknown_share,
            "num_concepts": run.num_concepts,
            "early_stop_update": run.stops.get(EARLY_STOP),
            "converged_update": run.converged_update,
            "last_update": run.stops[CONVERGENCE],
            "in_linear_model": run.in_linear_model,
        }
        for run in runs
    ]
    return pd.DataFrame(rows).astype({"early_stop_update": "Int64", "converged_update": "Int64"})
