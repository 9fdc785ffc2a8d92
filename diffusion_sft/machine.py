"""What a run runs on: device, versions, memory, and the measured speed of matrices and of a learner's network."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version

import torch

from .errors import UserError
from .learner import Learner, Query
from .parsing import first_line
from .records import Draws, Example

PUBLISHED_PEAKS = {"A100": 312e12, "H100": 989e12}
"""Dense bfloat16 operations a second of NVIDIA's data sheets (A100 80GB, 2021; H100 SXM, 2023)."""


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
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device={name}: no device of this machine ({first_line(error)})") from None
    if device.type == "meta":
        raise UserError(f"device={name}: holds no numbers; give cpu, cuda or auto")
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


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The device's measured floating-point operations a second in products of large square matrices of a type."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = left @ right  # also loads the library
    synchronise(device)
    count, spent, started = 0, 0.0, time.monotonic()
    while spent < seconds:
        torch.matmul(left, right, out=out)
        synchronise(device)
        count, spent = count + 1, time.monotonic() - started
    return count * 2 * side**3 / spent


def synchronise(device: torch.device) -> None:
    """Wait for what the device is at, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_memory(device: torch.device) -> int:
    """Bytes that the device has in all: of a GPU its own, of a CPU the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
