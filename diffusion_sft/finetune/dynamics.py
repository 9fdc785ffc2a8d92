"""accuracy = β0 + β_kn·N_kn/|D| + β_unk·N_unk/|D|: what fitting known and Unknown examples does to accuracy.

N_kn and N_unk count the fitted training examples at one evaluation (Gekhman et al., 2024, section 4.4, equation 1).
"""

from __future__ import annotations

import pandas as pd

from ..records import TRAINED, UNKNOWN, UNTOUCHED

COLUMNS = ["update", "fitted_known_share", "fitted_unknown_share", "accuracy"]


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
