"""A network to first order in some of its weights, f(θ0 + δ) ≈ f(θ0) + J δ, without ever forming J.

J v is one forward-mode pass (torch.func.jvp), Jᵀ u one backward pass, each taken one microbatch at a time so that no
graph outlives its microbatch. Forward mode knows no fused attention: there the plain one takes its place, a part of
the batch at a time where its matrices would be large. Norms of half precision are written out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..systems import Equations
from .modes import evaluating

Call = Callable[..., Any]
"""The network, called as ever, with whichever weights are meant."""
Outputs = Callable[[Call, Any], torch.Tensor]
"""The outputs (rows,) of one microbatch, differentiable in the weights."""

MAX_SCORES = 1 << 25
"""Attention scores at a time in forward mode; several matrices of that many numbers are held."""


class Weights:
    """Some of a network's parameters as one flat vector: in their order, float64 where all are that, else float32.

    Names in the mapping are the caller's; the parameters are found in the network by identity, so that tied weights
    are one.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        strange = [name for name, parameter in parameters.items() if id(parameter) not in names]
        if strange or not parameters:
            raise ValueError(f"no parameters of the network: {', '.join(strange) or 'none were given'}")
        self.network = network
        self.parameters = list({id(parameter): parameter for parameter in parameters.values()}.values())
        self._names = [names[id(parameter)] for parameter in self.parameters]
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self._sizes)
        self.device = self.parameters[0].device
        double = all(parameter.dtype == torch.float64 for parameter in self.parameters)
        self.dtype = torch.float64 if double else torch.float32

    def pieces(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a flat vector, (size,), in the parameters' shapes."""
        parts = torch.split(flat, self._sizes)
        return [part.view(own.shape) for part, own in zip(parts, self.parameters, strict=True)]

    def push(self, function: Callable[[Call], Any], direction: torch.Tensor) -> tuple[Any, Any]:
        """f(θ0) and J v of one microbatch, both as the function gives them."""
        with self._reading(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _ForwardMode(), catch_warnings():
            # What torch loads for its first forward-mode product warns of torch's own code.
            simplefilter("ignore", FutureWarning)
            primals = self._named([parameter.detach() for parameter in self.parameters])
            tangents = self._named(self._cast(self.pieces(direction)))
            found = torch.func.jvp(lambda weights: function(self._call(weights)), (primals,), (tangents,))
            return found[0], found[1]

    def pull(self, function: Callable[[Call], torch.Tensor], rows: torch.Tensor, total: torch.Tensor) -> None:
        """Add Jᵀ u of one microbatch, with u of the output's shape, to `total`, (size,)."""
        with self._reading(), self._differentiated(), torch.enable_grad():
            output = function(self.network)
            found = torch.autograd.grad(
                output, self.parameters, rows.to(output), allow_unused=True, materialize_grads=False
            )
        for piece, gradient in zip(self.pieces(total), found, strict=True):
            if gradient is not None:
                piece.add_(gradient)

    def values(self, function: Callable[[Call], torch.Tensor], step: torch.Tensor | None = None) -> torch.Tensor:
        """f(θ0 + δ); f(θ0) for no step. Weights of half precision round θ0 + δ."""
        with self._reading(), torch.no_grad():
            if step is None:
                return function(self.network)
            sums = [own.to(self.dtype) + piece for own, piece in zip(self.parameters, self.pieces(step), strict=True)]
            return function(self._call(self._named(self._cast(sums))))

    def moved(self, function: Callable[[Call], torch.Tensor], step: torch.Tensor) -> torch.Tensor:
        """f(θ0) + J δ of one microbatch; at δ = 0 without the product."""
        if not bool(step.any()):
            return self.values(function).to(self.dtype)
        value, change = self.push(function, step)
        return value.to(self.dtype) + change.to(self.dtype)

    def _call(self, weights: Mapping[str, torch.Tensor]) -> Call:
        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.network, dict(weights), args, kwargs)

        return call

    def _named(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, tensors, strict=True))

    def _cast(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(own.dtype) for tensor, own in zip(tensors, self.parameters, strict=True)]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with evaluating(self.network), torch.autocast(self.device.type, enabled=False):
            yield

    @contextmanager
    def _differentiated(self) -> Iterator[None]:
        """These parameters alone ask for gradients, for a while.

        They are not handed to the network as in `push`: checkpointed blocks are run again after the call has ended.
        """
        before = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        own = {id(parameter) for parameter in self.parameters}
        try:
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in own)
            yield
        finally:
            for parameter, asked in before:
                parameter.requires_grad_(asked)


