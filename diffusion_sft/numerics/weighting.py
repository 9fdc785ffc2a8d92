"""How much a training loss counts at each noise level: Min-SNR-γ (Hang et al., 2023, section 3.3).

The method weighs the error of the clean image, ‖x − x̂‖², by min(SNR, γ). What the network predicts has another error:

    ‖ε − ε̂‖² = SNR ‖x − x̂‖²,    ‖v − v̂‖² = (SNR + 1) ‖x − x̂‖²    (variance-preserving: alpha² + sigma² = 1)

so that the same loss is min(SNR, γ)/SNR times the error of ε, or min(SNR, γ)/(SNR + 1) times the error of v.
"""

from __future__ import annotations

import numpy as np

from .schedule import PredictionType


def min_snr_weights(snr: np.ndarray, gamma: float, prediction_type: PredictionType) -> np.ndarray:
    """The weight of the squared error of what is predicted, at each signal-to-noise ratio.

    Args:
        snr: alpha² / sigma², at least 0, any shape; infinite where there is no noise. At SNR 0 (zero-terminal
            schedules) the weight of ε is its limit, 1, where the quotient would be 0/0.
        gamma: γ, above 0; 5 in the paper.
        prediction_type: what the network predicts, in diffusers' words.

    Returns:
        float64 of `snr`'s shape, finite.

    Raises:
        ValueError: a γ that is not above 0 and finite, an SNR that is negative or not a number.
    """
    snr = np.asarray(snr, dtype=np.float64)
    if not 0.0 < gamma < np.inf:
        raise ValueError(f"gamma must be above 0 and finite, not {gamma}")
    if not (snr >= 0.0).all():
        raise ValueError("a signal-to-noise ratio is at least 0")
    if prediction_type == "epsilon":
        return gamma / np.maximum(snr, gamma)
    if prediction_type == "v_prediction":
        return np.minimum(snr, gamma) / (snr + 1.0)
    if prediction_type == "sample":
        return np.minimum(snr, gamma)
    raise ValueError(f"prediction type {prediction_type!r} is none of epsilon, v_prediction, sample")
