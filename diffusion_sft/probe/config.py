"""How a base is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..answers import AnswerConfig
from ..numerics.quadrature import estimator_named


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
class ProbeConfig:
    """Draws, questions and samples."""

    estimator: Literal["default", "naive", "classifier"] = "default"
    error_kind: Literal["denoise"] = "denoise"
    """What is measured: the denoising error over the trained noise levels."""
    num_draws: int = 32
    """Noise draws for each caption of each example; even for the default estimator, whose draws come in pairs."""
    seed: int = 0
    batch_size: int = 32
    """Network evaluations at a time; no result depends on it."""
    max_examples_per_concept: int | None = None
    """The first held-out examples of a concept by id; all where unset."""
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
