"""Generated pictures: what each was made from, what it is known by, what was read in it; and their files.

A picture is known by the SHA-256 of its file or, where no file is kept, of its pixels: under it lie its features.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import file_hash, read_json, replaced


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One generated image: what it shows, what it was made from, and what it is known by."""

    path: Path
    """Where it lies, if it is kept."""
    concept: str
    index: int
    prompt: str
    seed: int
    sha256: str
    """Of the file, or of the pixels (`pixel_hash`) if there is none."""
    kept: bool = True
    size: tuple[int, int] | None = None
    """(height, width); None in records of earlier versions."""
    seen: str | None = None
    """The concept that was read in it when it was made, "" for none; None if nobody read it."""
    reader: str | None = None
    """The identity of who read it."""


def recorded_images(record: Path) -> list[GeneratedImage]:
    """The images that a record lists.

    Raises:
        UserError: no such file, or not a record.
    """
    content = read_json(record)
    try:
        return [image_of(record.parent, entry) for entry in content["images"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{record}: not a record of generated images; delete it and generate again") from None


def image_of(folder: Path, entry: dict[str, Any]) -> GeneratedImage:
    """The image of one entry of a record in `folder`."""
    fields = {key: value for key, value in entry.items() if key != "file"}
    if ".." in Path(entry["file"]).parts or Path(entry["file"]).is_absolute():
        raise ValueError(f"{entry['file']} lies outside {folder}")
    if fields.get("size") is not None:
        height, width = fields["size"]
        fields["size"] = (height, width)
    return GeneratedImage(path=folder / entry["file"], **fields)


def check_unchanged(image: GeneratedImage) -> None:
    """Raise UserError unless the image's file is there and the one that was recorded."""
    if not image.kept:
        raise UserError(
            f"{image.path}: was not kept, and nobody of these settings looked at it while it was made; generate again"
        )
    if not image.path.is_file() or file_hash(image.path) != image.sha256:
        raise UserError(f"{image.path}: is not the image that was generated; generate again")


def write_picture(path: Path, image: np.ndarray) -> str:
    """Write uint8 (height, width, 3) as PNG, whole or not at all; the SHA-256 of the file.

    Raises:
        UserError: the file cannot be written.
    """
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    content = encoded.getbuffer()
    try:
        with replaced(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    return hashlib.sha256(content).hexdigest()


def pixel_hash(image: np.ndarray) -> str:
    """The SHA-256 of a picture's shape and pixels; no file has it."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
