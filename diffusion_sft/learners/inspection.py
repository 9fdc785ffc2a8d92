"""What lies in a folder or a file that is said to be a Stable Diffusion, found out before anything is built from it.

Only JSON and the headers of safetensors are read, so that every mistake is named in seconds: another architecture,
pickled weights, Git-LFS pointers in place of weights, downloads that broke off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import read_json, read_object
from ..parsing import first_line

Architecture = Literal["sd1", "sd2", "sdxl"]
"""sd1: OpenAI's CLIP (SD 1.x). sd2: OpenCLIP (SD 2.x). sdxl: both, with SDXL's size conditioning."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of weights that are Python pickles: reading one runs whatever program is in it."""
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_NETWORKS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""The components with weights, and how their files' names begin."""


_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers before 0.17 called the VAE's attention, as the published SD 1.5 still does."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of a safetensors file says: the shape of every tensor, and the writer's remarks."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def check_folder(folder: Path, variant: str | None, *, weights: bool = True) -> Architecture:
    """Which architecture a pipeline folder holds, everything in it present and whole.

    Args:
        folder: with `model_index.json`.
        variant: of the weight files.
        weights: whether weight files are needed, or configurations and tokenizers do.

    Raises:
        UserError: naming the file that is missing, broken or of another kind.
    """
    index = read_object(folder / "model_index.json")
    architecture = _architecture(folder, index)
    networks = [name for name in _NETWORKS if architecture == "sdxl" or name != "text_encoder_2"]
    tokenizers = ["tokenizer", "tokenizer_2"] if architecture == "sdxl" else ["tokenizer"]
    for name in (*networks, *tokenizers):
        _check_class(folder, name, index.get(name))
    for name in networks:
        read_object(folder / name / "config.json")
    for name in tokenizers:
        check_tokenizer(folder / name)
    read_object(folder / "scheduler" / "scheduler_config.json")
    _check_denoiser(folder)
    if weights:
        files = {name: weight_files(folder, name, variant) for name in networks}
        if variant and not any(_of_variant(file, variant) for own in files.values() for file in own):
            raise UserError(f"{folder}: no weights of variant {variant} in it; leave variant out")
        for file in (file for own in files.values() for file in own):
            check_weights(file)
    return architecture


