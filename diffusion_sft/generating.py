"""The verb `generate`: pictures from prompts, by the pipeline's own sampler or by solving its steps side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .files import replaced
from .learner import Cue
from .learners.diffusion import DiffusionLearner
from .learners.sampling import generate_in_parallel, in_words, uses_ddim
from .locks import locked
from .machine import pick_device
from .numerics.fixed_point import Anderson, Parareal, Picard, Solver
from .ranges import MOST_STEPS, check_range
from .records import identity_seed

PICTURES_HELD = 64
"""In memory, before they are written."""


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
    solver: Literal["sequential", "picard", "anderson", "parareal"] = "sequential"
    """sequential: the pipeline's own call. The others take the steps of DDIM side by side, for the same pictures."""
    tolerance: float = 1e-3
    """Of the parallel solvers: how far from the sequential latents they may stop, relative to the noise level."""
    window: int | None = None
    """Of picard and anderson: steps that are evaluated at once; null for all, which takes the most memory."""
    eta: float = 0.0
    """Of the parallel solvers: 0 for DDIM, 1 for ancestral sampling with noises fixed by the seed."""
    batch_size: int = 16
    device: str = "auto"
    output_dir: str = "runs/generate"

    def __post_init__(self) -> None:
        if self.solver == "sequential" and self.eta:
            raise ValueError(f"eta={self.eta} needs one of the parallel solvers, for example solver=picard")
        check_range(self, "seed", least=0)
        check_range(self, "num_images", "batch_size", "window", least=1)
        check_range(self, "num_inference_steps", least=1, most=MOST_STEPS)
        check_range(self, "guidance_scale")
        check_range(self, "tolerance", least=0)
        check_range(self, "eta", least=0, most=1)
        if not self.prompts:
            raise ValueError("prompts must not be empty")
        if self.window is not None and self.solver not in ("picard", "anderson"):
            raise ValueError(f"window={self.window} belongs to solver=picard and solver=anderson")


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
    folder, size = Path(config.output_dir), max(config.batch_size, PICTURES_HELD)
    with locked(folder):
        for start in range(0, len(cues), size):
            part = cues[start : start + size]
            for number, (cue, image) in enumerate(zip(part, _pictures(learner, part, config), strict=True), start):
                path = folder / f"{number:04d}-seed{cue.seed}.png"
                with replaced(path) as temporary:
                    Image.fromarray(image).save(temporary)
                print(f"{path}  {cue.prompt!r}")
    return 0


def _pictures(learner: DiffusionLearner, cues: list[Cue], config: GenerateConfig) -> list[np.ndarray]:
    """By the pipeline's own call, or by solving its equations in parallel, with a line on how fast they closed."""
    steps, guidance, batch_size = config.num_inference_steps, config.guidance_scale, config.batch_size
    if config.solver == "sequential":
        return learner.generate(cues, num_inference_steps=steps, guidance_scale=guidance, batch_size=batch_size)
    if not uses_ddim(learner):
        name = type(learner.pipeline.scheduler).__name__
        print(f"note: the pipeline's sampler is {name}; solver={config.solver} draws by DDIM with its settings")
    solvers: dict[str, Solver] = {
        "picard": Picard(window=config.window, tolerance=config.tolerance),
        "anderson": Anderson(window=config.window, tolerance=config.tolerance),
        "parareal": Parareal(tolerance=config.tolerance),
    }
    images, solutions = generate_in_parallel(
        learner,
        cues,
        solvers[config.solver],
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=config.eta,
        batch_size=batch_size,
    )
    print(f"{config.solver}: {in_words(solutions)}")
    return images
