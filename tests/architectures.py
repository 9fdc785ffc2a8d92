"""Pipelines of the three architectures with random weights, as folders that plain diffusers loads.

`tiny_pipeline` needs nothing outside the repository and takes a fraction of a second. `published_pipeline` has the
published configurations and the true tokenizers, at full size or shrunk; tests that use it are marked `needs_published`.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion_sft.pretrain.components import BOS, EOS, ArchitectureConfig, build_tokenizer

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "pipelines"
"""Folders sd15, sd21 and sdxl with the published configurations and tokenizers, no weights."""
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published configurations are not at hand")

NAMES = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
WORDS = ("a", "photo", "of", "an", "the", "red", "green", "circle", "dog", "cat", "blorp", "wug", "dax", "fep", "mip")
TOKENS = 24
"""Length of the tiny pipelines' captions in tokens, with start and end."""

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}


def tiny_pipeline(
    folder: Path,
    architecture: str,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    seed: int = 0,
) -> Path:
    """Write a pipeline of 16x16 pixels (latents 8x8x4) and return its folder.

    Args:
        architecture: sd1, sd2 or sdxl.
        prediction_type: by default what the architecture was published with (sd2: v_prediction).
        zero_terminal_snr: rescale the betas so that the last timestep is pure noise.
        seed: of the weights.
    """
    prediction_type = prediction_type or ("v_prediction" if architecture == "sd2" else "epsilon")
    folder.mkdir(parents=True, exist_ok=True)
    size = _tiny_tokenizer(folder / "tokenizer", pad=EOS)
    encoders = {"text_encoder": _text_config(architecture, size)}
    if architecture == "sdxl":
        # Its first tokenizer pads with the end of text, its second with "!".
        _tiny_tokenizer(folder / "tokenizer_2", pad="!")
        encoders["text_encoder_2"] = _text_config("sdxl_2", size)
    scheduler = _scheduler(architecture, prediction_type, zero_terminal_snr)
    configs = {"unet": _UNETS[architecture], "vae": _VAE | _SCALING[architecture], **encoders}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", _index(architecture, scheduler["_class_name"]))
    for number, (name, config) in enumerate(configs.items()):
        _component(folder / name, name, config, seed=1000 * seed + number, dtype=torch.float32)
    return folder


