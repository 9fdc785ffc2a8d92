"""LoRA and DoRA adapters as files: in diffusers' layout, and in kohya's, which AUTOMATIC1111 and ComfyUI read too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from ..errors import UserError
from ..layouts import prefixed, write_tensors
from .loading import LoadedPipeline
from .lora import LORA_FILE
from .modelspec import kohya_version, modelspec
from .original import unet_names

KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
PARTS = ("unet", "text_encoder", "text_encoder_2")


def has_lora(pipeline: Any) -> bool:
    """Whether any part of the pipeline carries an adapter."""
    return bool(_carriers(pipeline))


def save_lora(loaded: LoadedPipeline, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the adapters of UNet and text encoders as LORA_FILE and as KOHYA_FILE, float32.

    Both hold the true lora_alpha: in the metadata of the first (diffusers' own format since 0.34), as a tensor per
    module in the second, where diffusers' converter would write the rank.

    Magnitudes of DoRA are LyCORIS's `dora_scale`, one per output, of the adapted weights' rows. diffusers drops them
    when it reads the second file, and ComfyUI divides by the norms of the base's rows instead: near, but not the same.
    """
    _save_diffusers(loaded, folder, metadata)
    header = {**metadata, **_kohya_metadata(loaded, metadata)}
    write_tensors(folder / KOHYA_FILE, kohya_tensors(loaded.pipeline), header)


def kohya_tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    """`<module>.lora_down.weight`, `.lora_up.weight`, `.alpha` and, for DoRA, `.dora_scale` of every adapted module.

    Modules are called as kohya's trainer calls them: `lora_unet_` and the diffusers path for SD 1 and 2 or the
    original path for SDXL, `lora_te_` for one text encoder, `lora_te1_` and `lora_te2_` for two.
    """
    found: dict[str, torch.Tensor] = {}
    for name, layer, adapter in _adapted(pipeline):
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        found[f"{name}.lora_down.weight"] = _stored(down)
        found[f"{name}.lora_up.weight"] = _stored(up)
        found[f"{name}.alpha"] = torch.tensor(float(layer.scaling[adapter] * layer.r[adapter]))
        if adapter in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[adapter].weight
            found[f"{name}.dora_scale"] = _stored(magnitude).reshape(-1, *[1] * (down.ndim - 1))
    return found


def _carriers(pipeline: Any) -> dict[str, Any]:
    """The parts that carry an adapter, bare of what torch.compile wraps around them."""
    parts = {name: getattr(pipeline, name, None) for name in PARTS}
    bare = {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if part is not None}
    return {name: part for name, part in bare.items() if getattr(part, "peft_config", None)}


def _adapter(part: Any) -> str:
    names = list(part.peft_config)
    if len(names) > 1:
        raise UserError(f"the network carries {len(names)} adapters ({', '.join(names)}); only one can be saved")
    return str(names[0])


def _adapted(pipeline: Any) -> Iterator[tuple[str, LoraLayer, str]]:
    """kohya's name, module and adapter's name of every adapted module."""
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if xl else "lora_te", "text_encoder_2": "lora_te2"}
    for part, module in _carriers(pipeline).items():
        original = unet_names(path.replace("_orig_mod.", "") for path, _ in module.named_parameters())
        for path, layer in module.named_modules():
            if not isinstance(layer, LoraLayer) or _adapter(module) not in layer.lora_A:
                continue
            path = path.replace("_orig_mod.", "")
            here = original(path) if xl and part == "unet" else path if part == "unet" else prefixed(path)
            yield f"{prefixes[part]}_{here}".replace(".", "_"), layer, _adapter(module)


def _save_diffusers(loaded: LoadedPipeline, folder: Path, metadata: Mapping[str, str]) -> None:
    options: dict[str, Any] = {}
    for part, module in _carriers(loaded.pipeline).items():
        config = module.peft_config[_adapter(module)].to_dict()
        layers = get_peft_model_state_dict(module, adapter_name=_adapter(module))
        layers = {name.replace("_orig_mod.", ""): _stored(tensor) for name, tensor in layers.items()}
        if part != "unet":
            layers = {_text_name(name): tensor for name, tensor in layers.items()}
        options[f"{part}_lora_layers"] = layers
        # A set has another order in every process.
        settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        options[f"{part}_lora_adapter_metadata"] = settings
    type(loaded.pipeline).save_lora_weights(folder, safe_serialization=True, **options)
    file = folder / LORA_FILE
    with safe_open(file, "pt") as stored:
        header = dict(stored.metadata())
    write_tensors(file, load_file(file), {**metadata, **header})


def _text_name(name: str) -> str:
    """The name of a text encoder's tensor. transformers 5 takes a magnitude only under the name of its parameter."""
    return prefixed(name) + (".weight" if name.endswith("lora_magnitude_vector") else "")


def _kohya_metadata(loaded: LoadedPipeline, metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that kohya's trainer writes and other tools show, as far as they are known here."""
    pipeline = loaded.pipeline
    parts = {part: module.peft_config[_adapter(module)] for part, module in _carriers(pipeline).items()}
    config = next(iter(parts.values()))
    version = kohya_version(loaded)
    found = {
        "ss_network_module": "lycoris.kohya" if config.use_dora else "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(float(config.lora_alpha)),
        "ss_network_args": json.dumps({"algo": "lora", "dora_wd": "True"} if config.use_dora else {}),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_sd_model_name": Path(str(loaded.source.get("source", ""))).name,
        "ss_output_name": metadata.get("mix", "lora"),
    }
    known = {"seed": "ss_seed", "update": "ss_steps"}
    found |= {theirs: metadata[ours] for ours, theirs in known.items() if ours in metadata}
    return found | modelspec(loaded, metadata, lora=True)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
