"""`checkpoint-<N>` folders: written whole or not at all, kept few, and resumed from exactly.

Nothing random is stored: order, noise and caption dropout are functions of the seed and the update.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UserError
from ..files import read_json, replaced_folder, write_json
from .average import AveragedWeights
from .parts import assert_float32

WEIGHTS, AVERAGE, OPTIMIZER, STATE = (
    "weights.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
    "state.json",
)


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
    """Write `checkpoint-<update>`: weights, average and optimiser state as safetensors, the rest as JSON."""
    with replaced_folder(checkpoint_folder(run, update)) as folder:
        save_file({name: _storable(p) for name, p in trained.parameters.items()}, folder / WEIGHTS)
        save_file(_optimizer_tensors(trained), folder / OPTIMIZER)
        if trained.average is not None:
            save_file({name: _storable(t) for name, t in trained.average.tensors.items()}, folder / AVERAGE)
        scaler = None if trained.scaler is None else trained.scaler.state_dict()
        write_json(folder / STATE, {"update": update, "scaler": scaler, **state})


def load_checkpoint(run: Path, update: int, trained: Trained) -> None:
    """Put weights, average, optimiser and loss scale back as they were after this update.

    Raises:
        UserError: a file is missing, broken, or of another network.
    """
    folder = checkpoint_folder(run, update)
    _copy_into(trained.parameters, folder / WEIGHTS)
    if trained.average is not None:
        _copy_into(trained.average.tensors, folder / AVERAGE)
    _load_optimizer(trained, folder / OPTIMIZER)
    scaler = read_json(folder / STATE)["scaler"]
    if trained.scaler is not None and scaler is not None:
        trained.scaler.load_state_dict(scaler)
    assert_float32(trained.parameters)


def evaluated_weights(run: Path, update: int, trained: Trained) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint was evaluated with (the average where there is one), on the training device."""
    file = checkpoint_folder(run, update) / (WEIGHTS if trained.average is None else AVERAGE)
    stored = _tensors(file)
    return {name: stored[name].to(p.device) for name, p in trained.parameters.items()}


def checkpoint_updates(run: Path) -> list[int]:
    """The updates of the complete checkpoints that this program wrote here, in ascending order."""
    found = []
    for path in run.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and (path / STATE).is_file() and (path / WEIGHTS).is_file():
            found.append(int(number[1]))
    return sorted(found)


def rotate_checkpoints(run: Path, limit: int | None, best: int | None) -> None:
    """Remove all but the last `limit` checkpoints and the best one; folders of other origin are left alone."""
    if limit is None:
        return
    updates = checkpoint_updates(run)
    for update in updates[:-limit]:
        if update != best:
            shutil.rmtree(checkpoint_folder(run, update))


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
        if before == value:
            continue
        grows = key == "max_train_steps" and isinstance(before, int) and before < value
        if grows and str(current["lr_scheduler"]).startswith("constant"):
            continue
        reason = f" (the {current['lr_scheduler']} schedule depends on it)" if grows else ""
        raise UserError(
            f"{run}: begun with {key}={before}, now {key}={value}{reason}; put it back, or choose another folder"
        )


def _optimizer_tensors(trained: Trained) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": _storable(value)
        for name, parameter in trained.parameters.items()
        for kind, value in trained.optimizer.state[parameter].items()
    }


def _load_optimizer(trained: Trained, file: Path) -> None:
    stored = _tensors(file)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for index, name in enumerate(trained.parameters):
        kinds = {key.split("/", 1)[0]: value for key, value in stored.items() if key.split("/", 1)[1] == name}
        if kinds:
            states[index] = kinds
    groups = trained.optimizer.state_dict()["param_groups"]
    trained.optimizer.load_state_dict({"state": states, "param_groups": groups})


@torch.no_grad()
def _copy_into(targets: Mapping[str, torch.Tensor], file: Path) -> None:
    stored = _tensors(file)
    if stored.keys() != targets.keys() or any(stored[name].shape != t.shape for name, t in targets.items()):
        raise UserError(f"{file}: holds the weights of another network; choose another folder")
    for name, target in targets.items():
        target.copy_(stored[name])


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); remove {file.parent} to go on from an earlier one"
        ) from None


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
