"""`checkpoint-<N>` folders: written whole or not at all, kept few, and resumed from exactly.

A folder is renamed to its name when all its files are on disk, so that the name itself says that it is complete.
Nothing random is stored: order, noise and caption dropout are functions of the seed and the update.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import UserError
from ..files import read_object, remove_folder, replaced_folder, write_json
from ..processes import is_main
from ..tensor_files import TYPES, Layout, file_order, write_tensor_file
from .average import AveragedWeights
from .optimizer_state import packed, restore
from .parts import assert_float32
from .sharding import own_part, sharded_as, whole

T = TypeVar("T")
WEIGHTS, AVERAGE, OPTIMIZER, STATE = (
    "weights.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
    "state.json",
)
LAYOUT = 2
"""Of the folder; 1 named the UNet's weights without `unet.` and had no other part."""
FREE = (
    "resume_from_checkpoint",
    "report_to",
    "tracker_project_name",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "max_nonfinite_steps",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
    "save_single_file",
)
"""Settings that change nothing about the numbers of a run, and may be others when it goes on."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Everything that training changes."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: AveragedWeights | None
    scaler: torch.amp.GradScaler | None


def checkpoint_folder(run: Path, update: int) -> Path:
    """Where the checkpoint of this update is."""
    return run / f"checkpoint-{update}"


def save_checkpoint(run: Path, update: int, trained: Trained, state: Mapping[str, Any]) -> None:
    """Write `checkpoint-<update>`: weights, average and optimiser state as safetensors, the rest as JSON.

    The files hold whole tensors, so that they say nothing of processes. Where weights are sharded, every process must
    come here and gives its parts; the main one writes.

    Raises:
        UserError: a folder of this name is there that this program did not write, or the disk is full.
    """
    target = checkpoint_folder(run, update)
    if target in foreign_folders(run):
        raise UserError(f"{target}: is there and is no checkpoint of this program; move it away or change output_dir")
    tensors, rest = packed(trained.optimizer, trained.parameters)
    average = trained.average
    inside = {
        "layout": LAYOUT,
        "update": update,
        "scaler": None if trained.scaler is None else trained.scaler.state_dict(),
        "average_count": None if average is None else average.count,
        "optimizer": rest,
    }
    files = {WEIGHTS: (trained.parameters, trained.parameters), OPTIMIZER: (tensors, tensors)}
    if average is not None:
        files[AVERAGE] = (average.tensors, trained.parameters)
    if not is_main():
        for content in files.values():
            _write(None, *content)
        return
    try:
        with replaced_folder(target) as folder:
            for name, content in files.items():
                _write(folder / name, *content)
            write_json(folder / STATE, {**inside, **state})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written ({error}); free some space and run again to go on") from None


def load_checkpoint(run: Path, update: int, trained: Trained) -> dict[str, Any]:
    """Put weights, average, optimiser and loss scale back as they were after this update, each process its own parts.

    Returns:
        The content of `state.json`.

    Raises:
        UserError: a file is missing, broken, of another network, or of an earlier version of this program.
    """
    folder = checkpoint_folder(run, update)
    state = checkpoint_state(run, update)
    _copy_into(trained.parameters, trained.parameters, folder / WEIGHTS)
    if trained.average is not None:
        _copy_into(trained.average.tensors, trained.parameters, folder / AVERAGE)
        trained.average.count = state["average_count"]

    def sharded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        weight = trained.parameters.get(name.split("/", 1)[1])
        return tensor if weight is None else sharded_as(tensor, weight)

    tensors = _tensors(folder / OPTIMIZER, sharded)
    try:
        restore(trained.optimizer, trained.parameters, tensors, state["optimizer"])
    except (UserError, ValueError) as error:
        raise UserError(f"{folder / OPTIMIZER}: {error}; choose another output_dir") from None
    if trained.scaler is not None and state["scaler"] is not None:
        trained.scaler.load_state_dict(state["scaler"])
    assert_float32(trained.parameters)
    return state


def checkpoint_state(run: Path, update: int) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`; UserError where an earlier version of this program wrote it."""
    file = checkpoint_folder(run, update) / STATE
    state = read_object(file)
    if state.get("layout") != LAYOUT:
        raise UserError(
            f"{file.parent}: written by another version of this program, which named weights otherwise; begin anew in "
            "another output_dir"
        )
    return state


