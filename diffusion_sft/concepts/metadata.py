"""The metadata file of an ImageFolder: which one it is, and its records one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ..errors import UserError
from ..parsing import Problem, Record, closest, few, json_lines, separated_lines, text_bytes

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def find_metadata(root: Path) -> Path | None:
    """The set's metadata file, or None where nothing in the folder looks like one.

    Raises:
        UserError: more than one, or only files whose names come close (metadata.json, train/metadata.jsonl).
    """
    found = [root / name for name in METADATA_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{root}: found {' and '.join(path.name for path in found)}; keep exactly one of them")
    if found:
        return found[0]
    near = sorted(
        path.name
        for path in root.iterdir()
        if path.is_file() and not path.name.startswith(".") and closest(path.name.lower(), METADATA_FILES, 0.85)
    )
    near += sorted(path.relative_to(root).as_posix() for name in METADATA_FILES for path in root.glob(f"*/{name}"))
    if near:
        raise UserError(
            f"{root}: found {few(near)}, but the metadata must be one file in the set's own folder named"
            f" {', '.join(METADATA_FILES)}; rename or merge it, or point the path at the folder that holds it"
        )
    return None


def read_records(metadata: Path) -> Iterator[Record | Problem]:
    """The file's records in order, with a problem in the place of each that cannot be parsed.

    Raises:
        UserError: the whole file cannot be read.
    """
    if metadata.suffix == ".parquet":
        return _parquet(metadata)
    content = text_bytes(metadata)
    if metadata.suffix == ".jsonl":
        return json_lines(metadata.name, content, '{"file_name": ...}')
    return separated_lines(metadata, content)


def _parquet(metadata: Path) -> Iterator[Record | Problem]:
    try:
        schema = pyarrow.parquet.read_schema(metadata)
        scalar = [
            field.name
            for field in schema
            if not pyarrow.types.is_nested(field.type) and not pyarrow.types.is_binary(field.type)
        ]
        table = pyarrow.parquet.read_table(metadata, columns=scalar)
        records = table.to_pylist()
    except (OSError, ValueError, OverflowError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{metadata}: not a readable parquet file ({' '.join(str(error).split())})") from None
    for number, record in enumerate(records, start=1):
        yield f"{metadata.name} row {number}", record
