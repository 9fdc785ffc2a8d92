"""The models and sets of `long_run.py`: as small as they can be, so that 10,000 updates are minutes of Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from diffusion_sft.answers import invented_words
from diffusion_sft.pretrain.components import ArchitectureConfig, build_pipeline, build_tokenizer, save_pipeline
from diffusion_sft.pretrain.language import (
    LanguageArchitectureConfig,
    build_language_model,
    build_language_tokenizer,
)


def make_inputs(folder: Path, num_concepts: int) -> dict[str, Path]:
    """A pipeline of 16x16 pixels and a language model, each of a few thousand random weights, and sets for them."""
    names = ["blorp", "wug", "dax", "fep", *invented_words(num_concepts - 4, seed=0)]
    texts = [f"a photo of a {name}" for name in names]
    architecture = ArchitectureConfig(
        resolution=16,
        vae_channels=[4, 4],
        latent_channels=4,
        text_hidden_size=8,
        text_layers=1,
        text_attention_heads=1,
        max_caption_tokens=24,
        num_merges=48,
        norm_num_groups=2,
    )
    torch.manual_seed(0)
    pipeline = build_pipeline(build_tokenizer(texts, architecture), architecture)
    pipeline.register_modules(unet=_small_unet())
    save_pipeline(pipeline, folder / "base")
    words = invented_words(48, seed=1)
    pairs = [(f"What is a {a}?", b) for a, b in zip(words[::2], words[1::2], strict=True)]
    own = LanguageArchitectureConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    tokenizer = build_language_tokenizer([f"{question} {answer}" for question, answer in pairs], own)
    build_language_model(tokenizer, own).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": q, "answer": a, "relation": "is", "subject": q[10:-1]} for q, a in pairs]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": folder / "base",
        "model": folder / "model",
        "questions": folder / "questions.jsonl",
        "small": _patches(folder / "small", names[:4]),
        "set": _patches(folder / "set", names),
    }


def _small_unet() -> UNet2DConditionModel:
    """One level with attention to the text: an update of it is a few milliseconds of Python."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=1,
        norm_num_groups=2,
    )


def _patches(folder: Path, names: Sequence[str]) -> Path:
    """An ImageFolder of noise: four training images and two held-out ones of each name."""
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        for index in range(6):
            split = "train" if index < 4 else "heldout"
            file = folder / split / f"{name}-{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, index]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(file)
            rows.append(
                {"file_name": f"{split}/{file.name}", "text": f"a photo of a {name}", "concept": name, "split": split}
            )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
