"""What the tables of the probe say about each concept: mean scores with their resamples, and shares of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from ..numerics.statistics import bootstrap_noisy_means, standard_error_of_mean
from ..records import HELDOUT, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN, WEAKLY_KNOWN, identity_seed

MEANS = ("error_nats", "null_error_nats", "gain_nats", "opinion_nats", "gap_nats", "error_per_dim", "uniform_mse")
"""Columns of the scores that are averaged over a concept's examples."""
_FINITE = ("error_nats", "error_se_nats", "null_error_nats", "gain_nats", "gain_se_nats")
_SCORE_COLUMNS = ("concept", "example_id", "split", *_FINITE, "opinion_se_nats", *MEANS)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Means per concept, one row each in the order asked for, and resampled means (num_concepts, num_bootstrap)."""

    table: pd.DataFrame
    errors: np.ndarray
    gains: np.ndarray


def check_table(table: pd.DataFrame, name: str, columns: tuple[str, ...], key: list[str]) -> None:
    """Demand the columns, and each key once.

    Raises:
        UserError: naming the table and the first column or row at fault.
    """
    for column in columns:
        if column not in table:
            raise UserError(f"{name}: no column {column!r}; run the probe again to write it")
    if table.duplicated(key).any():
        first = table.loc[table.duplicated(key), key].iloc[0].to_dict()
        raise UserError(f"{name}: more than one row for {first}; the tables of two probes were put together")


def check_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The held-out examples' scores in a fixed order, checked.

    Raises:
        UserError: a missing column, no held-out example, an example twice, or a score that is not finite.
    """
    check_table(scores, "scores", _SCORE_COLUMNS, ["concept", "example_id", "split"])
    scores = scores[scores["split"] == HELDOUT].sort_values(["concept", "example_id"], ignore_index=True)
    if scores.empty:
        raise UserError("scores: no held-out example, so there is nothing to sort into buckets")
    for column in _FINITE:
        bad = scores.loc[~np.isfinite(scores[column].astype(float)), "example_id"]
        if len(bad):
            raise UserError(
                f"scores: {column} of {bad.iloc[0]} is not finite ({len(bad)} such examples); probe again"
            )
    return scores


def measure(concepts: pd.Series, scores: pd.DataFrame, num_bootstrap: int, seed: int) -> Measures:
    """Mean scores of each concept over its examples, with standard errors and resamples.

    A resample draws examples with replacement and adds each one's own noise (independently for error and gain),
    from a stream of the concept's own, so that other concepts and the order of rows change nothing.

    Args:
        concepts: names, each with at least one row in the scores.
        scores: as `check_scores` returns them.
    """
    by_concept = dict(list(scores.groupby("concept", sort=False)))
    rows, errors, gains = [], [], []
    for name in concepts:
        own = by_concept[name]
        means = {column: float(own[column].astype(float).mean(skipna=False)) for column in MEANS}
        values = own[["error_nats", "gain_nats", "opinion_nats"]].to_numpy(float)
        noise = own[["error_se_nats", "gain_se_nats", "opinion_se_nats"]].to_numpy(float)
        of_means = standard_error_of_mean(values, noise)
        generator = np.random.default_rng(identity_seed(seed, "bucket", name))
        drawn = bootstrap_noisy_means(values[:, :2], noise[:, :2], num_bootstrap, generator)
        errors.append(drawn[:, 0])
        gains.append(drawn[:, 1])
        rows.append(
            {
                "num_examples": len(own),
                "error_nats": means["error_nats"],
                "error_se_nats": of_means[0],
                "null_error_nats": means["null_error_nats"],
                "gain_nats": means["gain_nats"],
                "gain_se_nats": of_means[1],
                "opinion_nats": means["opinion_nats"],
                "opinion_se_nats": of_means[2],
                "gap_nats": means["gap_nats"],
                "relative_error": means["error_nats"] / means["null_error_nats"],
                "error_per_dim": means["error_per_dim"],
                "uniform_mse": means["uniform_mse"],
            }
        )
    return Measures(table=pd.DataFrame(rows), errors=np.array(errors), gains=np.array(gains))


def read_answers(concepts: pd.Series, answers: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Shares of right answers and the category of each concept, with the confidence of both SliCK labels.

    The confidences are the shares, in the limit of infinitely many, of resamples of the R renderings that give
    the same label. With p the greedy share and q the share of renderings with a right sample:
    HighlyKnown 1, MaybeKnown 1 - p^R - (1 - p)^R, WeaklyKnown 1 - (1 - q)^R, Unknown 1; known 1 - (1 - p)^R.
    A unanimous reading is never contradicted by its own resamples: its 1 is no proof.
    """
    greedy = answers.groupby("concept")["correct"].agg(["mean", "size"])
    sampled = samples.groupby("concept")["correct"].mean()
    with_right_sample = (
        samples.groupby(["concept", "rendering"])["correct"].any().groupby("concept").agg(["mean", "size"])
    )
    rows = []
    for name in concepts:
        p, num_renderings = float(greedy.loc[name, "mean"]), int(greedy.loc[name, "size"])
        sampled_share = float(sampled.get(name, math.nan))
        confidence, known_confidence = 1.0, 1.0
        if p == 1:
            category = HIGHLY_KNOWN
        elif p > 0:
            category = MAYBE_KNOWN
            known_confidence = 1 - (1 - p) ** num_renderings
            confidence = known_confidence - p**num_renderings
        elif sampled_share > 0:
            category = WEAKLY_KNOWN
            q, num_sampled = with_right_sample.loc[name, "mean"], with_right_sample.loc[name, "size"]
            confidence = 1 - (1 - float(q)) ** int(num_sampled)
        else:
            category = UNKNOWN
        rows.append((p, sampled_share, category, confidence, known_confidence))
    columns = ["greedy_share", "sampled_share", "category", "category_confidence", "confidence_slick"]
    return pd.DataFrame(rows, columns=columns)
