"""A learner whose every answer is known on paper: data that are a mixture of Gaussians under each cue.

For one component N(m, diag(v)) the optimal noise prediction at x_t is

    ε̂ = (x_t − alpha_t m) sigma_t / s,   s = alpha_t² v + sigma_t²,

and a mixture's is the mean of these under the components' posterior. Hence closed forms for surprise, gain,
likelihood and samples, in nats, through the same readings that a Stable Diffusion goes through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..answers import judge
from ..errors import UserError
from ..layouts import write_tensors
from ..learner import (
    NULL_CUE,
    PIPELINE_LAYOUT,
    PLAIN_OBJECTIVE,
    Answer,
    Cue,
    Learner,
    Objective,
    Query,
    Question,
    Reading,
    Reconstruction,
    TrainingItem,
)
from ..numerics.schedule import Schedule
from ..records import Draws, Example, identity_seed
from .denoising import read_surprise
from .reconstruction import read_reconstruction
from .training import TrainingBatch, training_batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """What one cue says about the data: `shares` (k,), `means` and `variances` (k, num_dims), float64."""

    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @classmethod
    def gaussian(cls, mean: np.ndarray, variance: np.ndarray) -> Mixture:
        """A single component."""
        return cls(shares=np.ones(1), means=np.atleast_2d(mean), variances=np.atleast_2d(variance))


class MixtureDenoiser(nn.Module):
    """The optimal predictions of noise and data under each cue; the means are trainable parameters, so that it can be taught."""

    def __init__(self, mixtures: Mapping[str, Mixture]) -> None:
        super().__init__()
        # Parameter names may hold neither dots nor nothing, so that cues go by their number.
        self.numbers = {cue: number for number, cue in enumerate(mixtures)}
        self.means = nn.ParameterList([nn.Parameter(torch.from_numpy(m.means).double()) for m in mixtures.values()])
        self.variances = [torch.from_numpy(m.variances).double() for m in mixtures.values()]
        self.log_shares = [torch.from_numpy(m.shares).double().log() for m in mixtures.values()]

    def forward(
        self, noisy: torch.Tensor, cue: str, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ε̂ and x̂ for rows of one cue: noisy (n, num_dims), alpha and sigma (n, 1), float64.

        x̂ is no function of ε̂ where there is no signal (alpha 0).
        """
        number = self.numbers[cue]
        alpha, sigma = alpha.unsqueeze(1), sigma.unsqueeze(1)
        spread = alpha.square() * self.variances[number] + sigma.square()  # (n, k, num_dims)
        distance = noisy.unsqueeze(1) - alpha * self.means[number]
        log_joint = self.log_shares[number] - 0.5 * (distance.square() / spread + spread.log()).sum(dim=2)
        posterior = log_joint.softmax(dim=1).unsqueeze(2)
        noise = (posterior * distance * sigma / spread).sum(dim=1)
        gain = alpha * self.variances[number] / spread
        return noise, (posterior * (self.means[number] + gain * distance)).sum(dim=1)


