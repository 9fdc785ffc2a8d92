"""Tensor files written piece by piece are those of the safetensors library, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_sft.tensor_files import TYPES, Layout, file_bytes, file_order, write_tensor_file


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.weight": torch.randn(7, generator=generator),
        "step/ä": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "turned": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
    }
    return made | {f"as {kind}": made["b.weight"].to(kind) for kind in TYPES}


def layout_of(made: dict[str, torch.Tensor]) -> Layout:
    return {name: (TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in made.items()}


def test_a_file_is_what_the_library_writes_and_reads(tmp_path: Path) -> None:
    made = {name: tensor for name, tensor in tensors().items() if tensor.dtype in (torch.float32, torch.uint8)}
    layout = layout_of(made)
    write_tensor_file(tmp_path / "ours", layout, (made[name] for name in file_order(layout)))
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in made.items()},
        tmp_path / "theirs",
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "ours").stat().st_size == file_bytes(layout)


def test_every_type_comes_back(tmp_path: Path) -> None:
    made = tensors()
    layout = layout_of(made)
    write_tensor_file(tmp_path / "file", layout, (made[name] for name in file_order(layout)))
    back = load_file(tmp_path / "file")
    assert back.keys() == made.keys()
    for name, tensor in made.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_one_tensor_is_taken_at_a_time(tmp_path: Path) -> None:
    layout: Layout = {str(number): ("F32", (1000,)) for number in range(5)}
    sizes: list[int] = []

    def pieces() -> Iterator[torch.Tensor]:
        for _ in range(5):
            yield torch.zeros(1000)
            sizes.append((tmp_path / "file").stat().st_size)

    write_tensor_file(tmp_path / "file", layout, pieces())
    assert sizes == sorted(set(sizes))  # what was handed over is on its way to the disk before the next is asked for
    assert (tmp_path / "file").stat().st_size == file_bytes(layout)


def test_a_tensor_that_is_not_what_was_said_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x is torch.float32 \(3,\), not \('F32', \(2,\)\)"):
        write_tensor_file(tmp_path / "file", {"x": ("F32", (2,))}, [torch.zeros(3)])
    with pytest.raises(ValueError, match="shorter"):
        write_tensor_file(tmp_path / "file", {"x": ("F32", (2,)), "y": ("F32", (2,))}, [torch.zeros(2)])
