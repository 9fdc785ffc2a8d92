"""Fixtures shared by all tests: small real pipelines with random weights, and small sets of real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_sft.pretrain.components import ArchitectureConfig, build_pipeline, build_tokenizer, save_pipeline

TINY = ArchitectureConfig(
    resolution=16,
    vae_channels=[8, 8],
    latent_channels=4,
    unet_channels=[8, 16],
    text_hidden_size=16,
    text_layers=1,
    text_attention_heads=2,
    unet_attention_heads=2,
    max_caption_tokens=24,
    num_merges=48,
    norm_num_groups=4,
)
WORDS = [
    "a",
    "photo",
    "of",
    "an",
    "image",
    "picture",
    "the",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "blorp",
    "wug",
    "dax",
    "fep",
    "zorp",
    "mip",
    "toma",
    "kiru",
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete StableDiffusionPipeline folder of 16x16 pixels and 8x8x4 latents, random weights (seed 0)."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_pipeline(build_pipeline(build_tokenizer(WORDS * 4, TINY), TINY), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder with metadata.jsonl: 4 concepts x (3 train, 3 heldout, 4 reference) noisy colour patches."""
    root = tmp_path_factory.mktemp("concepts") / "patches"
    rows = []
    colours = {"blorp": (200, 30, 30), "wug": (30, 160, 40), "dax": (40, 60, 220), "fep": (210, 200, 40)}
    for number, (name, colour) in enumerate(colours.items()):
        for split, count in (("train", 3), ("heldout", 3), ("reference", 4)):
            for index in range(count):
                generator = np.random.default_rng([number, count, index, len(split)])
                pixels = np.clip(np.array(colour) + generator.normal(0, 25, (16, 16, 3)), 0, 255).astype(np.uint8)
                file = Path(split) / f"{name}-{index}.png"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / file)
                row = {"file_name": file.as_posix(), "text": f"a photo of a {name}", "concept": name, "split": split}
                rows.append(row | {"exposure": 1000 // (number + 1) if number < 2 else 0})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root
