"""What the benches have in common: what a device can do at most, and how its work is timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def synchronised(device: torch.device) -> float:
    """The time in seconds when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gigabytes(device: torch.device) -> float | None:
    """The most that tensors took on a GPU since its last reset; None on other devices."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of large square matrix products, the best of several rounds that take about `seconds` in all.

    Whatever a network's kernels are, this is what the device gives them at most, at the clock that it holds now.
    """
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), synchronised(device) + seconds
    torch.mm(left, right)
    while (started := synchronised(device)) < until:
        for _ in range(4):
            torch.mm(left, right)
        best = min(best, (synchronised(device) - started) / 4)
    return 2 * size**3 / best


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in one call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def unet_forward_flops(unet: nn.Module, resolution: int, tokens: int = 77) -> int:
    """Of one latent under one caption, counted on the meta device.

    Args:
        unet: a UNet2DConditionModel; its configuration alone is used.
        resolution: side of the latents.
        tokens: length of the captions.
    """
    config = unet.config
    with torch.device("meta"):
        copy = type(unet).from_config(config)
        noisy = torch.empty(1, config.in_channels, resolution, resolution)
        width = config.cross_attention_dim
        width = width[0] if isinstance(width, (list, tuple)) else width
        states = torch.empty(1, tokens, width)
        named = {}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            named["added_cond_kwargs"] = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
        timesteps = torch.ones(1, dtype=torch.int64)
        return flops(lambda: copy(noisy, timesteps, encoder_hidden_states=states, **named))


def device_name(device: torch.device) -> str:
    """The hardware, for the figures' heading."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
