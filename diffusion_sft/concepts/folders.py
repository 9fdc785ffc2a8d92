"""What lies in a folder of pictures: which files are meant as images, which folders hold some, in a fixed order."""

from __future__ import annotations

import re
from pathlib import Path

from ..parsing import confined

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffixes in ("jpg jpeg jpe jfif png apng webp avif", "bmp dib gif tif tiff jp2 ppm tga heic heif")
    for suffix in suffixes.split()
)
"""Files with these suffixes are meant as photos: one that cannot be read is a problem and not passed over."""

_REPEATS = re.compile(r"([1-9]\d{0,5})_+(.*\S)\s*", flags=re.ASCII | re.DOTALL)


def folders(root: Path) -> list[Path]:
    """The visible folders directly inside `root`, by name.

    Raises:
        UserError: one is a link to a place outside.
    """
    visible = (path for path in root.iterdir() if not path.name.startswith((".", "__")))
    return sorted((confined(root, path) for path in visible if path.is_dir()), key=lambda path: path.name)


def photos(folder: Path) -> list[Path]:
    """The visible files directly inside `folder` that have an image's suffix, by name."""
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(
        (path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()),
        key=lambda path: path.name,
    )


def spaced(name: str) -> str:
    """A folder's name as words: spaces for underscores, none at the ends or doubled."""
    return " ".join(name.replace("_", " ").split())


def repeats_and_name(folder_name: str) -> tuple[int, str] | None:
    """What kohya's folder names say: (10, "sks dog") of 10_sks dog; None where there is no such prefix."""
    match = _REPEATS.fullmatch(folder_name)
    return (int(match[1]), spaced(match[2])) if match and spaced(match[2]) else None
