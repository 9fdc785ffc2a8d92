"""Train the readout: renderings of every look, as they are, blurred, noisy, and through the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ..records import identity_seed
from ..world.looks import COLOURS, PATTERNS, SHAPES, Look
from ..world.readout import ReadoutNetwork
from ..world.renderer import draw_scene, render
from .autoencoder import to_network

HEADS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": tuple(COLOURS), "pattern": PATTERNS}


@dataclass(frozen=True)
class LabelledPictures:
    """pictures: uint8 (n, 3, 64, 64); labels: int64 (n, 3) in the order of HEADS."""

    pictures: torch.Tensor
    labels: torch.Tensor


def labelled_pictures(count: int, seed: int, *identity: str) -> LabelledPictures:
    """Renderings of looks drawn evenly from all parts, seen and novel."""
    draw = np.random.default_rng(identity_seed(seed, "readout", *identity))
    labels = np.stack([draw.integers(len(words), size=count) for words in HEADS.values()], axis=1)
    pictures = [
        render(Look(SHAPES[s], list(COLOURS)[c], PATTERNS[p]), draw_scene(seed, "readout", *identity, index))
        for index, (s, c, p) in enumerate(labels)
    ]
    return LabelledPictures(
        torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    )


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
    """uint8 pictures through the autoencoder and back."""
    device = next(vae.parameters()).device
    blocks = []
    for block in pictures.split(batch_size):
        decoded = vae.decode(vae.encode(to_network(block).to(device)).latent_dist.mean).sample
        blocks.append(((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(blocks)


def readout_loss(network: ReadoutNetwork, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the heads, in nats."""
    logits, _ = network(pictures)
    losses = [F.cross_entropy(logits[name].float(), labels[:, i]) for i, name in enumerate(HEADS)]
    return torch.stack(losses).sum()


def disturb(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur a third of the batch and add a little noise to all of it: float (n, 3, h, w) in [-1, 1]."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = torch.rand(len(pictures), 1, 1, 1, generator=generator).to(pictures.device)
    pictures = torch.where(amount < 1 / 3, torch.lerp(pictures, blurred, 3 * amount), pictures)
    strength = 0.08 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures + (strength * torch.randn(pictures.shape, generator=generator)).to(pictures.device)


@torch.no_grad()
def reading_accuracy(network: ReadoutNetwork, data: LabelledPictures) -> dict[str, float]:
    """Share of pictures read rightly, per attribute and in all of them at once."""
    device = next(network.parameters()).device
    logits = [network(to_network(block).to(device))[0] for block in data.pictures.split(256)]
    right = torch.stack(
        [
            torch.cat([block[name].argmax(1).cpu() for block in logits]) == data.labels[:, i]
            for i, name in enumerate(HEADS)
        ]
    )
    shares = {name: float(right[i].float().mean()) for i, name in enumerate(HEADS)}
    return shares | {"all": float(right.all(dim=0).float().mean())}
