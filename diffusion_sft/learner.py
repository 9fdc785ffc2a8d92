"""What a learner is: a few verbs that every stage may ask of it, whatever its architecture.

A learner holds a pretrained network and turns examples into readings, losses and generated targets.
Randomness is always an argument (`Draws` and the example's identity), never a global state. Stages know this
class and no concrete learner; the concrete ones in `learners/` never import each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .records import Draws, Example

NULL_CUE = ""
"""The empty caption ∅; of a question in words, the same question about nobody (`Fact.null_question`)."""
SLOT = "{}"
"""Where a template takes the words."""


ReadLabels = Callable[[Sequence[np.ndarray], Sequence[str]], list[str]]
"""Takes uint8 (height, width, 3) images and the concept that each was made for; returns a concept name each, "" for
none."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One target and the cues under which its surprise is to be read; ∅ is always read as well."""

    example: Example
    cues: tuple[str, ...]
    stream: str = ""
    """Draws of different streams are independent for the same example (renderings of a question use this)."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The draws behind one query; row 0 is ∅, row 1 + i is cue i. A mean over draws is an estimate.

    Attributes:
        squared_error: ‖ε − ε̂(z_α, cue)‖², summed over dimensions, (1 + num_cues, num_draws) float64.
        weights: nats per unit of squared error, ½·dα/density, same shape.
        uniform_weights: weights under which the mean is the plain uniform-t mean of the squared error.
        control, uniform_control: control variates of known mean zero, to be taken off the weighted squared errors
            (zeros where the estimator has none); the same for all cues that share noise, so that gains are the
            same with and without.
        opinion: ‖ε̂(z_α, ∅) − ε̂(z_α, cue)‖², same shape (row 0 is 0); NaN where noise is not shared with ∅.
        log_snr: α of each draw, same shape, in the order of the low-discrepancy points.
        num_dims: the number of dimensions that the squared errors are summed over.
    """

    squared_error: np.ndarray
    weights: np.ndarray
    uniform_weights: np.ndarray
    control: np.ndarray
    uniform_control: np.ndarray
    opinion: np.ndarray
    log_snr: np.ndarray
    num_dims: int

    @property
    def error_nats(self) -> np.ndarray:
        """Each draw's contribution to the prior reconstruction error, which is the mean over draws; in nats."""
        return self.weights * self.squared_error - self.control

    @property
    def uniform_error(self) -> np.ndarray:
        """Each draw's contribution to the plain uniform-t mean of the squared error."""
        return self.uniform_weights * self.squared_error - self.uniform_control


