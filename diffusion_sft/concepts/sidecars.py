"""Images with a caption file beside each: one folder of them, a folder per concept, or kohya's `10_concept` folders.

The caption of `a.jpg` is in `a.txt` or `a.caption`; both are looked for. Folders are read as kohya's tools read them:
the number before the first underscore says how often a pass over the set comes to each of the folder's images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..parsing import Problem, few, seen
from .captions import CAPTION_SUFFIXES, agreed, caption_or_template, read_caption
from .config import ConceptSourceConfig
from .folders import folders, photos, repeats_and_name, spaced
from .rows import Listing, Row, locate


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """One folder of images, what they show, and how often each is visited."""

    folder: Path
    concept: str
    repeats: int


def has_captions(folder: Path) -> bool:
    """Whether any image directly inside has a caption file of its name beside it."""
    beside = _captions_in(folder)
    return any(photo.stem in beside for photo in photos(folder))


def read_sidecars(root: Path, config: ConceptSourceConfig) -> Listing:
    """One row per image directly inside the folder, or inside the folders in it; each folder is a concept.

    Raises:
        UserError: no images, images both here and in folders, no caption file at all, or two folders of one name.
    """
    shelves = _plain(root)
    _check_names(root, shelves)
    return _listing(root, shelves, config)


def read_kohya(root: Path, config: ConceptSourceConfig) -> Listing:
    """One row per image of the folders named `10_concept` inside `root`, or of `root` where it is such a one.

    Two folders of one concept may differ in their repeats, as in kohya's tools.

    Raises:
        UserError: a folder of images without the prefix, no images, or no caption file at all.
    """
    if (own := repeats_and_name(root.resolve().name)) and photos(root):
        return _listing(root, [_Shelf(folder=root, concept=own[1], repeats=own[0])], config)
    shelves = []
    for folder in folders(root):
        if not photos(folder):
            continue
        if (found := repeats_and_name(folder.name)) is None:
            raise UserError(
                f"{root}: folder {folder.name} holds images but its name does not start with repeats, as in"
                f" 10_{folder.name}; rename it, or set layout=sidecars if the numbers are no repeats"
            )
        shelves.append(_Shelf(folder=folder, concept=found[1], repeats=found[0]))
    return _listing(root, shelves, config)


def _plain(root: Path) -> list[_Shelf]:
    inside = [folder for folder in folders(root) if photos(folder)]
    if photos(root):
        if inside:
            raise UserError(
                f"{root}: images lie both here and in folders here ({few([f.name for f in inside])}); move those here"
                f" into a folder of their own, or give each as one of sets"
            )
        return [_Shelf(folder=root, concept=spaced(root.resolve().name) or "images", repeats=1)]
    return [_Shelf(folder=folder, concept=spaced(folder.name), repeats=1) for folder in inside]


def _listing(root: Path, shelves: list[_Shelf], config: ConceptSourceConfig) -> Listing:
    if not shelves:
        raise UserError(f"{root}: no image here nor in a folder here; found {seen(root)}")
    fallback = config.template is not None or config.allow_empty
    if not fallback and not any(_captions_in(shelf.folder) for shelf in shelves):
        raise UserError(
            f"{root}: no image here has a caption file ({' or '.join(CAPTION_SUFFIXES)}) beside it; write some, or set"
            " template='{concept}' to caption images by their folder's name"
        )
    rows: list[Row] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for shelf in shelves:
        beside = _captions_in(shelf.folder)
        images = photos(shelf.folder)
        for photo in images:
            file = photo.relative_to(root).as_posix()
            try:
                rows.append(_row(root, photo, shelf, beside.get(photo.stem, []), config))
            except ValueError as error:
                problems.append(Problem(where=file, file=file, reason=str(error)))
        alone = sorted(set(beside) - {photo.stem for photo in images})
        if alone:
            where = shelf.folder.relative_to(root).as_posix()
            notes.append(f"{where}: caption files without an image of their name: {few(alone)}")
    return Listing(rows=rows, problems=problems, notes=[*notes, *_passed_over(root, shelves)])


def _row(root: Path, photo: Path, shelf: _Shelf, captions: list[Path], config: ConceptSourceConfig) -> Row:
    identity, path = locate(root, photo.relative_to(root).as_posix())
    texts = {}
    for caption in captions:
        _, inside = locate(root, caption.relative_to(root).as_posix())
        texts[caption.name] = read_caption(inside)
    concept = config.concept or shelf.concept
    if captions:
        missing = f"its caption file {captions[0].name} is empty"
    else:
        missing = f"has no caption file beside it ({photo.stem}.txt or {photo.stem}.caption)"
    return Row(
        id=identity,
        path=path,
        caption=caption_or_template(agreed(texts), concept, config, missing),
        concept=concept,
        where=identity,
        repeats=shelf.repeats,
    )


def _captions_in(folder: Path) -> dict[str, list[Path]]:
    """The caption files directly inside, by the name they share with their image."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix.lower() in CAPTION_SUFFIXES and not path.name.startswith(".") and not path.is_dir():
            found.setdefault(path.stem, []).append(path)
    return found


def _check_names(root: Path, shelves: list[_Shelf]) -> None:
    folder_of: dict[str, str] = {}
    for shelf in shelves:
        name = shelf.folder.name
        if shelf.concept in folder_of:
            raise UserError(
                f"{root}: folders {folder_of[shelf.concept]} and {name} both name {shelf.concept!r}; rename one"
            )
        folder_of[shelf.concept] = name


def _passed_over(root: Path, shelves: list[_Shelf]) -> list[str]:
    """Folders that hold images and were not read, because they lie deeper than this layout looks."""
    read = {shelf.folder for shelf in shelves}
    deeper = [
        f.relative_to(root).as_posix() for s in shelves for f in folders(s.folder) if photos(f) and f not in read
    ]
    empty = [f.name for f in folders(root) if f not in read and not photos(f) and root not in read]
    notes = [f"images in folders further inside were passed over: {few(deeper)}"] if deeper else []
    if empty:
        notes.append(f"folders without an image directly inside were passed over: {few(empty)}")
    return notes
