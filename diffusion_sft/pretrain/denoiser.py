"""Train text encoder and denoiser together on the corpus, from stored latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from ..records import identity_seed
from ..world.looks import seen_looks
from ..world.renderer import draw_scene, render
from .autoencoder import encode_pictures
from .captions import CorpusItem


class TextAndDenoiser(nn.Module):
    """The two networks that learn from captions, as one module."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """noisy latents (n, c, h, w), timesteps (n,), input_ids (n, tokens) -> prediction (n, c, h, w)."""
        unique, rows = torch.unique(input_ids, dim=0, return_inverse=True)
        hidden = self.text_encoder(unique)[0][rows]
        return self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample


@dataclass(frozen=True)
class Corpus:
    """What the loop reads: token ids (items, tokens), the picture of each item, and the pictures' latent moments."""

    input_ids: torch.Tensor
    pictures: torch.Tensor
    moments: torch.Tensor
    """float16 (2, num_pictures, c, h, w): posterior mean and standard deviation, unscaled."""


def store_corpus(
    items: list[CorpusItem], vae: AutoencoderKL, tokenizer: CLIPTokenizer, scenes_per_look: int, seed: int
) -> Corpus:
    """Render each look's scenes once, encode them, and tokenise every caption."""
    moments = []
    for look in tqdm(seen_looks(), desc="encoding the corpus", disable=None):
        scenes = (draw_scene(seed, "pretraining", look.describe(), index) for index in range(scenes_per_look))
        pictures = torch.from_numpy(np.stack([render(look, scene) for scene in scenes])).permute(0, 3, 1, 2)
        moments.append(encode_pictures(vae, pictures).half())
    encoded = tokenizer([item.caption for item in items], padding="max_length", return_tensors="np")
    if encoded.input_ids.shape[1] != tokenizer.model_max_length:
        raise ValueError(f"a caption of the corpus has more than {tokenizer.model_max_length} tokens")
    pictures = torch.tensor([item.look * scenes_per_look + item.scene for item in items])
    return Corpus(torch.from_numpy(encoded.input_ids.astype(np.int16)), pictures, torch.cat(moments, dim=1))


@dataclass(frozen=True)
class DenoiserTask:
    """The loss of update k: items k·n to (k+1)·n of the corpus, in its order."""

    network: TextAndDenoiser
    noise_scheduler: DDIMScheduler
    corpus: Corpus
    scaling_factor: float
    batch_size: int
    seed: int

    def loss_at(self, update: int) -> torch.Tensor:
        """Mean squared error of the network's target (noise, v or sample) with even timesteps over the batch."""
        device = next(self.network.parameters()).device
        rows = torch.arange(update * self.batch_size, (update + 1) * self.batch_size) % len(self.corpus.pictures)
        generator = torch.Generator().manual_seed(identity_seed(self.seed, "denoiser", update))
        mean, std = self.corpus.moments[:, self.corpus.pictures[rows]].float()
        latents = self.scaling_factor * (mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(mean.shape, generator=generator)
        num_timesteps = self.noise_scheduler.config.num_train_timesteps
        offset = torch.rand((), generator=generator)
        even = (torch.arange(len(rows)) / len(rows) + offset) % 1.0
        timesteps = (even[torch.randperm(len(rows), generator=generator)] * num_timesteps).long()
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        target = self._target(latents, noise, timesteps)
        input_ids = self.corpus.input_ids[rows].long().to(device)
        predicted = self.network(noisy.to(device), timesteps.to(device), input_ids).float()
        return torch.nn.functional.mse_loss(predicted, target.to(device))

    def _target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kind = self.noise_scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(latents, noise, timesteps)
        return {"epsilon": noise, "sample": latents}[kind]
