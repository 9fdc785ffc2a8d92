"""The settings of a fine-tuning run, under the names that diffusers' training scripts use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One run of the loop. An *update* is one optimiser step; every `*_steps` here counts updates."""

    method: Literal["full", "lora"] = "full"
    """full: every weight of the network. lora: low-rank adapters on the attention projections."""
    seed: int = 0

    train_batch_size: int = 16
    """Examples per process and micro-batch; an update sees this x processes x gradient_accumulation_steps."""
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1000
    """The budget of updates."""
    stopping: Literal["convergence", "budget"] = "budget"
    """convergence: stop at the first evaluation, after one pass over the set, at which every trained example that is
    asked is fitted. budget: use all updates. The update of convergence and the early stop are recorded either way."""

    learning_rate: float = 1e-4
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """The gradient's norm is cut to this; 0 leaves it as it is. The norm before the cut is logged either way."""
    proportion_empty_prompts: float = 0.1
    """Caption dropout: the share of items trained under the empty caption, which guidance needs."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """None: what `accelerate launch` or its configuration says. Trained weights are float32 in every case."""
    gradient_checkpointing: bool = False
    use_ema: bool = False
    """Evaluate and export a moving average of the weights."""
    ema_horizon: int = 100
    """The average is a plain mean over the first `ema_horizon` updates and decays by 1 - 1/ema_horizon after."""

    rank: int = 16
    lora_alpha: int | None = None
    """Adapters are scaled by lora_alpha / rank; None means lora_alpha = rank."""
    lora_dropout: float = 0.0

    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2
    """Keep this many of the latest checkpoints, and the best one beside them; None keeps all."""
    report_to: str | None = "tensorboard"
    """A tracker that accelerate knows (tensorboard, wandb, ...); None for metrics.jsonl alone."""

    validation_steps: int = 0
    """Evaluate before the first update, every so many updates, and after the last; 0 evaluates nothing."""
    validation_examples_per_concept: int | None = None
    """At most this many trained and held-out examples of a concept are asked; None asks all."""
    validation_untouched_concepts: int | None = 32
    """At most this many known concepts outside the mix are asked; None asks all."""
    validation_draws: int = 8
    """Noise draws per answer; antithetic pairs, so an even number."""
    validation_batch_size: int = 32
    validation_prompts: list[str] = field(default_factory=list)
    """Captions drawn at every evaluation into `samples/update-<N>.png`, one row each."""
    num_validation_images: int = 4
    validation_inference_steps: int = 25
    validation_guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        positive = (
            "train_batch_size",
            "gradient_accumulation_steps",
            "max_train_steps",
            "checkpointing_steps",
            "ema_horizon",
            "rank",
            "validation_draws",
            "validation_batch_size",
            "num_validation_images",
            "validation_inference_steps",
        )
        optional = ("lora_alpha", "checkpoints_total_limit", "validation_examples_per_concept")
        for name in (*positive, *optional):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("lr_warmup_steps", "validation_steps", "max_grad_norm", "adam_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, it is {getattr(self, name)}")
        for name in ("proportion_empty_prompts", "lora_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is a share from 0 to below 1, not {getattr(self, name)}")
        if self.use_ema and self.ema_horizon < 2:
            raise ValueError(f"ema_horizon must be at least 2 updates, not {self.ema_horizon}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.stopping == "convergence" and not self.validation_steps:
            raise ValueError("stopping: convergence needs evaluations; set validation_steps")
        if self.lr_scheduler in ("linear", "cosine") and self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(f"lr_warmup_steps ({self.lr_warmup_steps}) must be below max_train_steps")
