"""Which format a set of questions has, by what lies at its path."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..files import user_path
from ..parsing import confined, few, printable, seen
from .config import QuestionsConfig
from .entity_questions import find_files, read_entity_questions
from .plain import FILE_NAME, read_plain
from .popqa import read_popqa
from .rows import Listing

WANTED = f"EntityQuestions (P17.train.json, ...), {FILE_NAME}, or the path of a .jsonl file or of PopQA's .tsv"


def read_listing(config: QuestionsConfig) -> Listing:
    """Read the set in the format that it has.

    Raises:
        UserError: no such set, none of the formats, or two of them at once; it names what was found.
    """
    if not config.path:
        raise UserError(f"the path of the questions is empty: give a folder of {WANTED}")
    root = user_path(config.path)
    try:
        if root.is_file():
            return _read_file(root, config)
        if not root.is_dir():
            raise UserError(f"{printable(str(root))}: no such file or folder of questions")
        return _read_folder(root, config)
    except OSError as error:
        raise UserError(f"{printable(str(root))}: cannot be read ({error.strerror})") from None


def _read_file(file: Path, config: QuestionsConfig) -> Listing:
    readers = {".jsonl": read_plain, ".tsv": read_popqa}
    if file.suffix.lower() not in readers:
        raise UserError(f"{file}: is neither .jsonl nor .tsv; give these, or a folder of {WANTED}")
    return readers[file.suffix.lower()](file, config)


def _read_folder(root: Path, config: QuestionsConfig) -> Listing:
    plain = sorted(path.name for path in root.iterdir() if path.suffix == ".jsonl" and path.is_file())
    entity_questions = find_files(root)
    if plain and entity_questions:
        raise UserError(
            f"{root}: holds both EntityQuestions and {few(plain)}; give the path of the one that is meant"
        )
    if entity_questions:
        return read_entity_questions(root, config)
    if plain == [FILE_NAME]:
        return read_plain(confined(root, root / FILE_NAME), config)
    if plain:
        raise UserError(
            f"{root}: found {few(plain)}, but a folder must hold exactly one .jsonl named {FILE_NAME}; give the path of"
            " the file itself"
        )
    inner = sorted(path.name for path in root.iterdir() if path.is_dir() and find_files(path))
    if inner:
        raise UserError(f"{root}: no questions here, but EntityQuestions in {few(inner)}; point the path there")
    raise UserError(f"{root}: no questions here, which may be {WANTED}; found {seen(root)}")
