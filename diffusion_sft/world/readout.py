"""The readout: a small classifier that says what a picture of the world shows, with features for FID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UserError
from ..files import file_hash, read_object, write_json
from .renderer import RESOLUTION

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True)
class ReadoutOutput:
    """labels: one word per picture and attribute; confidences alike in [0, 1]; features: float32 (n, d), of unit
    standard deviation over the world's pictures."""

    labels: dict[str, list[str]]
    confidences: dict[str, np.ndarray]
    features: np.ndarray


class ReadoutNetwork(nn.Module):
    """Four strided convolutions, pooled twice over (mean and maximum), then penultimate features and linear heads."""

    def __init__(self, heads: Mapping[str, Sequence[str]], num_features: int = 64, width: int = 32) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(2 * widths[-1], num_features)
        self.heads = nn.ModuleDict({name: nn.Linear(num_features, len(words)) for name, words in heads.items()})

    def forward(self, pictures: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """pictures: float (n, 3, 64, 64) in [-1, 1]; returns logits per head and features (n, num_features)."""
        maps = self.trunk(pictures)
        features = self.project(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return {name: head(F.silu(features)) for name, head in self.heads.items()}, features


class Readout:
    """A trained readout: pictures to words and features."""

    resolution = RESOLUTION

    def __init__(
        self,
        network: ReadoutNetwork,
        heads: Mapping[str, Sequence[str]],
        *,
        feature_scale: float = 1.0,
        sha256: str = "",
    ) -> None:
        self.network = network.eval()
        self.heads = {name: list(words) for name, words in heads.items()}
        self.feature_scale = feature_scale
        """Features are divided by it, so that distances do not depend on the network's arbitrary scale."""
        self.sha256 = sha256

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Readout:
        """Load a readout folder (config.json, model.safetensors); UserError when it is not one."""
        config = read_object(folder / CONFIG)
        weights = folder / WEIGHTS
        try:
            network = ReadoutNetwork(config["heads"], config["num_features"], config["width"])
            network.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
            scale = float(config["feature_scale"])
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: not a readout ({' '.join(str(error).split())[:200]})") from None
        return cls(network.to(device), config["heads"], feature_scale=scale, sha256=file_hash(weights))

    def save(self, folder: Path, num_features: int, width: int) -> None:
        """Write the folder that `load` reads, weights in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "heads": self.heads,
            "num_features": num_features,
            "width": width,
            "feature_scale": self.feature_scale,
        }
        write_json(folder / CONFIG, config)
        save_file({n: v.half().cpu().contiguous() for n, v in self.network.state_dict().items()}, folder / WEIGHTS)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Sequence[np.ndarray], batch_size: int = 256) -> ReadoutOutput:
        """Read pictures.

        Args:
            images: uint8 (height, width, 3) each; another size than the readout's own is resampled (antialiased).
        """
        device = next(self.network.parameters()).device
        labels: dict[str, list[str]] = {name: [] for name in self.heads}
        confidences: dict[str, list[np.ndarray]] = {name: [] for name in self.heads}
        features = []
        for start in range(0, len(images), batch_size):
            pictures = torch.from_numpy(np.stack(list(images[start : start + batch_size]))).to(device)
            logits, block = self.network(self._prepare(pictures))
            features.append(block.float().cpu().numpy() / self.feature_scale)
            for name, words in self.heads.items():
                best = logits[name].float().softmax(dim=1).max(dim=1)
                labels[name] += [words[i] for i in best.indices.tolist()]
                confidences[name].append(best.values.cpu().numpy())
        width = self.network.project.out_features
        return ReadoutOutput(
            labels=labels,
            confidences={name: np.concatenate(c) if c else np.zeros(0) for name, c in confidences.items()},
            features=np.concatenate(features) if features else np.zeros((0, width), dtype=np.float32),
        )

    def _prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        size = (RESOLUTION, RESOLUTION)
        if pixels.shape[2:] == size:
            return pixels
        return F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
