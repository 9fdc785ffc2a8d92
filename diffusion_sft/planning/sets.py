"""What is there to be probed and taught, for counting alone: no picture is drawn, and none is decoded.

A given set is listed as its reader lists it, and split by the same rule. What only decoding can find (broken files,
copies, near-copies between sets) is still in it, so that counts are exact for a clean set and else a little too high.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from ..concepts.check import drop_repeated
from ..concepts.config import ConceptsConfig
from ..concepts.layouts import read_source
from ..concepts.naming import concepts_of
from ..concepts.rows import Row
from ..concepts.splits import Splits, assign_splits, lend_references
from ..concepts.store import image_store
from ..errors import UserError
from ..plan import StudyConfig
from ..questions import read_questions
from ..records import HELDOUT, REFERENCE, REGULARISATION, TRAIN, Concept, ConceptSet, Example
from ..world.facts import question_rows
from ..world.population import WorldConfig, populate


def pictures_of(config: StudyConfig) -> ConceptSet:
    """The concepts of a study and their pictures, which need not be there yet.

    Raises:
        UserError: no such set, metadata that cannot be read, or no held-out image.
    """
    found = _listed(config.concepts) if config.concepts.given else _world(config.world)
    if not found.split(HELDOUT):
        raise UserError("no held-out image in the concept sets, so nothing to probe; give one set role=heldout")
    return found


def facts_of(config: StudyConfig) -> ConceptSet:
    """The facts that the language model's half asks about.

    Raises:
        UserError: as the study itself.
    """
    given = config.llm.questions
    if given.given:
        return read_questions(given).concept_set
    rows = question_rows(populate(config.world)[:: config.world.written_every], config.world.seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_questions(replace(given, path=str(file))).concept_set


def _world(config: WorldConfig) -> ConceptSet:
    """As `write_world` writes it."""
    counts = {TRAIN: config.train_images, HELDOUT: config.heldout_images, REFERENCE: config.reference_images}
    people = populate(config)[:: config.written_every]
    examples = [
        Example(id=name, concept=one.name, caption=f"a photo of a {one.name}", path=Path(name), split=split)
        for one in people
        for split, count in counts.items()
        for name in (f"{split}/{one.name.replace(' ', '-')}-{index:02d}.png" for index in range(count))
    ]
    return ConceptSet(
        concepts=tuple(Concept(name=one.name, words=one.name) for one in people), examples=tuple(examples)
    )


def _listed(config: ConceptsConfig) -> ConceptSet:
    """As `read_concept_set` reads sets in which nothing is to be dropped."""
    rows: list[Row] = []
    splits: Splits = {}
    store = image_store(config.cache_dir)
    for number, source in enumerate(config.sets or [config]):
        own, _ = drop_repeated(read_source(source, store).rows)
        found, _ = assign_splits(own, source.role, config)
        for row in own:
            identity = f"{number}/{row.id}" if config.sets else row.id
            rows.append(replace(row, id=identity, repeats=row.repeats * source.repeats))
            splits[identity] = found[row.id]
    splits, _ = lend_references(rows, splits)
    concepts, _ = concepts_of([row for row in rows if splits[row.id] != (REGULARISATION,)])
    examples = [
        Example(id=row.id, concept=row.concept, caption=row.caption, path=row.path, split=split, repeats=row.repeats)
        for row in rows
        for split in splits[row.id]
    ]
    return ConceptSet(concepts=concepts, examples=tuple(examples))
