"""What the tables of the probe say about each concept: mean scores with their resamples, and shares of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from ..numerics.statistics import bootstrap_noisy_means, standard_error_of_mean
from ..records import HIGHLY_KNOWN, MAYBE_KNOWN, PROBED, UNKNOWN, WEAKLY_KNOWN, identity_seed

MEANS = ("error_nats", "null_error_nats", "gain_nats", "opinion_nats", "gap_nats", "error_per_dim", "uniform_mse")
"""Columns of the scores that are averaged over a concept's examples."""


@dataclass(frozen=True, kw_only=True)
class ErrorColumns:
    """The columns of one kind of error, in the scores (all but `relative`) and in the table of concepts."""

    error: str
    error_se: str
    null_error: str
    gain: str
    gain_se: str
    relative: str


DENOISING = ErrorColumns(
    error="error_nats",
    error_se="error_se_nats",
    null_error="null_error_nats",
    gain="gain_nats",
    gain_se="gain_se_nats",
    relative="relative_error",
)
RECONSTRUCTION = ErrorColumns(
    error="reconstruction_error",
    error_se="reconstruction_error_se",
    null_error="null_reconstruction_error",
    gain="reconstruction_gain",
    gain_se="reconstruction_gain_se",
    relative="reconstruction_relative",
)
ERROR_KINDS = {"denoise": DENOISING, "inversion": RECONSTRUCTION, "sdedit": RECONSTRUCTION}
_FINITE = ("error_nats", "error_se_nats", "null_error_nats", "gain_nats", "gain_se_nats")
_SCORE_COLUMNS = ("concept", "example_id", "split", *_FINITE, "opinion_se_nats", *MEANS)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Means per concept, one row each in the order asked for, and resampled means (num_concepts, num_bootstrap).

    `errors` and `gains` are of the kind of error that the rules go by; `information_gains` are in nats whatever it is.
    """

    table: pd.DataFrame
    errors: np.ndarray
    gains: np.ndarray
    information_gains: np.ndarray


def error_columns(table: pd.DataFrame) -> ErrorColumns:
    """The columns that the rules go by: those of the reconstruction where the table has them."""
    return RECONSTRUCTION if RECONSTRUCTION.error in table.columns else DENOISING


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
    """The held-out examples' scores in a fixed order, checked, with no columns of a reconstruction that was not made.

    Raises:
        UserError: a missing column, no held-out example, an example twice, a score that is not finite, or errors of
            more than one kind.
    """
    kinds = sorted(set(scores["error_kind"])) if "error_kind" in scores else ["denoise"]
    if len(kinds) > 1 or kinds[:1] not in [[kind] for kind in ERROR_KINDS]:
        raise UserError(f"scores: error_kind {kinds}, not one of {', '.join(ERROR_KINDS)}; probe again")
    finite: tuple[str, ...] = _FINITE
    if ERROR_KINDS[kinds[0]] is DENOISING:
        scores = scores.drop(columns=[n for n in asdict(RECONSTRUCTION).values() if n in scores])
    else:
        finite += tuple(name for name in asdict(RECONSTRUCTION).values() if name != RECONSTRUCTION.relative)
    check_table(scores, "scores", (*_SCORE_COLUMNS, *finite), ["concept", "example_id", "split"])
    scores = scores[scores["split"].isin(PROBED)].sort_values(["concept", "example_id"], ignore_index=True)
    if scores.empty:
        raise UserError("scores: no held-out example, so there is nothing to sort into buckets")
    for column in finite:
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
    by_concept = scores.groupby("concept", sort=False)
    kinds = list(dict.fromkeys((DENOISING, error_columns(scores))))
    rows: list[dict[str, float]] = []
    resampled: list[list[np.ndarray]] = []
    for name in concepts:
        own = by_concept.get_group(name)
        rows.append({"num_examples": len(own)} | _means(own, kinds))
        resampled.append([_resample(own, kind, num_bootstrap, identity_seed(seed, "bucket", name)) for kind in kinds])
    drawn = np.array(resampled)  # (concepts, kinds, num_bootstrap, 2)
    errors, gains = drawn[:, -1, :, 0], drawn[:, -1, :, 1]
    return Measures(table=pd.DataFrame(rows), errors=errors, gains=gains, information_gains=drawn[:, 0, :, 1])


def _means(own: pd.DataFrame, kinds: Sequence[ErrorColumns]) -> dict[str, float]:
    """One concept's row: means over its examples, and the standard errors of the means."""
    means = {column: float(own[column].astype(float).mean(skipna=False)) for column in MEANS}
    errors: list[dict[str, float]] = []
    for kind in kinds:
        error, null_error, gain = (float(own[name].mean()) for name in (kind.error, kind.null_error, kind.gain))
        of_error, of_gain = (
            _standard_error(own, kind.error, kind.error_se),
            _standard_error(own, kind.gain, kind.gain_se),
        )
        row = {kind.error: error, kind.error_se: of_error, kind.null_error: null_error}
        errors.append(row | {kind.gain: gain, kind.gain_se: of_gain, kind.relative: error / null_error})
    relative = errors[0].pop(DENOISING.relative)
    opinion_se = _standard_error(own, "opinion_nats", "opinion_se_nats")
    row = errors[0] | {"opinion_nats": means["opinion_nats"], "opinion_se_nats": opinion_se}
    row |= {"gap_nats": means["gap_nats"], DENOISING.relative: relative}
    row |= {"error_per_dim": means["error_per_dim"], "uniform_mse": means["uniform_mse"]}
    return row | (errors[1] if len(errors) > 1 else {})


def _standard_error(own: pd.DataFrame, value: str, noise: str) -> float:
    values, noises = (own[[name]].to_numpy(float) for name in (value, noise))
    return float(standard_error_of_mean(values, noises)[0])


def _resample(own: pd.DataFrame, kind: ErrorColumns, num_bootstrap: int, seed: int) -> np.ndarray:
    """Resampled means of one concept's error and gain, (num_bootstrap, 2); kinds share which examples are drawn."""
    values, noises = own[[kind.error, kind.gain]], own[[kind.error_se, kind.gain_se]]
    generator = np.random.default_rng(seed)
    return bootstrap_noisy_means(values.to_numpy(float), noises.to_numpy(float), num_bootstrap, generator)


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
