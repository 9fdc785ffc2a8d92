"""A moving average of the weights (EMA), and weights lent to the network for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class AveragedWeights:
    """avg_u = avg_{u-1} + (θ_u − avg_{u-1}) / min(u, horizon): a plain mean first, an exponential one after.

    float32, beside the live weights on their device; the starting weights have no share in it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, horizon: int):
        self.parameters = dict(parameters)
        self.horizon = horizon
        self.tensors = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    def decay(self, update: int) -> float:
        """The share of the old average kept at this update (counted from 1)."""
        return 1.0 - 1.0 / min(update, self.horizon)

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Move towards the weights that stand after update number `update`."""
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter, 1.0 - self.decay(update))

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
    """‖others − θ‖ / ‖θ‖ over all tensors, from float32 sums."""
    gaps = [(others[name].to(p.device) - p).square().sum() for name, p in parameters.items()]
    sizes = [p.square().sum() for p in parameters.values()]
    return math.sqrt(torch.stack(gaps).sum().item() / max(torch.stack(sizes).sum().item(), 1e-30))


@contextmanager
def lent(parameters: Mapping[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Exchange the storage of weights and tensors inside the block, without a copy, and exchange back after it."""
    _exchange(parameters, tensors)
    try:
        yield
    finally:
        _exchange(parameters, tensors)


def _exchange(parameters: Mapping[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        tensors[name], parameter.data = parameter.data, tensors[name]
