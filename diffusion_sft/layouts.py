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
from .tensor_files import TYPES, file_order, write_tensor_file

PREFIX = "text_model."


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, as torch's own are read; the same content always gives the same bytes."""
    layout = {name: (TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    with replaced(file) as temporary:
        in_order = (tensors[name] for name in file_order(layout))
        write_tensor_file(temporary, layout, in_order, {"format": "pt", **metadata})


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
