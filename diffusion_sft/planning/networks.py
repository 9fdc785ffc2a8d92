"""What one evaluation of a base costs, in operations and in memory, from its configurations alone.

The networks are built on the `meta` device, so that neither weights nor memory are needed; a folder that holds nothing
but configurations will do.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..errors import UserError
from ..files import user_path
from ..finetune.config import FinetuneConfig
from ..finetune.estimate import Plan, make_plan
from ..finetune.parts import trainable_parameters
from ..parsing import first_line
from ..plan import StudyConfig
from .live_bytes import AsOnGpu, backward, peak_bytes

ENCODERS = ("text_encoder", "text_encoder_2")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pipeline's configurations, and what follows from them; costs are of one row, memory of a whole batch."""

    configs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Of unet, vae, text_encoder and, of an SDXL, text_encoder_2."""
    resolution: int
    """Pixels of a side."""

    @property
    def latent_side(self) -> int:
        """Latents of a side."""
        return self.resolution // 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @cached_property
    def forward_flops(self) -> int:
        """Floating-point operations of one evaluation of the UNet (a multiplication and an addition are two)."""
        unet = self._unet()
        return _flops(lambda: unet(**self._inputs(1), return_dict=False))

    @cached_property
    def encoding_flops(self) -> int:
        """Of one image through the VAE's encoder."""
        vae, side = self._vae(), self.resolution
        return _flops(lambda: vae.encode(torch.empty(1, 3, side, side, device="meta"), return_dict=False))

    @cached_property
    def decoding_flops(self) -> int:
        """Of one image through the VAE's decoder."""
        vae = self._vae()
        return _flops(lambda: vae.decode(self._latents(1), return_dict=False))

    @cached_property
    def decoding_bytes(self) -> int:
        """Peak memory of decoding one image in float32, without the VAE's weights."""
        vae = self._vae()
        return _peak(lambda: vae.decode(self._latents(1), return_dict=False), vae, None, grad=False)

    @cached_property
    def vae_bytes(self) -> int:
        """The VAE's weights, which are float32 in memory."""
        return 4 * sum(p.numel() for p in self._vae().parameters())

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """The UNet's and the text encoders' weights."""
        return SIZES[dtype] * sum(p.numel() for part in self.parts().values() for p in part.parameters())

    def reading_bytes(self, batch_size: int, dtype: torch.dtype) -> int:
        """Peak memory of one batch of evaluations without gradient, without the weights."""
        unet = self._unet()
        nn.Module.to(unet, dtype=dtype)  # not its own method, which warns of what is meant here
        return _peak(lambda: unet(**self._inputs(batch_size, dtype), return_dict=False), unet, None, grad=False)

    def training_flops(self, config: FinetuneConfig) -> int:
        """Of one training example, forward and back, with what gradient checkpointing does again."""
        parts = self.parts()
        trainable_parameters(parts, config)
        unet = parts["unet"].train()
        return _flops(lambda: _update(unet, self._inputs(1)), grad=True)

    def training_bytes(self, config: FinetuneConfig) -> int:
        """Peak memory of one micro-batch forward and back, gradients among it, without weights and optimiser."""
        parts = self.parts()
        trainable_parameters(parts, config)
        unet = parts["unet"].train()
        inputs = self._inputs(config.train_batch_size)
        times = min(config.gradient_accumulation_steps, 2)  # The second meets the first one's gradients.

        def update() -> None:
            for _ in range(times):
                _update(unet, inputs)

        return _peak(update, unet, HALF.get(config.mixed_precision or "no"), grad=True)

    def plan(self, config: FinetuneConfig, examples_per_update: int, updates_per_pass: float) -> Plan:
        """The sizes of a run's weights, optimiser, checkpoints and exports (`finetune.estimate`)."""
        parts = self.parts()
        parameters = trainable_parameters(parts, config)
        return make_plan(parts, parameters, config, examples_per_update, updates_per_pass)

    def parts(self) -> dict[str, nn.Module]:
        """What a learner may train, anew, in float32 on `meta`."""
        found: dict[str, nn.Module] = {"unet": self._unet()}
        for name in ENCODERS:
            if name in self.configs:
                projected = "CLIPTextModelWithProjection" in self.configs[name].get("architectures", ())
                kind = CLIPTextModelWithProjection if projected else CLIPTextModel
                with torch.device("meta"):
                    found[name] = kind(CLIPTextConfig.from_dict(dict(self.configs[name])))
        return found

    @property
    def caption_bytes(self) -> int:
        """A caption's embeddings in float32."""
        tokens, width = self._tokens, self.configs["unet"]["cross_attention_dim"]
        pooled = self.configs["text_encoder_2"]["projection_dim"] if "text_encoder_2" in self.configs else 0
        return 4 * (tokens * width + pooled)

    @property
    def latent_bytes(self) -> int:
        """An image's latents in float32, as the cache keeps them."""
        return 4 * int(self.configs["vae"]["latent_channels"]) * self.latent_side**2

    @property
    def _tokens(self) -> int:
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def _unet(self) -> nn.Module:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(dict(self.configs["unet"])).eval()

    def _vae(self) -> Any:
        with torch.device("meta"):
            return AutoencoderKL.from_config(dict(self.configs["vae"])).eval()

    def _latents(self, count: int) -> torch.Tensor:
        channels, side = self.configs["unet"]["in_channels"], self.latent_side
        return torch.empty(count, channels, side, side, device="meta")

    def _inputs(self, count: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """What the UNet takes for so many rows."""
        width = self.configs["unet"]["cross_attention_dim"]
        with torch.device("meta"):
            found: dict[str, Any] = {
                "sample": self._latents(count).to(dtype),
                "timestep": torch.empty(count, dtype=torch.int64),
                "encoder_hidden_states": torch.empty(count, self._tokens, width, dtype=dtype),
            }
            if "text_encoder_2" in self.configs:
                pooled = torch.empty(count, self.configs["text_encoder_2"]["projection_dim"], dtype=dtype)
                found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.empty(count, 6)}
        return found


