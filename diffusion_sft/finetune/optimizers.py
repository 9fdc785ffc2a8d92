"""The optimisers, by the names that diffusers' and kohya's users know.

Their whole state is tensors and numbers for each weight (`state[parameter]`; in their `state_dict()` bitsandbytes nests
it) and numbers for each group, so that a checkpoint needs no pickle. The run sets each group's rate:
`group["lr"] = rate * group["lr_scale"]`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..parsing import first_line
from .config import FinetuneConfig

TEXT_ENCODER = "text_encoder"
"""Names of the text encoders' weights begin with this."""


def make_optimizer(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, with one group for the denoiser and one for trained text encoders.

    Args:
        parameters: trained weights by name, as `trainable_parameters` returns them.

    Raises:
        UserError: the package that the optimiser comes from is not installed or does not work here.
    """
    groups = parameter_groups(parameters, config)
    betas, decay = (config.adam_beta1, config.adam_beta2), config.adam_weight_decay
    if config.optimizer == "adafactor":
        adafactor = _package("adafactor", "transformers.optimization", "transformers").Adafactor
        return _made(adafactor, groups, scale_parameter=False, relative_step=False, weight_decay=decay)
    common: dict[str, Any] = {"betas": betas, "weight_decay": decay, "eps": config.adam_epsilon}
    if config.optimizer == "adamw":
        # The fused one leaves out a step on the device where its `found_inf` says so, so that nobody waits for it.
        return _made(torch.optim.AdamW, groups, fused=True, **common)
    if config.optimizer == "adamw8bit":
        return _made(_package("adamw8bit", "bitsandbytes", "bitsandbytes").optim.AdamW8bit, groups, **common)
    # As diffusers' scripts set it up: without the correction the first steps are far too long.
    prodigy = _package("prodigy", "prodigyopt", "prodigyopt").Prodigy
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weight decay
        return _made(prodigy, groups, decouple=True, use_bias_correction=True, safeguard_warmup=True, **common)


def parameter_groups(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> list[dict[str, Any]]:
    """Groups in torch's sense, the denoiser's first, each with `lr` and `lr_scale`, its rate over learning_rate."""
    scale = 1.0 if config.text_encoder_lr is None else config.text_encoder_lr / config.learning_rate
    encoders = [name.startswith(TEXT_ENCODER) for name in parameters]
    groups = []
    for of_encoders, lr_scale in ((False, 1.0), (True, scale)):
        members = [p for p, inside in zip(parameters.values(), encoders, strict=True) if inside == of_encoders]
        if members:
            groups.append({"params": members, "lr": config.learning_rate * lr_scale, "lr_scale": lr_scale})
    return groups


def _made(kind: Any, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    optimizer = kind(groups, lr=groups[0]["lr"], **options)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def _package(optimizer: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise UserError(f"optimizer={optimizer} needs the package {package}: pip install {package}") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"optimizer={optimizer}: the package {package} does not work here ({reason})") from None
