"""Prior reconstruction error, information gain and opinion of an example under its own caption, with standard errors.

    err(x, c) = ½∫dα E‖ε − ε̂(z_α, c)‖²            i_s = err(x, ∅) − err(x, c)
    i_o = ½∫dα E‖ε̂(z_α, ∅) − ε̂(z_α, c)‖²        gap = i_o − i_s

in nats (Kong et al., 2024, arXiv 2310.07972, equations 6 and 8), all from the same forward passes. Where another kind
of error is asked for, the reconstruction error ‖x − x̃‖²/d stands beside them, under the caption and under ∅.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import NotFinite
from ..learner import Learner, Query, Reading
from ..numerics.quadrature import estimator_named, standard_error
from ..parsing import few
from ..records import Draws, Example
from .adaptive import adaptive_readings, check_readings
from .config import LanguageProbeConfig, ProbeConfig

SCORE_COLUMNS = (
    *("example_id", "concept", "split", "estimator", "num_draws", "num_dims"),
    *("error_nats", "error_se_nats", "null_error_nats", "null_error_se_nats"),
    *("gain_nats", "gain_se_nats", "opinion_nats", "opinion_se_nats", "gap_nats"),
    *("relative_error", "error_per_dim", "null_error_per_dim", "uniform_mse", "uniform_null_mse", "error_kind"),
    *("reconstruction_error", "reconstruction_error_se", "null_reconstruction_error"),
    *("reconstruction_gain", "reconstruction_gain_se", "reconstruction_relative"),
)
"""`error_kind` says by which error concepts are to be told apart. The columns of the reconstruction are per dimension,
their standard errors over the draws (0 for inversion, which draws nothing), and NaN where the kind is denoise."""


def own_caption(example: Example) -> Query:
    """The query of an example under the caption it was written with."""
    return Query(example=example, cues=(example.caption,))


def score(learner: Learner, examples: Sequence[Example], config: ProbeConfig | LanguageProbeConfig) -> pd.DataFrame:
    """One row per example, in the order given, with `SCORE_COLUMNS`.

    Raises:
        NotFinite: an error is no number; all such examples are named.
    """
    draws = Draws(seed=config.seed, count=config.num_draws, estimator=config.estimator)
    queries = [own_caption(e) for e in examples]
    if isinstance(config, ProbeConfig) and config.adaptive.enabled:
        readings = adaptive_readings(learner, queries, config)
    else:
        readings = learner.surprise(queries, draws, batch_size=config.batch_size)
        check_readings(queries, readings)
    returned: Sequence[np.ndarray] = [np.full((2, 1), np.nan)] * len(queries)
    if isinstance(config, ProbeConfig) and config.round_trip is not None:
        noises = Draws(seed=config.seed, count=config.reconstruction.num_draws, estimator=config.estimator)
        returned = learner.reconstruct(queries, config.round_trip, noises, batch_size=config.batch_size)
        if bad := [e.id for e, errors in zip(examples, returned, strict=True) if not np.isfinite(errors).all()]:
            raise NotFinite(f"{few(bad)}: their reconstructions are not finite ({len(bad)} of {len(examples)})")
    rows = [
        {"example_id": e.id, "concept": e.concept, "split": e.split, "error_kind": config.error_kind}
        | score_of(reading, draws)
        | reconstruction_of(errors)
        for e, reading, errors in zip(examples, readings, returned, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def reconstruction_of(errors: np.ndarray) -> dict[str, float]:
    """The numbers of one reconstruction: `errors` under ∅ (row 0) and one cue (row 1), one column a draw."""
    null_error, error = errors

    def standard_error_of(values: np.ndarray) -> float:
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float(0 * values[0])

    return {
        "reconstruction_error": float(error.mean()),
        "reconstruction_error_se": standard_error_of(error),
        "null_reconstruction_error": float(null_error.mean()),
        "reconstruction_gain": float((null_error - error).mean()),
        "reconstruction_gain_se": standard_error_of(null_error - error),
        "reconstruction_relative": _quotient(error.mean(), null_error.mean()),
    }


def _quotient(part: float, whole: float) -> float:
    """NaN where there is nothing to measure it against."""
    return float(part / whole) if whole != 0 else math.nan


def score_of(reading: Reading, draws: Draws) -> dict[str, Any]:
    """The numbers of one reading of ∅ (row 0) and one cue (row 1); opinion is NaN where noise was not common."""
    estimator = estimator_named(draws.estimator)
    null_error, error = reading.error_nats
    gain, gain_se = (null_error - error).mean(), standard_error(null_error - error, estimator)
    if not estimator.common:
        gain_se = np.hypot(standard_error(null_error, estimator), standard_error(error, estimator))
    opinion = (reading.weights * reading.opinion)[1]
    uniform_null, uniform = reading.uniform_error.mean(axis=1) / reading.num_dims
    numbers = {
        "error_nats": error.mean(),
        "error_se_nats": standard_error(error, estimator),
        "null_error_nats": null_error.mean(),
        "null_error_se_nats": standard_error(null_error, estimator),
        "gain_nats": gain,
        "gain_se_nats": gain_se,
        "opinion_nats": opinion.mean(),
        "opinion_se_nats": standard_error(opinion, estimator),
        "gap_nats": opinion.mean() - gain,
        "relative_error": _quotient(error.mean(), null_error.mean()),
        "error_per_dim": error.mean() / reading.num_dims,
        "null_error_per_dim": null_error.mean() / reading.num_dims,
        "uniform_mse": uniform,
        "uniform_null_mse": uniform_null,
    }
    settings = {
        "estimator": draws.estimator,
        "num_draws": reading.squared_error.shape[1],
        "num_dims": reading.num_dims,
    }
    return settings | {name: float(number) for name, number in numbers.items()}
