"""`checkpoint-<N>` folders: written whole or not at all, kept few, and resumed from exactly.

A folder is renamed to its name when all its files are on disk, so that the name itself says that it is complete.
Nothing random is stored: order, noise and caption dropout are functions of the seed and the update.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import UserError
from ..files import read_object, remove_folder, replaced_folder
from ..manifests import FILES, changes, read_record, told, write_record
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
LAYOUT = 3
"""Of the folder; 1 named the UNet's weights without `unet.` and had no other part, 2 listed no files."""


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
            listed = {name: _write(folder / name, *content) for name, content in files.items()}
            write_record(folder / STATE, {**inside, **state}, listed)
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
    """The content of a checkpoint's `state.json`; UserError where it was altered, or an earlier version wrote it."""
    file = checkpoint_folder(run, update) / STATE
    if read_object(file).get("layout") != LAYOUT:
        raise UserError(
            f"{file.parent}: written by another version of this program, which named weights otherwise; begin anew in "
            "another output_dir"
        )
    return read_record(file)


def checkpoint_damage(run: Path, update: int) -> str | None:
    """What was altered in a checkpoint since it was written, None where nothing was."""
    folder = checkpoint_folder(run, update)
    try:
        state = checkpoint_state(run, update)
    except UserError as error:
        return str(error)
    changed = changes(folder, state[FILES])
    return told(folder, changed) if changed else None


def evaluated_weights(run: Path, update: int, trained: Trained) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint was evaluated with (the average where there is one), in the CPU's memory; this
    process's parts where weights are sharded.

    Raises:
        UserError: the checkpoint was altered.
    """
    if (damage := checkpoint_damage(run, update)) is not None:
        raise UserError(
            f"{damage}; go back before it with resume_from_checkpoint=checkpoint-<N>, or to another output_dir"
        )

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


def rotate_checkpoints(run: Path, limit: int | None, every: int, best: int | None) -> None:
    """Remove all but the last `limit` checkpoints on schedule, the latest and the best one; folders of other origin are
    left alone.

    One off schedule that a stopped process left goes with the next, so that a run that was stopped keeps the same.
    """
    if limit is None:
        return
    *others, latest = checkpoint_updates(run) or [0]
    scheduled = [update for update in others if update % every == 0] + [latest]
    for update in others:
        if update != best and update not in scheduled[-limit:]:
            remove_folder(checkpoint_folder(run, update))


def remove_later(run: Path, update: int) -> list[int]:
    """Remove the checkpoints after `update`, to which a run goes back; returns their updates."""
    later = [other for other in checkpoint_updates(run) if other > update]
    for other in later:
        remove_folder(checkpoint_folder(run, other))
    return later


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


def _write(
    file: Path | None, tensors: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]
) -> dict[str, Any] | None:
    """Write whole tensors one after the other; without a file, only give this process's parts of them.

    Returns:
        What a manifest says of the file.

    Args:
        tensors: as they are held.
        like: what they are parts of, or they themselves.
    """
    layout: Layout = {name: (TYPES[t.dtype], tuple(like[name].shape)) for name, t in tensors.items()}
    gathered = (whole(tensors[name], like[name]) for name in file_order(layout))
    if file is not None:
        digest = write_tensor_file(file, layout, gathered)
        return {"bytes": file.stat().st_size, "sha256": digest}
    for _ in gathered:
        pass
    return None
