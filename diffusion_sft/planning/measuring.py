"""How long does one unit of each kind of work take here? A short burst of each, or its operations over a matrix rate.

A burst is run at the configured batch size, or at the largest that fits into `BURST_SECONDS`; where not even a small
one does, or the base cannot be loaded here, seconds are derived: operations / (measured matrix rate · UTILISATION).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from ..finetune.config import FinetuneConfig
from ..finetune.optimizers import make_optimizer
from ..finetune.parts import trainable_parameters
from ..learner import Cue, Learner, Objective, TrainingItem
from ..learners.diffusion import DiffusionLearner
from ..machine import evaluations_per_second, matrix_rate, synchronise
from ..plan import StudyConfig
from ..records import TRAIN, Example
from ..story import chosen_dtype
from .counting import guided
from .networks import HALF, Base
from .work import Kind

UTILISATION = 0.4
"""The share of the measured matrix rate that a network is taken to reach where it is not measured."""
BURST_SECONDS, SMALL = 40.0, 4
"""The longest that a burst may take by its operations, and rows below which none is tried."""
CAPTION = "a photo"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of one unit of each kind, and how they were come by."""

    seconds: Mapping[Kind, float]
    notes: tuple[str, ...]
    matrix_rate: float
    """Floating-point operations a second."""
    training_peak: int | None = None
    """Bytes that a GPU held at most during an update of the configured batch, all together; None where not measured."""
    png_bytes: int | None = None
    """Of one drawn picture; None where none was drawn."""
    measured: frozenset[Kind] = field(default_factory=frozenset)


def kind_flops(base: Base, config: FinetuneConfig) -> dict[Kind, int]:
    """Operations of one unit of each kind of pictures' work."""
    forward = base.forward_flops
    return {
        "reading": forward,
        "training": base.training_flops(config),
        "drawing": forward,
        "encoding": base.encoding_flops,
        "decoding": base.decoding_flops,
    }


def picture_speed(config: StudyConfig, flops: Mapping[Kind, int], device: torch.device) -> Speed:
    """The speed of the diffusion half on a device."""
    dtype = chosen_dtype(config.dtype, device)
    rate = matrix_rate(device, dtype)
    derived: dict[Kind, float] = {kind: count / (rate * UTILISATION) for kind, count in flops.items()}
    how = f"derived from operations at {UTILISATION:.0%} of the matrix rate"
    if 5 * SMALL * derived["reading"] > BURST_SECONDS:
        note = f"{how}: one evaluation would take about {derived['reading']:.0f} s here, too long to be measured"
        return Speed(seconds=derived, notes=(note,), matrix_rate=rate)
    try:
        learner = _load(config, device, dtype)
    except UserError as error:
        return Speed(seconds=derived, notes=(f"{how}, because the base cannot be loaded: {error}",), matrix_rate=rate)
    with tempfile.TemporaryDirectory() as folder:
        return _measured(config, learner, derived, rate, Path(folder))


def _measured(
    config: StudyConfig, learner: DiffusionLearner, derived: Mapping[Kind, float], rate: float, folder: Path
) -> Speed:
    examples = _pictures(folder, learner.resolution)
    encoding = _timed(lambda: learner.targets(examples[1:]), learner, warm=lambda: learner.targets(examples[:1])) / 2
    batch = _fitting(config.probe.batch_size, derived["reading"])
    reading = 1 / evaluations_per_second(learner, examples[0], batch)
    drawn = _fitting(config.evaluate.batch_size, derived["drawing"] * 4 + derived["decoding"])
    drawing, decoding, png = _drawing(learner, drawn, config.evaluate.guidance_scale, folder)
    own, dtype = config.finetune, learner.dtype
    if dtype != torch.float32:
        device = learner.device
        del learner
        learner = _load(config, device, torch.float32)
    taught = _fitting(own.train_batch_size, 3 * derived["training"])
    training, peak = _training(learner, examples, replace(own, train_batch_size=taught))
    notes = (
        f"measured: reading at batch {batch}, drawing at batch {drawn}, an update of {own.method} at batch {taught}"
        + ("" if taught == own.train_batch_size else f" (configured: {own.train_batch_size})"),
    )
    seconds: dict[Kind, float] = {
        "reading": reading,
        "training": training,
        "drawing": drawing,
        "encoding": encoding,
        "decoding": decoding,
    }
    whole = peak if taught == own.train_batch_size else None
    return Speed(
        seconds=seconds,
        notes=notes,
        matrix_rate=rate,
        training_peak=whole,
        png_bytes=png,
        measured=frozenset(seconds),
    )


