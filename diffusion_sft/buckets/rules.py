"""Four rules that split concepts into known and unknown, and the score that each of them ranks concepts by.

    error     mean err(x, c) is at most the threshold (the set's own quantile, or a given one)
    relative  mean err(x, c) / mean err(x, ∅) likewise
    gain      the lower end of the interval of the mean gain i_s = err(x, ∅) - err(x, c) lies above 0
    slick     greedy P > 0: HighlyKnown or MaybeKnown (Gekhman et al., 2024, table 1)

The errors are of the kind that the scores were probed for (`error_kind`): err(x, c) in nats, or the reconstruction
error per dimension, in whose case the gain is its difference.

A rule's confidence is the share of resamples that give the same label, thresholds held fixed: near 1 for a clear
case, near ½ at the threshold. For `gain` a resample is known if it exceeds the interval's half-width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from ..records import UNKNOWN
from .config import BucketConfig
from .readings import Measures, error_columns


def apply_rules(
    measures: Measures, category: pd.Series, config: BucketConfig
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The labels of the rules error, relative and gain with their confidences, `misknown`, and the thresholds used.

    `misknown` (confident and wrong) is a flag within Unknown: the whole interval of the information gain (in nats,
    whatever the kind of error) is at most 0 and the lower end of the opinion's interval lies above the set's inert
    level, the median opinion of those Unknown concepts whose gain interval contains 0 (0 where there are none).
    """
    table, columns = measures.table, error_columns(measures.table)
    thresholds = {
        columns.error: _threshold(table[columns.error], config.error_threshold, config.error_quantile),
        columns.relative: _threshold(table[columns.relative], config.relative_threshold, config.relative_quantile),
    }
    relative = measures.errors / (measures.errors + measures.gains)
    tail = (1 - config.gain_confidence) / 2
    low = np.quantile(measures.gains, tail, axis=1)
    gain = table[columns.gain].to_numpy()
    known = {
        "error": table[columns.error].to_numpy() <= thresholds[columns.error],
        "relative": table[columns.relative].to_numpy() <= thresholds[columns.relative],
        "gain": low > 0,
    }
    resampled = {
        "error": measures.errors <= thresholds[columns.error],
        "relative": relative <= thresholds[columns.relative],
        "gain": measures.gains > (gain - low)[:, None],
    }
    low, high = np.quantile(measures.information_gains, [tail, 1 - tail], axis=1)
    unknown = (category == UNKNOWN).to_numpy()
    opinion = table["opinion_nats"].to_numpy()
    inert = opinion[unknown & (low <= 0) & (high > 0) & np.isfinite(opinion)]
    thresholds["inert_opinion_nats"] = float(np.median(inert)) if len(inert) else 0.0
    z = float(stats.norm.ppf(1 - tail))
    opinion_low = opinion - z * table["opinion_se_nats"].to_numpy()
    labels = {"misknown": unknown & (high <= 0) & (opinion_low > thresholds["inert_opinion_nats"])}
    for rule, label in known.items():
        labels[f"known_{rule}"] = label
        labels[f"confidence_{rule}"] = (resampled[rule] == label[:, None]).mean(axis=1)
    return pd.DataFrame(labels), thresholds


def ranking_score(concepts: pd.DataFrame, rule: str, num_renderings: int) -> np.ndarray:
    """What a rule ranks concepts by, larger for better known.

    error: -error_nats; relative: -relative_error; gain: gain_nats (of the reconstruction, where there was one); slick:
    the greedy share, ties at 0 broken by the sampled share, which counts for less than one rendering.
    """
    if rule == "slick":
        greedy = concepts["greedy_share"].to_numpy(float)
        sampled = concepts["sampled_share"].fillna(0).to_numpy(float)
        return np.where(greedy > 0, greedy, sampled / (1 + num_renderings))
    columns = error_columns(concepts)
    column, sign = {"error": (columns.error, -1), "relative": (columns.relative, -1), "gain": (columns.gain, 1)}[rule]
    return sign * concepts[column].to_numpy(float)


def _threshold(values: pd.Series, given: float | None, quantile: float) -> float:
    return float(np.quantile(values, quantile)) if given is None else given
