"""How fast training examples were fitted: their first right answer, and the fitted share as training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..records import CATEGORIES, TRAINED
from .accuracy import over_seeds
from .runs import CONVERGENCE, EARLY_STOP, FULL, FinishedRun

SPEED_COLUMNS = [
    "learner",
    "mix",
    "method",
    "seed",
    "category",
    "num_examples",
    "median_update_to_fit",
    "median_passes_to_fit",
    "fitted_share_early_stop",
    "fitted_share_convergence",
    "measured_from",
]
CURVE_COLUMNS = [
    "learner",
    "mix",
    "method",
    "category",
    "update",
    "fitted_share",
    "low",
    "high",
    "interval",
    "num_seeds",
]


def fit_speed(learner: str, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run and category (and Full): when half of the training examples had been answered rightly once.

    An example is fitted at the first evaluation that finds it right, update 0 (the base) included; one that never is
    counts as later than the run's end, so the median is NaN where half of them never were. The time between
    evaluations is the resolution. Passes are passes over the training set; shares are in 0..1.

    `measured_from` says whether single answers were kept (`answers`). Without them (`shares`) the median is read off
    the fitted share, which is the same as long as no example is forgotten again.
    """
    rows = []
    for run in runs:
        trained = _trained_answers(run)
        counts = run.counts[run.counts.role == TRAINED]
        for category in (FULL, *CATEGORIES):
            here = counts[counts.category == category]
            if here.empty:
                continue
            if trained is None:
                size, median = int(here.num_examples.max()), _median_of_shares(here)
            else:
                asked = trained if category == FULL else trained[trained.category == category]
                size, median = asked.example_id.nunique(), _median_of_answers(asked)
            shares = [_share_at(here, run.stops.get(stopping)) for stopping in (EARLY_STOP, CONVERGENCE)]
            source = "shares" if trained is None else "answers"
            passes = median * run.passes_per_update
            rows.append([learner, run.mix, run.method, run.seed, category, size, median, passes, *shares, source])
    return pd.DataFrame(rows, columns=SPEED_COLUMNS)


def fit_curves(learner: str, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The fitted share per mix, method, category (and Full) and update: mean over seeds and its interval (`over_seeds`).

    Seeds that had ended by an update are not in its row; `num_seeds` says how many are.
    """
    parts = [run.counts[run.counts.role == TRAINED].assign(mix=run.mix, method=run.method) for run in runs]
    table = pd.concat(parts, ignore_index=True)
    order = {category: place for place, category in enumerate((FULL, *CATEGORIES))}
    rows = []
    for (mix, method), of_mix in table.groupby(["mix", "method"], sort=False):
        place = of_mix.category.map(order)
        for (_, update), here in of_mix.groupby([place, "update"]):
            share, kind = over_seeds(here.num_correct.to_numpy(), here.num_examples.to_numpy())
            category = here.category.iloc[0]
            numbers = (share.value, share.low, share.high, kind, len(here))
            rows.append([learner, mix, method, category, update, *numbers])
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _trained_answers(run: FinishedRun) -> pd.DataFrame | None:
    """The answers to questions about training examples; None where none were kept."""
    if run.answers is None:
        return None
    trained = run.answers[run.answers.role == TRAINED]
    return None if trained.empty else trained


def _median_of_answers(asked: pd.DataFrame) -> float:
    """The median over examples of the first update with a right answer; NaN where half never had one."""
    first = asked[asked.correct.astype(bool)].groupby("example_id")["update"].min()
    updates = first.reindex(asked.example_id.unique()).fillna(np.inf).to_numpy(float)
    return _finite(float(np.median(updates))) if len(updates) else float("nan")


def _median_of_shares(counts: pd.DataFrame) -> float:
    """The same off the fitted share: midway between where it comes to a half and where it goes beyond."""
    half = 2 * counts.num_correct - counts.num_examples
    reached, exceeded = (float(counts.loc[where, "update"].min()) for where in (half >= 0, half > 0))
    return (reached + exceeded) / 2


def _share_at(counts: pd.DataFrame, update: int | None) -> float:
    here = counts[counts["update"] == update]
    return float("nan") if here.empty else float(here.num_correct.iloc[0] / here.num_examples.iloc[0])


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("nan")
