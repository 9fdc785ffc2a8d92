"""What the benches have in common: what a device can do at most, and how its work is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in one call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def on_meta(unet: nn.Module) -> Any:
    """A UNet of the same configuration, a UNet2DConditionModel, without data."""
    with torch.device("meta"):
        return type(unet).from_config(unet.config)


def meta_inputs(unet: nn.Module, resolution: int, tokens: int = 77) -> dict[str, Any]:
    """What a UNet is called with for one latent under one caption, without data.

    Args:
        unet: a UNet2DConditionModel; its configuration alone is used.
        resolution: side of the latents.
        tokens: length of the captions.
    """
    config = unet.config
    width = config.cross_attention_dim
    width = width[0] if isinstance(width, (list, tuple)) else width
    with torch.device("meta"):
        found: dict[str, Any] = {
            "sample": torch.empty(1, config.in_channels, resolution, resolution),
            "timestep": torch.ones(1, dtype=torch.int64),
            "encoder_hidden_states": torch.empty(1, tokens, width),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            found["added_cond_kwargs"] = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
    return found


def unet_forward_flops(unet: nn.Module, resolution: int) -> int:
    """Of one latent under one caption, counted on the meta device."""
    copy, inputs = on_meta(unet), meta_inputs(unet, resolution)
    with torch.device("meta"):
        return flops(lambda: copy(**inputs))


def device_name(device: torch.device) -> str:
    """The hardware, for the figures' heading."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
