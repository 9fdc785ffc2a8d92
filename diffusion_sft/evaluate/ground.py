"""Which images stand for what is real, and what do all buckets share?

The reference is the `reference` split and never a training image, which is checked by content. The directions of
FD-PCA-k come from the other real images (train and held-out) of all concepts: directions that were fitted to the
reference itself hold more of its variance than of any other set's, and read a distance between equal distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import file_hash
from ..numerics.frechet import principal_directions
from ..records import HELDOUT, REFERENCE, TRAIN, ConceptSet, identity_seed
from .comparison import CommonGround
from .config import EvaluateConfig
from .measures import MIN_IMAGES

MAX_DIRECTIONS, MIN_DIRECTIONS = 128, 16
IMAGES_PER_DIRECTION = 1.5
MAX_POOL_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The real image files of some concepts, one concept name beside each path."""

    reference: tuple[Path, ...]
    reference_concepts: tuple[str, ...]
    train: tuple[Path, ...]
    train_concepts: np.ndarray
    pool: tuple[Path, ...]
    """Real images of the whole set that are not in the reference, one for each content, at most MAX_POOL_IMAGES."""


def real_images(concept_set: ConceptSet, concepts: Sequence[str]) -> RealImages:
    """Gather the real images of these concepts, and the pool.

    Raises:
        UserError: no reference image at all, or one with the content of a training image.
    """
    wanted = set(concepts)
    reference = [example for example in concept_set.split(REFERENCE) if example.concept in wanted]
    train = [example for example in concept_set.split(TRAIN) if example.concept in wanted]
    if not reference:
        raise UserError("none of the generated concepts has a reference image; give the set images of that split")
    hashes = {example.path: file_hash(example.path) for example in concept_set.examples}
    trained = {hashes[example.path]: example.path for example in concept_set.split(TRAIN)}
    shared = [(e.path, trained[hashes[e.path]]) for e in concept_set.split(REFERENCE) if hashes[e.path] in trained]
    if shared:
        listed = "; ".join(f"{one} is {other}" for one, other in shared[:3])
        raise UserError(f"{len(shared)} reference images are training images ({listed}); take them out of one split")
    taken = {hashes[example.path] for example in concept_set.split(REFERENCE)}
    others = {hashes[e.path]: e.path for e in concept_set.split(TRAIN, HELDOUT) if hashes[e.path] not in taken}
    return RealImages(
        reference=tuple(example.path for example in reference),
        reference_concepts=tuple(example.concept for example in reference),
        train=tuple(example.path for example in train),
        train_concepts=np.array([example.concept for example in train], dtype=object),
        # Spread over the set, whose examples come concept by concept.
        pool=tuple(others.values())[:: -(-len(others) // MAX_POOL_IMAGES) or 1],
    )


def pair_up(
    reference_concepts: Sequence[str], generated_concepts: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose equally many images of each concept from either side: as many as the smaller side has of it.

    Sides of different composition differ even where every image is perfect, and the jackknife needs slots that hold
    the same concept on both sides.

    Returns:
        The concept of each slot, and the place of its image among the reference and among the generated images.
    """
    concepts: list[str] = []
    reference: list[int] = []
    generated: list[int] = []
    real_places, made_places = _places(reference_concepts), _places(generated_concepts)
    for concept, made in made_places.items():
        real = real_places.get(concept, [])
        count = min(len(real), len(made))
        generator = np.random.default_rng(identity_seed(seed, "reference", concept))
        concepts += [concept] * count
        reference += [real[place] for place in np.sort(generator.permutation(len(real))[:count])]
        generated += made[:count]
    return np.array(concepts, dtype=object), np.array(reference, dtype=np.int64), np.array(generated, dtype=np.int64)


def common_ground(pool: np.ndarray, sizes: Sequence[int], config: EvaluateConfig) -> CommonGround:
    """Choose n* and the fixed directions.

    Args:
        pool: (num_pool, d) features of real images on neither side.
        sizes: of each bucket that is to be compared, its number of images a side.

    Raises:
        UserError: `pca_directions` is more than the pool or the features allow.
    """
    usable = [size for size in sizes if size >= MIN_IMAGES]
    matched = min(usable, default=None)
    most = min(len(pool) - 1, pool.shape[1]) if len(pool) else 0
    if config.pca_directions is not None:
        if config.pca_directions > most:
            raise UserError(
                f"evaluate.pca_directions={config.pca_directions}: at most {most} directions can be had from "
                f"{len(pool)} real images outside the reference and {pool.shape[1]} features"
            )
        k = config.pca_directions
    else:
        k = min(most, choose_num_directions(usable))
    if k < 2:
        reason = (
            f"no directions from {len(pool)} real images outside the reference and buckets of {list(sizes)} images"
        )
        return CommonGround(matched_images=matched, directions=None, no_directions=reason)
    return CommonGround(matched_images=matched, directions=principal_directions(pool, k))


def choose_num_directions(sizes: Sequence[int]) -> int:
    """The largest k up to 128 with k < n/1.5 in every bucket; buckets too small for 16 have no say if another has."""
    allowed = [math.ceil(size / IMAGES_PER_DIRECTION) - 1 for size in sizes]
    large = [k for k in allowed if k >= MIN_DIRECTIONS]
    return min(MAX_DIRECTIONS, min(large) if large else max(allowed, default=0))


def _places(concepts: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, concept in enumerate(concepts):
        places.setdefault(concept, []).append(place)
    return places
