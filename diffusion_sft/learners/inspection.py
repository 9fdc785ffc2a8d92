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
from ..parsing import first_line, printable
from .configurations import check_configurations, check_scheduler_settings

Architecture = Literal["sd1", "sd2", "sdxl"]
"""sd1: OpenAI's CLIP (SD 1.x). sd2: OpenCLIP (SD 2.x). sdxl: both, with SDXL's size conditioning."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of weights that are Python pickles: reading one runs whatever program is in it."""
HOW_TO_CONVERT = (
    "pickled weights, which are never read as they may run programs; convert them once, where you trust them: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
)
_INTEGERS = ("position_ids", "num_batches_tracked")
"""Ends of the names of tensors that are integers by right."""
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
    """What the header of a safetensors file says: shape and type of every tensor, and the writer's remarks."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def check_folder(folder: Path, variant: str | None, *, checkpoint: Header | None = None) -> Architecture:
    """Which architecture a pipeline folder holds, everything in it present and whole.

    Args:
        folder: with `model_index.json`.
        variant: of the weight files.
        checkpoint: of the single file that all weights are in; None: they are in the folder.

    Raises:
        UserError: naming the file that is missing, broken or of another kind.
    """
    index = read_object(folder / "model_index.json")
    architecture = _architecture(folder, index)
    networks = [name for name in _NETWORKS if architecture == "sdxl" or name != "text_encoder_2"]
    tokenizers = ["tokenizer", "tokenizer_2"] if architecture == "sdxl" else ["tokenizer"]
    for name in (*networks, *tokenizers):
        _check_class(folder, name, index.get(name))
    for name in (*networks, *tokenizers, "scheduler"):
        _refuse_pipes(folder / name)
    for name in networks:
        read_object(folder / name / "config.json")
    for name in tokenizers:
        check_tokenizer(folder / name)
    check_scheduler_settings(folder, index.get("scheduler"))
    if checkpoint is not None:
        check_configurations(folder, dict.fromkeys(networks, checkpoint.shapes))
        return architecture
    files = {name: weight_files(folder, name, variant) for name in networks}
    if variant and not any(_of_variant(file, variant) for own in files.values() for file in own):
        raise UserError(f"{folder}: no weights of variant {variant} in it; leave variant out")
    check_configurations(folder, {name: _checked_shapes(own) for name, own in files.items()})
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


def check_floats(file: Path, dtypes: Mapping[str, str]) -> None:
    """Raise UserError for weights that are integers, as quantised ones are: they would be taken for what they are not."""
    for name, dtype in dtypes.items():
        if not dtype.startswith(("F", "BF")) and not name.endswith(_INTEGERS):
            raise UserError(f"{file}: {name} is of type {dtype}; weights in floating point are needed")


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
            slices = {name: content.get_slice(name) for name in names}
            shapes = {name: tuple(own.get_shape()) for name, own in slices.items()}
            dtypes = {name: str(own.get_dtype()) for name, own in slices.items()}
            return Header(shapes=shapes, dtypes=dtypes, metadata=dict(content.metadata() or {}))
    except SafetensorError as error:
        size = file.stat().st_size
        # torch's archives, and bare pickles, which do not begin with the length of a header as safetensors do.
        if start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and b"\0\0\0\0" not in start[:8]):
            raise UserError(f"{file}: {HOW_TO_CONVERT}") from None
        raise UserError(
            f"{file}: not a whole safetensors file ({size:,} bytes: {first_line(error)}); fetch it again"
        ) from None


def check_filled(files: Sequence[Path], names: Iterable[str]) -> None:
    """Raise UserError where a component's files lack tensors that its network has, or have others.

    The libraries would start the first from random numbers and leave the others out, with a warning easily missed.

    Args:
        files: the component's weight files, with an index if there is one.
        names: of the network's tensors.
    """
    names = list(names)
    stored = {_canonical(name) for file in files if file.suffix != ".json" for name in header(file).shapes}
    missing = sorted(name for name in names if _canonical(name) not in stored)
    if missing:
        wrapped = " (saved from a compiled or wrapped network: _orig_mod.* or module.*)"
        known = any(name.startswith(("_orig_mod.", "module.")) for name in stored)
        raise UserError(
            f"{files[0]}: {len(missing)} of the network's tensors are not in it, for example {missing[0]}"
            f"{wrapped if known else ''}; they would be random"
        )
    spare = sorted(stored - {_canonical(name) for name in names})
    # Text encoders are cut out of larger models, and come with what is left of those.
    if spare and files[0].parent.name in ("unet", "vae"):
        raise UserError(
            f"{files[0]}: {len(spare)} tensors in it have no place in the network of config.json, for example {spare[0]}; "
            "it is of another network"
        )


def check_finite(place: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError naming a tensor loaded from there that holds a number that is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{place}: {name} holds NaN or infinite weights; fetch or train it again")


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
        raise UserError(f"{folder / 'model_index.json'}: a {printable(str(kind)[:80])}; {known}")
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
        found = "nothing" if _named(entry) is None else printable(f"{entry[0]}.{entry[1]}"[:80])
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


def _refuse_pipes(part: Path) -> None:
    """What is neither file nor folder may be read for ever."""
    for file in part.iterdir() if part.is_dir() else ():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file}: no plain file; a pipeline consists of files")


def _checked_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a component's files, all of which are floating point."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in (file for file in files if file.suffix != ".json"):
        content = header(file)
        check_floats(file, content.dtypes)
        shapes |= content.shapes
    return shapes


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
        return f"{part / pickled[0]}: {HOW_TO_CONVERT}"
    return f"{part}: no weights in it (*.safetensors); fetch the whole folder again"
