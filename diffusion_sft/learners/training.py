"""One batch of denoising training: levels and noise of each item, what is predicted, and how much it counts.

    x_t = alpha_t x + sigma_t ε,   loss_i = w(SNR_t) · mean (prediction − target)²

Every number is a function of the run's seed, the item's visit and the example's id, never of the item's company, and
is made on the device where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..learner import Objective, TrainingItem
from ..numerics.noise import normals
from ..numerics.schedule import Schedule
from ..numerics.weighting import min_snr_weights
from ..records import identity_seed
from .network import to_device


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """All on one device; float32 (n, ...), `timesteps` (n,) on the CPU, `weights` (n,)."""

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: np.ndarray
    weights: torch.Tensor

    def losses(self, prediction: torch.Tensor) -> torch.Tensor:
        """The weighted mean squared error of each item, (n,)."""
        return (prediction.float() - self.target).square().flatten(1).mean(dim=1) * self.weights


def training_batch(
    schedule: Schedule, clean: torch.Tensor, items: Sequence[TrainingItem], seed: int, objective: Objective
) -> TrainingBatch:
    """Draw timesteps (uniform) and noise for each item's clean target, a row of `clean`, float32 (n, ...)."""
    seeds = [identity_seed(seed, "loss", item.visit, item.example.id) for item in items]
    # A stream of its own for the timestep, so that it does not hang on how many numbers the noise takes.
    timesteps = np.array([identity_seed(number, "timestep") % schedule.num_train_timesteps for number in seeds])
    noise = _noise(clean, seeds, objective.noise_offset)
    return TrainingBatch(
        noisy=schedule.add_noise(clean, noise, timesteps),
        target=schedule.training_target(clean, noise, timesteps),
        timesteps=timesteps,
        weights=to_device(_weights(schedule, timesteps, objective.snr_gamma), clean.device),
    )


def _noise(clean: torch.Tensor, seeds: Sequence[int], noise_offset: float) -> torch.Tensor:
    """ε, plus `noise_offset` times a normal number that is the same all over a channel (Guttenberg, 2023)."""
    noise = normals(clean.shape[1:], seeds, clean.device)
    if noise_offset:
        of_channel = (clean.shape[1], *[1] * (clean.ndim - 2))
        own = [identity_seed(seed, "noise offset") for seed in seeds]
        noise = noise + noise_offset * normals(of_channel, own, clean.device)
    return noise


def _weights(schedule: Schedule, timesteps: np.ndarray, snr_gamma: float | None) -> torch.Tensor:
    if snr_gamma is None:
        return torch.ones(len(timesteps))
    signal = schedule.alphas_cumprod[timesteps]
    weights = min_snr_weights(signal / (1 - signal), snr_gamma, schedule.prediction_type)
    return torch.from_numpy(weights).float()
