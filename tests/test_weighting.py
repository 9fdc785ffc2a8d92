"""Min-SNR-γ against hand values, against diffusers' training script, and against its own definition."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusion_sft.numerics.schedule import PredictionType, Schedule
from diffusion_sft.numerics.weighting import min_snr_weights

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SNR = np.array([0.0, 0.5, 1.0, 5.0, 20.0, np.inf])


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", [1.0, 1.0, 1.0, 1.0, 0.25, 0.0]),
        ("v_prediction", [0.0, 1 / 3, 0.5, 5 / 6, 5 / 21, 0.0]),
        ("sample", [0.0, 0.5, 1.0, 5.0, 5.0, 5.0]),
    ],
)
def test_hand_values_with_no_signal_and_no_noise(prediction_type: PredictionType, expected: list[float]) -> None:
    weights = min_snr_weights(SNR, 5.0, prediction_type)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_equal_to_the_lines_of_diffusers_training_script(prediction_type: PredictionType, gamma: float) -> None:
    scheduler, timesteps = DDPMScheduler(**SD), torch.arange(1000)
    # train_text_to_image.py, after `if args.snr_gamma is None`.
    snr = compute_snr(scheduler, timesteps)
    expected = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    if prediction_type == "epsilon":
        expected = expected / snr
    elif prediction_type == "v_prediction":
        expected = expected / (snr + 1)
    cumulative = scheduler.alphas_cumprod.double().numpy()
    weights = min_snr_weights(cumulative / (1 - cumulative), gamma, prediction_type)
    np.testing.assert_allclose(weights, expected.double().numpy(), rtol=1e-4)


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
def test_every_prediction_weighs_the_error_of_the_clean_image_alike(prediction_type: PredictionType) -> None:
    schedule = Schedule(
        alphas_cumprod=DDPMScheduler(**SD).alphas_cumprod.double().numpy(), prediction_type=prediction_type
    )
    timesteps = np.array([1, 100, 147, 500, 900, 999])
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = torch.randn(3, len(timesteps), 16, generator=generator, dtype=torch.float64)
    noisy = schedule.add_noise(clean, noise, timesteps)
    alpha, sigma = (torch.from_numpy(table[timesteps])[:, None] for table in (schedule.alpha, schedule.sigma))
    # A network that takes `wrong` for the clean image predicts the noise that is left over.
    predicted = schedule.training_target(wrong, (noisy - alpha * wrong) / sigma, timesteps)
    errors = (schedule.training_target(clean, noise, timesteps) - predicted).square().mean(dim=1).numpy()
    snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))[timesteps]
    weighted = min_snr_weights(snr, 5.0, prediction_type) * errors
    expected = np.minimum(snr, 5.0) * (clean - wrong).square().mean(dim=1).numpy()
    np.testing.assert_allclose(weighted, expected, rtol=1e-9)


def test_an_enormous_gamma_leaves_the_plain_loss_of_epsilon() -> None:
    assert (min_snr_weights(SNR[:-1], 1e12, "epsilon") == 1.0).all()


@pytest.mark.parametrize("gamma", [0.0, -1.0, np.inf, np.nan])
def test_a_gamma_that_is_no_positive_number_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be above 0"):
        min_snr_weights(SNR, gamma, "epsilon")


@pytest.mark.parametrize("snr", [-0.1, np.nan])
def test_a_ratio_that_is_none_is_refused(snr: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        min_snr_weights(np.array([1.0, snr]), 5.0, "sample")


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="none of epsilon"):
        min_snr_weights(SNR, 5.0, "flow")  # type: ignore[arg-type]
