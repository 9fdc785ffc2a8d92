"""The base's eye: a KL autoencoder of scenes and textures.

As Stable Diffusion's autoencoder has seen far more than any concept set, this one sees every shape and pattern (novel
parts too, but never a caption), free colours, and random textures. What a concept's novel part tests is the
denoiser, not the eye.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ..records import identity_seed
from ..world.looks import COLOURS, PATTERNS, SHAPES, Look
from ..world.renderer import RESOLUTION, draw_scene, render


def picture_bank(count: int, seed: int, texture_share: float = 0.15, free_colour_share: float = 0.4) -> torch.Tensor:
    """Pictures to train the autoencoder on: uint8 (count, 3, 64, 64), in random order."""
    draw = np.random.default_rng(identity_seed(seed, "autoencoder"))
    num_textures = int(count * texture_share)
    scenes = []
    for index in range(count - num_textures):
        look = Look(*(words[int(draw.integers(len(words)))] for words in (SHAPES, list(COLOURS), PATTERNS)))
        colour = tuple(draw.random(3)) if draw.random() < free_colour_share else None
        scenes.append(render(look, draw_scene(seed, "autoencoder", index), colour))
    pictures = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
    textures = _textures(num_textures, identity_seed(seed, "textures"))
    return torch.cat([pictures, textures])[torch.from_numpy(draw.permutation(count))].contiguous()


def _textures(count: int, seed: int) -> torch.Tensor:
    """Random colour fields: noise at four scales, enlarged and summed; uint8 (count, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.zeros(count, 3, RESOLUTION, RESOLUTION)
    for size, amplitude in ((2, 0.30), (5, 0.22), (12, 0.14), (28, 0.08)):
        noise = torch.randn(count, 3, size, size, generator=generator) * amplitude
        field += F.interpolate(noise, size=(RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False)
    mean = torch.rand(count, 3, 1, 1, generator=generator) * 0.7 + 0.15
    return ((field + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def to_network(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, h, w) to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


def autoencoder_loss(
    vae: AutoencoderKL, pictures: torch.Tensor, noise: torch.Generator, kl_weight: float
) -> torch.Tensor:
    """Mean absolute error of pixels and of their differences (edges), plus a slight pull to the unit Gaussian.

    Args:
        pictures: float32 (n, 3, h, w) in [-1, 1].
        noise: where the posterior's draw comes from.
        kl_weight: weight of the Kullback–Leibler divergence per latent dimension, in nats.
    """
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise).to(pictures.device)
    decoded = vae.decode(latents).sample.float()
    error = decoded - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1.0 - posterior.logvar.float())
    return error.abs().mean() + 0.5 * edges + 2.0 * (error**2).mean() + kl_weight * divergence.mean()


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Posterior means and standard deviations of uint8 pictures: float32 (2, n, c, h, w), unscaled."""
    device = next(vae.parameters()).device
    moments = []
    for block in pictures.split(batch_size):
        posterior = vae.encode(to_network(block).to(device)).latent_dist
        moments.append(torch.stack([posterior.mean, posterior.std]).float().cpu())
    return torch.cat(moments, dim=1)
