"""Which weights are trained: all of the network, a UNet's cross-attention, or low-rank adapters (LoRA, Hu et al., 2021)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from ..learner import PIPELINE_LAYOUT
from ..records import identity_seed
from .config import FinetuneConfig

CROSS_ATTENTION = "attn2"
"""What diffusers calls the attention to the text in every transformer block."""
TEXT_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]
"""The text encoders' attention projections, as in diffusers' scripts."""
ADAPTED = (nn.Linear, nn.Conv2d, Conv1D)
"""Modules that take adapters; transformers' Conv1D is GPT-2's linear layer."""


def trainable_parameters(
    parts: Mapping[str, nn.Module],
    config: FinetuneConfig,
    default_targets: Sequence[str] = PIPELINE_LAYOUT.default_targets,
) -> dict[str, nn.Parameter]:
    """Freeze and unfreeze the parts for this method, attach adapters where it wants them, and name what is trained.

    Trained weights are made float32: updates of half-precision weights would be rounded away. What lies frozen under
    adapters is kept in bfloat16 where bf16 is asked for, as in diffusers' scripts: autocast would round it so in every
    pass anyway, and it takes half the memory.

    Args:
        parts: of a learner (`Learner.parts`), the denoiser or language model first, then text encoders, if any.
        config: the method.
        default_targets: the modules that get adapters where the settings name none (`Layout.default_targets`).

    Returns:
        The trained parameters by name, `<part>.<name inside the part>`, the denoiser's first.

    Raises:
        UserError: a part carries adapters already, lacks the modules that are asked for, or cannot checkpoint
            gradients; nothing was changed then.
    """
    names = list(parts)
    denoiser, encoders = parts[names[0]], {name: parts[name] for name in names[1:]}
    trained = {names[0]: denoiser} | (encoders if config.train_text_encoder else {})
    targets = list(config.lora_target_modules or default_targets)
    _check(trained, config, targets)
    for part in parts.values():
        part.requires_grad_(False)
    if config.method == "lora":
        _add_adapters(trained, config, targets)
        if config.mixed_precision == "bf16":
            _halve_frozen(denoiser)
    else:
        # All of it: a half-precision rest could not take what float32 modules hand on.
        denoiser.float()
        for module in [denoiser] if config.method == "full" else _cross_attention(denoiser):
            module.requires_grad_(True)
    if config.gradient_checkpointing:
        for part in trained.values():
            _enable_gradient_checkpointing(part)
    parameters = {
        f"{name}.{key}": p for name, part in trained.items() for key, p in part.named_parameters() if p.requires_grad
    }
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


def _check(trained: Mapping[str, nn.Module], config: FinetuneConfig, targets: Sequence[str]) -> None:
    for name, part in trained.items():
        kind = type(part).__name__
        if config.gradient_checkpointing and not _checkpointing(part):
            raise UserError(f"gradient_checkpointing: {kind} does not offer it; set it to false")
        if config.method != "lora":
            continue
        if not hasattr(part, "add_adapter"):
            raise UserError(f"method=lora: {kind} takes no adapters; use method=full")
        if getattr(part, "peft_config", None):
            raise UserError(f"method=lora: the {name} carries adapters already; start from the base")
    denoiser, *encoders = trained.values()
    if config.method == "cross_attention" and not _cross_attention(denoiser):
        raise UserError(
            f"method=cross_attention: {type(denoiser).__name__} has no module {CROSS_ATTENTION}; use method=full"
        )
    if config.method == "lora":
        _check_targets("lora_target_modules", denoiser, targets)
    if config.train_text_encoder and not encoders:
        raise UserError("train_text_encoder: this base has no text encoder; set it to false")
    for encoder in encoders:
        _check_targets("train_text_encoder", encoder, TEXT_PROJECTIONS)


def _cross_attention(denoiser: nn.Module) -> list[nn.Module]:
    return [module for name, module in denoiser.named_modules() if name.split(".")[-1] == CROSS_ATTENTION]


def _check_targets(setting: str, part: nn.Module, targets: Sequence[str]) -> None:
    """UserError naming every target that is not the end of the name of modules that take adapters."""
    adapted: dict[str, None] = {}
    others: set[str] = set()
    for name, module in part.named_modules():
        pieces = name.split(".")
        ends = [".".join(pieces[-count:]) for count in range(1, len(pieces) + 1)]
        if isinstance(module, ADAPTED):
            adapted |= dict.fromkeys(ends)
        else:
            others |= set(ends)
    wrong = [target for target in targets if target not in adapted or target in others]
    if wrong:
        # Numbers say nothing, and whole paths are too long to be read.
        offered = [end for end in adapted if not end[0].isdigit() and end.count(".") < 3]
        near = dict.fromkeys(n for target in wrong for n in difflib.get_close_matches(target, offered, 3, 0.4))
        hint = f"; the nearest names are {', '.join(near)}" if near else f"; there are {', '.join(offered[:12])}"
        raise UserError(
            f"{setting}: {', '.join(map(repr, wrong))} names no linear layer or convolution of "
            f"{type(part).__name__}{hint}"
        )


def _add_adapters(trained: Mapping[str, nn.Module], config: FinetuneConfig, targets: list[str]) -> None:
    # One stream for all parts, the denoiser first: it starts alike with and without the text encoders.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed(config.seed, "adapter"))
        for number, part in enumerate(trained.values()):
            own = TEXT_PROJECTIONS if number else targets
            adapter = LoraConfig(
                r=config.rank,
                lora_alpha=config.lora_alpha or config.rank,
                lora_dropout=config.lora_dropout,
                use_dora=config.use_dora,
                fan_in_fan_out=_transposed(part, own),
                init_lora_weights="gaussian",
                target_modules=own,
            )
            part.add_adapter(adapter, adapter_name="default")  # type: ignore[operator]


def _halve_frozen(part: nn.Module) -> None:
    for parameter in part.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def _transposed(part: nn.Module, targets: Sequence[str]) -> bool:
    """Whether the modules that get adapters keep their weights as GPT-2's Conv1D does, inputs first."""
    found = [module for name, module in part.named_modules() if name.endswith(tuple(targets))]
    return any(isinstance(module, Conv1D) for module in found)


def _checkpointing(part: nn.Module) -> str | None:
    """The method that enables gradient checkpointing: diffusers', transformers', or that of older transformers."""
    methods = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
    return next((method for method in methods if hasattr(part, method)), None)


def _enable_gradient_checkpointing(part: nn.Module) -> None:
    method = _checkpointing(part)
    assert method is not None
    # The reentrant kind passes no gradient where a part's inputs need none, which are token ids for a text encoder.
    options = [] if method.startswith("enable") else [{"use_reentrant": False}]
    getattr(part, method)(*options)
