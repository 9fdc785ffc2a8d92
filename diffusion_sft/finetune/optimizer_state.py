"""An optimiser's state as named tensors and JSON, and back, bit for bit and without pickle.

Adafactor keeps numbers beside its tensors, Prodigy keeps its step size in the parameter groups, and the 8-bit AdamW
keeps bytes; weights go by name, so that their order means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError

GROUP = "group"
"""First part of the names of tensors that belong to a parameter group."""


def packed(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split the state into tensors, named `<kind>/<weight>` or `group/<number>/<kind>`, and the rest as JSON values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{kind}/{name}"] = value
            else:
                values.setdefault(name, {})[kind] = value
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        groups.append({})
        for kind, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{GROUP}/{number}/{kind}"] = value
            elif kind != "params":
                groups[number][kind] = value
    return tensors, {"values": values, "groups": groups}


def restore(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    rest: Mapping[str, Any],
) -> None:
    """Put back what `packed` took apart, into a fresh optimiser of the same weights.

    Raises:
        UserError: the state is of other weights or of another optimiser.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in rest["values"].items()}
    of_groups: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        first, name = key.split("/", 1)
        if first == GROUP:
            number, kind = name.split("/", 1)
            of_groups.setdefault(int(number), {})[kind] = tensor
        else:
            states.setdefault(name, {})[first] = tensor
    if states.keys() - set(order) or len(rest["groups"]) != len(optimizer.param_groups):
        raise UserError("it holds the state of other weights")
    present = optimizer.state_dict()["param_groups"]
    groups = [
        _like(now, before) | of_groups.get(number, {}) | {"params": now["params"]}
        for number, (now, before) in enumerate(zip(present, rest["groups"], strict=True))
    ]
    state = {index: states[name] for index, name in enumerate(order) if name in states}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            _lay_out(optimizer.state.get(parameter, {}), parameter)


def _lay_out(state: dict[str, Any], parameter: nn.Parameter) -> None:
    """Give tensors the order in memory that their weight has (files know none): fused kernels do not look at it."""
    for kind, value in state.items():
        if (
            isinstance(value, torch.Tensor)
            and value.shape == parameter.shape
            and value.stride() != parameter.stride()
        ):
            state[kind] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the state's tensors occupy; tensors that several weights share are counted once."""
    found = [value for state in optimizer.state.values() for value in state.values()]
    found += [value for group in optimizer.param_groups for kind, value in group.items() if kind != "params"]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found if isinstance(t, torch.Tensor)
    }
    return sum(storages.values())


def _like(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; `betas` are one."""
    return {
        kind: tuple(value) if isinstance(value, list) and isinstance(now.get(kind), tuple) else value
        for kind, value in before.items()
    }
