"""The settings of a fine-tuning run, under the names that diffusers' training scripts use."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

from ..ranges import MOST_PIXELS, MOST_STEPS, check_range


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One run of the loop. An *update* is one optimiser step; every `*_steps` here counts updates."""

    method: Literal["full", "cross_attention", "lora"] = "full"
    """full: every weight of the UNet, or of the language model. cross_attention: the UNet's cross-attention blocks
    (attn2) alone. lora: low-rank adapters on `lora_target_modules`."""
    train_text_encoder: bool = False
    """With method=lora: adapters on the text encoders' attention projections too."""
    seed: int = 0
    deterministic: bool = False
    """Ask torch for deterministic kernels alone: on a GPU slower, and the same numbers run for run."""
    allow_tf32: bool = False

    train_batch_size: int = 16
    """Examples per process and micro-batch; an update sees this x processes x gradient_accumulation_steps."""
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1000
    """The budget of updates."""
    stopping: Literal["convergence", "budget"] = "budget"
    """convergence: stop at the first evaluation, after one pass over the set, at which every trained example that is
    asked is fitted. budget: use all updates. The update of convergence and the early stop are recorded either way."""

    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy"] = "adamw"
    """adamw8bit needs bitsandbytes, prodigy needs prodigyopt (with learning_rate=1). adafactor keeps no first moment
    and follows learning_rate (neither relative steps nor parameter scaling)."""
    learning_rate: float = 1e-4
    text_encoder_lr: float | None = None
    """Of the text encoders' adapters; None means learning_rate."""
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

    caption_templates: list[str] = field(default_factory=list)
    """Training captions drawn anew for each visit, with {caption} and {concept} (the concept's words); empty: the
    set's own captions. Regularisation images keep their own."""
    snr_gamma: float | None = None
    """Min-SNR-γ weighting (Hang et al., 2023; 5 is usual); None weighs all timesteps alike."""
    noise_offset: float = 0.0
    random_flip: bool = False
    """Mirror each visit's image left to right with probability one half."""
    aspect_ratio_buckets: bool = False
    """Fit each image to the nearest of several sizes of about resolution² pixels instead of cropping a square; every
    batch is of one size."""
    bucket_reso_steps: int = 64
    """Sides of aspect-ratio buckets are multiples of this many pixels."""
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024

    prior_loss_weight: float = 1.0
    """Weight of the regularisation images' loss (prior preservation); they are used where the set has any, or where
    class_prompt is given."""
    class_prompt: str | None = None
    """Draw images of this prompt with the base before training, until there are num_class_images regularisation images
    (those of the set count), and use them as such."""
    num_class_images: int = 100

    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """None: what `accelerate launch` or its configuration says. Trained weights are float32 in every case. With
    method=lora, bf16 given here also keeps the frozen weights in bfloat16."""
    gradient_checkpointing: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Train through torch.compile in one of its modes: the first updates take minutes and the others less.
    reduce-overhead records CUDA graphs, which pays for small batches. Evaluations are not compiled."""
    use_ema: bool = False
    """Evaluate and export a moving average of the weights."""
    ema_horizon: int = 100
    """The average is a plain mean over the first `ema_horizon` updates and decays by 1 - 1/ema_horizon after."""

    ema_update_every: int = 1
    ema_device: Literal["same", "cpu"] = "same"
    """Where the average is kept: beside the weights, or in the CPU's memory."""

    rank: int = 16
    lora_alpha: int | None = None
    """Adapters are scaled by lora_alpha / rank; None means lora_alpha = rank."""
    lora_dropout: float = 0.0
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA, Liu et al., 2024)."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Ends of the names of the modules that get adapters; empty: the attention's projections, which are to_q, to_k, to_v
    and to_out.0 of a UNet, and q_proj, k_proj, v_proj and o_proj of a language model."""

    max_nonfinite_steps: int = 5
    """An update whose loss or gradient is not finite is skipped and counted; this many in a row end the run."""
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2
    """Keep this many of the latest checkpoints, and the best one beside them; None keeps all."""
    resume_from_checkpoint: str = "latest"
    """latest: go on after the latest checkpoint in the run's folder, where there is one. checkpoint-<N>: go back to
    that one; later ones are made again. none: start a new run, in an empty folder."""
    save_single_file: bool = False
    """Also write the trained model as one .safetensors checkpoint (methods full and cross_attention)."""
    push_to_hub: bool = False
    """Upload the finished run's weights and model card; never checkpoints, images or data."""
    hub_model_id: str | None = None
    """Repository to push to, as user/name."""
    hub_private: bool = True
    report_to: str | None = "tensorboard"
    """A tracker that accelerate knows (tensorboard, wandb, ...); None for metrics.jsonl alone."""
    tracker_project_name: str = "diffusion-sft"

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
        _check_numbers(self)
        _check_methods(self)
        _check_data(self)
        if self.stopping == "convergence" and not self.validation_steps:
            raise ValueError("stopping: convergence needs evaluations; set validation_steps")
        if self.lr_scheduler in ("linear", "cosine") and self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(f"lr_warmup_steps ({self.lr_warmup_steps}) must be below max_train_steps")
        if self.use_ema and self.ema_horizon < 2:
            raise ValueError(f"ema_horizon must be at least 2 updates, not {self.ema_horizon}")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, as user/name")


