"""How much memory does a computation hold at its peak? Counted over the storages of its tensors, real or on `meta`.

Meta tensors have shapes, types and lifetimes and no numbers, so that an update of a network of billions of weights is
counted in seconds on any machine, gradient checkpointing and all. What a GPU does otherwise is done its way: attention
by the fused kernel, which keeps no scores, and autocast.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside the block, the bytes of storages that operations made and that are still alive; those from before it do
    not count."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count these, which are there anyway."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class AsOnGpu(TorchFunctionMode):
    """Meta tensors take the types and the memory that a GPU's would: attention is the flash kernel's operator, and
    autocast, which knows no meta tensors, is done by hand where it matters."""

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = dict(kwargs or {})
        if self.autocast is not None and func in _LOWER:
            args = [_cast(value, self.autocast) for value in args]
            given = {name: _cast(value, self.autocast) for name, value in given.items()}
        elif self.autocast is not None and func in _FLOAT32:
            args = [_cast(value, torch.float32) for value in args]
        if func is F.scaled_dot_product_attention and given.get("attn_mask") is None and len(args) < 4:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | given
            query, key, value = (named[name] for name in ("query", "key", "value"))
            if query.is_meta:
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **given)


_LOWER = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm}
_FLOAT32 = {F.group_norm, F.layer_norm, F.softmax, torch.softmax}
"""What autocast computes in half precision, and what in float32, on a GPU; of the operations that these networks have."""


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def peak_bytes(function: Callable[[], Any], held: Iterable[torch.Tensor]) -> int:
    """The most bytes that a call holds at one time, besides these tensors."""
    tracker = LiveBytes()
    tracker.ignore(held)
    with tracker:
        found = function()
    del found
    return tracker.peak


def backward(loss: torch.Tensor) -> None:
    """`loss.backward()` with function modes left on: called by its public name it would turn them off, and checkpointed
    blocks would be run again otherwise than before."""
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
