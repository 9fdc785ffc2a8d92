"""One batch of denoising training: levels and noise of each item, what is predicted, and how much it counts.

    x_t = alpha_t x + sigma_t ε,   loss_i = w(SNR_t) · mean (prediction − target)²

Every number is a function of the run's seed, the item's visit and the example's id, never of the item's company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..learner import Objective, TrainingItem
from ..numerics.noise import normal
from ..numerics.schedule import Schedule
from ..numerics.weighting import min_snr_weights
from ..records import identity_seed
from .network import to_device


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """All on the CPU, where it is the same for every device; float32 (n, ...), `timesteps` and `weights` (n,)."""

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: np.ndarray
    weights: torch.Tensor

    def losses(self, prediction: torch.Tensor) -> torch.Tensor:
        """The weighted mean squared error of each item, (n,), on the prediction's device."""
        target, weights = (to_device(tensor, prediction.device) for tensor in (self.target, self.weights))
        return (prediction.float() - target).square().flatten(1).mean(dim=1) * weights


def training_batch(
    schedule: Schedule, clean: torch.Tensor, items: Sequence[TrainingItem], seed: int, objective: Objective
) -> TrainingBatch:
    """Draw timesteps (uniform) and noise for each item's clean target, a row of `clean`, float32 (n, ...)."""
    seeds = [identity_seed(seed, "loss", item.visit, item.example.id) for item in items]
    # A stream of its own for the timestep, so that it does not hang on how many numbers the noise takes.
    timesteps = np.array([identity_seed(number, "timestep") % schedule.num_train_timesteps for number in seeds])
    noise = torch.stack([_noise(clean.shape[1:], number, objective.noise_offset) for number in seeds])
    return TrainingBatch(
        noisy=schedule.add_noise(clean, noise, timesteps),
        target=schedule.training_target(clean, noise, timesteps),
        timesteps=timesteps,
        weights=_weights(schedule, timesteps, objective.snr_gamma),
    )


def _noise(shape: torch.Size, seed: int, noise_offset: float) -> torch.Tensor:
    """ε, plus `noise_offset` times a normal number that is the same all over a channel (Guttenberg, 2023)."""
    noise = normal(shape, seed)
    if noise_offset:
        constant = normal((shape[0], *[1] * (len(shape) - 1)), identity_seed(seed, "noise offset"))
        noise = noise + noise_offset * constant
    return noise


def _weights(schedule: Schedule, timesteps: np.ndarray, snr_gamma: float | None) -> torch.Tensor:
    if snr_gamma is None:
        return torch.ones(len(timesteps))
    signal = schedule.alphas_cumprod[timesteps]
    weights = min_snr_weights(signal / (1 - signal), snr_gamma, schedule.prediction_type)
    return torch.from_numpy(weights).float()
