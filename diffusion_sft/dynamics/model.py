"""The dynamics model over all evaluation points of all runs of a method, with intervals that know which points are one
run's."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..numerics.linear_model import Coefficient, Dynamics, fit_dynamics
from ..records import TRAINED, UNKNOWN
from .runs import ALL, FULL, ROLES, FinishedRun

MEASURED = ["fitted_known_share", "fitted_unknown_share", "accuracy"]
POINT_COLUMNS = ["learner", "mix", "method", "seed", "role", "update", *MEASURED]
TERMS = {
    "b0": "intercept",
    "b_known": "known",
    "b_unknown": "unknown",
    "all_known_fitted": "all_known_fitted",
    "all_unknown_fitted": "all_unknown_fitted",
}
"""The table's terms and what `Dynamics` calls them; the last two are implied accuracies, b0 + b_known and
b0 + b_unknown."""
MODEL_COLUMNS = [
    "learner",
    "method",
    "role",
    "term",
    "estimate",
    "low",
    "high",
    "ols_low",
    "ols_high",
    "r2",
    "num_points",
    "num_runs",
]


def model_points(learner: str, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run, role and evaluation after the base's: the fitted shares of the training set, and the accuracy.

    Fitted counts are relative to the training questions asked at that evaluation. Runs marked so are left out, and runs
    on sets that were not bucketed: what the base knew of those is not said.
    """
    parts = [_points(run).assign(learner=learner) for run in runs if run.in_linear_model and ALL not in run.concepts]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=POINT_COLUMNS)
    return table[POINT_COLUMNS]


def linear_model(points: pd.DataFrame) -> pd.DataFrame:
    """One row per learner, method, role and term (TERMS), as shares in 0..1; runs of different methods are never pooled.

    low and high are robust to any dependence within a run (mix and seed), ols_low and ols_high take all points for
    independent; both at 95 %. Of heldout, whose questions are about the trained concepts themselves, the accuracy
    also follows what the mix consists of.
    """
    rows = []
    for (learner, method, role), here in points.groupby(["learner", "method", "role"], sort=False):
        known, unknown, accuracy = (here[name].to_numpy(float) for name in MEASURED)
        runs = (here.mix + "\x1f" + here.seed.astype(str)).to_numpy(str)
        robust, plain = fit_dynamics(known, unknown, accuracy, runs=runs), fit_dynamics(known, unknown, accuracy)
        for term, name in TERMS.items():
            ours, ols = _coefficient(robust, name), _coefficient(plain, name)
            interval = [ours.estimate, ours.low, ours.high, ols.low, ols.high]
            rows.append(
                [learner, method, role, term, *interval, robust.r_squared, robust.num_points, robust.num_runs]
            )
    table = pd.DataFrame(rows, columns=MODEL_COLUMNS)
    methods = {method: place for place, method in enumerate(dict.fromkeys(table.method))}
    roles = {role: place for place, role in enumerate(ROLES)}
    order = pd.DataFrame({"method": table.method.map(methods), "role": table.role.map(roles)})
    return table.loc[order.sort_values(["method", "role"], kind="stable").index].reset_index(drop=True)


def _points(run: FinishedRun) -> pd.DataFrame:
    after = run.counts[run.counts["update"] > 0]
    trained = after[after.role == TRAINED]
    asked = after[(after.role != TRAINED) & (after.category == FULL)]
    size = trained[trained.category == FULL].set_index("update").num_examples
    fitted = trained.pivot(index="update", columns="category", values="num_correct").reindex(columns=[FULL, UNKNOWN])
    unknown = fitted[UNKNOWN].fillna(0)
    shares = pd.DataFrame(
        {"fitted_known_share": (fitted[FULL] - unknown) / size, "fitted_unknown_share": unknown / size}
    )
    accuracy = asked.num_correct / asked.num_examples
    points = asked[["role", "update"]].assign(mix=run.mix, method=run.method, seed=run.seed, accuracy=accuracy)
    return points.join(shares, on="update", how="inner")


def _coefficient(fit: Dynamics, name: str) -> Coefficient:
    found: Coefficient = getattr(fit, name)
    return found
