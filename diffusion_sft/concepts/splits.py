"""Which images may be trained on, which are probed, and which are the real side of FID.

Where a set does not say, each concept's images are ordered by a hash of the seed and their file name, so that
the split is the same on every machine and does not change with the order of the files. Held-out and reference
images are never training images. A concept of fewer than six images has too few to give both sides their own:
one or two images then serve as held-out and as reference both, and the rest is for training.
"""

from __future__ import annotations

from collections import defaultdict

from ..records import HELDOUT, REFERENCE, TRAIN, identity_seed
from .config import ConceptsConfig
from .rows import Row, few

SHARING_BELOW = 6
"""Concepts with fewer images than this use the same images as held-out and as reference."""


def assign_splits(rows: list[Row], config: ConceptsConfig) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The splits of each row (by its id; two where held-out and reference are shared), and remarks on them.

    Either all rows come with a split or none does, because the readers take it from a column.
    """
    if all(row.split is not None for row in rows):
        return _given(rows)
    by_concept: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_concept[row.concept].append(row)
    splits: dict[str, tuple[str, ...]] = {}
    for concept_rows in by_concept.values():
        splits |= _split_concept(concept_rows, config)
    notes = [
        f"the set has no splits of its own: {config.heldout_share:.0%} of each concept's images are held out and"
        f" {config.reference_share:.0%} are reference images, chosen by a hash of the file names (seed {config.seed})"
    ]
    sharing = [concept for concept, group in by_concept.items() if len(group) < SHARING_BELOW]
    if sharing:
        notes.append(f"fewer than {SHARING_BELOW} images, the same ones held out and as reference: {few(sharing)}")
    single = [concept for concept, group in by_concept.items() if len(group) == 1]
    if single:
        notes.append(f"a single image, so none to train on: {few(single)}")
    return splits, notes


def _given(rows: list[Row]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    splits: dict[str, tuple[str, ...]] = {row.id: (str(row.split),) for row in rows}
    with_reference = {row.concept for row in rows if row.split == REFERENCE}
    heldout = {row.concept for row in rows if row.split == HELDOUT}
    notes = []
    if lacking := [concept for concept in _names(rows) if concept in heldout - with_reference]:
        splits |= {row.id: (HELDOUT, REFERENCE) for row in rows if row.split == HELDOUT and row.concept in lacking}
        notes.append(f"no reference images, the held-out ones serve as such: {few(lacking)}")
    if untested := [concept for concept in _names(rows) if concept not in heldout]:
        notes.append(f"no held-out image, so these are not probed: {few(untested)}")
    return splits, notes


def _split_concept(rows: list[Row], config: ConceptsConfig) -> dict[str, tuple[str, ...]]:
    ordered = sorted(rows, key=lambda row: (identity_seed(config.seed, "split", row.id), row.id))
    count = len(ordered)
    if count < SHARING_BELOW:
        shared = _part(config.heldout_share + config.reference_share, count)
        return {row.id: (HELDOUT, REFERENCE) if i < shared else (TRAIN,) for i, row in enumerate(ordered)}
    heldout = min(_part(config.heldout_share, count), count - 2)
    reference = min(_part(config.reference_share, count), count - heldout - 1)
    names = [HELDOUT] * heldout + [REFERENCE] * reference + [TRAIN] * (count - heldout - reference)
    return {row.id: (name,) for row, name in zip(ordered, names, strict=True)}


def _part(share: float, count: int) -> int:
    # the small addition keeps 0.29 * 100 at 29; shares add up to less than 1, so of 3 to 5 images one is left
    return max(1, int(count * share + 1e-9))


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.concept for row in rows))
