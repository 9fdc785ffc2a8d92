"""The names that settings have in diffusers' training scripts and in kohya's sd-scripts, where they differ from ours.

A name that means the same setting is read as ours; one that means something else, or nothing here, is refused with
what to write instead. `docs/coming-from.md` shows this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

DIFFUSERS, KOHYA, BOTH = "diffusers", "kohya", "both"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """What a name of another tool is here."""

    tool: str
    ours: str = ""
    """Our key, dots for nested ones; empty where there is none that means the same."""
    note: str = ""
    """Why it is refused and what to write instead; with `ours`, what else differs."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Our value for each of theirs (in lower case); empty where values are the same."""
    in_list: bool = False
    """Theirs is one value, ours a list of them."""


def _read(tool: str, ours: str, note: str = "", **options: Any) -> Alias:
    return Alias(tool=tool, ours=ours, note=note, **options)


def _no(tool: str, note: str) -> Alias:
    return Alias(tool=tool, note=note)


_ATTENTION = "torch's own attention kernels (SDPA) are always used; leave it out"
_WORKERS = "images are encoded once and kept, so that there are no loader workers; leave it out"
_FROM_BASE = "it is read from the base's scheduler and written back with the result; leave it out"
_STEPS = "updates are the only clock; give max_train_steps = epochs * images * repeats / batch"
_RESUMED = "the same command with the same output_dir goes on where it stopped; leave it out"
_CACHED = "images and captions are always encoded once; leave it out (`diffusion-sft cache fill` keeps them on disk)"
_LIMIT = "give checkpoints_total_limit, the number of checkpoints to keep"
_CAPTIONS = "captions are taken as they stand; for variants of them give caption_templates"
_SHAPE = "the schedules are constant, constant_with_warmup, linear and cosine"
_MASTERS = "trained weights are float32 in every case; give mixed_precision=bf16 or fp16"
_REGULARISATION = (
    "give the folder as a set: concepts.sets='[{path: SUBJECT}, {path: CLASS, role: regularisation}]'; in kohya's layout "
    "each with layout: kohya"
)
_INSTANCE = (
    "give concepts.path=FOLDER concepts.layout=sidecars concepts.concept=SUBJECT and the prompt as concepts.template, "
    "with {concept} for the subject"
)