def weight_files(folder: Path, component: str, variant: str | None) -> list[Path]:
    """The files that a component's weights are read from: one safetensors file, or an index and its shards.

    A component without files of the variant is read from its plain ones, as diffusers does.

    Raises:
        UserError: there are none, or only pickled ones, or a shard is missing.
    """
    part, stem = folder / component, _NETWORKS[component]
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    if variant:
        names = [f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", *names]
    for file in (part / name for name in names):
        if file.suffix == ".json" and file.exists():
            shards = _shards(file)
            if missing := [shard.name for shard in shards if not shard.exists()]:
                raise UserError(f"{part / missing[0]}: missing, {file.name} lists it; fetch the whole folder again")
            return [file, *shards]
        # A link into the Hub's cache whose file is gone is not the same as a file that never was.
        if file.exists() or file.is_symlink():
            return [file]
    raise UserError(_what_is_there(part, variant))


def setting_files(folder: Path, component: str) -> list[Path]:
    """The files of a component that are no weights: configurations, vocabularies, merges."""
    files = sorted((folder / component).iterdir())
    return [file for file in files if file.suffix in (".json", ".txt", ".model") and ".index." not in file.name]


def check_weights(file: Path) -> None:
    """Raise UserError where a weight file is a Git-LFS pointer, cut off, or no safetensors at all."""
    if file.suffix != ".json":
        header(file)


def header(file: Path) -> Header:
    """Read a safetensors file's header and hold it against the file's length.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    if start == LFS_POINTER:
        raise UserError(
            f"{file}: a Git-LFS pointer, not the weights themselves; run `git lfs pull` in its repository"
        )
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in names}
            return Header(shapes=shapes, metadata=dict(content.metadata() or {}))
    except SafetensorError as error:
        size = file.stat().st_size
        raise UserError(
            f"{file}: not a whole safetensors file ({size:,} bytes: {first_line(error)}); fetch it again"
        ) from None


def check_filled(files: Sequence[Path], names: Iterable[str]) -> None:
    """Raise UserError where a component's files lack tensors that its network has.

    The libraries would start those from random numbers, with a warning that is easily missed.

    Args:
        files: the component's weight files, with an index if there is one.
        names: of the network's tensors.
    """
    stored = {_canonical(name) for file in files if file.suffix != ".json" for name in header(file).shapes}
    missing = sorted(name for name in names if _canonical(name) not in stored)
    if missing:
        wrapped = " (saved from a compiled or wrapped network: _orig_mod.* or module.*)"
        known = any(name.startswith(("_orig_mod.", "module.")) for name in stored)
        raise UserError(
            f"{files[0]}: {len(missing)} of the network's tensors are not in it, for example {missing[0]}"
            f"{wrapped if known else ''}; they would be random"
        )


def check_finite(files: Sequence[Path], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError naming a loaded tensor of these files that holds a number that is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{files[0].parent}: {name} holds NaN or infinite weights; fetch or train it again")


def _canonical(name: str) -> str:
    """The same name for what versions of the libraries called differently."""
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _architecture(folder: Path, index: Mapping[str, Any]) -> Architecture:
    kind = index.get("_class_name")
    first, second = (_named(index.get(name)) for name in ("text_encoder", "text_encoder_2"))
    if second and not first:
        raise UserError(f"{folder}: the SDXL refiner, which has no first text encoder; the SDXL base is needed")
    if kind not in _PIPELINES:
        known = "the text-to-image pipelines of Stable Diffusion 1.x, 2.x and SDXL are known"
        raise UserError(f"{folder / 'model_index.json'}: a {kind}; {known}")
    if kind == "StableDiffusionXLPipeline":
        return "sdxl"
    text = read_object(folder / "text_encoder" / "config.json")
    return "sd2" if text.get("hidden_act", "quick_gelu") == "gelu" else "sd1"


def _named(entry: Any) -> str | None:
    """The class that `model_index.json` gives a component."""
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_class(folder: Path, name: str, entry: Any) -> None:
    if _named(entry) not in _CLASSES[name] or entry[0] not in ("diffusers", "transformers"):
        expected = " or ".join(_CLASSES[name])
        found = "nothing" if _named(entry) is None else f"{entry[0]}.{entry[1]}"
        raise UserError(f"{folder / 'model_index.json'}: {name} is {found}, not a {expected}")


def check_tokenizer(part: Path) -> None:
    """Raise UserError where a tokenizer's files are missing or broken.

    Without its files transformers 5 makes a tokenizer that reads every word as unknown, and says nothing.
    """
    whole = part / "tokenizer.json"
    for file in [whole] if whole.is_file() else [part / "vocab.json", part / "merges.txt"]:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{file}: missing or unreadable; a tokenizer needs vocab.json and merges.txt") from None
        _refuse_pointer(file, text[: len(LFS_POINTER)].encode())
        if file.suffix == ".json":
            read_json(file)


def _refuse_pointer(file: Path, start: bytes) -> None:
    if start == LFS_POINTER:
        raise UserError(f"{file}: a Git-LFS pointer, not the file itself; run `git lfs pull` in its repository")


def _check_denoiser(folder: Path) -> None:
    """Text-to-image networks take latents alone, and as many channels as the VAE makes."""
    config, vae = (read_object(folder / name / "config.json") for name in ("unet", "vae"))
    taken, made = config.get("in_channels", 4), vae.get("latent_channels", 4)
    if taken != made:
        raise UserError(
            f"{folder}: its UNet takes {taken} channels for {made} of latents (an inpainting, depth or editing "
            "model?); a text-to-image one is needed"
        )


def _shards(index: Path) -> list[Path]:
    named = read_object(index).get("weight_map")
    values = list(named.values()) if isinstance(named, dict) else []
    names = sorted(set(values)) if all(isinstance(name, str) for name in values) else []
    # Names come from a file that anybody may have written: they must stay in its folder.
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index}: not an index of safetensors shards beside it")
    return [index.parent / name for name in names]


def _of_variant(file: Path, variant: str) -> bool:
    return f".{variant}." in file.name or f".{variant}-" in file.name


def _what_is_there(part: Path, variant: str | None) -> str:
    """Why a component has no weights to read, in one line."""
    if not part.is_dir():
        return f"{part}: no such folder, though model_index.json names it"
    names = sorted(file.name for file in part.iterdir())
    if others := [name for name in names if name.endswith((".safetensors", ".json")) and ".safetensors" in name]:
        wanted = f"none of variant {variant}" if variant else "a variant"
        return f"{part}: {wanted} ({', '.join(others[:3])}); give variant as in the file's name, for example fp16"
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        return (
            f"{part / pickled[0]}: pickled weights, which are never read as they may run programs; convert them to "
            "safetensors"
        )
    return f"{part}: no weights in it (*.safetensors); fetch the whole folder again"
