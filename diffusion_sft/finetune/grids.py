"""Validation pictures: the same prompts and seeds at every evaluation, one row of a PNG for each prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from ..files import replaced
from ..learner import Cue, Learner
from ..records import identity_seed
from .config import FinetuneConfig

T = TypeVar("T")
GAP = 2
logger = logging.getLogger(__name__)


def draw_grid(learner: Learner, config: FinetuneConfig, file: Path) -> None:
    """Generate `num_validation_images` for each validation prompt and write them as one picture.

    A device without room for even one image at a time costs the picture, not the training.
    """
    cues = [
        Cue(prompt=prompt, seed=identity_seed(config.seed, "validation", prompt, index))
        for prompt in config.validation_prompts
        for index in range(config.num_validation_images)
    ]

    def generate(batch_size: int) -> list[np.ndarray]:
        return learner.generate(
            cues,
            num_inference_steps=config.validation_inference_steps,
            guidance_scale=config.validation_guidance_scale,
            batch_size=batch_size,
        )

    try:
        images = halving(generate, config.validation_batch_size)
    except torch.cuda.OutOfMemoryError:
        logger.warning("%s: no device memory to generate validation images; going on without them", file.name)
        return
    with replaced(file) as temporary:
        Image.fromarray(tiled(images, config.num_validation_images)).save(temporary)


def tiled(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size, uint8 (height, width, 3), side by side on white with a small gap."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def halving(work: Callable[[int], T], batch_size: int) -> T:
    """Do `work(batch_size)`, with half the batch each time the device runs out of memory, down to one."""
    while True:
        try:
            return work(batch_size)
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2
        torch.cuda.empty_cache()
