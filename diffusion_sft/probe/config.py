"""How a base is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..answers import AnswerConfig
from ..learner import Reconstruction
from ..numerics.quadrature import estimator_named

STRENGTHS = {"inversion": 1.0, "sdedit": 0.8}
"""Where none is given: the whole way, and the default of diffusers' image-to-image pipelines."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The sampled reading: pictures drawn for concepts whose greedy answers were all wrong."""

    num_samples: int = 16
    """Pictures for each such concept, spread over its renderings' captions; 0 leaves the sampled reading out."""
    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    batch_size: int = 16
    """Pictures at a time."""

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.num_inference_steps < 1 or self.batch_size < 1:
            raise ValueError("num_samples must be 0 or more, num_inference_steps and batch_size at least 1")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How held-out pictures are sent into noise and brought back, where error_kind is inversion or sdedit."""

    num_inference_steps: int = 50
    """DDIM steps of the whole trajectory, without guidance."""
    strength: float | None = None
    """Share of the trajectory, as in diffusers' image-to-image pipelines; unset means 1 for inversion, 0.8 for
    sdedit."""
    num_draws: int = 8
    """Noises for each picture under sdedit, the same for all captions; inversion draws none."""

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {self.num_inference_steps}")
        if self.strength is not None and not (
            0 < self.strength <= 1 and int(self.num_inference_steps * self.strength)
        ):
            raise ValueError(
                f"strength must lie between 0 and 1 and leave at least one of {self.num_inference_steps} steps, "
                f"not {self.strength}"
            )
        if self.num_draws < 2:
            raise ValueError(f"num_draws must be at least 2 for a standard error, not {self.num_draws}")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Draws, questions and samples."""

    estimator: Literal["default", "naive", "classifier"] = "default"
    error_kind: Literal["denoise", "inversion", "sdedit"] = "denoise"
    """Which error tells known from unknown (rules error, relative, gain). denoise: of the noise prediction, over the
    trained noise levels; always measured. inversion: of DDIM inversion and back. sdedit: of noising once and denoising;
    both are measured besides, at a multiple of the cost."""
    num_draws: int = 32
    """Noise draws for each caption of each example; even for the default estimator, whose draws come in pairs."""
    seed: int = 0
    batch_size: int = 32
    """Network evaluations at a time; no result depends on it."""
    max_examples_per_concept: int | None = None
    """The first held-out examples of a concept by id; all where unset."""
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        antithetic = estimator_named(self.estimator).antithetic
        for name, count in (("num_draws", self.num_draws), ("answers.num_draws", self.answers.num_draws)):
            if count < 1 or (antithetic and count % 2):
                even = " and even (draws come in pairs ±ε)" if antithetic else ""
                raise ValueError(f"{name} must be at least 1{even}, not {count}")
        if antithetic and self.num_draws < 6:
            raise ValueError(
                f"num_draws must be at least 6 (three pairs ±ε) for a standard error, not {self.num_draws}"
            )
        if self.batch_size < 1 or (self.max_examples_per_concept is not None and self.max_examples_per_concept < 1):
            raise ValueError("batch_size and max_examples_per_concept must be at least 1")
        trip = self.round_trip
        if trip is not None and int(trip.num_inference_steps * trip.strength) < 1:
            raise ValueError(
                f"reconstruction.num_inference_steps: {trip.num_inference_steps} leaves no step of sdedit"
            )

    @property
    def round_trip(self) -> Reconstruction | None:
        """What is asked of the learner besides its denoising error; None for error_kind=denoise."""
        if self.error_kind == "denoise":
            return None
        strength = self.reconstruction.strength
        return Reconstruction(
            kind=self.error_kind,
            num_inference_steps=self.reconstruction.num_inference_steps,
            strength=STRENGTHS[self.error_kind] if strength is None else strength,
        )

    @property
    def evaluations_per_caption(self) -> int:
        """Network evaluations that the scores of one example take under one caption."""
        trip = self.round_trip
        if trip is None:
            return self.num_draws
        steps = int(trip.num_inference_steps * trip.strength)
        return self.num_draws + steps * (2 if trip.kind == "inversion" else self.reconstruction.num_draws)
