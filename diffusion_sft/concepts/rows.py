"""What the readers of all layouts hand on: one row per image, and what was wrong with the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..parsing import Problem


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image as the set describes it; `split` is None where the set leaves the splitting to us.

    `where` is where a user would mend the row ("metadata.jsonl line 3"); `columns` are the further columns.
    """

    id: str
    path: Path
    caption: str
    concept: str
    where: str
    split: str | None = None
    repeats: int = 1
    words: str = ""
    exposure: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a reader found: usable rows, problems, and remarks that the user should see."""

    rows: list[Row]
    problems: list[Problem]
    notes: list[str]


def locate(root: Path, name: str) -> tuple[str, Path]:
    """The POSIX path inside the set and the real path of the file that a row names.

    Raises:
        ValueError: the path is empty, absolute, goes up, or leads outside the folder through a symbolic link.
    """
    if not name:
        raise ValueError("the file name is empty")
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("the file's name is not valid UTF-8; rename it")
    relative = PurePosixPath(name)
    if relative.is_absolute() or PureWindowsPath(name).is_absolute():
        raise ValueError("is an absolute path; paths must be relative to the set's folder")
    if ".." in relative.parts:
        raise ValueError("leads out of the set's folder (..)")
    path = root / relative
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):
        raise ValueError("is a loop of symbolic links") from None
    if not resolved.is_relative_to(root.resolve()):
        raise ValueError(f"is a symbolic link to a place outside the set's folder ({resolved})")
    return relative.as_posix(), path
