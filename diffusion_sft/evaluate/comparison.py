"""The two sides of one bucket of one model, and what all buckets share so that they can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..numerics.resampling import Rows, split_groups
from ..records import identity_seed
from .config import EvaluateConfig


@dataclass(frozen=True, kw_only=True)
class CommonGround:
    """What all buckets share, so that some figures can be compared across them."""

    matched_images: int | None
    """n*: the number of images a side that the matched figures of all buckets use."""
    directions: np.ndarray | None
    """(d, k): the fixed directions of FD-PCA-k, from real images that are on neither side."""
    no_directions: str = ""
    """Why there are none."""

    @property
    def pca_metric(self) -> str:
        """fd_pca_<k>, or fd_pca where there are no directions."""
        return "fd_pca" if self.directions is None else f"fd_pca_{self.directions.shape[1]}"

    @property
    def below_matched(self) -> str:
        """Why a bucket has no matched figure."""
        if self.matched_images is None:
            return "no common number of images"
        return f"fewer than the common {self.matched_images} images"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One bucket of one model: equally many real and generated images of every concept, and how to count.

    Slot i is a real and a generated image of the same concept. Groups and seeds depend on the settings and the bucket
    alone: two models of a bucket leave out the same real images and the same prompts, so that their difference is a
    paired one.

    Attributes:
        real, generated: features, (n, d).
        strata: the concept of each slot as a number, (n,).
        train: features of the bucket's training images, (m, d).
    """

    bucket: str
    real: np.ndarray
    generated: np.ndarray
    strata: np.ndarray
    train: np.ndarray
    ground: CommonGround
    config: EvaluateConfig

    @property
    def num_images(self) -> int:
        """n."""
        return len(self.strata)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of real and of generated images, which are the same."""
        return self.num_images, self.num_images

    @cached_property
    def groups(self) -> list[Rows]:
        """The jackknife's groups of slots."""
        return split_groups(self.strata, self.config.num_groups, self.seed("groups"))

    def seed(self, *purpose: str | int) -> int:
        """A seed for one purpose in this bucket, the same for every model."""
        return identity_seed(self.config.seed, "evaluate", self.bucket, *purpose)
