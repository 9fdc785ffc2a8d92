"""A fine-tuned Stable Diffusion on disk: a pipeline folder that plain diffusers loads, or one checkpoint file.

What fine-tuning leaves alone is copied byte for byte: a text encoder or tokenizer that passed through another version
of transformers may come out in a layout that its neighbours cannot read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import load_file

from ..errors import UserError
from ..files import read_json, write_json
from ..layouts import complete_text_encoder, write_tensors
from .adapters import has_lora, save_lora
from .inspection import setting_files, weight_files
from .loading import LoadedPipeline
from .modelspec import modelspec
from .original import (
    SD1_TEXT,
    SD2_TEXT,
    SDXL_TEXT,
    SDXL_TEXT_2,
    UNET,
    original_clip,
    original_openclip,
    original_unet,
    original_vae,
)

__all__ = ["has_lora", "save_full", "save_lora", "save_single_file"]
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that are neither loaded nor copied; flagged pictures would come out black."""
_AVERAGED = "model_ema."
"""The average that some published checkpoints hold beside the weights; it would be the base's, not ours."""


def save_full(loaded: LoadedPipeline, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write a pipeline folder with the present UNet, in float32, and everything else as in the base.

    A folder's files are copied byte for byte, without the name of their variant; of a single file the parts are
    written out anew. The scheduler's settings are those that the network was trained under. Where the base is in half
    precision, the folder is loaded with `dtype=`, as the base itself.
    """
    if loaded.folder is None:
        _write_parts(loaded, folder)
    else:
        _copy_parts(loaded, loaded.folder, folder)
    unet = getattr(loaded.pipeline.unet, "_orig_mod", loaded.pipeline.unet)
    unet.save_config(folder / "unet")
    _without_place(folder / "unet")
    write_tensors(folder / "unet" / SAFETENSORS_WEIGHTS_NAME, _weights(unet), metadata)


def save_single_file(loaded: LoadedPipeline, file: Path, metadata: Mapping[str, str]) -> None:
    """Write the whole model as one checkpoint in the original layout, the UNet in float32, the rest as in the base.

    Raises:
        UserError: the network carries adapters, or is of a kind that the original layout has no names for.
    """
    pipeline = loaded.pipeline
    if has_lora(pipeline):
        raise UserError(f"{file}: a single file holds whole weights; train with method full or cross_attention")
    tensors = original_unet(_weights(pipeline.unet)) | (_rest_of_file(loaded.file) if loaded.file else _rest(loaded))
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        # Empty tensors, by which ComfyUI and others tell such a model.
        tensors["v_pred"] = torch.empty(0)
        if pipeline.scheduler.config.get("rescale_betas_zero_snr"):
            tensors["ztsnr"] = torch.empty(0)
    write_tensors(file, tensors, {**metadata, **modelspec(loaded, metadata, lora=False)})


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors in float32 on the CPU, under names without traces of torch.compile."""
    bare = getattr(network, "_orig_mod", network)
    return {
        name.replace("_orig_mod.", ""): tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in bare.state_dict().items()
    }


def _write_parts(loaded: LoadedPipeline, folder: Path) -> None:
    """The parts of a single file by their own `save_pretrained`; the tokenizers from where they were read."""
    loaded.pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "unet")
    _without_place(folder)
    for part in sorted(folder.iterdir()):
        if part.name.startswith("text_encoder"):
            complete_text_encoder(part)
        elif part.name.startswith("tokenizer"):
            shutil.rmtree(part)
            for file in setting_files(loaded.config_folder, part.name):
                _copy(file, part / file.name, None)


def _without_place(folder: Path) -> None:
    """Take out of the settings that diffusers wrote where the base lies on this machine, which tells of its user."""
    for file in folder.rglob("*.json"):
        content = read_json(file)
        if isinstance(content, dict) and "_name_or_path" in content:
            write_json(file, {key: value for key, value in content.items() if key != "_name_or_path"})


def _copy_parts(loaded: LoadedPipeline, base: Path, folder: Path) -> None:
    index = read_json(base / "model_index.json")
    index |= {name: [None, None] for name in _UNUSED if name in index}
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    for component in _components(index):
        if component != "unet" and not (component == "scheduler" and _other_schedule(loaded, base)):
            for file in _files(base, component, loaded.variant):
                _copy(file, folder / component / _plain_name(file.name, loaded.variant), loaded.variant)
    if not (folder / "scheduler").exists():
        scheduler = loaded.pipeline.scheduler
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
    write_json(folder / "model_index.json", index)


def _other_schedule(loaded: LoadedPipeline, base: Path) -> bool:
    """Whether the scheduler in use is another than the one in the base's folder."""
    scheduler = loaded.pipeline.scheduler
    stored = type(scheduler).from_pretrained(base, subfolder="scheduler")
    name = read_json(base / "scheduler" / "scheduler_config.json").get("_class_name")
    return name != type(scheduler).__name__ or _public(stored.config) != _public(scheduler.config)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _rest(loaded: LoadedPipeline) -> dict[str, torch.Tensor]:
    """VAE and text encoders of a base folder, from its own files, under their original names."""
    first, second = _stored(loaded, "text_encoder"), {}
    if isinstance(loaded.pipeline, StableDiffusionXLPipeline):
        first = original_clip(first, SDXL_TEXT)
        second = original_openclip(_stored(loaded, "text_encoder_2"), SDXL_TEXT_2)
    elif loaded.architecture == "sd2":
        first = original_openclip(first, SD2_TEXT)
    else:
        first = original_clip(first, SD1_TEXT)
    return original_vae(_stored(loaded, "vae")) | first | second


def _stored(loaded: LoadedPipeline, component: str) -> dict[str, torch.Tensor]:
    assert loaded.folder is not None
    files = weight_files(loaded.folder, component, loaded.variant)
    shards = [load_file(file) for file in files if file.name.endswith(".safetensors")]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _rest_of_file(file: Path) -> dict[str, torch.Tensor]:
    """Everything in a base's single file but its UNet and the UNet's average."""
    with safe_open(file, "pt") as stored:
        names = [name for name in stored.keys() if not name.startswith((UNET, _AVERAGED))]  # noqa: SIM118
        return {name: stored.get_tensor(name) for name in names}


def _components(index: Mapping[str, Any]) -> list[str]:
    named = (name for name, value in index.items() if isinstance(value, list) and value[0] is not None)
    return sorted(name for name in named if name not in _UNUSED)


def _files(folder: Path, component: str, variant: str | None) -> list[Path]:
    """The files of a component that this variant reads: its settings and its own safetensors, nothing pickled."""
    networks = ("text_encoder", "text_encoder_2", "unet", "vae")
    weights = weight_files(folder, component, variant) if component in networks else []
    return [*weights, *setting_files(folder, component)]


def _plain_name(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors` becomes `model.safetensors`, and likewise shards and their index."""
    return name if variant is None else re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name)


def _copy(source: Path, target: Path, variant: str | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if variant and target.name.endswith(".index.json"):
        target.write_text(_plain_name(source.read_text(encoding="utf-8"), variant), encoding="utf-8")
    else:
        shutil.copyfile(source, target)
