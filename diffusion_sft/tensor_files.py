"""safetensors files written one tensor after the other, so that no second copy of a network is held in memory.

Layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the header's length, the header as JSON padded
to a multiple of 8 with spaces, then the tensors' bytes. The order is that of the library: wider types first, then by name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Of a file: name -> (safetensors' name of the type, shape)."""
TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
SIZES = {name: kind.itemsize for kind, name in TYPES.items()}
"""Bytes of one element."""


def file_order(layout: Layout) -> list[str]:
    """The names in the order of their bytes."""
    return sorted(layout, key=lambda name: (-SIZES[layout[name][0]], name))


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """The size of one tensor."""
    return SIZES[kind] * math.prod(shape)


def file_bytes(layout: Layout) -> int:
    """The size of a file without metadata, to the byte."""
    return len(_header(layout)) + sum(tensor_bytes(*value) for value in layout.values())


def write_tensor_file(
    file: Path, layout: Layout, tensors: Iterable[torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write the tensors, which come in `file_order` and on any device, and are taken one at a time.

    The same content always gives the same bytes, and so the same hash; safetensors' own writer shuffles the metadata.

    Returns:
        The SHA-256 of what was written, in hex: of what was in memory, so that a disk that keeps other bytes is found out.

    Raises:
        ValueError: a tensor is not what the layout says.
    """
    names, header = file_order(layout), _header(layout, metadata)
    digest = hashlib.sha256(header)
    with file.open("wb") as stream:
        stream.write(header)
        for name, tensor in zip(names, tensors, strict=True):
            if (TYPES[tensor.dtype], tuple(tensor.shape)) != layout[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {layout[name]}")
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            content = flat.view(torch.uint8).numpy().data
            digest.update(content)
            stream.write(content)
    return digest.hexdigest()


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _header(layout: Layout, metadata: Mapping[str, str] | None = None) -> bytes:
    described: dict[str, object] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in file_order(layout):
        kind, shape = layout[name]
        start, end = end, end + tensor_bytes(kind, shape)
        described[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
