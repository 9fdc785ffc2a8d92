"""A reading made after the runs had been seen: is it what is newly learnt, of whatever category, that is paid for?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from diffusion_sft.numerics.linear_model import least_squares
from diffusion_sft.numerics.statistics import spearman
from diffusion_sft.records import HIGHLY_KNOWN, TRAINED
from diffusion_sft.report.wording import Estimate

from .halves import ALL, MAIN, OUTSIDE, Half, estimate


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """How well two linear models follow the share right of HighlyKnown that was not taught, over the same points."""

    slope: Estimate
    """Change of that share for each share of the trained examples that is newly right; robust to points of one run."""
    r2: float
    published_r2: float
    """Of the published model, with the fitted shares of the known and the Unknown for its columns."""
    rank: Estimate
    """Spearman's correlation over runs, at their ends."""


def learnt_points(half: Half) -> pd.DataFrame:
    """One row for each evaluation after the base's, of the main method's mixes without guards.

    Columns: run, mix, seed, update, fitted_known_share, fitted_unknown_share, newly (the change of the share of trained
    examples that are answered rightly) and change (that of what was HighlyKnown and was not taught).
    """
    points = half.table("dynamics/linear_model_points")
    points = points[(points["role"] == OUTSIDE[half.learner]) & (points["method"] == half.main_method)]
    parts = []
    for run in half.runs[half.runs["how"] == MAIN].to_dict("records"):
        table = half.evaluations[run["run"]]
        changes = {
            "newly": _change(table, TRAINED, ALL),
            "change": _change(table, OUTSIDE[half.learner], HIGHLY_KNOWN),
        }
        parts.append(
            pd.DataFrame(changes).reset_index().assign(**{name: run[name] for name in ("run", "mix", "seed")})
        )
    kept = ["mix", "seed", "update", "fitted_known_share", "fitted_unknown_share"]
    return points[kept].merge(pd.concat(parts), on=["mix", "seed", "update"]).dropna()


@cache
def learnt(half: Half) -> Learnt:
    """Hold what is newly learnt, and the published model, against what is lost."""
    points = learnt_points(half)
    change, ones = points["change"].to_numpy(float), np.ones(len(points))
    runs = points["run"].to_numpy(str)
    own = least_squares(np.column_stack([ones, points["newly"]]), change, clusters=runs)
    shares = points[["fitted_known_share", "fitted_unknown_share"]].to_numpy(float)
    slope = own.at((0, 1))
    ends = points.sort_values("update").groupby("run").tail(1)
    return Learnt(
        slope=Estimate(value=slope.estimate, low=slope.low, high=slope.high),
        r2=own.r_squared,
        published_r2=least_squares(np.column_stack([ones, shares]), change, clusters=runs).r_squared,
        rank=estimate(spearman(ends["newly"].to_numpy(float), ends["change"].to_numpy(float))),
    )


def _change(table: pd.DataFrame, role: str, category: str) -> pd.Series:
    own = table[(table["role"] == role) & (table["category"] == category)].set_index("update")["accuracy"]
    return own - own.get(0, np.nan)
