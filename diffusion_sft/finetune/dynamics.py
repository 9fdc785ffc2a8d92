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
    trained, asked = (evaluations[evaluations.role == chosen] for chosen in (TRAINED, role))
    size = trained.groupby("update").num_examples.sum()
    fitted = trained.num_correct.astype(float)
    is_unknown = trained.category == UNKNOWN
    shares = {
        "fitted_known_share": fitted.where(~is_unknown, 0.0).groupby(trained["update"]).sum() / size,
        "fitted_unknown_share": fitted.where(is_unknown, 0.0).groupby(trained["update"]).sum() / size,
    }
    sums = asked.groupby("update")[["num_correct", "num_examples"]].sum()
    accuracy = (sums.num_correct / sums.num_examples).rename("accuracy")
    return pd.DataFrame(shares).join(accuracy, how="inner").rename_axis("update").reset_index()[COLUMNS]