def published_pipeline(
    folder: Path, name: str, shrink: bool, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a pipeline with a published configuration (sd15, sd21, sdxl) and random weights, and return its folder.

    Args:
        shrink: fewer channels and layers and 64x64 pixels, same blocks and tokenizers; else full size (SDXL: 3.5
            billion parameters, built and written part by part).
        dtype: of the weights on disk.
        seed: of the weights.
    """
    source = PUBLISHED / name
    for file in source.rglob("*.*"):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    for file in ("vocab.json", "merges.txt"):
        if (folder / "tokenizer_2").is_dir() and not (folder / "tokenizer_2" / file).exists():
            shutil.copyfile(folder / "tokenizer" / file, folder / "tokenizer_2" / file)
    index = read_json(folder / "model_index.json")
    parts = [part for part in ("unet", "vae", "text_encoder", "text_encoder_2") if part in index]
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    if shrink:
        configs = {part: _shrunk(part, config) for part, config in configs.items()}
        if "text_encoder_2" in configs:
            second = configs["text_encoder_2"]
            width = configs["text_encoder"]["hidden_size"] + second["hidden_size"]
            unet = {"cross_attention_dim": width, "addition_time_embed_dim": 8}
            unet["projection_class_embeddings_input_dim"] = 6 * 8 + second["projection_dim"]
            configs["unet"] |= unet
        else:
            configs["unet"]["cross_attention_dim"] = configs["text_encoder"]["hidden_size"]
    for number, (part, config) in enumerate(configs.items()):
        _component(folder / part, part, config, seed=1000 * seed + number, dtype=dtype)
        if not shrink:
            gc.collect()
    return folder


_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
_UNETS: dict[str, dict[str, Any]] = {
    # "attention_head_dim" is the number of heads, whatever it is called.
    "sd1": _UNET | {"attention_head_dim": 2},
    "sd2": _UNET | {"attention_head_dim": [1, 2], "use_linear_projection": True, "upcast_attention": True},
    "sdxl": _UNET
    | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "attention_head_dim": [1, 2, 4],
        "block_out_channels": [8, 16, 16],
        "cross_attention_dim": 40,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "transformer_layers_per_block": [1, 2, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 16,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
_SCALING: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {},
    "sdxl": {"scaling_factor": 0.13025, "force_upcast": True},
}


def _text_config(architecture: str, vocab_size: int) -> dict[str, Any]:
    """sd1 and sdxl: OpenAI's CLIP in small. sd2 and sdxl_2: OpenCLIP's."""
    width = 24 if architecture == "sdxl_2" else 16
    return {
        "architectures": ["CLIPTextModelWithProjection" if architecture == "sdxl_2" else "CLIPTextModel"],
        "hidden_act": "quick_gelu" if architecture in ("sd1", "sdxl") else "gelu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "max_position_embeddings": TOKENS,
        "model_type": "clip_text_model",
        "num_attention_heads": 2,
        # Two at least: SDXL reads the last but one.
        "num_hidden_layers": 2,
        "projection_dim": width,
        "vocab_size": vocab_size,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }


def _scheduler(architecture: str, prediction_type: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """What the architecture was published with, where that kind knows the prediction type and the rescaling."""
    config: dict[str, Any] = _BETAS | {"prediction_type": prediction_type, "steps_offset": 1}
    if zero_terminal_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if architecture == "sdxl":
        return {"_class_name": "EulerDiscreteScheduler"} | {"timestep_spacing": "leading"} | config
    if architecture == "sd1" and prediction_type != "sample" and not zero_terminal_snr:
        return {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False} | config
    return {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False} | config


def _index(architecture: str, scheduler: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if architecture == "sdxl" else "StableDiffusionPipeline",
        "_diffusers_version": "0.21.0",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if architecture == "sdxl":
        index |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return index


def _tiny_tokenizer(folder: Path, pad: str) -> int:
    """Write a tokenizer as published ones are (vocab.json, merges.txt, two settings files); returns its size."""
    tokenizer = _trained_tokenizer()
    folder.mkdir(parents=True)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", settings | special)
    return len(tokenizer)


@cache
def _trained_tokenizer() -> CLIPTokenizer:
    return build_tokenizer(WORDS * 4, ArchitectureConfig(max_caption_tokens=TOKENS, num_merges=48))


def _component(folder: Path, name: str, config: dict[str, Any], *, seed: int, dtype: torch.dtype) -> None:
    """Build one network from its configuration and write it, text encoders under the keys of published ones."""
    with _building(seed, dtype):
        network: nn.Module
        if name.startswith("text_encoder"):
            network = _CLASSES[config["architectures"][0]](CLIPTextConfig.from_dict(config))
        else:
            network = _CLASSES[name].from_config(config)
    network.save_pretrained(folder, safe_serialization=True)
    write_json(folder / "config.json", config)
    del network
    if name.startswith("text_encoder"):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        known = ("text_model.", "text_projection.")
        prefixed = {key if key.startswith(known) else f"text_model.{key}": value for key, value in tensors.items()}
        save_file(prefixed, file, metadata={"format": "pt"})


@contextmanager
def _building(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """Random weights from the seed and of the dtype from the start, so that the largest fits into memory."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _shrunk(part: str, config: dict[str, Any]) -> dict[str, Any]:
    """The same kinds of blocks in the same order, narrow: 64 pixels, latents of 8x8."""
    if part.startswith("text_encoder"):
        width = 24 if part.endswith("2") else 16
        small = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2}
        return config | small | {"num_hidden_layers": 3, "projection_dim": width}
    levels = len(config["block_out_channels"])
    if part == "vae":
        return config | {"block_out_channels": [8] * levels, "norm_num_groups": 4, "sample_size": 64}
    small = {"block_out_channels": [8, 16, 16, 16][:levels], "norm_num_groups": 4, "sample_size": 8}
    if isinstance(config["attention_head_dim"], list):
        small["attention_head_dim"] = [1, 2, 2, 2][:levels]
    if "transformer_layers_per_block" in config:
        small["transformer_layers_per_block"] = [1, 2, 2][:levels]
    return config | small


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
