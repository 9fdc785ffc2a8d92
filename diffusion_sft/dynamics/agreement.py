"""Does the fitted dynamics model say the same as the published one?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..records import OTHER_RELATIONS, TEST, UNTOUCHED
from ..reference import Reference

COUNTERPART = {TEST: "in_distribution", UNTOUCHED: "in_distribution", OTHER_RELATIONS: "out_of_distribution"}
"""The published model that a role's stands beside: questions that were not trained on, of the relations that were
(test) or of others. Untouched concepts are what a set of pictures has in the place of test facts."""
COEFFICIENTS = ("b_known", "b_unknown")
"""The terms whose sign is a finding."""
FLAT = 1e-9
"""Percentage points below which a coefficient is what rounding leaves of none."""


def agreement(linear_model: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """One row per method, role with a published counterpart and coefficient; estimates and intervals in percentage points.

    sign_agrees is missing where nothing could be estimated, and where the accuracy never changed; excludes_zero where
    there is no interval; the interval is the one that is robust to dependence within runs.

    Args:
        linear_model: `linear_model`'s table, in 0..1.
    """
    rows = []
    row: Any
    for row in linear_model[linear_model.term.isin(COEFFICIENTS)].itertuples():
        if row.role not in COUNTERPART:
            continue
        model = reference.linear_model[COUNTERPART[row.role]]
        published = model.b_known_points if row.term == "b_known" else model.b_unknown_points
        estimate, low, high = (100.0 * float(value) for value in (row.estimate, row.low, row.high))
        rows.append(
            {
                "learner": row.learner,
                "method": row.method,
                "role": row.role,
                "published_as": COUNTERPART[row.role],
                "term": row.term,
                "estimate_points": estimate,
                "low_points": low,
                "high_points": high,
                "published_points": published,
                "sign_agrees": bool(np.sign(estimate) == np.sign(published)) if abs(estimate) > FLAT else None,
                "excludes_zero": bool(low > 0 or high < 0) if np.isfinite(low) else None,
            }
        )
    return pd.DataFrame(rows)
