"""What is solved, for how many concepts, and under which budgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..ranges import MOST_STEPS, check_range


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """S1: generation with all unknowns at once."""

    num_renderings: int = 4
    """Questions for each concept, in renderings that decided no category; 0 leaves S1 out."""
    num_starts: int = 2
    """Random starts of each: noises, or guessed tokens."""
    recover: bool = True
    """Whether to ask how much of an answer must be given before the base completes it."""

    def __post_init__(self) -> None:
        check_range(self, "num_renderings", least=0)
        check_range(self, "num_starts", least=1)


@dataclass(frozen=True, kw_only=True)
class PictureGenerationConfig(GenerationConfig):
    """S1 of a diffusion model: Picard sweeps over a DDIM sampler."""

    num_renderings: int = 2
    """Questions for each concept, in renderings that decided no category; 0 leaves S1 out."""
    num_starts: int = 1
    """Random noises of each."""
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    tolerance: float = 1.0e-3
    """What the residuals of all equations may add up to, relative to the noise level."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "num_inference_steps", least=1, most=MOST_STEPS)
        check_range(self, "guidance_scale")
        check_range(self, "tolerance", above=0)


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """S2: the weights are fixed, the input is solved for."""

    concepts_per_category: int = 0
    """How many of the chosen concepts of each category; 0 leaves S2 out."""
    num_starts: int = 3
    """Random starts of each."""
    num_steps: int = 100
    """The budget of each start."""
    num_vectors: int | None = None
    """k free vectors; unset means as many as the name has tokens."""

    def __post_init__(self) -> None:
        check_range(self, "concepts_per_category", least=0)
        check_range(self, "num_starts", "num_steps", "num_vectors", least=1)


@dataclass(frozen=True, kw_only=True)
class PictureInputsConfig(InputsConfig):
    """S2 of a diffusion model: textual inversion."""

    num_steps: int = 40
    """The budget of each start."""
    num_draws: int = 16
    """Noise levels and noises that an input is solved for; as many others tell whether it holds beyond them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "num_draws", least=1)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """S3: the inputs are fixed, a change of the weights is solved for, linearised at the base."""

    subset: Literal["none", "all", "cross_attention", "lora"] = "none"
    """The weights that may change; none leaves S3 out, which takes hundreds of products with J."""
    rank: int = 4
    """Of the adapters, where subset is lora."""
    examples_per_category: int = 16
    """One training example of each of so many concepts; the same number for every category, since residuals depend
    on it."""
    num_known: int = 16
    """Held-out examples of known concepts that should not move."""
    num_steps: int = 20
    """Krylov steps, each a product with J and one with its transpose."""
    known_weight: float = 1.0
    """μ of min ‖J_new δ − r‖² + μ ‖J_known δ‖²."""
    forecast_steps: list[int] = field(default_factory=lambda: [10])
    """After how many Krylov steps the δ is taken that fine-tuning runs are forecast with; none leaves that out."""
    max_forecast_examples: int = 256
    """Training examples of a mix that its forecast is solved on, the same share of every concept."""
    batch_size: int = 32
    """Rows of the network at a time."""

    def __post_init__(self) -> None:
        check_range(self, "rank", "examples_per_category", "num_known", "max_forecast_examples", least=1)
        check_range(self, "num_steps", "batch_size", "forecast_steps", least=1)
        check_range(self, "known_weight", least=0)


@dataclass(frozen=True, kw_only=True)
class PictureWeightsConfig(WeightsConfig):
    """S3 of a diffusion model: its equations are noise predictions."""

    num_draws: int = 4
    """Noise levels and noises of each example."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_draws < 2 or self.num_draws % 2:
            raise ValueError(f"num_draws must be even (draws come in pairs ±ε), not {self.num_draws}")


@dataclass(frozen=True, kw_only=True)
class TextWeightsConfig(WeightsConfig):
    """S3 of a language model: its equations are margins of the answer's tokens."""

    margin: float = 2.0
    """By how many nats each token's logit should lead all others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset == "cross_attention":
            raise ValueError("subset=cross_attention: a language model has none; use all or lora")
        check_range(self, "margin", above=0)


@dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """Common to both learners."""

    seed: int = 0
    concepts_per_category: int | None = 24
    """How many concepts of each category are solved; null means all."""
    batch_size: int = 64
    """Rows of the network at a time."""
    num_permutations: int = 9999
    """Behind the p-value of category against solution class."""

    def __post_init__(self) -> None:
        check_range(self, "seed", least=0)
        check_range(self, "concepts_per_category", "batch_size", "num_permutations", least=1)


@dataclass(frozen=True, kw_only=True)
class PictureSolveConfig(SolveConfig):
    """The systems of a diffusion model."""

    concepts_per_category: int | None = 8
    """How many concepts of each category are solved; null means all."""
    generation: PictureGenerationConfig = field(default_factory=PictureGenerationConfig)
    inputs: PictureInputsConfig = field(default_factory=PictureInputsConfig)
    weights: PictureWeightsConfig = field(default_factory=PictureWeightsConfig)


@dataclass(frozen=True, kw_only=True)
class TextSolveConfig(SolveConfig):
    """The systems of a language model."""

    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(num_renderings=10))
    inputs: InputsConfig = field(default_factory=InputsConfig)
    weights: TextWeightsConfig = field(default_factory=TextWeightsConfig)
