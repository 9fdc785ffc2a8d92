"""Whether rebuilt files are the published ones: tables by their values, pictures by their pixels, all else by its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from diffusion_sft.files import read_table

TOLERANCE = 1e-9
"""Relative, of numbers in tables: sums are rounded otherwise elsewhere."""
MOST_PIXEL_CHANGE = 0.01
"""Mean change of a picture, of the whole range: fonts and edges are drawn otherwise elsewhere."""
RECORDS = ("compare.json",)
"""Hold hashes of what lies beside them."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was compared, and what differs."""

    num_files: int
    num_sources: int
    lines: tuple[str, ...]


def differences(published: Path, rebuilt: Path, places: Iterable[str]) -> Found:
    """Compare everything below these places.

    CSV files are compared by the tables that they stand beside, if there are any.
    """
    names: set[str] = set()
    for place in places:
        for root in (published, rebuilt):
            path = root / place
            files = path.rglob("*") if path.is_dir() else [path]
            names |= {file.relative_to(root).as_posix() for file in files if file.is_file()}
    compared = sorted(name for name in names if not name.endswith(RECORDS) and not _beside_a_table(rebuilt / name))
    lines = []
    for name in compared:
        missing = [
            told for told, root in (("published", published), ("rebuilt", rebuilt)) if not (root / name).is_file()
        ]
        reason = f"not {missing[0]}" if missing else difference(published / name, rebuilt / name)
        if reason:
            lines.append(f"{name}: {reason}")
    sources = sum(name.endswith(".parquet") for name in compared)
    return Found(num_files=len(compared), num_sources=sources, lines=tuple(lines))


def difference(first: Path, second: Path) -> str:
    """What differs between two files of one kind; "" for nothing."""
    if first.read_bytes() == second.read_bytes():
        return ""
    if first.suffix == ".parquet":
        try:
            pd.testing.assert_frame_equal(read_table(first), read_table(second), rtol=TOLERANCE, atol=TOLERANCE)
        except AssertionError as error:
            return " ".join(str(error).split())[:200]
        return ""
    if first.suffix == ".png":
        return _picture_difference(first, second)
    return "other text"


def _picture_difference(first: Path, second: Path) -> str:
    pixels = [np.asarray(Image.open(file).convert("RGB"), dtype=float) / 255 for file in (first, second)]
    if pixels[0].shape != pixels[1].shape:
        return f"a picture of {pixels[0].shape[:2]} against one of {pixels[1].shape[:2]} pixels"
    change = float(np.abs(pixels[0] - pixels[1]).mean())
    return "" if change <= MOST_PIXEL_CHANGE else f"pixels differ by {change:.1%} on average"


def _beside_a_table(path: Path) -> bool:
    return path.suffix == ".csv" and path.with_suffix(".parquet").is_file()
