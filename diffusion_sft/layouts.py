"""Weight files as other tools want them: safetensors that are the same bytes each time, and transformers' parts in the
layout that its version 4 (and with it most other tools) reads as well as version 5.

Version 5 writes a text encoder that was built from a configuration without the `text_model.` prefix, which version 4
then starts from random weights with only a warning, and tokenizers without `vocab.json` and `merges.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from .files import replaced, write_text

PREFIX = "text_model."
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same content always gives the same bytes, and so the same hash.

    safetensors' own writer shuffles the metadata. The format: the header's length (8 bytes, little-endian), the header
    in JSON, the tensors' bytes one after another (widest types first, so that all are aligned).
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    with replaced(file) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            stream.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def prefixed(name: str) -> str:
    """The name of a module or tensor of a CLIP text encoder as every version knows it; its projection stands apart."""
    return name if name.startswith((PREFIX, "text_projection")) else PREFIX + name


def complete_text_encoder(folder: Path) -> None:
    """Give the tensors of a saved text encoder their prefix."""
    for weights in sorted(folder.glob("model*.safetensors")):
        write_tensors(weights, {prefixed(name): tensor for name, tensor in load_file(weights).items()}, {})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {prefixed(name): file for name, file in content["weight_map"].items()}
        write_text(index, json.dumps(content, indent=2))


def complete_tokenizer(folder: Path) -> None:
    """Put `vocab.json` and `merges.txt` beside a saved tokenizer's `tokenizer.json`."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
