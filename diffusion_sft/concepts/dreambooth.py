"""DreamBooth sets: one folder of photos per subject, and the subjects' class words where a file gives them."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .config import ConceptsConfig
from .rows import Listing, Problem, Row, few, locate

CLASSES_FILE = "prompts_and_classes.txt"
"""Lines `subject_name,class` under a heading `Classes`, up to a heading `Prompts` (DreamBooth, Ruiz et al., 2023)."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffixes in ("jpg jpeg jpe jfif png apng webp avif", "bmp dib gif tif tiff jp2 ppm tga heic heif")
    for suffix in suffixes.split()
)
"""Files with these suffixes are meant as photos: one that cannot be read is a problem and not passed over."""


def has_photo_folders(root: Path) -> bool:
    """Whether any visible folder directly inside `root` holds a file with an image's suffix."""
    return any(_photos(folder) for folder in _subjects(root))


def read_dreambooth(root: Path, config: ConceptsConfig) -> Listing:
    """One concept per folder, named as the folder with spaces for underscores; files are listed, not opened.

    Raises:
        UserError: no folder with images, two folders of one name, or an unreadable file of class words.
    """
    classes = read_classes(root / CLASSES_FILE) if (root / CLASSES_FILE).is_file() else {}
    rows: list[Row] = []
    problems: list[Problem] = []
    without: list[str] = []
    folder_of: dict[str, str] = {}
    for folder in _subjects(root):
        photos = _photos(folder)
        if not photos:
            without.append(folder.name)
            continue
        concept = _spaced(folder.name)
        if concept in folder_of:
            raise UserError(
                f"{root}: folders {folder_of[concept]} and {folder.name} both name {concept!r}; rename one"
            )
        folder_of[concept] = folder.name
        class_words = classes.get(concept.lower(), "")
        for photo in photos:
            name = f"{folder.name}/{photo.name}"
            try:
                identity, path = locate(root, name)
            except ValueError as error:
                problems.append(Problem(where=name, file=name, reason=str(error)))
                continue
            rows.append(_row(identity, path, concept, class_words, config.template))
    if not rows and not problems:
        seen = few(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(f"{root}: no folder here holds an image; found {seen}")
    notes = [f"folders without an image directly inside were passed over: {few(without)}"] if without else []
    return Listing(rows=rows, problems=problems, notes=notes)


def _row(identity: str, path: Path, concept: str, class_words: str, template: str) -> Row:
    return Row(
        id=identity,
        path=path,
        caption=caption_of(template, concept, class_words),
        concept=concept,
        where=identity,
        words=caption_of("{concept} {class}", concept, class_words),
        columns={"class": class_words},
    )


def caption_of(template: str, concept: str, class_words: str) -> str:
    """Fill the template, leaving the class out where it is unknown or the concept's name already ends with it."""
    said = "{concept} {class}" in template and f" {concept.lower()}".endswith(f" {class_words.lower()}")
    # not str.format or two replacements in a row: a folder's name may itself contain braces
    parts = template.split("{class}")
    filled = [part.replace("{concept}", concept) for part in parts]
    return " ".join(("" if said or not class_words else class_words).join(filled).split())


def read_classes(path: Path) -> dict[str, str]:
    """The class words of each subject, keyed by its name in lower case with spaces for underscores.

    Raises:
        UserError: the file is not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error})") from None
    classes = {}
    for line in lines:
        if line.strip().lower().rstrip(":") == "prompts":
            break
        subject, comma, class_words = (part.strip() for part in line.partition(","))
        if comma and subject and class_words and subject.lower() != "subject_name":
            classes[_spaced(subject).lower()] = _spaced(class_words)
    return classes


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _subjects(root: Path) -> list[Path]:
    visible = (path for path in root.iterdir() if not path.name.startswith((".", "__")))
    return sorted((path for path in visible if path.is_dir()), key=lambda path: path.name)


def _photos(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(
        (path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()),
        key=lambda path: path.name,
    )
