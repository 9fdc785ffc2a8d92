"""accuracy = β0 + β_kn·N_kn/|D| + β_unk·N_unk/|D|: what fitting known and Unknown examples does to accuracy.

N_kn and N_unk count the fitted training examples at one evaluation (Gekhman et al., 2024, section 5, equation 1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..records import UNKNOWN
from .evaluations import TRAINED, UNTOUCHED

COLUMNS = ["update", "fitted_known_share", "fitted_unknown_share", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A least-squares coefficient and its interval; NaN where the data cannot tell it."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """The fitted linear model."""

    intercept: Coefficient
    known: Coefficient
    unknown: Coefficient
    r_squared: float
    num_points: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, for JSON."""
        return asdict(self)


def dynamics_points(evaluations: pd.DataFrame, role: str = UNTOUCHED) -> pd.DataFrame:
    """One row per evaluation point: update, fitted_known_share, fitted_unknown_share, accuracy (COLUMNS).

    Args:
        evaluations: the table that a fine-tuning run writes (`evaluations.parquet`).
        role: whose accuracy is to be explained.
    """
    rows = []
    for update, here in evaluations.groupby("update", sort=True):
        trained, asked = here[here.role == TRAINED], here[here.role == role]
        if trained.empty or asked.empty:
            continue
        size = trained.num_examples.sum()
        unknown = trained.loc[trained.category == UNKNOWN, "num_correct"].sum() / size
        known = trained.loc[trained.category != UNKNOWN, "num_correct"].sum() / size
        rows.append([update, known, unknown, asked.num_correct.sum() / asked.num_examples.sum()])
    return pd.DataFrame(rows, columns=COLUMNS)


def fit_dynamics(points: pd.DataFrame, *, confidence: float = 0.95) -> Dynamics:
    """Ordinary least squares of accuracy on the two fitted shares, over the evaluation points of any number of runs.

    Intervals are Student's t with n − 3 degrees of freedom. They take the points for independent, which successive
    evaluations of one run are not: read them as too narrow. A coefficient that the points cannot tell (a share that
    never changes, or changes in proportion with the other; three points or fewer) is NaN.
    """
    design = np.column_stack([np.ones(len(points)), points.fitted_known_share, points.fitted_unknown_share])
    accuracy = points.accuracy.to_numpy(float)
    freedom = len(points) - 3
    if freedom < 1 or np.linalg.matrix_rank(design) < 3:
        blank = Coefficient(estimate=np.nan, low=np.nan, high=np.nan)
        fields = {"intercept": blank, "known": blank, "unknown": blank}
        return Dynamics(**fields, r_squared=np.nan, num_points=len(points), confidence=confidence)
    solution = np.linalg.lstsq(design, accuracy, rcond=None)[0]
    residual = float(np.sum((accuracy - design @ solution) ** 2))
    total = float(np.sum((accuracy - accuracy.mean()) ** 2))
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual / freedom)
    reach = stats.t.ppf(0.5 + confidence / 2, freedom) * errors
    intercept, known, unknown = (
        Coefficient(estimate=float(b), low=float(b - r), high=float(b + r))
        for b, r in zip(solution, reach, strict=True)
    )
    return Dynamics(
        intercept=intercept,
        known=known,
        unknown=unknown,
        r_squared=1.0 - residual / total if total > 0 else float("nan"),
        num_points=len(points),
        confidence=confidence,
    )
