"""A pipeline of a published architecture with random weights, in the diffusers layout, for timing alone.

    python scripts/bench/random_pipeline.py CONFIGS FOLDER

CONFIGS is a pipeline's folder without its weight files: model_index.json, the settings of the scheduler, the UNet, the
VAE and the text encoders, and the tokenizers. What a network costs does not hang on its weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
ENCODERS = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
PREFIXES = ("text_model.", "text_projection.")


def random_pipeline(configs: Path, folder: Path, device: torch.device | str = "cpu") -> Path:
    """Write the pipeline and return its folder; networks are filled with random numbers on `device`."""
    shutil.copytree(configs, folder, dirs_exist_ok=True)
    for second in folder.glob("tokenizer_2"):
        for file in ("vocab.json", "merges.txt"):
            if not (second / file).exists():
                shutil.copyfile(folder / "tokenizer" / file, second / file)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if index.get(part, [None])[0] is not None:
                _write_network(folder / part, part)
    return folder


def _write_network(folder: Path, part: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if part in KINDS:
        KINDS[part].from_config(config).save_pretrained(folder)
        return
    ENCODERS[config["architectures"][0]](CLIPTextConfig.from_dict(config)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # Published files name these weights with a prefix that newer versions of transformers leave out.
    file = folder / "model.safetensors"
    tensors = load_file(file)
    named = {key if key.startswith(PREFIXES) else f"text_model.{key}": value for key, value in tensors.items()}
    save_file(named, file, metadata={"format": "pt"})


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    print(random_pipeline(chosen.configs, chosen.folder))


if __name__ == "__main__":
    main()