def _load(config: StudyConfig, device: torch.device, dtype: torch.dtype) -> DiffusionLearner:
    return DiffusionLearner.load(
        config.base,
        revision=config.revision,
        variant=config.variant,
        single_file_config=config.single_file_config,
        device=device,
        dtype=dtype,
        resolution=config.resolution,
    )


def _pictures(folder: Path, side: int) -> list[Example]:
    """Three pictures of noise, since no speed hangs on what is seen."""
    examples = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        examples.append(Example(id=path.name, concept=CAPTION, caption=CAPTION, path=path, split=TRAIN))
    return examples


def _fitting(batch_size: int, seconds_each: float) -> int:
    """The batch size, halved until a burst of five batches is short enough."""
    while batch_size > SMALL and 5 * batch_size * seconds_each > BURST_SECONDS:
        batch_size //= 2
    return batch_size


def _drawing(learner: DiffusionLearner, count: int, guidance_scale: float, folder: Path) -> tuple[float, float, int]:
    """Seconds of one evaluation of the sampler and of decoding one image, from bursts of 2 and of 6 steps; the size of
    a drawn picture as PNG."""
    cues = [Cue(prompt=CAPTION, seed=number) for number in range(count)]
    images: list[np.ndarray] = []

    def draw(steps: int) -> float:
        def burst() -> None:
            images[:] = learner.generate(
                cues, num_inference_steps=steps, guidance_scale=guidance_scale, batch_size=count
            )

        return _timed(burst, learner, warm=burst if steps == 2 else None)

    short, long = draw(2), draw(6)
    step = max(long - short, 0.0) / 4
    file = folder / "drawn.png"
    Image.fromarray(images[0]).save(file)
    return step / (count * guided(guidance_scale)), max(short - 2 * step, 0.0) / count, file.stat().st_size


def _training(learner: DiffusionLearner, examples: list[Example], config: FinetuneConfig) -> tuple[float, int | None]:
    """Seconds of one trained example, the optimiser's share included, and the peak of memory on a GPU. The learner is
    used up."""
    device = learner.device
    parameters = trainable_parameters(learner.parts(), config)
    optimizer = make_optimizer(parameters, config)
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    objective = Objective(snr_gamma=config.snr_gamma, noise_offset=config.noise_offset)
    items = [
        TrainingItem(example=examples[number % len(examples)], caption=CAPTION, visit=number)
        for number in range(config.train_batch_size)
    ]
    learner.network.train()

    def micro_batch() -> None:
        autocast = torch.autocast(device.type, dtype=HALF[precision]) if precision in HALF else nullcontext()
        with autocast:
            loss = learner.loss(learner.batch(items, seed=config.seed, objective=objective)).mean()
        loss.backward()

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    micro_batch()
    step()
    back = min(_timed(micro_batch, learner) for _ in range(2))
    stepping = _timed(step, learner)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return (back + stepping / config.gradient_accumulation_steps) / len(items), peak


def _timed(function: Callable[[], object], learner: Learner, warm: Callable[[], object] | None = None) -> float:
    if warm is not None:
        warm()
    synchronise(learner.device)
    started = time.monotonic()
    function()
    synchronise(learner.device)
    return time.monotonic() - started