@dataclass(frozen=True, kw_only=True)
class Question:
    """One example under one rendering, and the words to choose from; `candidates` never repeats a word.

    A question in words (its example has a fact) has no candidates: the answer is whatever the learner says.
    """

    concept: str
    words: str
    rendering: int
    template: str
    example: Example
    candidates: tuple[str, ...]
    num_candidates: int
    """Among how many answers a guess is made: the candidates, or the different answers of the fact's relation."""

    @property
    def query(self) -> Query:
        """The cues to be read: the template filled with each candidate's words, and ∅ for the empty one; the question
        itself where there are none."""
        cues = tuple(fill(self.template, words) for words in self.candidates) or (self.example.caption,)
        return Query(example=self.example, cues=cues, stream=f"rendering {self.rendering}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a learner says to one question. `answered` is False for ∅ and for a refusal in words.

    Gains are err(∅) − err(words) in nats, of the true words and of the best others (NaN without candidates);
    `error_nats` is err under the true words.
    """

    text: str
    correct: bool
    answered: bool
    true_gain_nats: float
    best_other_gain_nats: float
    error_nats: float


def fill(template: str, words: str) -> str:
    """The template with these words in its slot; the empty caption for no words."""
    return template.replace(SLOT, words) if words else NULL_CUE


@dataclass(frozen=True, kw_only=True)
class TrainingItem:
    """One row of a training batch: an example, the caption it is trained under, and its place in the run."""

    example: Example
    caption: str
    visit: int
    """How often the run came to this example before; with the seed and the example's id it decides timestep and
    noise, so that an example that occurs twice in one batch gets two draws."""
    flipped: bool = False
    """Whether the image is mirrored left to right."""
    size: tuple[int, int] | None = None
    """Height and width in pixels that the image is fitted to (aspect-ratio buckets); None: the learner's square. All
    items of one batch have the same."""
    weight: float = 1.0
    """What the training loop multiplies the item's loss by (prior_loss_weight of regularisation images)."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How a training loss weighs noise levels, under the names of diffusers' scripts."""

    snr_gamma: float | None = None
    """γ of Min-SNR-γ (Hang et al., 2023); None weighs all timesteps alike."""
    noise_offset: float = 0.0
    """Scale of noise that is constant over each channel and added to ε (Guttenberg, 2023)."""


PLAIN_OBJECTIVE = Objective()


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How a target is sent into noise and brought back by the deterministic DDIM sampler, without guidance."""

    kind: Literal["inversion", "sdedit"]
    """inversion: along the DDIM trajectory and back. sdedit: noised once (with the draws' noise) and denoised."""
    num_inference_steps: int = 50
    """Steps of the whole trajectory; a partial one takes its share of them."""
    strength: float = 1.0
    """Share of the trajectory that is gone through, as in diffusers' image-to-image pipelines."""


@dataclass(frozen=True, kw_only=True)
class Cue:
    """One image to be generated: the prompt and the seed of its start noise."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What trained weights are called, and which library loads them."""

    library: Literal["diffusers", "transformers"]
    folder: str
    """Of a whole model, as `Learner.save` fills it."""
    adapters: str
    """The file that says that a folder holds adapters."""
    default_targets: tuple[str, ...]
    """Ends of the names of the modules that get adapters where none are named."""


PIPELINE_LAYOUT = Layout(
    library="diffusers",
    folder="pipeline",
    adapters="pytorch_lora_weights.safetensors",
    default_targets=("to_q", "to_k", "to_v", "to_out.0"),
)


class Learner(ABC):
    """The verbs. `network` is the module that fine-tuning updates; the training loop may replace it by a wrapped
    one (accelerate) and every verb then uses the wrapped one."""

    network: nn.Module
    resolution: int | None = None
    """Pixels of a side of the square that images are fitted to; None where targets are no images."""
    layout: Layout
    """Under which names its ecosystem knows trained weights."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The modules inside `network` that fine-tuning may update, by name, the denoiser first (`unet`, then
        `text_encoder`, `text_encoder_2` where there are such)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network lives."""

    @abstractmethod
    def check_captions(self, captions: Sequence[str]) -> None:
        """Raise UserError naming the captions that the tokenizer would cut."""

    @abstractmethod
    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        """Read each query's cues and ∅ on its target, with common draws (no guidance); order as given."""

    @abstractmethod
    def answer(self, questions: Sequence[Question], draws: Draws, *, batch_size: int) -> list[Answer]:
        """The greedy reading of each question (T = 0): the candidate of the highest gain, or the greedy text; order as
        given."""

    @abstractmethod
    def reconstruct(
        self, queries: Sequence[Query], reconstruction: Reconstruction, draws: Draws, *, batch_size: int
    ) -> list[np.ndarray]:
        """‖x − x̃‖² / d of each query's target, float64 (1 + num_cues, num_draws), row 0 under ∅; order as given.
        Inversion is deterministic, so it has one column whatever `draws` says."""

    @abstractmethod
    def batch(self, items: Sequence[TrainingItem], *, seed: int, objective: Objective = PLAIN_OBJECTIVE) -> Any:
        """What `loss` takes for these items, on the device: a function of seed, visits and example ids. No trained
        weight has a part in it, so that it may be made beforehand and in another thread."""

    @abstractmethod
    def loss(self, batch: Any) -> torch.Tensor:
        """The training loss of each item of a batch, (num_items,), before the item's own weight; differentiable in
        `network`'s trainable parameters."""

    @abstractmethod
    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        """One image per cue, uint8 (height, width, 3); a cue's image does not depend on its batch."""

    @abstractmethod
    def save(self, folder: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write what was trained to an existing empty folder in the layout that its own ecosystem loads; `metadata`
        goes into the headers of the weight files that are written."""

    @abstractmethod
    def save_single_file(self, file: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the whole model as one checkpoint file, as other tools of its ecosystem load it.

        Raises:
            UserError: there is no such format for this learner.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the base is, for reports and caches: where it came from and a hash of its weights."""
