"""A moving average of the weights (EMA), and weights lent to the network for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from .sharding import is_sharded, own_part, total


class AveragedWeights:
    """avg_n = avg_{n-1} + share_n · (θ_u − avg_{n-1}) at every k-th update u, where n counts these.

    share_n = max(1/n, 1 − (1 − 1/horizon)^k): a plain mean first, then an exponential one that forgets with the same
    time constant in updates whatever k is. float32, beside the live weights or in the CPU's memory; the starting
    weights have no share in it. Of sharded weights each process averages its own part.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        horizon: int,
        every: int = 1,
        device: torch.device | None = None,
    ):
        """Start from a copy of the weights on `device`; None: each beside its live weight."""
        self.parameters = dict(parameters)
        self.horizon, self.every = horizon, every
        self.count = 0
        """How many times the average has moved."""
        self.tensors = {
            name: own_part(p).to(device or p.device, torch.float32, copy=True) for name, p in self.parameters.items()
        }
        """Plain tensors, whole or parts as their weights are."""

    @property
    def decay(self) -> float:
        """The share of the old average that was kept at the last move; 0 before and at the first."""
        if self.count == 0:
            return 0.0
        return 1.0 - max(1.0 / self.count, 1.0 - (1.0 - 1.0 / self.horizon) ** self.every)

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Move towards the weights that stand after update number `update` (from 1), where it is one of the k-th."""
        if update % self.every:
            return
        self.count += 1
        for name, parameter in self.parameters.items():
            average = self.tensors[name]
            average.lerp_(own_part(parameter).to(average.device), 1.0 - self.decay)

    @torch.no_grad()
    def distance(self) -> float:
        """‖avg − θ‖ / ‖θ‖ over all trained weights; 0 for ever would mean a dead average."""
        return relative_distance(self.parameters, self.tensors)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The network holds the average inside the block and its own weights, bit for bit, after it."""
        with lent(self.parameters, self.tensors):
            yield


@torch.no_grad()
def relative_distance(parameters: Mapping[str, nn.Parameter], others: Mapping[str, torch.Tensor]) -> float:
    """‖others − θ‖ / ‖θ‖ over all tensors, from float32 sums; the others are plain, parts where θ is sharded."""
    gaps = [(others[name].to(p.device) - own_part(p)).square().sum() for name, p in parameters.items()]
    sizes = [own_part(p).square().sum() for p in parameters.values()]
    gap, size = total(torch.stack([torch.stack(gaps).sum(), torch.stack(sizes).sum()]), parameters.values()).tolist()
    return math.sqrt(gap / max(size, 1e-30))


@contextmanager
def lent(parameters: Mapping[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Exchange weights and tensors inside the block, and exchange them back after it, whatever happens.

    Storage is exchanged where both are on one device. Where they are on two, one weight at a time is moved each way,
    so that no second copy of the network is made. Of a sharded weight, the part is exchanged.
    """
    exchanged = []
    try:
        for name, parameter in parameters.items():
            _exchange(name, parameter, tensors)
            exchanged.append(name)
        yield
    finally:
        for name in exchanged:
            _exchange(name, parameters[name], tensors)


def _exchange(name: str, parameter: nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    inside, outside = parameter.device, tensors[name].device
    if is_sharded([parameter]):
        # The sharded one is known by its place in memory, which it must keep.
        part = own_part(parameter)
        held = part.clone()
        part.copy_(tensors[name])
        tensors[name] = held.to(outside)
        return
    tensors[name], parameter.data = parameter.data.to(outside), tensors[name].to(inside)
