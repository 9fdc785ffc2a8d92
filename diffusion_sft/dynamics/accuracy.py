"""How much was answered rightly at the early stop and at convergence, per run and over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..numerics.statistics import Interval, student_mean, wilson
from .runs import CONVERGENCE, COUNTS, EARLY_STOP, FinishedRun

GROUP = ["learner", "mix", "method", "stopping", "role", "category"]


def accuracy_table(learner: str, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run, stopping, role and category: counts, and what they come to.

    accuracy is right answers over questions asked, accuracy_answered over those answered (NaN where none was),
    answered_share answers over questions, all in 0..1. A run without an early stop has no such rows.
    """
    parts = []
    for run in runs:
        for stopping, update in run.stops.items():
            here = run.counts[run.counts["update"] == update]
            labels = {
                "learner": learner,
                "mix": run.mix,
                "method": run.method,
                "seed": run.seed,
                "stopping": stopping,
                "unknown_share": run.unknown_share,
                "num_concepts": run.num_concepts,
            }
            parts.append(pd.DataFrame(labels, index=here.index).join(here))
    table = pd.concat(parts, ignore_index=True)
    first = ["learner", "mix", "method", "seed", "stopping", "role", "category", "unknown_share", "num_concepts"]
    table = table[[*first, "update", *COUNTS]]
    table["accuracy"] = table.num_correct / table.num_examples
    table["accuracy_answered"] = table.num_correct / table.num_answered.where(table.num_answered > 0)
    table["answered_share"] = table.num_answered / table.num_examples
    return table


def accuracy_by_mix(accuracy: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table` over a mix's and method's seeds: means of shares, sums of counts, 95 % intervals (`over_seeds`).

    On the rows of convergence stands the change of accuracy since the early stop, paired by seed, with Student's
    interval over seeds (NaN for one seed; unpaired seeds are left out).
    """
    rows = []
    for key, here in accuracy.groupby(GROUP, sort=False):
        interval, kind = over_seeds(here.num_correct.to_numpy(), here.num_examples.to_numpy())
        row = dict(zip(GROUP, key, strict=True))
        row |= {name: float(here[name].mean()) for name in ("unknown_share", "num_concepts")}
        row |= {"num_seeds": len(here)} | {name: int(here[name].sum()) for name in COUNTS}
        row |= {"accuracy": interval.value, "low": interval.low, "high": interval.high, "interval": kind}
        row |= {name: float(here[name].mean()) for name in ("accuracy_answered", "answered_share")}
        rows.append(row)
    changes = _changes(accuracy)
    return pd.DataFrame(rows).merge(changes, how="left", on=GROUP)


def over_seeds(num_correct: np.ndarray, num_asked: np.ndarray) -> tuple[Interval, str]:
    """The mean share over seeds, its interval at 95 %, and what the interval is over.

    Student's interval over seeds, cut to 0..1; Wilson's over one seed's questions where there is one seed, or where
    the seeds happen to agree entirely and so do not show their spread.

    Args:
        num_correct, num_asked: of each seed, (num_seeds,).
    """
    mean = student_mean(num_correct / num_asked)
    if np.isfinite(mean.low):
        ends = np.clip([mean.low, mean.high], 0.0, 1.0)
        return Interval(value=mean.value, low=float(ends[0]), high=float(ends[1])), f"seeds (t, n={len(num_asked)})"
    largest = int(np.argmax(num_asked))  # Seeds that agree may have been asked the same questions: one counts.
    questions = wilson(int(num_correct[largest]), int(num_asked[largest]))
    return Interval(value=mean.value, low=questions.low, high=questions.high), "questions (Wilson)"


def _changes(accuracy: pd.DataFrame) -> pd.DataFrame:
    columns = [*GROUP, "change", "change_low", "change_high"]
    same = ["learner", "mix", "method", "role", "category", "seed"]
    early, late = (
        accuracy[accuracy.stopping == stopping].set_index(same).accuracy for stopping in (EARLY_STOP, CONVERGENCE)
    )
    paired = (late - early).dropna().rename("change").reset_index()
    rows = []
    for (learner, mix, method, role, category), here in paired.groupby(same[:-1], sort=False):
        change = student_mean(here.change.to_numpy())
        rows.append([learner, mix, method, CONVERGENCE, role, category, change.value, change.low, change.high])
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[len(GROUP) :], float))
