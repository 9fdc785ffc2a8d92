"""Which concept does a generated image show? Readers: (images, the concepts asked for) -> the concepts seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import file_hash
from ..learner import ReadLabels
from ..numerics.neighbours import squared_distances
from ..records import Concept
from ..world.readout import Readout
from .cache import FeatureCache


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """A callable from uint8 images and the concepts asked for to the concepts seen, and what it is."""

    identity: str
    """SHA-256 over all that decides what is read: what it reads is only ever taken for its own."""
    function: ReadLabels

    def __call__(self, images: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        """A concept name for each image, "" for none."""
        return self.function(images, asked)


def readout_reader(readout: Readout, concepts: Sequence[Concept]) -> LabelReader:
    """A reader by the world's attribute classifier: the concept of which every attribute is read.

    Where several concepts share the look, the one asked for is named if it is among them, else the first.
    """
    looks: dict[tuple[str, ...], list[str]] = {}
    for concept in concepts:
        look = tuple(concept.attributes.get(head, "") for head in readout.heads)
        if all(look):
            looks.setdefault(look, []).append(concept.name)

    def read_labels(images: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        labels = readout(images).labels
        seen = zip(*(labels[head] for head in readout.heads), strict=True)
        found = []
        for look, name in zip(seen, asked, strict=True):
            names = looks.get(look, [""])
            found.append(name if name in names else names[0])
        return found

    identity = _digest("readout", readout.sha256, readout.heads, [[*look, *names] for look, names in looks.items()])
    return LabelReader(identity=identity, function=read_labels)


def nearest_concept_reader(cache: FeatureCache, files: Mapping[str, Sequence[Path]]) -> LabelReader:
    """A reader for any set: the concept whose real images' mean feature is nearest.

    Args:
        cache: of the extractor that is to tell concepts apart.
        files: real images by concept; concepts without one are never named.
    """
    names = [name for name, own in files.items() if len(own)]
    if not names:
        raise ValueError("no concept has an image to compare with")
    paths = [path for name in names for path in files[name]]
    hashes = [file_hash(path) for path in paths]
    rows = cache.features_at(hashes, paths, "features of real images")
    bounds = np.cumsum([len(files[name]) for name in names])[:-1]
    centroids = np.stack([own.mean(axis=0) for own in np.split(rows, bounds)])
    extractor = cache.extractor

    def read_labels(pictures: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        if len(pictures) != len(asked):
            raise ValueError(f"{len(pictures)} images and {len(asked)} concepts asked for")
        if not len(pictures):
            return []
        nearest = squared_distances(extractor(pictures), centroids).argmin(axis=1)
        return [names[place] for place in nearest]

    # Of the images and not of the centroids, whose last bits a GPU does not repeat.
    identity = _digest("nearest concept", cache.key, [[n, len(files[n])] for n in names], hashes)
    return LabelReader(identity=identity, function=read_labels)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
