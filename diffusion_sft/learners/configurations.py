"""Do the settings of a pipeline's parts fit each other and the weights beside them? Asked before anything is built.

A configuration may have been written by anybody. The libraries would take text for numbers, NaN for a scale, a million
layers for a network to be built, and would find out at the first picture that the words' width is another one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import UserError
from ..files import read_object
from ..parsing import printable
from ..ranges import MOST_PIXELS

MOST_TIMESTEPS = 100_000
"""That a noise schedule may have: a hundred times the usual, and no more memory than a picture."""
_COUNTS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")
_PER_BLOCK = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim", "cross_attention_dim")
"""Numbers of which a UNet may have one for each of its blocks."""
_TENSORS_PER_LAYER = 8
"""At the least, of any layer that these configurations count."""
_SMALL = 1024
"""Numbers up to this are no danger, whatever they count."""
_MORE_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type")


def check_configurations(folder: Path, networks: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Raise UserError naming a setting that is of no use, or that another part or the weights contradict.

    Args:
        folder: a pipeline's, with all JSON in it.
        networks: the shapes of the tensors of each part, by the part's name.
    """
    configs = {part: read_object(folder / part / "config.json") for part in networks}
    for part, config in configs.items():
        place = folder / part / "config.json"
        refuse_kernels(config, place)
        _check_sizes(config, networks[part], place)
    check_numbers(UNet2DConditionModel, configs["unet"], folder / "unet" / "config.json")
    check_numbers(AutoencoderKL, configs["vae"], folder / "vae" / "config.json")
    _check_channels(folder, configs["unet"], configs["vae"])
    _check_conditions(folder, configs)
    _check_scale(folder / "vae" / "config.json", configs["vae"], sdxl="text_encoder_2" in configs)


def check_scheduler_settings(folder: Path, entry: Any) -> None:
    """Raise UserError for a scheduler that diffusers does not have, or whose settings are no numbers of its kind.

    Args:
        folder: a pipeline's.
        entry: of `model_index.json`: library and class.
    """
    kind = getattr(diffusers, entry[1], None) if _names_scheduler(entry) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise UserError(
            f"{folder / 'model_index.json'}: the scheduler {_printed(entry)} is none of diffusers'; use for example "
            '["diffusers", "DDIMScheduler"] with the settings the base was trained under'
        )
    place = folder / "scheduler" / "scheduler_config.json"
    config = read_object(place)
    check_numbers(kind, config, place)
    timesteps = config.get("num_train_timesteps", 1000)
    if not isinstance(timesteps, int) or not 2 <= timesteps <= MOST_TIMESTEPS:
        raise UserError(
            f"{place}: num_train_timesteps must be an integer from 2 to {MOST_TIMESTEPS}, not {timesteps}"
        )
    if not 0 <= (offset := config.get("steps_offset") or 0) < timesteps:
        raise UserError(f"{place}: steps_offset must be at least 0 and below num_train_timesteps, not {offset}")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    betas, made = config.get("trained_betas"), "beta_start" in inspect.signature(kind).parameters
    if betas is None and made and (start is None or end is None or not 0 < start <= end < 1):
        raise UserError(f"{place}: beta_start and beta_end must rise between 0 and 1, not {start} and {end}")
    if betas is not None and not (isinstance(betas, list) and all(_is_number(b) and 0 < b < 1 for b in betas)):
        raise UserError(f"{place}: trained_betas must be a list of numbers between 0 and 1, or null")


def check_numbers(kind: type, config: Mapping[str, Any], place: Path) -> None:
    """Raise UserError naming a setting that is a number in `kind`, and here is text, NaN, infinite or something else."""
    for name, parameter in inspect.signature(kind).parameters.items():
        if name not in config or isinstance(parameter.default, bool):
            continue
        usual = parameter.default[0] if isinstance(parameter.default, tuple) else parameter.default
        if not isinstance(usual, int | float) or isinstance(usual, bool):
            continue
        if isinstance(config[name], list) and not (name in _PER_BLOCK or isinstance(parameter.default, tuple)):
            raise UserError(f"{place}: {name} must be one number such as {usual}, not a list")
        for leaf in _leaves(config[name]):
            if leaf is not None and not _is_number(leaf):
                raise UserError(f"{place}: {name} must be a finite number such as {usual}, not {str(leaf)[:80]!r}")


def _names_scheduler(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and entry[0] == "diffusers"
        and isinstance(entry[1], str)
        and entry[1].endswith("Scheduler")
    )


def _printed(value: Any) -> str:
    return printable(str(value)[:80])


