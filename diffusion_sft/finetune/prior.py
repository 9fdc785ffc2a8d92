"""Class images, which hold the prior while a subject is learnt (prior preservation; Ruiz et al., 2023, section 3.2).

They are the regularisation images of the set, or drawn with the base from `class_prompt`, or both. A picture's name
holds its seed, which is a function of the base, the prompt and the settings it is drawn with; so a picture that is
there already is the right one, and drawing goes on where it was stopped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from ..files import replaced
from ..learner import Cue, Learner
from ..records import REGULARISATION, Example, identity_seed
from .config import FinetuneConfig
from .grids import halving
from .mix import Mix

FOLDER = "class_images"
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 50, 7.5
"""What diffusers' DreamBooth scripts draw class images with: the defaults of its pipelines."""


def class_images(
    learner: Learner, mix: Mix, config: FinetuneConfig, folder: Path, accelerator: Accelerator
) -> tuple[Example, ...]:
    """The regularisation examples of a run; missing ones are drawn into `folder`/class_images first.

    To be called with the base's own weights, before anything is trained. The main process draws, the others wait.

    Args:
        folder: of the run.

    Returns:
        The mix's own, then drawn ones up to `num_class_images` in all; empty without either.
    """
    if config.class_prompt is None:
        return mix.regularisation
    seeds = _seeds(learner, config, max(config.num_class_images - len(mix.regularisation), 0))
    files = [folder / FOLDER / f"{number:05d}-seed{seed}.png" for number, seed in enumerate(seeds)]
    if accelerator.is_main_process:
        _draw(learner, config, {file: seed for file, seed in zip(files, seeds, strict=True) if not file.is_file()})
    accelerator.wait_for_everyone()
    drawn = [
        Example(
            id=f"{FOLDER}/{file.name}",
            concept=config.class_prompt,
            caption=config.class_prompt,
            path=file,
            split=REGULARISATION,
        )
        for file in files
    ]
    return (*mix.regularisation, *drawn)


def _seeds(learner: Learner, config: FinetuneConfig, count: int) -> list[int]:
    """The generators' seeds, 32 bits each, all different."""
    # A base that only moved to another folder is still the same base.
    base = {key: value for key, value in learner.identity().items() if key != "source"}
    drawing = [base, learner.resolution, config.class_prompt, NUM_INFERENCE_STEPS, GUIDANCE_SCALE]
    identity = identity_seed(config.seed, "class images", json.dumps(drawing, sort_keys=True, default=str))
    seeds: dict[int, None] = {}
    number = 0
    while len(seeds) < count:
        seeds[identity_seed(identity, number) % 2**32] = None
        number += 1
    return list(seeds)


def _draw(learner: Learner, config: FinetuneConfig, missing: dict[Path, int]) -> None:
    assert config.class_prompt is not None
    files, size = list(missing), config.validation_batch_size
    with tqdm(total=len(files), desc="class images", unit="image", disable=None if files else True) as bar:
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            cues = [Cue(prompt=config.class_prompt, seed=missing[file]) for file in chunk]
            images = halving(partial(_pictures, learner, cues), len(chunk))
            for file, image in zip(chunk, images, strict=True):
                with replaced(file) as temporary:
                    Image.fromarray(image).save(temporary)
            bar.update(len(chunk))


def _pictures(learner: Learner, cues: list[Cue], batch_size: int) -> list[np.ndarray]:
    return learner.generate(
        cues, num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE, batch_size=batch_size
    )
