"""Putting LoRA weights from a file on a pipeline, under the names of diffusers or of kohya's trainer.

Both are read here rather than by diffusers' loader, which in version 0.42 leaves modules out without an error: of kohya's
files a text encoder's attention unless all four matrices are in them, of its own files the attention where other
layers are adapted too. Here every tensor of a file finds its module, or the file is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError
from ..layouts import PREFIX, prefixed
from ..parsing import first_line
from .inspection import HOW_TO_CONVERT, PICKLED, check_finite, check_floats, header
from .original import unet_names

LORA_FILE = "pytorch_lora_weights.safetensors"
PARTS = ("unet", "text_encoder", "text_encoder_2")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KINDS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""How a module's tensors are called: by kohya's trainer, by peft, and by diffusers since 0.17."""
_OLD = re.compile(r"(.+?)\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight")
"""Names of diffusers before 0.17."""
_PATTERN = re.compile(r"\^?(\w|-|\\?\.)+\$?")
"""Paths of modules and ends of such: all that peft's regular expressions are used for, and none that never ends."""
_ADAPTER = "default_0"
"""The name that diffusers' loader gives the first adapter."""


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    """The adapted modules of one part by their path: tensors `down`, `up`, and where given `alpha`, `magnitude`."""

    modules: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    alpha: Callable[[str, int], float]
    """The alpha of a module without a tensor for it, by its path and rank."""
    use_rslora: bool = False


def load_lora(pipeline: Any, lora: Path) -> None:
    """Put LoRA or DoRA weights on the pipeline's UNet and text encoders, each with its own rank and alpha.

    Args:
        pipeline: without an adapter so far.
        lora: a .safetensors file, or a folder with `pytorch_lora_weights.safetensors`.

    Raises:
        UserError: no such file, pickled, cut off, of another kind, or not of this pipeline's architecture.
    """
    file = lora / LORA_FILE if lora.is_dir() else lora
    if not file.is_file():
        raise UserError(f"{file}: no such LoRA file")
    if file.suffix in PICKLED:
        raise UserError(f"{file}: {HOW_TO_CONVERT}")
    head = header(file)
    if not any("lora" in name for name in head.shapes):
        raise UserError(f"{file}: no LoRA weights in it")
    check_floats(file, head.dtypes)
    tensors = load_file(file)
    check_finite(file, tensors)
    kohya = all(name.startswith(_KOHYA) for name in tensors)
    adapters = _of_kohya(pipeline, file, tensors) if kohya else _of_diffusers(pipeline, file, tensors, head.metadata)
    for part, adapter in adapters.items():
        if adapter.modules:
            _check_shapes(file, getattr(pipeline, part), adapter)
    for part, adapter in adapters.items():
        if adapter.modules:
            _add(file, getattr(pipeline, part), adapter)


def _of_kohya(pipeline: Any, file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, _Adapter]:
    """kohya's names join a path by underscores, which has no inverse: look up what each module would be called."""
    places = {name: (part, path) for part in _parts(pipeline) for name, path in _kohya_names(pipeline, part).items()}
    # Without alpha kohya's trainer takes the rank, a scale of one.
    adapters = {part: _Adapter(alpha=lambda _, rank: float(rank)) for part in _parts(pipeline)}
    for key, tensor in tensors.items():
        name, _, kind = key.partition(".")
        if kind not in _KINDS:
            raise UserError(f"{file}: {key} is no plain LoRA or DoRA (LoHa, LoKr and the like are not read)")
        if name not in places:
            raise UserError(f"{file}: {name} is no module of this pipeline; LoRA weights of another architecture?")
        part, path = places[name]
        adapters[part].modules.setdefault(path, {})[_KINDS[kind]] = tensor
    return adapters


def _of_diffusers(
    pipeline: Any, file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, _Adapter]:
    """Paths behind the name of the part (none: the UNet); alphas from the metadata, by default the rank."""
    try:
        settings: Any = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: lora_adapter_metadata in its header is not valid JSON ({first_line(error)})"
        ) from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: lora_adapter_metadata in its header is no object, but {type(settings).__name__}")
    adapters = {
        part: _Adapter(alpha=_stated_alpha(file, settings, part), use_rslora=bool(settings.get(f"{part}.use_rslora")))
        for part in _parts(pipeline)
    }
    for key, tensor in tensors.items():
        start, _, rest = key.partition(".")
        part, rest = (start, rest) if start in PARTS else ("unet", key)
        path, kind = _path_and_kind(rest, part)
        if kind is None:
            raise UserError(f"{file}: {key} is no LoRA or DoRA weight of diffusers' or kohya's naming")
        if part not in adapters:
            raise UserError(f"{file}: {key}: this pipeline has no {part}; LoRA weights of another architecture?")
        if part != "unet" and not hasattr(getattr(pipeline, part), "text_model"):
            path = path.removeprefix(PREFIX)
        adapters[part].modules.setdefault(path, {})[kind] = tensor
    return adapters


