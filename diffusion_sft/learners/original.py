"""The original one-file layout of Stable Diffusion 1, 2 and XL (CompVis, Stability AI), as the names of its tensors.

The inverse of what diffusers does in `loaders/single_file_utils.py`. How many blocks and layers there are is read off
the names themselves, so that networks of any width or depth are written, not only the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch

from ..errors import UserError
from ..layouts import prefixed

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
SDXL_TEXT, SDXL_TEXT_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
"""What the tensors of each part begin with."""

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    # As files older than diffusers 0.13 call them.
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPENCLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
SD2_LAYERS = 23
"""Layers of the published SD 2 text encoder in the diffusers layout, which leaves out OpenCLIP's last one."""


def unet_names(names: Iterable[str]) -> Callable[[str], str]:
    """How diffusers' names of a UNet's modules or tensors (all of them: `names`) read in the original layout.

    A block of L resnets and one downsampler is L + 1 `input_blocks`; its upsampling counterpart is L + 1
    `output_blocks`, the last of which ends with the upsampler.
    """
    found = [re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", name) for name in names]
    matches = [match for match in found if match]
    layers = 1 + max((int(m[4]) for m in matches if m[1] == "down" and m[3] == "resnets"), default=0)
    attending = {int(m[2]) for m in matches if m[1] == "up" and m[3] == "attentions"}

    def rename(name: str) -> str:
        match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            return _replaced_head(name, _UNET_ENDS)
        side, kind, rest = match[1], match[3], match[5]
        block, layer = int(match[2] or 0), int(match[4])
        inner = _replaced_head(rest, _UNET_RESNET) if kind == "resnets" else rest
        if side == "mid":
            return f"middle_block.{2 * layer if kind == 'resnets' else 2 * layer + 1}.{inner}"
        first = block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers}.0.{_replaced_head(rest, {'conv': 'op'})}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if block in attending else 1}.{rest}"
        group = f"input_blocks.{1 + first + layer}" if side == "down" else f"output_blocks.{first + layer}"
        return f"{group}.{0 if kind == 'resnets' else 1}.{inner}"

    return rename


def original_unet(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A UNet's tensors under their original names."""
    rename = unet_names(tensors)
    return _distinct({UNET + rename(name): tensor for name, tensor in tensors.items()}, tensors)


def original_vae(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A KL autoencoder's tensors under their original names; its attention's matrices become 1x1 convolutions."""
    levels = 1 + max(int(m[1]) for name in tensors if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", name)))
    found = {}
    for name, tensor in tensors.items():
        renamed = VAE + _vae_name(name, levels)
        if ".mid.attn_1." in renamed and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        found[renamed] = tensor
    return _distinct(found, tensors)


def original_clip(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenAI's CLIP keeps transformers' names; readers of old files look for its position numbers too."""
    found = {prefix + prefixed(name): tensor for name, tensor in tensors.items()}
    positions = len(found[f"{prefix}text_model.embeddings.position_embedding.weight"])
    found.setdefault(f"{prefix}text_model.embeddings.position_ids", torch.arange(positions)[None])
    return found


def original_openclip(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's text tower: queries, keys and values are stacked, the projection is transposed.

    The published encoder of SD 2 gets a copy of its last layer as the missing 24th: it is never run (SD 2 reads the
    states before it), but some readers want it to be there.
    """
    found: dict[str, torch.Tensor] = {}
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        name = prefixed(name)
        layer = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", name)
        if name.endswith("position_ids"):
            continue
        if name == "text_projection.weight":
            found[prefix + "text_projection"] = tensor.T.contiguous()
        elif layer is None:
            found[prefix + _replaced_head(name, _OPENCLIP)] = tensor
        elif match := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2]):
            stacked.setdefault(f"transformer.resblocks.{layer[1]}.attn.in_proj_{match[2]}", {})[match[1]] = tensor
        else:
            renamed = f"transformer.resblocks.{layer[1]}.{_replaced_head(layer[2], _OPENCLIP_LAYER)}"
            found[prefix + renamed] = tensor
    found |= {prefix + name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in stacked.items()}
    last, missing = (f"{prefix}transformer.resblocks.{number}." for number in (SD2_LAYERS - 1, SD2_LAYERS))
    if prefix == SD2_TEXT and not any(name.startswith(missing) for name in found):
        found |= {name.replace(last, missing): t.clone() for name, t in found.items() if name.startswith(last)}
    return found


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out.", "norm_out.")
    match = re.fullmatch(r"(encoder|decoder)\.(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    half, side, kind, layer, rest = match[1], match[2], match[4], int(match[5]), match[6]
    if kind == "attentions":
        return f"{half}.mid.attn_1.{_replaced_head(rest, _VAE_ATTENTION)}"
    inner = rest.replace("conv_shortcut.", "nin_shortcut.")
    if side == "mid":
        return f"{half}.mid.block_{layer + 1}.{inner}"
    # The decoder's levels are counted from the finest in the original, from the coarsest in diffusers.
    level = int(match[3]) if side == "down" else levels - 1 - int(match[3])
    place = {"resnets": f"block.{layer}", "downsamplers": "downsample", "upsamplers": "upsample"}[kind]
    return f"{half}.{side}.{level}.{place}.{inner}"


def _replaced_head(name: str, heads: Mapping[str, str]) -> str:
    """The name with its beginning exchanged; UserError where it begins with none of `heads`."""
    for old, new in heads.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    raise UserError(f"single file: {name} has no place in the original layout; this network is of another kind")


def _distinct(found: dict[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if len(found) != len(tensors):
        raise UserError("single file: two tensors of the network have one place in the original layout")
    return found
