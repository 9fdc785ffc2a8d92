"""accelerate's part: device, processes, mixed precision and trackers, for the length of one run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env

from ..errors import UserError
from .config import FinetuneConfig


def process_device() -> torch.device:
    """The device that accelerate gives to this process; load the learner there before it is fine-tuned."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Without cpu=True, accelerate takes processes on a machine without a GPU for so many lone ones.
    return torch.device(PartialState(cpu=cpu).device)


@contextmanager
def accelerated(device: torch.device, config: FinetuneConfig, folder: Path) -> Iterator[Accelerator]:
    """An Accelerator on the learner's device, its trackers closed after the block.

    Raises:
        UserError: a precision or tracker that this machine does not have, or a learner on another device than the
            one that accelerate gives to this process.
    """
    if device.type == "cpu" and "fp16" in (config.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION")):
        raise UserError("mixed_precision=fp16 needs a GPU: there is no loss scaling on a CPU; use bf16 or no")
    # The state is one per interpreter; a run before this one may have left another precision in it.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to,
            project_dir=folder / "logs",
        )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"mixed_precision={config.mixed_precision}, report_to={config.report_to}: {error}") from None
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"launched as {launched} processes that do not know of each other: take the learner's device from "
            "process_device()"
        )
    if _indexed(device) != _indexed(accelerator.device):
        raise UserError(f"the learner is on {device}, this process trains on {accelerator.device}; load it there")
    if config.report_to is not None and not accelerator.log_with:
        raise UserError(f"report_to={config.report_to}: that tracker is not installed; install it or set null")
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state(reset_partial_state=False)


@contextmanager
def triggered_by_sigterm(accelerator: Accelerator) -> Iterator[None]:
    """A polite request to stop (SIGTERM, as schedulers send before they kill) sets accelerate's trigger."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _indexed(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0
