"""Which weights are trained: all, or low-rank adapters (LoRA, Hu et al., 2021) on the attention projections."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig
from torch import nn

from ..errors import UserError
from ..records import identity_seed
from .config import FinetuneConfig

ATTENTION_PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Of self- and cross-attention alike, as in diffusers' scripts."""


def trainable_parameters(network: nn.Module, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """Freeze and unfreeze `network` for this method, attach adapters where it wants them, and name what is trained.

    Trained weights are made float32: updates of half-precision weights would be rounded away.

    Raises:
        UserError: the network carries adapters already, has no attention projections, or cannot checkpoint gradients.
    """
    if config.gradient_checkpointing:
        _enable_gradient_checkpointing(network)
    if config.method == "full":
        network.requires_grad_(True)
        network.float()
    else:
        network.requires_grad_(False)
        _add_adapter(network, config)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    assert_float32(parameters)
    return parameters


def assert_float32(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise RuntimeError if there is nothing to train, or a trained weight is not float32."""
    if not parameters:
        raise RuntimeError("no trainable parameter")
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise RuntimeError(f"trained weight {name} is {parameter.dtype}, not float32")


def _add_adapter(network: nn.Module, config: FinetuneConfig) -> None:
    add_adapter = getattr(network, "add_adapter", None)
    if add_adapter is None:
        raise UserError(f"method=lora: {type(network).__name__} takes no adapters; use method=full")
    if getattr(network, "peft_config", None):
        raise UserError("method=lora: the network carries adapters already; start from the base")
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha or config.rank,
        lora_dropout=config.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=ATTENTION_PROJECTIONS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed(config.seed, "adapter"))
        add_adapter(adapter)


def _enable_gradient_checkpointing(network: nn.Module) -> None:
    enable = getattr(network, "enable_gradient_checkpointing", None)
    if enable is None:
        raise UserError(f"gradient_checkpointing: {type(network).__name__} does not offer it; set it to false")
    enable()
