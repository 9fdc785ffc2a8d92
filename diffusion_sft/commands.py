"""The verbs that are not stages of a study: world, pretrain, finetune, generate, doctor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .concepts import read_concept_set
from .errors import UserError
from .files import read_table, replaced
from .finetune.acceleration import process_device
from .finetune.command import FinetuneCommandConfig
from .finetune.evaluations import make_exam
from .finetune.loop import finetune
from .finetune.mixes import compose
from .learner import Cue
from .learners.diffusion import DiffusionLearner
from .machine import hardware, pick_device, versions
from .pretrain.run import PretrainConfig, pretrain
from .records import identity_seed
from .world.population import WorldConfig
from .world.write import write_world


@dataclass(frozen=True, kw_only=True)
class WorldCommandConfig(WorldConfig):
    """Where the world is written, besides what it is."""

    output_dir: str = "runs/world"


@dataclass(frozen=True, kw_only=True)
class PretrainCommandConfig(PretrainConfig):
    """Where the base is trained, besides how."""

    output_dir: str = "runs/pretrain"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to draw, with what."""

    pretrained_model_name_or_path: str = "data/world-base"
    revision: str | None = None
    variant: str | None = None
    lora: str | None = None
    """A `pytorch_lora_weights.safetensors` to put on the UNet."""
    prompts: list[str] = field(default_factory=lambda: ["a photo of a red striped star"])
    num_images: int = 4
    """Pictures of each prompt."""
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    batch_size: int = 16
    device: str = "auto"
    output_dir: str = "runs/generate"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to try."""

    pretrained_model_name_or_path: str = "data/world-base"
    device: str = "auto"


def run_world(config: WorldCommandConfig) -> int:
    """Write the world."""
    folder = write_world(Path(config.output_dir), config)
    print(f"world: {folder} (an ImageFolder with metadata.jsonl)")
    return 0


def run_pretrain(config: PretrainCommandConfig) -> int:
    """Train a base, or go on with one."""
    folder = pretrain(config, Path(config.output_dir))
    print(f"base: {folder / 'pipeline'}; readout: {folder / 'readout'}")
    return 0


def run_finetune(config: FinetuneCommandConfig) -> int:
    """Fine-tune on a folder of captioned images, or on a mix of its buckets."""
    if not config.pretrained_model_name_or_path:
        raise UserError("pretrained_model_name_or_path is empty: give a pipeline folder or a Hub id")
    result = read_concept_set(config.concepts)
    for note in (*result.notes, *(str(problem) for problem in result.problems)):
        print(f"note: {note}")
    labels = read_table(Path(config.concepts_table)) if config.concepts_table else None
    mix = compose(config.mix, labels, result.concept_set, config.seed)
    exam = make_exam(mix, labels, result.concept_set, config, config.answers)
    learner = DiffusionLearner.load(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        device=process_device(),
        resolution=config.resolution,
    )
    folder = Path(config.output_dir)
    summary = finetune(learner, mix, exam, config, folder)
    print(f"{folder}: {summary['updates']} updates on {len(mix.examples)} images of {len(mix.categories)} concepts")
    return 0


def run_generate(config: GenerateConfig) -> int:
    """Draw and save, one PNG per picture; the file name holds the seed that plain diffusers takes."""
    learner = DiffusionLearner.load(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        device=pick_device(config.device),
        lora=Path(config.lora) if config.lora else None,
    )
    learner.check_captions(config.prompts)
    cues = [
        Cue(prompt=prompt, seed=identity_seed(config.seed, "generate", prompt, index) % 2**32)
        for prompt in config.prompts
        for index in range(config.num_images)
    ]
    images = learner.generate(
        cues,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    for number, (cue, image) in enumerate(zip(cues, images, strict=True)):
        path = Path(config.output_dir) / f"{number:04d}-seed{cue.seed}.png"
        with replaced(path) as temporary:
            Image.fromarray(image).save(temporary)
        print(f"{path}  {cue.prompt!r}")
    return 0


def run_doctor(config: DoctorConfig) -> int:
    """Print what this installation is, and draw one picture."""
    device = pick_device(config.device)
    for name, text in (versions() | hardware(device)).items():
        print(f"{name:14} {text}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"{'free disk':14} {free:.0f} GiB{'' if free > 10 else '  (low: checkpoints of SD 1.5 take 10 GiB each)'}")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        print(f"{'GPU memory':14} {memory:.0f} GiB")
    learner = DiffusionLearner.load(config.pretrained_model_name_or_path, device=device)
    cue = Cue(prompt="", seed=0)
    image = learner.generate([cue], num_inference_steps=2, guidance_scale=1.0, batch_size=1)[0]
    print(f"{'base':14} {config.pretrained_model_name_or_path}: loads and draws {image.shape[1]}x{image.shape[0]}")
    return 0


SCHEMAS: dict[str, type] = {
    "world": WorldCommandConfig,
    "pretrain": PretrainCommandConfig,
    "finetune": FinetuneCommandConfig,
    "generate": GenerateConfig,
    "doctor": DoctorConfig,
}
VERBS: dict[str, Callable[[Any], int]] = {
    "world": run_world,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "generate": run_generate,
    "doctor": run_doctor,
}
