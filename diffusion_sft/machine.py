"""What a run runs on: device, versions, and the measured speed of a learner's network."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version

import torch

from .errors import UserError
from .learner import Learner, Query
from .records import Draws, Example


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = (
        "diffusion_sft",
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "clean-fid",
        "scipy",
        "numpy",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def hardware(device: torch.device) -> dict[str, str | int]:
    """The machine in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": f"{device.type}: {name}", "threads": torch.get_num_threads(), "platform": platform.platform()}


def pick_device(name: str) -> torch.device:
    """`auto` or a torch device name; UserError when this machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from None
    return device


def evaluations_per_second(learner: Learner, example: Example, batch_size: int) -> float:
    """The network's measured speed at this batch size, after a first batch that is not counted."""
    query = Query(example=example, cues=(example.caption,))
    draws = Draws(seed=0, count=2 * max(1, batch_size // 4))
    learner.surprise([query], draws, batch_size=batch_size)
    started = time.monotonic()
    repeats = 4
    for _ in range(repeats):
        learner.surprise([query], draws, batch_size=batch_size)
    return repeats * 2 * draws.count / (time.monotonic() - started)
