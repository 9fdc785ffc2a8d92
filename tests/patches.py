"""Support for the evaluation's tests: a learner that draws noisy patches of one colour, and sets of such patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from diffusion_sft.evaluate import Extractor
from diffusion_sft.evaluate.generation import slug
from diffusion_sft.learner import (
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
from diffusion_sft.records import Concept, ConceptSet, Draws, Example, identity_seed

SIDE = 8


class PatchLearner(Learner):
    """Draws a patch of a prompt's own colour, shifted by `shift`, with the seed's noise."""

    def __init__(self, shift: float = 0.0) -> None:
        self.network = nn.Identity()
        self.shift = shift
        self.asked: list[Cue] = []

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.network}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def check_captions(self, captions: Sequence[str]) -> None:
        pass

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        raise NotImplementedError

    def answer(self, questions: Sequence[Question], draws: Draws, *, batch_size: int) -> list[Answer]:
        raise NotImplementedError

    def reconstruct(
        self, queries: Sequence[Query], reconstruction: Reconstruction, draws: Draws, *, batch_size: int
    ) -> list[np.ndarray]:
        raise NotImplementedError

    def batch(self, items: Sequence[TrainingItem], *, seed: int, objective: Objective = PLAIN_OBJECTIVE) -> Any:
        raise NotImplementedError

    def loss(self, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        self.asked += cues
        return [patch(cue.prompt, cue.seed, self.shift) for cue in cues]

    def save(self, folder: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        raise NotImplementedError

    def save_single_file(self, file: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"source": "patches", "shift": self.shift}


def patch(prompt: str, seed: int, shift: float = 0.0) -> np.ndarray:
    digest = hashlib.sha256(prompt.encode()).digest()
    colour = np.array([60 + byte % 120 for byte in digest[:3]]) + shift
    noise = np.random.default_rng(seed).normal(0, 25, (SIDE, SIDE, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def make_set(root: Path, names: Sequence[str], counts: dict[str, int]) -> ConceptSet:
    examples = []
    for name in names:
        for split, count in counts.items():
            for index in range(count):
                path = root / split / f"{slug(name)}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(patch(f"a photo of a {name}", identity_seed(1, name, split, index))).save(path)
                identity = path.relative_to(root).as_posix()
                caption = f"a photo of a {name}"
                examples.append(Example(id=identity, concept=name, caption=caption, path=path, split=split))
    concepts = tuple(Concept(name=name, words=name) for name in names)
    return ConceptSet(concepts=concepts, examples=tuple(examples))


def pixel_extractor(num_dims: int = 24) -> Extractor:
    """A fixed random projection of the pixels: a space in which the noise has full rank."""
    project = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, num_dims)) / 2000

    def function(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([image.reshape(-1) for image in images]).astype(np.float64) @ project

    return Extractor(name="pixels", resize="none", weights_sha256="ab" * 32, function=function)


NAMES = ["blorp", "wug", "dax", "fep"]
