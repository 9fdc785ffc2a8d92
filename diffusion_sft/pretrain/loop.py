"""The loop behind every pretraining: draw, loss, backward, clip, step, average, log, save.

What happens at an update is a function of the update's number alone, so that a run stopped anywhere goes on as if it
had not been stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from ..errors import UserError
from ..files import read_object, recover_folder, replaced_folder
from ..parsing import first_line
from ..ranges import check_range


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How one network is fitted: AdamW, linear warm-up, cosine decay to zero."""

    num_updates: int
    batch_size: int
    learning_rate: float
    warmup_updates: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    checkpointing_updates: int = 500

    def __post_init__(self) -> None:
        check_range(self, "num_updates", "batch_size", "checkpointing_updates", least=1)
        check_range(self, "learning_rate", "max_grad_norm", above=0)
        check_range(self, "warmup_updates", "weight_decay", least=0)
        check_range(self, "ema_decay", least=0, below=1)


def learning_rate_at(update: int, config: FitConfig) -> float:
    """The learning rate of an update, counted from 0."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    progress = (update - config.warmup_updates) / max(1, config.num_updates - config.warmup_updates)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def fit(network: nn.Module, loss_at: Callable[[int], torch.Tensor], config: FitConfig, folder: Path) -> list[dict]:
    """Train `network` in place and leave its averaged weights in it.

    Args:
        network: holds every trainable parameter.
        loss_at: the loss of one update, from the update's number alone.
        config: optimiser and schedule.
        folder: where checkpoints go; an interrupted run found there is continued.

    Returns:
        The log: one dictionary (update, loss, grad_norm, learning_rate) per 50 updates.

    Raises:
        UserError: the loss is no longer finite; the last checkpoint stays.
    """
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    average = {name: value.detach().clone().float() for name, value in network.state_dict().items()}
    start, log, recent = _resume(folder, network, optimizer, average)
    device = parameters[0].device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if device.type != "mps" else nullcontext()
    network.train()
    bar = tqdm(
        range(start, config.num_updates), initial=start, total=config.num_updates, desc=folder.name, disable=None
    )
    for update in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(update, config)
        with autocast:
            loss = loss_at(update)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise UserError(f"{folder}: loss {loss.item()} is not finite at update {update}; lower the learning rate")
        optimizer.step()
        _update_average(average, network, min(config.ema_decay, (1 + update) / (10 + update)))
        recent.append(loss.item())
        if (update + 1) % 50 == 0:
            line = {"update": update + 1, "loss": sum(recent) / len(recent), "grad_norm": float(grad_norm)}
            log.append(line | {"learning_rate": learning_rate_at(update, config)})
            bar.set_postfix(loss=f"{line['loss']:.4f}")
            recent = []
        if (update + 1) % config.checkpointing_updates == 0 or update + 1 == config.num_updates:
            _save(folder, network, optimizer, average, {"update": update + 1, "log": log, "recent": recent})
    network.load_state_dict({name: average[name].to(value.dtype) for name, value in network.state_dict().items()})
    network.eval()
    return log


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        average[name].lerp_(value.float(), 1.0 - decay)


def _save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    state: dict[str, Any],
) -> None:
    # Copies, because weights that share memory (a language model's two embeddings) cannot be stored as they are.
    tensors = {f"network.{name}": value.contiguous().clone() for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value.contiguous() for name, value in average.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    with replaced_folder(folder) as temporary:
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))


def _resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor]
) -> tuple[int, list[dict], list[float]]:
    """The update to go on after, the log so far, and the losses since its last line."""
    recover_folder(folder)
    if not (folder / "state.json").exists():
        return 0, [], []
    try:
        tensors = load_file(folder / "state.safetensors")
        state = read_object(folder / "state.json")
        _put_back(tensors, network, optimizer, average)
        return state["update"], state["log"], state.get("recent", [])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"{folder}: its checkpoint is not of this training ({reason}); remove it to start anew"
        ) from None


def _put_back(
    tensors: dict[str, torch.Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
) -> None:
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    whole = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            whole["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(whole)
