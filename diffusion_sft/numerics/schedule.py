"""How much signal and how much noise there is at each trained timestep, and what the network is asked for there.

The one symbol convention of the package:

    x_t = alpha_t x + sigma_t ε,   alpha_t = √ᾱ_t,   sigma_t = √(1 − ᾱ_t),   log_snr = log(alpha_t² / sigma_t²)

with ᾱ_t = diffusers' `alphas_cumprod[t]`. In terms of the log-SNR α: ᾱ = σ(α), the logistic function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """A discrete, variance-preserving noise schedule and the meaning of its network's output.

    `alphas_cumprod` is ᾱ_t for t = 0, 1, ..., falling, float64 (num_train_timesteps,). `prediction_type` says in
    diffusers' words what the network predicts: ε, v = alpha_t ε − sigma_t x (Salimans & Ho, 2022), or x itself.
    """

    alphas_cumprod: np.ndarray
    prediction_type: PredictionType = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in get_args(PredictionType):
            known = ", ".join(get_args(PredictionType))
            raise ValueError(f"prediction type {self.prediction_type!r} is none of {known}")
        values = np.asarray(self.alphas_cumprod, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2 or not (np.diff(values) < 0).all() or values[0] >= 1 or values[-1] < 0:
            raise ValueError("alphas_cumprod must be a falling sequence of at least two numbers between 1 and 0")
        object.__setattr__(self, "alphas_cumprod", values)

    @property
    def num_train_timesteps(self) -> int:
        """How many timesteps the network was trained on."""
        return len(self.alphas_cumprod)

    @cached_property
    def alpha(self) -> np.ndarray:
        """alpha_t, the scale of the signal, (num_train_timesteps,)."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sigma(self) -> np.ndarray:
        """sigma_t, the scale of the noise, (num_train_timesteps,)."""
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def log_snr(self) -> np.ndarray:
        """log(alpha_t² / sigma_t²) in nats, falling; without the timesteps of no signal at all (ᾱ_t = 0)."""
        signal = self.alphas_cumprod[self.alphas_cumprod > 0]
        return np.log(signal) - np.log1p(-signal)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """The trained range of the log-SNR, lowest first."""
        return float(self.log_snr[-1]), float(self.log_snr[0])

    def nearest_timestep(self, log_snr: np.ndarray) -> np.ndarray:
        """The trained timesteps whose log-SNR is nearest to the given ones (the noisier one of two equally near)."""
        middles = (self.log_snr[:-1] + self.log_snr[1:]) / 2
        return np.searchsorted(-middles, -np.asarray(log_snr, dtype=np.float64), side="right")

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: np.ndarray) -> torch.Tensor:
        """x_t = alpha_t x + sigma_t ε, one timestep for each row."""
        return _rows(self.alpha, timesteps, clean) * clean + _rows(self.sigma, timesteps, clean) * noise

    def training_target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: np.ndarray) -> torch.Tensor:
        """What the network is trained to predict: ε, v or x (Salimans & Ho, 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        return _rows(self.alpha, timesteps, clean) * noise - _rows(self.sigma, timesteps, clean) * clean

    def noise_from_prediction(
        self, prediction: torch.Tensor, noisy: torch.Tensor, timesteps: np.ndarray
    ) -> torch.Tensor:
        """ε̂ from the network's output: itself, sigma_t x_t + alpha_t v̂, or (x_t − alpha_t x̂) / sigma_t."""
        if self.prediction_type == "epsilon":
            return prediction
        alpha, sigma = _rows(self.alpha, timesteps, noisy), _rows(self.sigma, timesteps, noisy)
        if self.prediction_type == "v_prediction":
            return sigma * noisy + alpha * prediction
        return (noisy - alpha * prediction) / sigma


def _rows(table: np.ndarray, timesteps: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """One entry of the table for each row of `like`, shaped to multiply it."""
    values = torch.from_numpy(table[np.asarray(timesteps)]).to(like.dtype).to(like.device, non_blocking=True)
    return values.reshape(-1, *[1] * (like.ndim - 1))