ALIASES: dict[str, Alias] = {
    # the base and the data
    "pretrained_model_name_or_path": _read(BOTH, "base", "in a study; `finetune` takes the name as it is"),
    "train_data_dir": _read(BOTH, "concepts.path", "a part is held out unless mix.train_on_all_images=true"),
    "dataset_name": _read(DIFFUSERS, "concepts.path", "a part is held out unless mix.train_on_all_images=true"),
    "dataset_config_name": _read(DIFFUSERS, "concepts.dataset_config_name"),
    "image_column": _read(DIFFUSERS, "concepts.image_column"),
    "caption_column": _read(DIFFUSERS, "concepts.caption_column"),
    "instance_data_dir": _no(DIFFUSERS, _INSTANCE),
    "instance_prompt": _no(DIFFUSERS, _INSTANCE),
    "class_data_dir": _no(DIFFUSERS, _REGULARISATION),
    "reg_data_dir": _no(KOHYA, _REGULARISATION),
    "with_prior_preservation": _no(DIFFUSERS, "give class_prompt, or a set of images with role: regularisation"),
    "dataset_config": _no(KOHYA, "give the subsets as concepts.sets='[{path: ..., repeats: ...}, ...]'"),
    "in_json": _no(
        KOHYA, "write the captions as metadata.jsonl (file_name, text) or as .txt files beside the images"
    ),
    "caption_extension": _no(KOHYA, ".txt and .caption files are both found; leave it out"),
    "max_train_samples": _no(DIFFUSERS, "give mix.num_examples, which takes whole concepts"),
    "shuffle_caption": _no(KOHYA, _CAPTIONS),
    "keep_tokens": _no(KOHYA, _CAPTIONS),
    "caption_dropout_rate": _read(KOHYA, "proportion_empty_prompts", "0.1 here where it is not given, 0 there"),
    "caption_tag_dropout_rate": _no(KOHYA, _CAPTIONS),
    "max_token_length": _no(KOHYA, "captions beyond the tokenizer's 77 tokens are refused; shorten them"),
    "center_crop": _no(DIFFUSERS, "images are always scaled to cover and cropped at the centre; leave it out"),
    "random_crop": _no(KOHYA, "images are always cropped at the centre, so that they are encoded once"),
    "color_aug": _no(KOHYA, "the only augmentation is random_flip, since images are encoded once"),
    "flip_aug": _read(KOHYA, "random_flip"),
    "enable_bucket": _read(KOHYA, "aspect_ratio_buckets"),
    "bucket_no_upscale": _no(KOHYA, "images are always scaled to their bucket's size; leave it out"),
    "cache_latents": _no(KOHYA, _CACHED),
    "cache_latents_to_disk": _no(KOHYA, _CACHED),
    "cache_text_encoder_outputs": _no(KOHYA, _CACHED),
    "pre_compute_text_embeddings": _no(DIFFUSERS, _CACHED),
    "dataloader_num_workers": _no(DIFFUSERS, _WORKERS),
    "max_data_loader_n_workers": _no(KOHYA, _WORKERS),
    "persistent_data_loader_workers": _no(KOHYA, _WORKERS),
    # the method
    "network_module": _read(KOHYA, "method", "only networks.lora", values={"networks.lora": "lora"}),
    "network_dim": _read(KOHYA, "rank", "16 here where it is not given, 4 there"),
    "network_alpha": _read(KOHYA, "lora_alpha", "the rank here where it is not given, 1 there"),
    "network_dropout": _read(KOHYA, "lora_dropout"),
    "network_train_unet_only": _read(
        KOHYA,
        "train_text_encoder",
        "the text encoders are left alone here where it is not given, trained there",
        values={"true": False, "false": True},
    ),
    "network_train_text_encoder_only": _no(
        KOHYA, "the UNet is always trained; give train_text_encoder=true for both"
    ),
    "network_args": _no(KOHYA, "give lora_target_modules, lora_dropout or use_dora by themselves"),
    "network_weights": _no(KOHYA, "a run starts from the base; adapters are not trained on"),
    "clip_skip": _no(KOHYA, "captions are encoded as the base was trained, from its own layer; leave it out"),
    "gradient_checkpointing_ratio": _no(KOHYA, "give gradient_checkpointing=true"),
    # the optimiser
    "unet_lr": _read(KOHYA, "learning_rate"),
    "learning_rate_te": _read(KOHYA, "text_encoder_lr"),
    "optimizer_type": _read(
        KOHYA,
        "optimizer",
        "only AdamW, AdamW8bit, Adafactor and Prodigy",
        values={name: name for name in ("adamw", "adamw8bit", "adafactor", "prodigy")},
    ),
    "use_8bit_adam": _read(BOTH, "optimizer", values={"true": "adamw8bit", "false": "adamw"}),
    "optimizer_args": _no(KOHYA, "give adam_beta1, adam_beta2, adam_weight_decay and adam_epsilon by themselves"),
    "scale_lr": _no(DIFFUSERS, "learning_rate is taken as it is; leave it out"),
    "lr_num_cycles": _no(DIFFUSERS, _SHAPE),
    "lr_power": _no(DIFFUSERS, _SHAPE),
    "lr_scheduler_num_cycles": _no(KOHYA, _SHAPE),
    "lr_scheduler_power": _no(KOHYA, _SHAPE),
    "num_train_epochs": _no(DIFFUSERS, _STEPS),
    "max_train_epochs": _no(KOHYA, _STEPS),
    "set_grads_to_none": _no(DIFFUSERS, "gradients are always set to none; leave it out"),
    # the objective
    "min_snr_gamma": _read(KOHYA, "snr_gamma"),
    "prediction_type": _no(DIFFUSERS, _FROM_BASE),
    "v_parameterization": _no(KOHYA, _FROM_BASE),
    "v2": _no(KOHYA, "the architecture is read from the base; leave it out"),
    "zero_terminal_snr": _no(KOHYA, _FROM_BASE),
    "input_perturbation": _no(DIFFUSERS, "it is not offered; leave it out"),
    "ip_noise_gamma": _no(KOHYA, "it is not offered; leave it out"),
    "debiased_estimation_loss": _no(KOHYA, "the only weighting is snr_gamma; leave it out"),
    # precision and speed
    "full_bf16": _no(KOHYA, _MASTERS),
    "full_fp16": _no(KOHYA, _MASTERS),
    "fp8_base": _no(KOHYA, _MASTERS),
    "no_half_vae": _no(KOHYA, "half precision is never used where a VAE fails in it; leave it out"),
    "torch_compile": _read(KOHYA, "compile_mode", values={"true": "default", "false": None}),
    "dynamo_backend": _no(KOHYA, "torch's own backend (inductor) is used; give compile_mode=default"),
    "xformers": _no(KOHYA, _ATTENTION),
    "sdpa": _no(KOHYA, _ATTENTION),
    "mem_eff_attn": _no(KOHYA, _ATTENTION),
    "enable_xformers_memory_efficient_attention": _no(DIFFUSERS, _ATTENTION),
    "offload_ema": _read(DIFFUSERS, "ema_device", values={"true": "cpu", "false": "same"}),
    "foreach_ema": _no(DIFFUSERS, "leave it out"),
    # what is written
    "output_name": _no(KOHYA, "output_dir names the run; the files in it have the names that diffusers looks for"),
    "save_model_as": _no(KOHYA, "weights are always safetensors; leave it out"),
    "save_precision": _no(KOHYA, "weights are written as they were trained, in float32; leave it out"),
    "save_every_n_steps": _read(KOHYA, "checkpointing_steps"),
    "save_every_n_epochs": _no(KOHYA, "updates are the only clock; give checkpointing_steps"),
    "save_last_n_steps": _no(KOHYA, _LIMIT),
    "save_last_n_epochs": _no(KOHYA, _LIMIT),
    "save_state": _no(KOHYA, "every checkpoint holds the whole state; leave it out"),
    "resume": _no(KOHYA, _RESUMED),
    "skip_until_initial_step": _no(KOHYA, _RESUMED),
    "huggingface_repo_id": _read(KOHYA, "hub_model_id", "push_to_hub=true is needed too"),
    "huggingface_repo_visibility": _read(KOHYA, "hub_private", values={"private": True, "public": False}),
    "hub_token": _no(DIFFUSERS, "log in with `hf auth login`, or set HF_TOKEN; secrets do not belong into settings"),
    "huggingface_token": _no(
        KOHYA, "log in with `hf auth login`, or set HF_TOKEN; secrets do not belong into settings"
    ),
    "log_with": _read(KOHYA, "report_to"),
    "logging_dir": _no(BOTH, "trackers write to logs/ in output_dir; leave it out"),
    # looking at it while it trains
    "validation_prompt": _read(DIFFUSERS, "validation_prompts", "drawn every validation_steps updates", in_list=True),
    "validation_epochs": _no(DIFFUSERS, "updates are the only clock; give validation_steps"),
    "sample_every_n_steps": _read(KOHYA, "validation_steps"),
    "sample_every_n_epochs": _no(KOHYA, "updates are the only clock; give validation_steps"),
    "sample_prompts": _no(KOHYA, "give the prompts themselves: validation_prompts='[a photo of ..., ...]'"),
    "sample_batch_size": _read(DIFFUSERS, "validation_batch_size"),
}


def converted(name: str, alias: Alias, value: Any) -> Any:
    """Our value for another tool's.

    Raises:
        ValueError: there is none; says which values are known.
    """
    if alias.in_list:
        return [value]
    if not alias.values:
        return value
    text = str(value).lower()
    if text not in alias.values:
        raise ValueError(f"{name}={value} has nothing here that means the same; known are {', '.join(alias.values)}")
    return alias.values[text]


def familiar_value(key: str, hint: Any, value: Any) -> Any:
    """The value of one of our own keys, where another tool, or YAML, writes it in another way.

    Raises:
        ValueError: a resolution of unequal sides.
    """
    # YAML reads a bare `no` as false.
    if value is False and "no" in get_args(hint) + tuple(a for h in get_args(hint) for a in get_args(h)):
        return "no"
    if key == "resolution" and isinstance(value, str) and (sides := re.fullmatch(r"(\d+)\s*,\s*(\d+)", value)):
        if int(sides[1]) != int(sides[2]):
            raise ValueError(
                f"{key}={value}: give one number, and aspect_ratio_buckets=true for images of other shapes"
            )
        return int(sides[1])
    return value