PICTURES_ONLY = (
    "train_text_encoder",
    "text_encoder_lr",
    "caption_templates",
    "snr_gamma",
    "noise_offset",
    "random_flip",
    "aspect_ratio_buckets",
    "class_prompt",
    "save_single_file",
    "validation_prompts",
)
"""Settings that say something about pictures and nothing about texts."""


@dataclass(frozen=True, kw_only=True)
class LanguageFinetuneConfig(FinetuneConfig):
    """The same settings for a language model: every word means what it means for pictures, and what only pictures have
    is refused."""

    learning_rate: float = 1e-5
    """The paper's."""
    proportion_empty_prompts: float = 0.0
    """The share of items trained under the question about nobody, as pictures are under the empty caption."""
    validation_draws: int = 1
    """Of no effect: an answer in words is read once."""
    validation_batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "cross_attention":
            raise ValueError("method=cross_attention: a language model has none; use full or lora")
        plain = FinetuneConfig()
        for name in PICTURES_ONLY:
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(f"{name} is for pictures; a language model has no use for it")


_AT_LEAST_ONE = (
    "train_batch_size",
    "gradient_accumulation_steps",
    "max_train_steps",
    "num_class_images",
    "ema_horizon",
    "ema_update_every",
    "rank",
    "lora_alpha",
    "max_nonfinite_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_examples_per_concept",
    "validation_draws",
    "validation_batch_size",
    "num_validation_images",
)
_POSITIVE = ("learning_rate", "text_encoder_lr", "adam_epsilon", "snr_gamma")
_NOT_NEGATIVE = (
    "seed",
    "lr_warmup_steps",
    "validation_steps",
    "validation_untouched_concepts",
    "max_grad_norm",
    "adam_weight_decay",
    "noise_offset",
    "prior_loss_weight",
)
_BELOW_ONE = ("proportion_empty_prompts", "lora_dropout", "adam_beta1", "adam_beta2")


def _check_numbers(config: FinetuneConfig) -> None:
    """The range of each number by itself."""
    check_range(config, *_AT_LEAST_ONE, least=1)
    check_range(config, "validation_inference_steps", least=1, most=MOST_STEPS)
    check_range(config, "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", least=1, most=MOST_PIXELS)
    check_range(config, *_POSITIVE, above=0)
    check_range(config, *_NOT_NEGATIVE, least=0)
    check_range(config, *_BELOW_ONE, least=0, below=1)
    check_range(config, "validation_guidance_scale")


def _check_methods(config: FinetuneConfig) -> None:
    """Settings that mean something together with others alone."""
    for name in ("train_text_encoder", "use_dora"):
        if getattr(config, name) and config.method != "lora":
            raise ValueError(f"{name} needs method=lora, not {config.method}")
    if config.method == "lora" and not all(config.lora_target_modules):
        raise ValueError("lora_target_modules must name modules, for example to_q, to_k, to_v, to_out.0")
    if config.text_encoder_lr is not None and not config.train_text_encoder:
        raise ValueError("text_encoder_lr needs train_text_encoder: the text encoders are not trained")
    if config.optimizer == "prodigy" and config.text_encoder_lr not in (None, config.learning_rate):
        raise ValueError("optimizer=prodigy finds one rate for all weights; leave text_encoder_lr out")
    if config.save_single_file and config.method == "lora":
        raise ValueError(
            "save_single_file needs method=full or cross_attention: adapters are written as their own file"
        )


def _check_data(config: FinetuneConfig) -> None:
    """Sizes of buckets, prompts and templates."""
    if config.min_bucket_reso > config.max_bucket_reso:
        raise ValueError(
            f"min_bucket_reso ({config.min_bucket_reso}) must not exceed max_bucket_reso ({config.max_bucket_reso})"
        )
    if config.class_prompt is not None and not config.class_prompt.strip():
        raise ValueError("class_prompt is empty; give a prompt, or null for none")
    for template in config.caption_templates:
        _check_template(template)


def _check_template(template: str) -> None:
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"caption_templates: {template!r}: {error}") from None
    if any(name not in ("caption", "concept") or form or conversion for name, form, conversion in parts):
        raise ValueError(
            f"caption_templates: {template!r} may contain {{caption}} and {{concept}} and no other braces"
        )
    if not parts:
        raise ValueError(f"caption_templates: {template!r} must contain {{caption}} or {{concept}}")