def evaluated_weights(run: Path, update: int, trained: Trained) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint was evaluated with (the average where there is one), in the CPU's memory; this
    process's parts where weights are sharded."""

    def part(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return own_part(sharded_as(tensor, trained.parameters[name])).cpu()

    stored = _tensors(checkpoint_folder(run, update) / (WEIGHTS if trained.average is None else AVERAGE), part)
    return {name: stored[name] for name in trained.parameters}


def checkpoint_updates(run: Path) -> list[int]:
    """The updates of the complete checkpoints that this program wrote here, in ascending order."""
    found = []
    for path in run.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and (path / STATE).is_file() and (path / WEIGHTS).is_file():
            found.append(int(number[1]))
    return sorted(found)


def foreign_folders(run: Path) -> list[Path]:
    """Folders with a checkpoint's name that hold no whole checkpoint of this program, and are not to be touched."""
    ours = set(checkpoint_updates(run))
    named = ((path, re.fullmatch(r"checkpoint-(\d+)", path.name)) for path in sorted(run.glob("checkpoint-*")))
    return [path for path, number in named if number and int(number[1]) not in ours]


def rotate_checkpoints(run: Path, limit: int | None, best: int | None) -> None:
    """Remove all but the last `limit` checkpoints and the best one; folders of other origin are left alone."""
    if limit is None:
        return
    updates = checkpoint_updates(run)
    for update in updates[:-limit]:
        if update != best:
            remove_folder(checkpoint_folder(run, update))


def chosen_update(run: Path, resume_from_checkpoint: str) -> int:
    """The update to go on after, by the setting of that name; 0 for a new run.

    Raises:
        UserError: no such checkpoint, or a new run is asked for in a folder that is not empty.
    """
    updates = checkpoint_updates(run)
    if resume_from_checkpoint == "latest":
        return max(updates, default=0)
    if resume_from_checkpoint == "none":
        if run.is_dir() and any(run.iterdir()):
            raise UserError(
                f"{run}: is not empty, and resume_from_checkpoint=none begins a new run; set "
                f"output_dir={_free_name(run)}, or resume_from_checkpoint=latest to go on"
            )
        return 0
    number = re.fullmatch(r"(?:checkpoint-)?(\d+)", Path(resume_from_checkpoint).name)
    if number is None or int(number[1]) not in updates or not _inside(resume_from_checkpoint, run):
        there = ", ".join(f"checkpoint-{update}" for update in updates) or "no checkpoint"
        raise UserError(
            f"resume_from_checkpoint={resume_from_checkpoint}: not in {run}, which has {there}; or say latest or none"
        )
    return int(number[1])


def remove_later(run: Path, update: int) -> list[int]:
    """Remove the checkpoints after `update`, to which a run goes back; returns their updates."""
    later = [other for other in checkpoint_updates(run) if other > update]
    for other in later:
        remove_folder(checkpoint_folder(run, other))
    return later


def remove_unfinished(run: Path) -> None:
    """Remove the temporary folders of checkpoints that a killed process left half-written."""
    for path in run.glob(".checkpoint-*"):
        if re.fullmatch(r"\.checkpoint-\d+(\.old)?\.\w+", path.name):
            shutil.rmtree(path)


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """Raise UserError naming what changed since the checkpoints in `run` were begun.

    Only `max_train_steps` may grow, and only under a schedule that does not depend on it: otherwise the updates
    already made would not be those of the run that is asked for.
    """
    for key, value in current.items():
        before = stored.get(key)
        if before == value or key in FREE:
            continue
        grows = key == "max_train_steps" and isinstance(before, int) and before < value
        if grows and str(current["lr_scheduler"]).startswith("constant"):
            continue
        reason = f" (the {current['lr_scheduler']} schedule depends on it)" if grows else ""
        raise UserError(
            f"{run}: begun with {key}={before}, now {key}={value}{reason}; put it back, or choose another folder"
        )


def _free_name(run: Path) -> Path:
    """The first of run-2, run-3, ... that is not there."""
    number = 2
    while (found := run.with_name(f"{run.name}-{number}")).exists():
        number += 1
    return found


def _inside(name: str, run: Path) -> bool:
    """Whether a name without folders, or a path of a folder in `run`."""
    path = Path(name)
    return path.name == name or path.resolve().parent == run.resolve()


@torch.no_grad()
def _copy_into(targets: Mapping[str, torch.Tensor], weights: Mapping[str, nn.Parameter], file: Path) -> None:
    """Fill the targets, which are the weights or parts of them, one at a time."""
    shapes = {name: tuple(weights[name].shape) for name in targets}
    if _shapes(file) != shapes:
        raise UserError(f"{file}: holds the weights of another network; choose another folder")

    def fill(name: str, tensor: torch.Tensor) -> None:
        own_part(targets[name]).copy_(own_part(sharded_as(tensor, weights[name])))

    _tensors(file, fill)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _opened(file) as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def _tensors(file: Path, made_of: Callable[[str, torch.Tensor], T]) -> dict[str, T]:
    """What is made of each tensor of a file and its name; one tensor is read at a time."""
    with _opened(file) as stored:
        return {name: made_of(name, stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); remove {file.parent} to go on from an earlier one"
        ) from None


def _write(file: Path | None, tensors: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> None:
    """Write whole tensors one after the other; without a file, only give this process's parts of them.

    Args:
        tensors: as they are held.
        like: what they are parts of, or they themselves.
    """
    layout: Layout = {name: (TYPES[t.dtype], tuple(like[name].shape)) for name, t in tensors.items()}
    gathered = (whole(tensors[name], like[name]) for name in file_order(layout))
    if file is not None:
        write_tensor_file(file, layout, gathered)
    else:
        for _ in gathered:
            pass
