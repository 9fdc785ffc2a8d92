"""accelerate's part: device, processes, mixed precision and trackers, for the length of one run."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import UserError
from ..files import write_text
from ..parsing import first_line
from ..settings import settings_dict
from .config import FinetuneConfig
from .sharding import ASKED, check_sharding

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


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
        with _not_sharding():
            accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=config.mixed_precision,
                gradient_accumulation_steps=config.gradient_accumulation_steps,
                log_with=config.report_to,
                project_dir=folder / "logs",
            )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"mixed_precision={config.mixed_precision}, report_to={config.report_to}: {error}") from None
    check_sharding(config, accelerator.mixed_precision)
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
def arithmetic(config: FinetuneConfig) -> Iterator[None]:
    """`deterministic` and `allow_tf32` hold inside the block; what torch was set to before holds after it.

    With deterministic kernels alone, torch raises where an operation has none; cuBLAS needs a fixed workspace for them.
    """
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = (cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    workspace = os.environ.get(WORKSPACE)
    cuda.matmul.allow_tf32 = cudnn.allow_tf32 = config.allow_tf32
    if config.deterministic:
        os.environ[WORKSPACE] = workspace or ":4096:8"
        cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        if config.deterministic and workspace is None:
            os.environ.pop(WORKSPACE, None)


def start_trackers(accelerator: Accelerator, config: FinetuneConfig, folder: Path, after: int) -> None:
    """Begin the tracker's record of this run, with all settings in it.

    TensorBoard is told to forget what a killed process wrote after the update that is gone on from, so that no update
    is shown twice. Weights & Biases takes up the record again when the run goes on: its id is kept in `logs/wandb_id`;
    it leaves out the updates that it has. Without an account, WANDB_MODE=offline writes it to `logs/wandb`.

    Args:
        after: the update that the run goes on from; 0 for one that begins.

    Raises:
        UserError: the tracker does not start (no account, no network).
    """
    options: dict[str, dict[str, Any]] = {}
    if config.report_to == "wandb":
        options["wandb"] = _wandb_options(accelerator, folder)
    elif config.report_to == "tensorboard":
        # Update 0 has a point of its own: the evaluation of the base.
        options["tensorboard"] = {"purge_step": after + 1 if after else 0}
    try:
        accelerator.init_trackers(config.tracker_project_name, _flat(settings_dict(config)), options)
    except Exception as error:  # Trackers are other people's programs, with errors of any kind.
        reason = first_line(error)
        offline = " (WANDB_MODE=offline needs no account)" if config.report_to == "wandb" else ""
        raise UserError(f"report_to={config.report_to}: {reason}{offline}; or set report_to=null") from error


@contextmanager
def _not_sharding() -> Iterator[None]:
    """accelerate does not see that sharding is asked for, which `sharding` does."""
    asked = os.environ.pop(ASKED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[ASKED] = asked


def _wandb_options(accelerator: Accelerator, folder: Path) -> dict[str, str]:
    file = folder / "logs" / "wandb_id"
    if accelerator.is_main_process and not file.is_file():
        write_text(file, uuid.uuid4().hex)
    identity = file.read_text(encoding="utf-8").strip() if accelerator.is_main_process else ""
    return {"dir": str(folder / "logs"), "name": folder.resolve().name, "id": identity, "resume": "allow"}


def _flat(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Trackers take plain values alone; others go as JSON."""
    plain = (bool, int, float, str)
    return {name: value if isinstance(value, plain) else json.dumps(value) for name, value in settings.items()}


def _indexed(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0