def _is_number(value: Any) -> TypeGuard[int | float]:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested lists."""
    for own in value if isinstance(value, list) else [value]:
        if isinstance(own, list):
            yield from _leaves(own)
        else:
            yield own


def refuse_kernels(config: Mapping[str, Any], place: Path) -> None:
    """transformers takes an attention named owner/name for compiled code of that repository on the Hub."""
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(name) or ""):
            raise UserError(f"{place}: {name} asks for code from elsewhere, which is never run; remove that line")


def _check_sizes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: Path) -> None:
    """No number in a network's settings is larger than what its weights can bear out."""
    largest = max([_SMALL, len(shapes), *(size for shape in shapes.values() for size in shape)])
    for name, value in config.items():
        numbers = [leaf for leaf in _leaves(value) if _is_number(leaf)]
        limit = MOST_PIXELS if name == "sample_size" else largest
        if any(abs(number) > limit for number in numbers):
            raise UserError(f"{place}: {name} {max(numbers, key=abs)} is larger than anything in its weights")
        if name in _COUNTS and sum(map(abs, numbers)) > max(1, len(shapes) // _TENSORS_PER_LAYER):
            raise UserError(f"{place}: {name} {value} is more layers than its {len(shapes)} weights can fill")
        if isinstance(value, list) and len(value) > max(1, len(shapes)):
            raise UserError(f"{place}: {name} has {len(value)} entries, more than the network has weights")


def _check_channels(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Text-to-image networks take latents alone, as many channels as the VAE makes, and give as many back."""
    made = vae.get("latent_channels", 4)
    for name, verb in (("in_channels", "takes"), ("out_channels", "gives")):
        if (count := unet.get(name, 4)) != made:
            raise UserError(
                f"{folder}: its UNet {verb} {count} channels for {made} of latents (an inpainting, depth or editing "
                "model?); a text-to-image one is needed"
            )
    for name in ("in_channels", "out_channels"):
        if (count := vae.get(name, 3)) != 3:
            raise UserError(
                f"{folder / 'vae' / 'config.json'}: {name} must be 3, the colours of pictures, not {count}"
            )
    size = unet.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise UserError(f"{folder / 'unet' / 'config.json'}: sample_size must be the latents' side, not {size!r}")


def _check_conditions(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """The UNet is conditioned on what these text encoders give (of an SDXL on sizes too), and on nothing else."""
    unet, place = configs["unet"], folder / "unet" / "config.json"
    for name in _MORE_CONDITIONS:
        if unet.get(name) is not None:
            raise UserError(
                f"{place}: {name} {unet[name]!r}: it wants more than words, so it is no text-to-image UNet"
            )
    texts = [config.get("text_config", config) for part, config in configs.items() if part.startswith("text_encoder")]
    given = [text.get("hidden_size", 512) if isinstance(text, dict) else None for text in texts]
    widths = [width for width in given if _is_number(width) and width >= 1]
    if len(widths) < len(given):
        raise UserError(f"{folder / 'text_encoder' / 'config.json'}: hidden_size must be a width, not {given[0]!r}")
    wanted = unet.get("cross_attention_dim", 1280)
    if any(width != sum(widths) for width in _leaves(wanted)):
        raise UserError(
            f"{place}: cross_attention_dim is {wanted}, but the text encoders give words {sum(widths)} wide; UNet and "
            "text encoder are of different models"
        )
    kind = "text_time" if "text_encoder_2" in configs else None
    if unet.get("addition_embed_type") != kind:
        raise UserError(f"{place}: addition_embed_type must be {kind!r}, not {unet.get('addition_embed_type')!r}")
    if kind:
        pooled, size = texts[1].get("projection_dim", 512), unet.get("addition_time_embed_dim")
        taken = unet.get("projection_class_embeddings_input_dim")
        if not (_is_number(pooled) and _is_number(size) and taken == pooled + 6 * size):
            raise UserError(
                f"{place}: projection_class_embeddings_input_dim must be 6 addition_time_embed_dim ({size}) + "
                f"text_encoder_2's projection_dim ({pooled}), not {taken}"
            )


def _check_scale(place: Path, vae: Mapping[str, Any], *, sdxl: bool) -> None:
    """What latents are divided by to come from about unit variance; diffusers' default is that of SD 1 and SD 2."""
    scale = vae.get("scaling_factor", None if sdxl else 0.18215)
    if scale is None:
        raise UserError(f"{place}: no scaling_factor; that of the published SDXL is 0.13025")
    if not scale > 0:
        raise UserError(f"{place}: scaling_factor must be above 0, not {scale}")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if not all(leaf is None or _is_number(leaf) for leaf in _leaves(vae.get(name))):
            raise UserError(f"{place}: {name} must hold finite numbers, or be null")
