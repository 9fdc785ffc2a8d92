"""Who looks at the pictures, and looking at them while they are made: no picture is read from its file again.

The rows go into the very cache that `evaluate` reads, under what the picture is known by, and the concept that was
read goes into its record together with the reader's identity; both are the folder route's, because a PNG gives the
pixels back as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cache import FeatureCache
from .features import Extractor
from .pictures import GeneratedImage
from .readers import LabelReader


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What looks at the images: an extractor for distances, and a reader for accuracy where there is one."""

    extractor: Extractor
    read_labels: LabelReader | None = None


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What was seen in some pictures: features (n, d) float32, and a concept each where there is a reader."""

    features: np.ndarray
    seen: list[str] | None


class Looking:
    """Instruments, and the place of what they see."""

    def __init__(self, instruments: Instruments, folder: Path, batch_size: int) -> None:
        """Args:
        folder: of the feature caches, the one that `evaluate` reads.
        batch_size: images that the instruments are given at once.
        """
        self._instruments = instruments
        self._folder = folder
        self._batch_size = batch_size
        self._caches: dict[tuple[int, int], FeatureCache] = {}

    @property
    def reader(self) -> str | None:
        """The identity of who reads concepts."""
        reader = self._instruments.read_labels
        return None if reader is None else reader.identity

    def look(self, images: Sequence[np.ndarray], asked: Sequence[str]) -> Looks:
        """Look at pictures of one model, uint8 (height, width, 3), of the concepts asked for."""
        extractor, reader = self._instruments.extractor, self._instruments.read_labels
        features, seen = [], []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            features.append(extractor(images[part], [f"a picture of {concept!r}" for concept in asked[part]]))
            if reader is not None:
                seen += reader(images[part], asked[part])
        return Looks(features=np.concatenate(features), seen=None if reader is None else seen)

    def keep(self, hashes: Sequence[str], looks: Looks, size: tuple[int, int]) -> None:
        """Keep the features of pictures of this size under what they are known by."""
        self._cache(size).add(hashes, looks.features)

    def has(self, image: GeneratedImage) -> bool:
        """Whether all that these instruments would see in this picture is known."""
        read = self.reader in (None, image.reader)
        return read and image.size is not None and image.sha256 in self._cache(image.size)

    def _cache(self, size: tuple[int, int]) -> FeatureCache:
        if size not in self._caches:
            self._caches[size] = FeatureCache(self._folder, self._instruments.extractor, size, self._batch_size)
        return self._caches[size]
