"""Stable Diffusion on disk: loading a pipeline folder or Hub id, and writing one that plain diffusers loads.

What fine-tuning leaves alone is copied byte for byte: a text encoder or tokenizer that passed through another version
of transformers may come out in a layout that its neighbours cannot read.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict

from ..errors import UserError
from ..files import file_hash, read_json, write_json
from ..numerics.schedule import PredictionType, Schedule

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that are neither loaded nor copied; flagged pictures would come out black."""


def locate(pretrained_model_name_or_path: str, *, revision: str | None, variant: str | None) -> Path:
    """The folder that holds a pipeline: the given one, or the local copy of a Hub repository, downloaded if need be.

    Raises:
        UserError: no such folder, not a pipeline, or nothing of that name to be had.
    """
    folder = Path(pretrained_model_name_or_path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder}: not a pipeline folder (no model_index.json in it)")
        return folder
    if folder.exists() or pretrained_model_name_or_path.startswith((".", "/", "~")):
        raise UserError(f"{pretrained_model_name_or_path}: no such folder; give a pipeline folder or a Hub id")
    try:
        return Path(
            StableDiffusionPipeline.download(
                pretrained_model_name_or_path,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                safety_checker=None,
            )
        )
    except (OSError, ValueError) as error:
        name, cause = pretrained_model_name_or_path, textwrap.shorten(_first_line(error), 120)
        raise UserError(f"{name}: no such folder, nor could the Hub give it: {cause}") from error


def load_pipeline(folder: Path, *, variant: str | None, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load a text-to-image pipeline without its safety checker.

    Raises:
        UserError: missing or unreadable weights, or a pipeline of another kind.
    """
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder}: cannot be loaded as a Stable Diffusion pipeline ({_first_line(error)})"
        ) from error
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise UserError(
            f"{folder}: its UNet takes more than latents (an inpainting model?); a text-to-image one is needed"
        )
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        kind = type(pipeline.scheduler).__name__
        raise UserError(
            f"{folder}: {kind} has no discrete noise schedule (alphas_cumprod); use for example DDIMScheduler"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_lora(pipeline: StableDiffusionPipeline, lora: Path) -> None:
    """Put LoRA weights (a folder with `pytorch_lora_weights.safetensors`, or a .safetensors file) on the pipeline."""
    file = lora / "pytorch_lora_weights.safetensors" if lora.is_dir() else lora
    if not file.is_file():
        raise UserError(f"{file}: no such LoRA file")
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{file}: cannot be loaded as LoRA weights of this pipeline ({_first_line(error)})"
        ) from error


def schedule_of(pipeline: StableDiffusionPipeline) -> Schedule:
    """The schedule that the pipeline's scheduler was configured with."""
    prediction_type: PredictionType = pipeline.scheduler.config.prediction_type
    return Schedule(
        alphas_cumprod=pipeline.scheduler.alphas_cumprod.double().numpy(), prediction_type=prediction_type
    )


def weight_hashes(folder: Path, variant: str | None) -> dict[str, str]:
    """SHA-256 of every weight file in use, by its path in the pipeline folder."""
    files = [f for component in _components(folder) for f in _files(folder / component, variant)]
    return {f.relative_to(folder).as_posix(): file_hash(f) for f in files if f.name.endswith(".safetensors")}


def save_full(pipeline: StableDiffusionPipeline, base: Path, variant: str | None, folder: Path) -> None:
    """Write a pipeline folder with the present UNet and everything else as in `base`, without variant names."""
    index = read_json(base / "model_index.json")
    index |= {name: [None, None] for name in _UNUSED if name in index} | {"requires_safety_checker": False}
    pipeline.unet.save_pretrained(folder / "unet", safe_serialization=True)
    for component in _components(base):
        if component != "unet":
            for file in _files(base / component, variant):
                _copy(file, folder / component / _plain_name(file.name, variant), variant)
    write_json(folder / "model_index.json", index)


def save_lora(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the UNet's LoRA adapter as `pytorch_lora_weights.safetensors`, its rank and alpha in the metadata."""
    (adapter,) = pipeline.unet.peft_config
    layers = get_peft_model_state_dict(pipeline.unet, adapter_name=adapter)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(layers),
        unet_lora_adapter_metadata=pipeline.unet.peft_config[adapter].to_dict(),
        safe_serialization=True,
    )


def has_lora(pipeline: StableDiffusionPipeline) -> bool:
    """Whether the UNet carries an adapter."""
    return bool(getattr(pipeline.unet, "peft_config", None))


def _components(folder: Path) -> list[str]:
    index: dict[str, Any] = read_json(folder / "model_index.json")
    named = (name for name, value in index.items() if isinstance(value, list) and value[0] is not None)
    return sorted(name for name in named if name not in _UNUSED)


def _files(folder: Path, variant: str | None) -> Iterator[Path]:
    """The files of a component that this variant reads: its settings and its own safetensors, nothing pickled."""
    weights = [file for file in sorted(folder.iterdir()) if file.name.endswith(_WEIGHTS)]
    of_variant = [file for file in weights if variant and _plain_name(file.name, variant) != file.name]
    # Without the variant's own file diffusers falls back on the plain one.
    plain = [file for file in weights if re.fullmatch(r"[^.]+(\.safetensors|\.safetensors\.index\.json)", file.name)]
    yield from of_variant or plain
    yield from (f for f in sorted(folder.iterdir()) if f.suffix in (".json", ".txt", ".model") and f not in weights)


def _plain_name(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors` becomes `model.safetensors`."""
    return name if variant is None else name.replace(f".{variant}.", ".")


def _copy(source: Path, target: Path, variant: str | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if variant and source.name.endswith(".index.json"):
        target.write_text(_plain_name(source.read_text(encoding="utf-8"), variant), encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
