"""The parts of a small Stable Diffusion: the architectures of SD 1.5, of any size, built from scratch.

Everything is diffusers' and transformers' own classes, so that what comes out is an ordinary
`StableDiffusionPipeline` folder and nothing later can tell it from a downloaded one but by its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..layouts import complete_text_encoder, complete_tokenizer
from ..numerics.schedule import PredictionType
from ..ranges import MOST_PIXELS, check_range

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """Sizes of the four networks; the defaults are the shipped base's."""

    resolution: int = 64
    vae_channels: list[int] = field(default_factory=lambda: [16, 32, 64, 96])
    latent_channels: int = 8
    unet_channels: list[int] = field(default_factory=lambda: [64, 128])
    unet_layers_per_block: int = 1
    unet_attention_heads: int = 4
    text_hidden_size: int = 128
    text_layers: int = 3
    text_attention_heads: int = 4
    max_caption_tokens: int = 32
    num_merges: int = 900
    """BPE merges; the vocabulary holds them beside 512 byte symbols and two special tokens."""
    prediction_type: PredictionType = "epsilon"
    norm_num_groups: int = 8

    def __post_init__(self) -> None:
        check_range(self, "resolution", least=1, most=MOST_PIXELS)
        check_range(self, "vae_channels", "unet_channels", "text_hidden_size", least=1, most=65_536)
        check_range(self, "unet_layers_per_block", "text_layers", "latent_channels", least=1, most=1024)
        check_range(self, "text_attention_heads", "unet_attention_heads", "norm_num_groups", least=1, most=65_536)
        check_range(self, "max_caption_tokens", least=3, most=65_536)
        check_range(self, "num_merges", least=0, most=32_000)  # Ids are kept in 16 bits.
        if not self.vae_channels or not self.unet_channels:
            raise ValueError("vae_channels and unet_channels must hold one number for each level")
        if self.text_hidden_size % self.text_attention_heads:
            raise ValueError(
                f"text_hidden_size ({self.text_hidden_size}) must be a multiple of text_attention_heads "
                f"({self.text_attention_heads})"
            )
        for name, divisor in (("vae_channels", "norm_num_groups"), ("unet_channels", "norm_num_groups")):
            if any(count % getattr(self, divisor) for count in getattr(self, name)):
                raise ValueError(f"{name} must be multiples of {divisor} ({getattr(self, divisor)})")


def build_tokenizer(corpus: Iterable[str], config: ArchitectureConfig) -> CLIPTokenizer:
    """Train CLIP's byte-level BPE (lower case, `</w>` at word ends) on the words of `corpus`."""
    empty = CLIPTokenizer(vocab={BOS: 0, EOS: 1}, merges=[])
    backend = empty.backend_tokenizer
    backend.model = models.BPE(end_of_word_suffix="</w>", unk_token=EOS)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(pre_tokenizers.ByteLevel.alphabet()) + config.num_merges,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    merges = json.loads(backend.to_str())["model"]["merges"][: config.num_merges]
    return CLIPTokenizer(
        vocab=_clip_vocabulary(merges),
        merges=[tuple(pair) for pair in merges],
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
        model_max_length=config.max_caption_tokens,
    )


def _clip_vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """CLIP's order: every byte, every byte at a word's end, one entry a merge, then the two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    entries += ["".join(pair) for pair in merges]
    return {token: index for index, token in enumerate([*dict.fromkeys(entries), BOS, EOS])}


def build_text_encoder(tokenizer: CLIPTokenizer, config: ArchitectureConfig) -> CLIPTextModel:
    """A CLIP text encoder with random weights that reads this tokenizer's ids."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_hidden_size,
            intermediate_size=4 * config.text_hidden_size,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_attention_heads,
            max_position_embeddings=config.max_caption_tokens,
            hidden_act="quick_gelu",
            projection_dim=config.text_hidden_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae(config: ArchitectureConfig) -> AutoencoderKL:
    """A KL autoencoder with random weights; each level but the last halves the picture."""
    levels = len(config.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.vae_channels),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.resolution,
        mid_block_add_attention=False,
    )


def build_unet(config: ArchitectureConfig) -> UNet2DConditionModel:
    """A text-conditional UNet with random weights and cross-attention on every level."""
    levels = len(config.unet_channels)
    return UNet2DConditionModel(
        sample_size=config.resolution // 2 ** (len(config.vae_channels) - 1),
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=tuple(config.unet_channels),
        layers_per_block=config.unet_layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.text_hidden_size,
        # Named dimension by diffusers, read as the number of heads by this block family.
        attention_head_dim=config.unet_attention_heads,
        norm_num_groups=config.norm_num_groups,
    )


def build_noise_scheduler(config: ArchitectureConfig) -> DDIMScheduler:
    """SD 1.5's noise schedule, with a deterministic sampler on it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=config.prediction_type,
    )


def build_pipeline(tokenizer: CLIPTokenizer, config: ArchitectureConfig) -> StableDiffusionPipeline:
    """A whole pipeline with random weights."""
    return StableDiffusionPipeline(
        vae=build_vae(config),
        text_encoder=build_text_encoder(tokenizer, config),
        tokenizer=tokenizer,
        unet=build_unet(config),
        scheduler=build_noise_scheduler(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save to `folder` as safetensors, readable by transformers 4 and 5 alike."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    complete_text_encoder(folder / "text_encoder")
    complete_tokenizer(folder / "tokenizer")
