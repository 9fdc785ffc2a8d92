"""DreamBooth sets: one folder of photos per subject, and the subjects' class words where a file gives them."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..parsing import Problem, confined, few, seen, text_bytes
from .captions import DEFAULT_TEMPLATE, caption_of
from .config import ConceptSourceConfig
from .folders import folders, photos, spaced
from .rows import Listing, Row, locate

CLASSES_FILE = "prompts_and_classes.txt"
"""Lines `subject_name,class` under a heading `Classes`, up to a heading `Prompts` (DreamBooth, Ruiz et al., 2023)."""


def read_dreambooth(root: Path, config: ConceptSourceConfig) -> Listing:
    """One concept per folder, named as the folder with spaces for underscores; files are listed, not opened.

    Raises:
        UserError: no folder with images, two folders of one name, or an unreadable file of class words.
    """
    listed = root / CLASSES_FILE
    classes = read_classes(confined(root, listed)) if listed.is_file() else {}
    rows: list[Row] = []
    problems: list[Problem] = []
    without: list[str] = []
    folder_of: dict[str, str] = {}
    for folder in folders(root):
        if not photos(folder):
            without.append(folder.name)
            continue
        name = spaced(folder.name)
        if name in folder_of:
            raise UserError(f"{root}: folders {folder_of[name]} and {folder.name} both name {name!r}; rename one")
        folder_of[name] = folder.name
        class_words = classes.get(name.lower(), "")
        for photo in photos(folder):
            file = f"{folder.name}/{photo.name}"
            try:
                rows.append(_row(*locate(root, file), config.concept or name, class_words, config))
            except ValueError as error:
                problems.append(Problem(where=file, file=file, reason=str(error)))
    if not rows and not problems:
        raise UserError(f"{root}: no folder here holds an image; found {seen(root)}")
    notes = [f"folders without an image directly inside were passed over: {few(without)}"] if without else []
    return Listing(rows=rows, problems=problems, notes=notes)


def _row(identity: str, path: Path, concept: str, class_words: str, config: ConceptSourceConfig) -> Row:
    template = DEFAULT_TEMPLATE if config.template is None else config.template
    return Row(
        id=identity,
        path=path,
        caption=caption_of(template, concept, class_words),
        concept=concept,
        where=identity,
        words=caption_of("{concept} {class}", concept, class_words),
        columns={"class": class_words},
    )


def read_classes(path: Path) -> dict[str, str]:
    """The class words of each subject, keyed by its name in lower case with spaces for underscores.

    Raises:
        UserError: the file is not UTF-8 text.
    """
    try:
        lines = text_bytes(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    classes = {}
    for line in lines:
        if line.strip().lower().rstrip(":") == "prompts":
            break
        subject, comma, class_words = (part.strip() for part in line.partition(","))
        if comma and subject and class_words and subject.lower() != "subject_name":
            classes[spaced(subject).lower()] = spaced(class_words)
    return classes
