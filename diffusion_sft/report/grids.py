"""Pictures inside the page: one real picture per concept, and grids of real | base | after each mix.

The number of pictures and the bytes they take are bounded; what was left out is counted, so that the page can say so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from PIL import Image

from ..concepts.images import UnreadableImage, load_image
from ..errors import UserError
from ..files import read_json
from ..records import CATEGORIES, HELDOUT, REFERENCE, SHOWN_IMAGES, TRAIN, ConceptSet, identity_seed
from .run import Run
from .wording import cut

SIDE = 128
"""Pixels of a picture's longer side as shown; smaller pictures are shown at a whole multiple, larger ones shrunk."""

PICTURE_BYTES = 4_000_000
"""What all pictures together may take of the page."""

GRID_CONCEPTS = 6
"""Concepts per bucket in the sample grids."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An embedded picture: data URI, size on the page, and whether its pixels are to stay visible squares."""

    uri: str
    width: int
    height: int
    crisp: bool
    alt: str


@dataclass
class Album:
    """Embeds pictures until the budget of bytes is spent, and counts what it could not show."""

    budget: int
    spent: int = 0
    left_out: int = 0
    unreadable: list[str] = field(default_factory=list)

    def picture(self, path: Path, alt: str) -> Picture | None:
        """The picture of a file; None where the file cannot be read or the budget is spent."""
        if self.spent >= self.budget:
            self.left_out += 1
            return None
        try:
            image = load_image(path)
        except UnreadableImage as error:
            self.unreadable.append(f"{path.name}: {error.reason}")
            return None
        scale = max(1, SIDE // max(image.size))
        if max(image.size) > SIDE:
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=90, method=4)
        uri = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
        self.spent += len(uri)
        width, height = image.size
        return Picture(uri=uri, width=width * scale, height=height * scale, crisp=scale > 1, alt=alt)


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """The pictures of one seed: a real one, then one per model; None where there is none."""

    index: int
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True, kw_only=True)
class GridConcept:
    """The rows of one concept."""

    concept: str
    category: str
    rows: tuple[GridRow, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The sample grid of one bucket, and of how many concepts it shows how many."""

    bucket: str
    concepts: tuple[GridConcept, ...]
    num_concepts: int


def real_pictures(concept_set: ConceptSet) -> dict[str, list[Path]]:
    """The picture files of each concept, those for reference first, then held-out, then training ones."""
    found: dict[str, list[Path]] = {concept.name: [] for concept in concept_set.concepts}
    for split in (REFERENCE, HELDOUT, TRAIN):
        for example in concept_set.split(split):
            found.setdefault(example.concept, []).append(example.path)
    return found


def generated_pictures(folder: Path) -> dict[str, dict[int, Path]]:
    """The generated picture files of each concept by index, as `generated.json` in a model's folder lists them.

    Raises:
        UserError: the list is missing or not understood.
    """
    listed = read_json(folder / "generated.json")
    found: dict[str, dict[int, Path]] = {}
    try:
        for image in listed["images"]:
            path = (folder / image["file"]).resolve()
            if path.is_relative_to(folder.resolve()):
                found.setdefault(str(image["concept"]), {})[int(image["index"])] = path
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'generated.json'}: not a list of generated images") from None
    return found


def sample_grids(run: Run, concept_set: ConceptSet, album: Album, missing: list[str]) -> list[Grid]:
    """One grid per bucket, of concepts chosen by a hash of their names and never by their results."""
    if run.concepts is None:
        return []
    real = real_pictures(concept_set)
    made = [_made(run, model, missing) for model in run.shown_models]
    if not any(made):
        return []
    grids = []
    for bucket in ("known", "unknown"):
        here = run.concepts[run.concepts["bucket"] == bucket]
        chosen = _chosen(here)
        concepts = tuple(
            GridConcept(
                concept=str(row["concept"]),
                category=str(row["category"]),
                rows=_rows(str(row["concept"]), run.shown_models, real.get(str(row["concept"]), []), made, album),
            )
            for _, row in chosen.iterrows()
        )
        if concepts:
            grids.append(Grid(bucket=bucket, concepts=concepts, num_concepts=len(here)))
    return grids


def _made(run: Run, model: str, missing: list[str]) -> dict[str, dict[int, Path]]:
    name = f"evaluate/{model}/generated.json"
    if not (run.folder / name).is_file():
        missing.append(f"{name}: no pictures were generated by this model")
        return {}
    try:
        return generated_pictures(run.folder / "evaluate" / model)
    except UserError:
        missing.append(f"{name}: is not a readable list of pictures")
        return {}


def _chosen(concepts: pd.DataFrame) -> pd.DataFrame:
    order = sorted(concepts["concept"], key=lambda name: identity_seed(0, "grid", str(name)))[:GRID_CONCEPTS]
    chosen = concepts[concepts["concept"].isin(order)]
    return chosen.sort_values(
        "category",
        key=lambda column: column.map({label: place for place, label in enumerate(CATEGORIES)}),
        kind="stable",
    )


def _rows(
    concept: str,
    models: Sequence[str],
    real: Sequence[Path],
    made: Sequence[Mapping[str, Mapping[int, Path]]],
    album: Album,
) -> tuple[GridRow, ...]:
    indices = sorted({index for pictures in made for index in pictures.get(concept, {})})[:SHOWN_IMAGES]
    rows = []
    for place, index in enumerate(indices):
        cells = [album.picture(real[place], f"real picture of {cut(concept)}") if place < len(real) else None]
        for model, pictures in zip(models, made, strict=True):
            path = pictures.get(concept, {}).get(index)
            alt = f"{cut(concept)} drawn by {model}, start noise {index}"
            cells.append(None if path is None else album.picture(path, alt))
        rows.append(GridRow(index=index, pictures=tuple(cells)))
    return tuple(rows)
