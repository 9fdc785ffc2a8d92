"""How a base is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..answers import AnswerConfig
from ..learner import Reconstruction
from ..numerics.quadrature import estimator_named
from ..ranges import MOST_STEPS, check_range

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
        check_range(self, "num_samples", least=0)
        check_range(self, "num_inference_steps", least=1, most=MOST_STEPS)
        check_range(self, "batch_size", least=1)
        check_range(self, "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Reading no more of a concept than its labels take, in stages of an eighth of the budget that is set.

    Errors and gains are then read with fewer draws for clear concepts (`num_draws` and their standard errors say so; the
    rules error and relative compare such means with whole ones), and a share of right samples is of those drawn.
    """

    enabled: bool = False
    confidence: float = 0.99
    """How sure it must be that the rest of the budget would leave a concept's labels as they are: its category as far as
    the greedy answers go, and known or unknown by the rule gain. Sampled readings end with a right sample, which
    settles the category."""

    def __post_init__(self) -> None:
        check_range(self, "confidence", above=0.5, below=1)


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
        check_range(self, "num_inference_steps", least=1, most=MOST_STEPS)
        check_range(self, "strength", above=0, most=1)
        if self.strength is not None and not int(self.num_inference_steps * self.strength):
            raise ValueError(
                f"strength must leave at least one of {self.num_inference_steps} steps, not {self.strength}"
            )
        check_range(self, "num_draws", least=2)  # For a standard error.


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
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        check_range(self, "seed", least=0)
        antithetic = estimator_named(self.estimator).antithetic
        if self.adaptive.enabled and not estimator_named(self.estimator).common:
            raise ValueError(
                f"adaptive.enabled compares captions under common noise, which estimator={self.estimator} lacks"
            )
        for name, count in (("num_draws", self.num_draws), ("answers.num_draws", self.answers.num_draws)):
            if count < 1 or (antithetic and count % 2):
                even = " and even (draws come in pairs ±ε)" if antithetic else ""
                raise ValueError(f"{name} must be at least 1{even}, not {count}")
        if antithetic and self.num_draws < 6:
            raise ValueError(
                f"num_draws must be at least 6 (three pairs ±ε) for a standard error, not {self.num_draws}"
            )
        check_range(self, "batch_size", "max_examples_per_concept", least=1)
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

    @property
    def concepts_per_part(self) -> int:
        """Small enough that little is lost when a run is stopped and that processes end together, large enough that
        batches are full (with `adaptive` on, also in late stages, when few questions are open)."""
        return 8 if self.adaptive.enabled else 2


@dataclass(frozen=True, kw_only=True)
class LanguageSampleConfig:
    """The sampled reading of a language model (T > 0), as published."""

    num_samples: int = 160
    """Texts for each fact whose greedy answers were all wrong, in equal shares over its renderings; 0 leaves the
    sampled reading out."""
    temperature: float = 0.5
    top_k: int = 40
    batch_size: int = 64
    """Prompts at a time."""

    def __post_init__(self) -> None:
        check_range(self, "num_samples", least=0)
        check_range(self, "top_k", "batch_size", least=1)
        check_range(self, "temperature", above=0)


@dataclass(frozen=True, kw_only=True)
class LanguageProbeConfig:
    """Prompts, questions and samples of a language model. A draw is one random set of exemplars."""

    shots: int = 4
    """Exemplars in a prompt: development facts of the same relation."""
    num_draws: int = 10
    """Exemplar sets under which the answer's likelihood is read; the first of them are the answers' renderings."""
    seed: int = 0
    batch_size: int = 128
    """Prompts at a time; no result depends on it but in its last bits."""
    max_examples_per_concept: int | None = 1
    """The first questions of a fact by id, which is the main one; more ask its paraphrases too."""
    max_answer_tokens: int = 32
    """Where an answer is cut off."""
    answers: AnswerConfig = field(default_factory=lambda: AnswerConfig(num_renderings=10, num_draws=1))
    """Of these, `num_renderings` alone says something here: the exemplar sets of the greedy reading (T = 0)."""
    samples: LanguageSampleConfig = field(default_factory=LanguageSampleConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    """Of the sampled reading alone, which then ends with the first rendering in which a sample is right."""

    def __post_init__(self) -> None:
        check_range(self, "seed", least=0)
        names = ("shots", "num_draws", "batch_size", "max_answer_tokens", "max_examples_per_concept")
        check_range(self, *names, least=1)
        if self.samples.num_samples % self.answers.num_renderings:
            raise ValueError(
                f"samples.num_samples ({self.samples.num_samples}) must be a multiple of answers.num_renderings "
                f"({self.answers.num_renderings})"
            )

    @property
    def estimator(self) -> Literal["exemplars"]:
        """Draws are independent, and the same exemplars stand before every cue."""
        return "exemplars"

    @property
    def error_kind(self) -> Literal["denoise"]:
        """The error is the likelihood itself."""
        return "denoise"

    @property
    def round_trip(self) -> None:
        """There is none."""
        return

    @property
    def samples_per_rendering(self) -> int:
        """Sampled texts in each rendering of a fact that is sampled at all."""
        return self.samples.num_samples // self.answers.num_renderings

    @property
    def evaluations_per_caption(self) -> int:
        """Prompts that the scores of one question take under one cue."""
        return self.num_draws

    @property
    def concepts_per_part(self) -> int:
        """Facts of one relation stand together, and share what is read of their exemplars."""
        return 64
