"""A UNet together with the text encoders that condition it, as one module: what fine-tuning wraps and trains.

SD 1 and 2 read the last states of one text encoder; SDXL reads the last but one of two, side by side, and the second's
pooled state (Podell et al., 2023, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

PROMPT_EMBEDS, POOLED = "prompt_embeds", "pooled"
"""Names of a caption's embeddings: states (tokens, width), and SDXL's pooled state (width,)."""
ROWS = "rows"
"""Beside token ids: the row of each item among them."""


class ConditionedUNet(nn.Module):
    """The networks of a Stable Diffusion that turn noisy latents and captions into predictions."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    @property
    def text_encoders(self) -> list[nn.Module]:
        """One, or two of an SDXL, in their order."""
        return [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]

    @property
    def trains_text(self) -> bool:
        """Whether any weight of the text encoders is to be trained, so that embeddings may change."""
        return any(p.requires_grad for encoder in self.text_encoders for p in encoder.parameters())

    def train(self, mode: bool = True) -> ConditionedUNet:
        """As always, but for frozen text encoders, whose embeddings must not know of dropout."""
        super().train(mode)
        for encoder in self.text_encoders:
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def embed(self, token_ids: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings of captions, as the pipelines' `encode_prompt` makes them.

        Args:
            token_ids: for each text encoder its tokenizer's ids, (num_captions, tokens) int64.

        Returns:
            `prompt_embeds` (num_captions, tokens, width) and, of an SDXL, `pooled` (num_captions, pooled width).
        """
        if self.text_encoder_2 is None:
            return {PROMPT_EMBEDS: self.text_encoder(token_ids[0])[0]}
        outputs = [
            encoder(ids, output_hidden_states=True)
            for encoder, ids in zip(self.text_encoders, token_ids, strict=True)
        ]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {PROMPT_EMBEDS: states, POOLED: outputs[1][0]}

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The UNet's output, in the scheduler's prediction type.

        Args:
            noisy: (n, channels, height, width).
            timesteps: (n,) int64.
            text: embeddings of the n items as `embed` gives them, or, where text encoders are trained, token ids
                `input_ids` (and `input_ids_2`) of the distinct captions and `rows` (n,).
            time_ids: of an SDXL, (n, 6): original size, crop and target size.
        """
        if ROWS in text:
            ids = [text[name] for name in id_names(len(self.text_encoders))]
            text = {name: tensor[text[ROWS]] + self._unread() for name, tensor in self.embed(ids).items()}
        named: dict[str, Any] = {}
        if self.text_encoder_2 is not None:
            named["added_cond_kwargs"] = {"text_embeds": text[POOLED], "time_ids": time_ids}
        embeds = text[PROMPT_EMBEDS].to(noisy.dtype)
        output: torch.Tensor = self.unet(noisy, timesteps, encoder_hidden_states=embeds, return_dict=False, **named)[
            0
        ]
        return output

    def _unread(self) -> torch.Tensor | float:
        """Zero, with a gradient of zero in each trained weight of an SDXL's first text encoder: its last layer is read
        by nobody, and DistributedDataParallel waits for every trained weight's gradient."""
        if self.text_encoder_2 is None or not torch.is_grad_enabled():
            return 0.0
        trained = [p.sum() for p in self.text_encoder.parameters() if p.requires_grad]
        return 0.0 * torch.stack(trained).sum() if trained else 0.0


def id_names(count: int) -> list[str]:
    """What the token ids of each of `count` text encoders are called."""
    return ["input_ids", "input_ids_2"][:count]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy from the CPU to a device without waiting for what the device is at."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
