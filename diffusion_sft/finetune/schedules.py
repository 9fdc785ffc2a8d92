"""The learning rate as a pure function of the update, so that nothing has to be stored or kept in step."""

from __future__ import annotations

import math

from .config import FinetuneConfig


def learning_rate(update: int, config: FinetuneConfig) -> float:
    """The rate of update number `update` (counted from 1); equal to diffusers' schedule of the same name.

    As there, warm-up starts from 0 and `constant` ignores lr_warmup_steps.
    """
    step = update - 1
    if config.lr_scheduler == "constant":
        return config.learning_rate
    if step < config.lr_warmup_steps:
        return config.learning_rate * step / config.lr_warmup_steps
    if config.lr_scheduler == "constant_with_warmup":
        return config.learning_rate
    progress = (step - config.lr_warmup_steps) / (config.max_train_steps - config.lr_warmup_steps)
    if config.lr_scheduler == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