def read_base(config: StudyConfig) -> Base:
    """The configurations of a study's base; of a Hub id only these are fetched.

    Raises:
        UserError: none to be had.
    """
    source = config.base
    if user_path(source).is_file():
        if config.single_file_config is None:
            raise UserError(
                f"{source}: to plan with a single file, give its architecture's pipeline folder as single_file_config"
            )
        source = config.single_file_config
    index = _json(source, "model_index.json", config.revision)
    names = [name for name in ("unet", "vae", *ENCODERS) if (index.get(name) or [None])[0] is not None]
    configs = {name: _json(source, f"{name}/config.json", config.revision) for name in names}
    for needed in ("unet", "vae", "text_encoder"):
        if needed not in configs:
            raise UserError(
                f"{source}: its model_index.json names no {needed}; a Stable Diffusion pipeline is needed"
            )
    size = configs["unet"]["sample_size"]
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    side = (size if isinstance(size, int) else size[0]) * factor
    return Base(configs=configs, resolution=config.resolution or side)


def _json(source: str, name: str, revision: str | None) -> Any:
    folder = user_path(source)
    try:
        if folder.is_dir():
            file = folder / name
        elif source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"{source}: no such folder; give a pipeline folder, a .safetensors file or a Hub id")
        else:
            file = _fetched(source, name, revision)
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"no {name} in it" if folder.is_dir() else "no such folder, nor could the Hub give it"
        raise UserError(f"{source}: {what} ({textwrap.shorten(first_line(error), 120)})") from error


def _fetched(source: str, name: str, revision: str | None) -> Path:
    """The Hub's copy on this machine, downloaded where there is none."""
    try:
        return Path(hf_hub_download(source, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(hf_hub_download(source, name, revision=revision))


def _update(unet: nn.Module, inputs: Mapping[str, Any]) -> None:
    backward(unet(**inputs, return_dict=False)[0].float().square().mean())


def _flops(function: Callable[[], Any], grad: bool = False) -> int:
    # Fused attention has a formula of its own there; any other would be counted as its parts.
    with torch.set_grad_enabled(grad), AsOnGpu(None), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def _peak(function: Callable[[], Any], module: nn.Module, autocast: torch.dtype | None, grad: bool) -> int:
    with torch.set_grad_enabled(grad), AsOnGpu(autocast):
        return peak_bytes(function, [*module.parameters(), *module.buffers()])