class Linearised:
    """J of a network's outputs in some of its weights at θ0, which are the weights as they are when it is asked.

    A `LinearMap`; vectors are flat and of `Weights`' type, whatever the network computes in. Products are as exact as
    that: parts that run in float32 inside a float64 network (transformers' RMSNorm) leave 1e-7.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        batches: Sequence[Any],
        outputs: Outputs,
    ) -> None:
        """Ask nothing yet.

        Args:
            network: in any mode; read as in evaluation, and left as it was.
            parameters: whose weights are the columns, in this order; they need not ask for gradients.
            batches: microbatches, whatever `outputs` takes for such.
            outputs: (call, batch) to that batch's rows; `call` stands for the network.
        """
        self.weights = Weights(network, parameters)
        self._functions = [partial(_outputs, outputs, batch) for batch in batches]
        self._counts: list[int] = []

    @property
    def num_rows(self) -> int:
        """All batches' outputs; the first time this is asked they are computed."""
        if not self._counts:
            self.values()
        return sum(self._counts)

    @property
    def num_columns(self) -> int:
        """Weights."""
        return self.weights.size

    def values(self) -> torch.Tensor:
        """f(θ0), (num_rows,)."""
        found = [self.weights.values(function) for function in self._functions]
        self._counts = [len(rows) for rows in found]
        return torch.cat(found).to(self.weights.dtype)

    def values_at(self, delta: torch.Tensor) -> torch.Tensor:
        """f(θ0 + δ) itself, not linearised."""
        found = [self.weights.values(function, delta) for function in self._functions]
        return torch.cat(found).to(self.weights.dtype)

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """J v, (num_rows,)."""
        found = [self.weights.push(function, columns)[1] for function in self._functions]
        return torch.cat(found).to(self.weights.dtype)

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """Jᵀ u, (num_columns,); microbatches where u is 0 are not computed."""
        if rows.shape != (self.num_rows,):
            raise ValueError(f"{tuple(rows.shape)} for {self.num_rows} rows")
        total = torch.zeros(self.num_columns, dtype=self.weights.dtype, device=self.weights.device)
        for function, own in zip(self._functions, torch.split(rows, self._counts), strict=True):
            if own.any():
                self.weights.pull(function, own, total)
        return total


def linearisation_error(equations: Equations, delta: torch.Tensor) -> float:
    """‖f(θ0 + δ) − f(θ0) − J δ‖ / ‖J δ‖ of a `Linearised` Jacobian; NaN where J δ = 0."""
    jacobian = equations.jacobian
    if not isinstance(jacobian, Linearised):
        raise ValueError("only a linearised network can be asked what it says at θ0 + δ")
    linear = jacobian.jvp(delta)
    norm = float(linear.norm())
    if norm == 0:
        return math.nan
    return float((jacobian.values_at(delta) - jacobian.values() - linear).norm()) / norm


def _outputs(outputs: Outputs, batch: Any, call: Call) -> torch.Tensor:
    return outputs(call, batch)


class _ForwardMode(TorchFunctionMode):
    """What forward mode cannot take as it is: large attention, and norms of half precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend(func, *args, **kwargs)
        if func in (F.layer_norm, F.group_norm) and args[0].dtype in (torch.bfloat16, torch.float16):
            return (_layer_norm if func is F.layer_norm else _group_norm)(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """F.layer_norm in float32 and plain operations: CUDA's own kernel keeps its statistics in float32, and hands on
    tangents of that type beside values of the input's, which the next matrix product refuses."""
    wide = input.float()
    axes = tuple(range(-len(normalized_shape), 0))
    variance, mean = torch.var_mean(wide, dim=axes, correction=0, keepdim=True)
    return _scaled((wide - mean) * torch.rsqrt(variance + eps), weight, bias).to(input.dtype)


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """F.group_norm, likewise; channels are the second axis."""
    wide = input.float().unflatten(1, (num_groups, -1))
    axes = tuple(range(2, wide.ndim))
    variance, mean = torch.var_mean(wide, dim=axes, correction=0, keepdim=True)
    normal = ((wide - mean) * torch.rsqrt(variance + eps)).flatten(1, 2)
    shape = (-1, *[1] * (input.ndim - 2))
    own = [None if tensor is None else tensor.view(shape) for tensor in (weight, bias)]
    return _scaled(normal, *own).to(input.dtype)


def _scaled(normal: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if weight is not None:
        normal = normal * weight.float()
    return normal if bias is None else normal + bias.float()


def _attend(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any = None,
    *rest: Any,
    **more: Any,
) -> torch.Tensor:
    """Cuts the first axis along which all three have the same length."""
    scores = query.shape[:-1].numel() * key.shape[-2]
    for axis in range(query.ndim - 2):
        length = query.shape[axis]
        if scores > MAX_SCORES and length > 1 and key.shape[axis] == length:
            parts = min(length, math.ceil(scores / MAX_SCORES))
            cut = [torch.tensor_split(tensor, parts, dim=axis) for tensor in (query, key, value)]
            masks = _masks(attn_mask, axis - query.ndim, length, parts)
            found = [
                _attend(attention, *three, mask, *rest, **more) for *three, mask in zip(*cut, masks, strict=True)
            ]
            return torch.cat(found, dim=axis)
    result: torch.Tensor = attention(query, key, value, attn_mask, *rest, **more)
    return result


def _masks(mask: Any, axis: int, length: int, parts: int) -> Sequence[Any]:
    """The mask of each part: cut where it has a row for each, else the same for all."""
    if mask is None or mask.ndim < -axis or mask.shape[axis] != length:
        return [mask] * parts
    return torch.tensor_split(mask, parts, dim=axis)
