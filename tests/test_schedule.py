"""The noise schedule against Stable Diffusion's known numbers, and the prediction types against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion_sft.numerics.schedule import Schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def stable_diffusion(prediction_type: str = "epsilon") -> Schedule:
    alphas_cumprod = DDPMScheduler(**SD).alphas_cumprod.double().numpy()
    return Schedule(alphas_cumprod=alphas_cumprod, prediction_type=prediction_type)  # type: ignore[arg-type]


def test_stable_diffusions_schedule_has_its_known_numbers() -> None:
    schedule = stable_diffusion()
    assert schedule.alphas_cumprod[0] == pytest.approx(0.99915, abs=1e-5)
    assert schedule.alphas_cumprod[999] == pytest.approx(0.0046601, abs=1e-7)
    assert schedule.alpha[999] == pytest.approx(0.068265, abs=1e-6)
    assert np.exp(schedule.log_snr[999]) == pytest.approx(0.0046819, abs=1e-7)
    assert schedule.log_snr_range == pytest.approx((-5.364, 7.069), abs=5e-4)
    known = {10: 4.64, 50: 2.98, 100: 2.14, 250: 0.73, 500: -0.96, 750: -2.82}
    assert schedule.log_snr[list(known)] == pytest.approx(list(known.values()), abs=6e-3)
    nearest = schedule.nearest_timestep(np.array([0.0, 1.0, np.log(5.0)]))
    assert nearest == pytest.approx([354, 214, 147], abs=1)
    slopes = -np.gradient(schedule.log_snr)
    assert slopes[100:].min() == pytest.approx(0.0066, abs=1e-4)
    assert slopes[100:].max() == pytest.approx(0.0131, abs=1e-4)
    assert slopes[[0, 10]] == pytest.approx([0.70, 0.094], abs=6e-3)
    quantiles = np.quantile(schedule.log_snr, [0.1, 0.25, 0.5, 0.75, 0.9])
    assert quantiles == pytest.approx([-4.23, -2.82, -0.96, 0.73, 2.14], abs=1e-2)
    assert np.mean(schedule.log_snr > schedule.log_snr[50]) == pytest.approx(0.05)
    assert (schedule.log_snr[0] - schedule.log_snr[50]) / 12.43 == pytest.approx(0.33, abs=0.01)


def test_nearest_timestep_is_the_nearest() -> None:
    schedule = stable_diffusion()
    levels = np.random.default_rng(0).uniform(-7, 9, 300)
    brute = np.abs(schedule.log_snr[None] - levels[:, None]).argmin(axis=1)
    assert (schedule.nearest_timestep(levels) == brute).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type: str) -> None:
    schedule, reference = stable_diffusion(prediction_type), DDIMScheduler(**SD, prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, 4, 4, generator=generator).unbind()
    timesteps = np.array([0, 3, 400, 900, 999])
    noisy = schedule.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, torch.from_numpy(timesteps)))
    target = schedule.training_target(clean, noise, timesteps)
    velocity = reference.get_velocity(clean, noise, torch.from_numpy(timesteps))
    torch.testing.assert_close(target, {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type])
    # A network that predicts its target perfectly must be read as predicting the noise perfectly.
    recovered = schedule.noise_from_prediction(target.double(), noisy.double(), timesteps)
    torch.testing.assert_close(recovered, noise.double(), atol=1e-4, rtol=0)


def test_timesteps_without_signal_have_no_log_snr() -> None:
    schedule = Schedule(alphas_cumprod=np.array([0.9, 0.5, 0.0]), prediction_type="v_prediction")
    assert schedule.num_train_timesteps == 3
    assert schedule.log_snr == pytest.approx([np.log(9), 0.0])


def test_sequences_that_are_no_schedule_are_refused() -> None:
    for values in ([0.5], [0.4, 0.5], [1.0, 0.5], [0.5, -0.1]):
        with pytest.raises(ValueError, match="alphas_cumprod"):
            Schedule(alphas_cumprod=np.array(values))
    with pytest.raises(ValueError, match="prediction type"):
        Schedule(alphas_cumprod=np.array([0.9, 0.1]), prediction_type="flow")  # type: ignore[arg-type]
