"""Which concept does a generated image show? Readers: (images, the concepts asked for) -> the concepts seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..learner import ReadLabels
from ..numerics.neighbours import squared_distances
from ..records import Concept
from ..world.readout import Readout
from .features import Extractor


def readout_reader(readout: Readout, concepts: Sequence[Concept]) -> ReadLabels:
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

    return read_labels


def nearest_concept_reader(extractor: Extractor, images: Mapping[str, Sequence[np.ndarray]]) -> ReadLabels:
    """A reader for any set: the concept whose real images' mean feature is nearest.

    Args:
        images: real images by concept; concepts without one are never named.
    """
    names = [name for name, own in images.items() if len(own)]
    if not names:
        raise ValueError("no concept has an image to compare with")
    centroids = np.stack([extractor(images[name]).mean(axis=0) for name in names])

    def read_labels(pictures: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        if len(pictures) != len(asked):
            raise ValueError(f"{len(pictures)} images and {len(asked)} concepts asked for")
        if not len(pictures):
            return []
        nearest = squared_distances(extractor(pictures), centroids).argmin(axis=1)
        return [names[place] for place in nearest]

    return read_labels
