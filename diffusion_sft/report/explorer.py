"""The concept explorer: every concept of both halves with its whole record, as data that `explorer.js` shows.

The tables are embedded as they are (see `embedded`), the pictures within a budget of bytes: first a real one of every
concept, then what each model drew, concepts in an order that a hash of their names gives and never their results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..errors import UserError
from ..records import CATEGORIES, DIFFUSION, SHOWN_IMAGES, ConceptSet, identity_seed
from .concept_frames import concept_frames, left_out_runs
from .embedded import columns_of, script_json
from .grids import Album, generated_pictures, real_pictures
from .run import Run
from .svg import MARKERS
from .systems_words import CLASSES, SYSTEMS
from .wording import cut, model_name

EXPLORER_BYTES = 4_000_000
"""What the explorer's pictures together may take of the page."""
REAL_PICTURES = 4
"""Real pictures on a concept's own page."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """What stands in the page: the data, how many concepts, and what was left out to keep the page small."""

    data: Markup
    num_concepts: int
    left_out_pictures: int
    left_out_runs: tuple[str, ...]
    """Fine-tuning runs whose answers are not in the page."""


def explorer(
    runs: Mapping[str, Run], concept_set: ConceptSet, missing: list[str], budget: int = EXPLORER_BYTES
) -> Explorer | None:
    """The concepts of every half that has some; None where none has.

    Args:
        runs: the halves.
        concept_set: the set that was probed, for captions and real pictures.
        missing: what cannot be read is named here.
        budget: bytes of all pictures together.
    """
    halves, lacking, album = [], [], Album(budget=budget)
    for run in runs.values():
        if run.concepts is None:
            continue
        frames = concept_frames(run, concept_set, missing)
        lacking += left_out_runs(run, frames["asked"])
        half = _words(run) | {name: columns_of(frame) for name, frame in frames.items()}
        half["pictures"] = _pictures(run, concept_set, album) if run.learner == DIFFUSION else None
        halves.append(half)
    if not halves:
        return None
    content = {"halves": halves, "categories": CATEGORIES, "classes": CLASSES, "markers": MARKERS}
    return Explorer(
        data=script_json(content),
        num_concepts=sum(len(run.concepts) for run in runs.values() if run.concepts is not None),
        left_out_pictures=album.left_out,
        left_out_runs=tuple(lacking),
    )


def concept_numbers(runs: Mapping[str, Run]) -> dict[tuple[str, str], int]:
    """The number n of each concept's page `#concept/n`, by learner and name; from 0, through all halves."""
    found: dict[tuple[str, str], int] = {}
    count = 0
    for learner, run in runs.items():
        for name in () if run.concepts is None else run.concepts["concept"]:
            found.setdefault((learner, str(name)), count)
            count += 1
    return found


def _words(run: Run) -> dict[str, Any]:
    """How this half calls things, and the names of the measures."""
    nouns = run.nouns
    systems = {
        system: {
            "name": about.name,
            "measures": {key: [of.name, of.remark(run.learner)] for key, of in about.measures.items()},
        }
        for system, about in SYSTEMS.items()
    }
    words = {"learner": run.learner, "model": nouns.model, "concept": nouns.concept, "example": nouns.example}
    return words | {"roles": dict(nouns.names), "systems_words": systems}


def _pictures(run: Run, concept_set: ConceptSet, album: Album) -> dict[str, Any]:
    """The embedded pictures, and for each concept the places of its real ones and of those that each model drew.

    `drawn` has for each concept [start noise, [place or null for each model]].
    """
    assert run.concepts is not None
    names = [str(name) for name in run.concepts["concept"]]
    found, made = real_pictures(concept_set), [_made(run, model) for model in run.shown_models]
    shelf = _Shelf(album)
    real: list[list[int]] = [shelf.put(found.get(name, [])[:1]) for name in names]
    drawn: list[list[Any]] = [[] for _ in names]
    for place in sorted(range(len(names)), key=lambda place: identity_seed(0, "explorer", names[place])):
        name = names[place]
        indices = sorted({index for pictures in made for index in pictures.get(name, {})})[:SHOWN_IMAGES]
        for index in indices:
            paths = [pictures.get(name, {}).get(index) for pictures in made]
            row = [next(iter(shelf.put([path])), None) if path else None for path in paths]
            if any(cell is not None for cell in row):
                drawn[place].append([index, row])
        real[place] += shelf.put(found.get(name, [])[1:REAL_PICTURES])
    models = [cut(model_name(model)) for model in run.shown_models]
    return {"bank": shelf.bank, "real": real, "drawn": drawn, "models": models}


@dataclass
class _Shelf:
    """Pictures in the order in which they were embedded."""

    album: Album

    def __post_init__(self) -> None:
        self.bank: list[tuple[str, int, int, bool]] = []

    def put(self, paths: list[Path]) -> list[int]:
        """Embed what can be read and still has room; returns the places of these."""
        places = []
        for path in paths:
            if picture := self.album.picture(path, ""):
                places.append(len(self.bank))
                self.bank.append((picture.uri, picture.width, picture.height, picture.crisp))
        return places


def _made(run: Run, model: str) -> dict[str, dict[int, Path]]:
    """What a model drew; nothing where its list cannot be read, which the section of samples says."""
    try:
        return generated_pictures(run.folder / "evaluate" / model)
    except UserError:
        return {}
