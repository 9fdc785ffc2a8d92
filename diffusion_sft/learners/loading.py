"""Loading a Stable Diffusion by what its users have: a pipeline folder, a Hub id, or one checkpoint file.

What comes out is always the same: diffusers' own pipeline without a safety checker, and where it came from.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor

from ..errors import UserError
from ..files import file_hash, user_path
from ..parsing import first_line
from .conditioning import check_tokenizers
from .inspection import PICKLED, Architecture, check_filled, check_finite, check_folder, weight_files
from .lora import load_lora
from .noise_schedules import check_scheduler, schedule_of
from .single_file import load_single_file

__all__ = ["LoadedPipeline", "load_lora", "load_pipeline", "place", "schedule_of", "weight_hashes"]

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline
_NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")


@dataclass(frozen=True, kw_only=True)
class LoadedPipeline:
    """A pipeline and where it came from.

    Attributes:
        pipeline: without safety checker; its networks on the CPU, in evaluation mode.
        folder: the local pipeline folder that it was read from (a snapshot in the cache for a Hub id); None for a
            single file.
        file: the single checkpoint file; None for a folder.
        config_folder: where configurations and tokenizers came from; `folder` itself but for a single file.
        variant: of the weight files.
        source: JSON: what was asked for, the commit that a Hub id came down to, dtype, architecture, betas.
    """

    pipeline: Pipeline
    folder: Path | None
    file: Path | None
    config_folder: Path
    variant: str | None
    source: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        """sd1, sd2 or sdxl."""
        architecture: Architecture = self.source["architecture"]
        return architecture


def place(pipeline: Pipeline, device: torch.device, compile_mode: str | None = None) -> None:
    """Put a pipeline's networks on a device, as they are fastest there.

    Args:
        compile_mode: of torch.compile, for the UNet; None leaves it as it is.
    """
    pipeline.to(device)
    if device.type == "cpu":
        # The fused kernel's backward is several times slower than plain attention on a CPU.
        pipeline.unet.set_attn_processor(AttnProcessor())
    elif device.type == "cuda":
        # Tensor cores take channels last; images in the other order are turned around for every convolution.
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
    if compile_mode is not None:
        pipeline.unet.compile(mode=compile_mode)


def load_pipeline(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    single_file_config: str | None = None,
) -> LoadedPipeline:
    """Load a text-to-image pipeline of Stable Diffusion 1.x, 2.x or SDXL.

    Args:
        name: a pipeline folder, a Hub id, or a `.safetensors` checkpoint in the original layout.
        revision: branch, tag or commit of a Hub repository.
        variant: of the weight files, for example fp16.
        dtype: of all networks.
        single_file_config: for a checkpoint, the pipeline folder or Hub id that configurations and tokenizers are
            taken from; by default the published one of its architecture.

    Raises:
        UserError: nothing there, unreadable, incomplete, pickled, or of another kind.
    """
    source: dict[str, Any] = {"source": name, "revision": revision, "variant": variant}
    source["dtype"] = str(dtype).removeprefix("torch.")
    path = user_path(name)
    if path.is_file():
        if revision or variant:
            raise UserError(f"{path}: a single file has no {'revision' if revision else 'variant'}; leave it out")
        single = load_single_file(path, single_file_config, dtype)
        pipeline, folder, architecture = single.pipeline, None, single.architecture
        config_folder, source = single.config_folder, source | single.source
    else:
        if single_file_config:
            raise UserError(f"{name}: single_file_config belongs to a single checkpoint file; leave it out")
        folder, architecture = inspect_pipeline(name, revision=revision, variant=variant)
        config_folder = folder
        if folder != path:
            source["commit"] = folder.name
        pipeline = _from_folder(folder, architecture, variant, dtype)
    check_scheduler(pipeline.scheduler, folder or path)
    check_tokenizers(pipeline, folder or path)
    pipeline.set_progress_bar_config(disable=True)
    for part in _networks(pipeline):
        getattr(pipeline, part).eval()
    source |= {"architecture": architecture, "noise_schedule": _betas(pipeline.scheduler.config)}
    return LoadedPipeline(
        pipeline=pipeline,
        folder=folder,
        file=None if folder else path,
        config_folder=config_folder,
        variant=variant,
        source=source,
    )


def inspect_pipeline(name: str, *, revision: str | None, variant: str | None) -> tuple[Path, Architecture]:
    """The folder of a pipeline that looks sound, from its settings and the headers of its weights; nothing is loaded.

    Raises:
        UserError: as `load_pipeline`, as far as that can be told by then.
    """
    folder = locate(name, revision=revision, variant=variant)
    return folder, check_folder(folder, variant)


def locate(name: str, *, revision: str | None, variant: str | None) -> Path:
    """The folder that holds a pipeline: the given one, or the local copy of a Hub repository, downloaded if need be.

    Raises:
        UserError: no such folder, not a pipeline, or nothing of that name to be had.
    """
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder}: not a pipeline folder (no model_index.json in it)")
        if revision:
            raise UserError(f"{folder}: a folder has no revision ({revision}); leave revision out")
        return folder
    if name.endswith((".safetensors", *PICKLED)):
        raise UserError(f"{name}: no such file")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: no such folder; give a pipeline folder, a .safetensors file or a Hub id")
    try:
        return Path(
            DiffusionPipeline.download(
                name,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
            )
        )
    except (OSError, ValueError) as error:
        cause = textwrap.shorten(first_line(error), 200, placeholder=" ...")
        raise UserError(f"{name}: no such folder, nor could the Hub give it: {cause}") from error


def weight_hashes(loaded: LoadedPipeline) -> dict[str, str]:
    """SHA-256 of every weight file in use, by its path in the pipeline folder (a single file: by its name)."""
    if loaded.folder is None:
        assert loaded.file is not None
        return {loaded.file.name: file_hash(loaded.file)}
    parts = _networks(loaded.pipeline)
    files = [file for part in parts for file in weight_files(loaded.folder, part, loaded.variant)]
    weights = [file for file in files if file.suffix == ".safetensors"]
    return {file.relative_to(loaded.folder).as_posix(): file_hash(file) for file in weights}


def _from_folder(folder: Path, architecture: Architecture, variant: str | None, dtype: torch.dtype) -> Pipeline:
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if architecture == "sdxl":
        # The watermark package may or may not be there; pictures must not depend on it.
        kind, unused = StableDiffusionXLPipeline, unused | {"add_watermarker": False}
    else:
        kind, unused = StableDiffusionPipeline, unused | {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline: Pipeline = kind.from_pretrained(
            folder, variant=variant, dtype=dtype, use_safetensors=True, local_files_only=True, **unused
        )
    except Exception as error:  # Whatever four libraries make of a stranger's files; tokenizers raises no other kind.
        raise UserError(f"{folder}: cannot be loaded as a {kind.__name__} ({first_line(error)[:300]})") from error
    for part in _networks(pipeline):
        files, tensors = weight_files(folder, part, variant), getattr(pipeline, part).state_dict()
        check_filled(files, tensors)
        check_finite(files[0].parent, tensors)
    return pipeline


def _networks(pipeline: Pipeline) -> list[str]:
    return [part for part in _NETWORKS if getattr(pipeline, part, None) is not None]


def _betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the noise schedule, for the record."""
    names = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")
    found = {name: config[name] for name in names if name in config}
    return found | {"zero_terminal_snr": bool(config.get("rescale_betas_zero_snr"))}
