"""Which images may be trained on, which are probed, and which are the real side of FID.

Where a set does not say, each concept's images are ordered by a hash of the seed and their file name, so that
the split is the same on every machine and does not change with the order of the files. Held-out and reference
images are never training images. A concept of fewer than six images has too few to give both sides their own:
one or two images then serve as held-out and as reference both, and the rest is for training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ..parsing import few
from ..records import HELDOUT, REFERENCE, REGULARISATION, TRAIN, identity_seed
from .config import ConceptsConfig
from .rows import Row

SHARING_BELOW = 6
"""Concepts with fewer images than this use the same images as held-out and as reference."""

Splits = dict[str, tuple[str, ...]]
"""The splits of each row by its id; two where held-out and reference are shared."""


def assign_splits(rows: list[Row], role: str, config: ConceptsConfig) -> tuple[Splits, list[str]]:
    """The splits of one set's rows by the set's role, its own splits or the hash, and remarks on them.

    Either all rows come with a split or none does, because the readers take it from a column.
    """
    given = bool(rows) and all(row.split is not None for row in rows)
    if role != "all":
        notes = [f"the set's own splits are not used, because its role is {role}"] if given else []
        return {row.id: (role,) for row in rows}, notes
    if given:
        return {row.id: (str(row.split),) for row in rows}, []
    by_concept: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_concept[row.concept].append(row)
    splits: Splits = {}
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
        notes.append(f"a single image, so none to train on (role=train trains on all images of a set): {few(single)}")
    return splits, notes


def lend_references(rows: list[Row], splits: Mapping[str, tuple[str, ...]]) -> tuple[Splits, list[str]]:
    """Of all sets together: held-out images serve as reference where a concept has none of its own.

    Regularisation images are nobody's concept and take no part.
    """
    rows = [row for row in rows if splits[row.id] != (REGULARISATION,)]
    with_reference = {row.concept for row in rows if REFERENCE in splits[row.id]}
    heldout = {row.concept for row in rows if HELDOUT in splits[row.id]}
    names = list(dict.fromkeys(row.concept for row in rows))
    lent, notes = dict(splits), []
    if lacking := [concept for concept in names if concept in heldout - with_reference]:
        wanting = set(lacking)
        lent |= {row.id: (HELDOUT, REFERENCE) for row in rows if row.concept in wanting and HELDOUT in splits[row.id]}
        notes.append(f"no reference images, the held-out ones serve as such: {few(lacking)}")
    if untested := [concept for concept in names if concept not in heldout]:
        notes.append(f"no held-out image, so these are not probed: {few(untested)}")
    return lent, notes


def _split_concept(rows: list[Row], config: ConceptsConfig) -> Splits:
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
