"""The settings of generation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ranges import MOST_STEPS, check_range


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is generated, what looks at it, and how carefully it is counted."""

    num_images_per_concept: int = 10
    seed: int = 0
    """Decides every image's start noise, and every split and group of the arithmetic."""
    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    batch_size: int = 32
    keep_images: bool = True
    """false: of the generated images only those that the report shows are written; the others are looked at while they
    are made, and made again when another extractor or reader is to look at them."""

    extractor: Literal["readout", "inception", "torchvision"] = "readout"
    """readout: the embedded world's classifier. inception: clean-fid's Inception behind clean-fid's resize, the FID
    of papers. torchvision: any torchvision classifier, its penultimate features."""
    weights: str | None = None
    """readout: its folder. inception: the file inception-2015-12-05.pt or its folder (none: torch's hub cache,
    downloaded there once). torchvision: a .safetensors or .pth state dict."""
    torchvision_model: str | None = None
    """The torchvision model's name, such as resnet50, when the extractor is torchvision."""

    pca_directions: int | None = None
    """k of FD-PCA-k; none: as many of 128 as the known and unknown buckets allow (k < n/1.5)."""
    num_groups: int = 20
    """Groups of the jackknife."""
    num_splits: int = 20
    """Random halves behind the floor, and subsamples behind each matched-n figure."""
    num_neighbours: int = 5
    """k of precision, recall, density and coverage."""

    def __post_init__(self) -> None:
        check_range(self, "seed", least=0)
        check_range(self, "num_images_per_concept", "batch_size", "num_neighbours", "pca_directions", least=1)
        check_range(self, "num_inference_steps", least=1, most=MOST_STEPS)
        check_range(self, "guidance_scale")
        check_range(self, "num_groups", "num_splits", least=2)
        if (self.extractor == "torchvision") != (self.torchvision_model is not None):
            raise ValueError("torchvision_model names the model when extractor is torchvision, and only then")