class ExactLearner(Learner):
    """Reads, teaches and samples mixtures of Gaussians; a cue that it does not know is read as ∅."""

    network: MixtureDenoiser
    layout = PIPELINE_LAYOUT

    def __init__(
        self, mixtures: Mapping[str, Mixture], targets: Mapping[str, np.ndarray], schedule: Schedule
    ) -> None:
        """Take the law of the data under each cue ("" among them), and each example's target by its id."""
        if NULL_CUE not in mixtures:
            raise ValueError("mixtures must hold the empty cue")
        self.schedule = schedule
        self.network = self._denoiser = MixtureDenoiser(mixtures)
        self._mixtures, self._targets = dict(mixtures), dict(targets)

    def parts(self) -> dict[str, nn.Module]:
        """The mixtures' means, under the name of a denoiser."""
        return {"unet": self._denoiser}

    @property
    def device(self) -> torch.device:
        """Where the means live."""
        return self.network.means[0].device

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raise UserError for captions of more than 77 words, as a text encoder would cut them."""
        cut = [caption for caption in captions if len(caption.split()) > 77]
        if cut:
            raise UserError(f"captions longer than 77 words: {', '.join(map(repr, cut[:5]))}; shorten them")

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """The example's vector, float32."""
        return [torch.from_numpy(np.asarray(self._targets[example.id])).float() for example in examples]

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        """The optimal output in the schedule's prediction type, float32."""
        known = np.array([cue if cue in self.network.numbers else NULL_CUE for cue in cues])
        alpha = torch.from_numpy(self.schedule.alpha[timesteps]).unsqueeze(1)
        sigma = torch.from_numpy(self.schedule.sigma[timesteps]).unsqueeze(1)
        wide = noisy.double()
        noise, clean = torch.empty_like(wide), torch.empty_like(wide)
        for cue in dict.fromkeys(known.tolist()):
            rows = torch.from_numpy(np.flatnonzero(known == cue))
            own_noise, own_clean = self.network(wide[rows], cue, alpha[rows], sigma[rows])
            noise, clean = noise.index_copy(0, rows, own_noise), clean.index_copy(0, rows, own_clean)
        return self.schedule.training_target(clean, noise, timesteps).float()

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        """Read each query's cues and ∅ on its target, with common draws; order as given."""
        return read_surprise(self, queries, draws, batch_size)

    def answer(self, questions: Sequence[Question], draws: Draws, *, batch_size: int) -> list[Answer]:
        """The candidate of the highest gain for each question (`judge`)."""
        return judge(questions, self.surprise([q.query for q in questions], draws, batch_size=batch_size))

    def reconstruct(
        self, queries: Sequence[Query], reconstruction: Reconstruction, draws: Draws, *, batch_size: int
    ) -> list[np.ndarray]:
        """‖x − x̃‖² / d of each query's target under ∅ and each cue; see `read_reconstruction`."""
        return read_reconstruction(self, queries, reconstruction, draws, batch_size=batch_size)

    def batch(
        self, items: Sequence[TrainingItem], *, seed: int, objective: Objective = PLAIN_OBJECTIVE
    ) -> tuple[list[str], TrainingBatch]:
        """Captions, and noisy targets at a uniform timestep."""
        clean = torch.stack(self.targets([item.example for item in items]))
        return [item.caption for item in items], training_batch(self.schedule, clean, items, seed, objective)

    def loss(self, batch: tuple[list[str], TrainingBatch]) -> torch.Tensor:
        """The mean squared error of the training target, per item."""
        captions, wanted = batch
        return wanted.losses(self.predict(wanted.noisy, wanted.timesteps, captions))

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        """An exact sample of each cue's law in the present means, as one row of grey pixels (−1 black, 1 white).

        Steps, guidance and batches change nothing about an exact sample.
        """
        return [self._sample(cue) for cue in cues]

    def save(self, folder: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the present means as safetensors, and the cues in their order."""
        tensors = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        write_tensors(folder / "means.safetensors", tensors, metadata)
        (folder / "cues.json").write_text(json.dumps(list(self.network.numbers)) + "\n", encoding="utf-8")

    def save_single_file(self, file: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise UserError: nothing else reads such a model."""
        raise UserError(f"{file}: a mixture of Gaussians has no checkpoint format; set save_single_file to false")

    def identity(self) -> dict[str, Any]:
        """The number of cues and of dimensions, and a fingerprint of the laws."""
        laws = [(m.shares.tolist(), m.means.tolist(), m.variances.tolist()) for m in self._mixtures.values()]
        return {
            "source": "exact",
            "num_cues": len(self._mixtures),
            "num_dims": self._mixtures[NULL_CUE].means.shape[1],
            "fingerprint": identity_seed(0, json.dumps([list(self._mixtures), laws])),
            "log_snr_range": list(self.schedule.log_snr_range),
        }

    def _sample(self, cue: Cue) -> np.ndarray:
        prompt = cue.prompt if cue.prompt in self.network.numbers else NULL_CUE
        number, law = self.network.numbers[prompt], self._mixtures[prompt]
        generator = np.random.default_rng(cue.seed)
        component = generator.choice(len(law.shares), p=law.shares)
        mean = self.network.means[number].detach().numpy()[component]
        vector = mean + np.sqrt(law.variances[component]) * generator.standard_normal(len(mean))
        grey = np.clip((vector + 1) * 127.5, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[None, :, None], 3, axis=2)