def _path_and_kind(name: str, part: str) -> tuple[str, str | None]:
    """A module's path and which of its tensors this is; None for no kind that is known."""
    if match := _OLD.fullmatch(name):
        ours = "to_out.0" if match[2] == "out" else f"to_{match[2]}"
        return f"{match[1]}.{ours if part == 'unet' else f'{match[2]}_proj'}", match[3]
    for ending, kind in _KINDS.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), kind
    return name, None


def _stated_alpha(file: Path, settings: Mapping[str, Any], part: str) -> Callable[[str, int], float]:
    patterns, general = settings.get(f"{part}.alpha_pattern") or {}, settings.get(f"{part}.lora_alpha")
    if not isinstance(patterns, dict) or not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise UserError(f"{file}: {part}.alpha_pattern in its header must give alphas to names of modules")
    for value in (general, *patterns.values()):
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise UserError(f"{file}: an alpha of {part} in its header is {str(value)[:40]!r}, not a number")

    def alpha(path: str, rank: int) -> float:
        value = patterns.get(get_pattern_key(patterns.keys(), path), general)
        return float(rank if value is None else value)

    return alpha


def _parts(pipeline: Any) -> list[str]:
    return [part for part in PARTS if getattr(pipeline, part, None) is not None]


def _kohya_names(pipeline: Any, part: str) -> dict[str, str]:
    """Module paths of a part by the names that kohya's trainer would give them."""
    modules = getattr(pipeline, part).named_modules()
    paths = [path for path, module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    if part != "unet":
        two = isinstance(pipeline, StableDiffusionXLPipeline)
        start = {"text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}[part]
        return {start + prefixed(path).replace(".", "_"): path for path in paths}
    found = {"lora_unet_" + path.replace(".", "_"): path for path in paths}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        original = unet_names(name for name, _ in pipeline.unet.named_parameters())
        found |= {"lora_unet_" + original(path).replace(".", "_"): path for path in paths}
    return found


def _check_shapes(file: Path, network: nn.Module, adapter: _Adapter) -> None:
    """Hold every module of the file against the network's before any of them is changed."""
    known = dict(network.named_modules())
    for path, tensors in adapter.modules.items():
        if not isinstance(known.get(path), nn.Linear | nn.Conv2d):
            raise UserError(f"{file}: {path} is no module of this pipeline; LoRA weights of another architecture?")
        if missing := {"down", "up"} - set(tensors):
            raise UserError(f"{file}: {path} has no {missing.pop()} matrix; the file is not whole")
        if not tensors["down"].ndim or not len(tensors["down"]):
            raise UserError(f"{file}: {path}: down has shape {tuple(tensors['down'].shape)}, which has no rank")
        shape, rank = known[path].weight.shape, len(tensors["down"])  # type: ignore[union-attr]
        expected = {"down": (rank, *shape[1:]), "up": (shape[0], rank), "magnitude": (shape[0],), "alpha": ()}
        for kind, tensor in tensors.items():
            if not _same_but_for_ones(tensor.shape, expected[kind]):
                raise UserError(
                    f"{file}: {path}: {kind} has shape {tuple(tensor.shape)}, this pipeline's module wants "
                    f"{expected[kind]}; LoRA weights of another architecture?"
                )


def _same_but_for_ones(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """A linear layer may be stored as a 1x1 convolution."""
    return [size for size in one if size != 1] == [size for size in other if size != 1]


def _add(file: Path, network: Any, adapter: _Adapter) -> None:
    """Give the network's modules an adapter of the file's ranks and alphas, and fill it."""
    ranks = {path: len(tensors["down"]) for path, tensors in adapter.modules.items()}
    alphas = {
        path: float(tensors["alpha"]) if "alpha" in tensors else adapter.alpha(path, ranks[path])
        for path, tensors in adapter.modules.items()
    }
    config = LoraConfig(
        r=next(iter(ranks.values())),
        lora_alpha=next(iter(alphas.values())),
        target_modules=sorted(ranks),
        rank_pattern={f"^{re.escape(path)}": rank for path, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(path)}": alpha for path, alpha in alphas.items()},
        use_dora=any("magnitude" in tensors for tensors in adapter.modules.values()),
        use_rslora=adapter.use_rslora,
    )
    try:
        network.add_adapter(config, _ADAPTER)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{file}: cannot be put on this pipeline ({first_line(error)[:200]})") from error
    for path, tensors in adapter.modules.items():
        layer = network.get_submodule(path)
        places = {"down": layer.lora_A[_ADAPTER].weight, "up": layer.lora_B[_ADAPTER].weight}
        if "magnitude" in tensors:
            places["magnitude"] = layer.lora_magnitude_vector[_ADAPTER].weight
        with torch.no_grad():
            for kind, parameter in places.items():
                parameter.copy_(tensors[kind].reshape(parameter.shape))
