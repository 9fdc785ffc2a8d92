"""The metadata file of an ImageFolder: which one it is, and its records one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import compute, parquet

from ..errors import UserError
from ..parsing import (
    LARGEST_TEXT,
    Problem,
    Record,
    closest,
    confined,
    described,
    few,
    json_lines,
    separated_lines,
    shortened,
    text_bytes,
)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MOST_ROWS, MOST_UNPACKED, LARGEST_CELL = 2_000_000, 20, 1 << 18
"""Of a parquet file: rows, how many times its size it unpacks to, and bytes of a text. A few kilobytes can hold any
number of these."""
_BATCH = 256


def find_metadata(root: Path) -> Path | None:
    """The set's metadata file, or None where nothing in the folder looks like one.

    Raises:
        UserError: more than one, one that is a link out of the folder, or only files whose names come close
            (metadata.json, train/metadata.jsonl).
    """
    found = [root / name for name in METADATA_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{root}: found {' and '.join(path.name for path in found)}; keep exactly one of them")
    if found:
        return confined(root, found[0])
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
    number = 0
    try:
        texts = [field.name for field in parquet.read_schema(metadata) if pyarrow.types.is_string(field.type)]
        # Equal texts stay one, or a few kilobytes could hold any number of long ones.
        with parquet.ParquetFile(metadata, read_dictionary=texts) as file:
            scalar = [field.name for field in file.schema_arrow if _holds_scalars(field.type)]
            _check_size(metadata, file.metadata)
            for batch in file.iter_batches(_BATCH, columns=scalar):
                _check_texts(metadata, batch)
                for record in batch.to_pylist():
                    number += 1
                    yield f"{metadata.name} row {number}", record
    except (OSError, ValueError, OverflowError, KeyError, pyarrow.ArrowException) as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise UserError(f"{metadata}: not a readable parquet file ({reason})") from None


def _holds_scalars(kind: pyarrow.DataType) -> bool:
    return not pyarrow.types.is_nested(kind) and not pyarrow.types.is_binary(kind)


def _check_size(metadata: Path, found: parquet.FileMetaData) -> None:
    """Demand no more rows and bytes than fit into memory, as far as the file says how many it has."""
    if found.num_rows > MOST_ROWS:
        rows = found.num_rows
        raise UserError(f"{metadata}: has {rows:,} rows, more than the {MOST_ROWS:,} that are read; split it")
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    # Images beside the texts make a file large, but none that unpacks to many times its size.
    if size > max(LARGEST_TEXT, MOST_UNPACKED * metadata.stat().st_size):
        raise UserError(f"{metadata}: unpacks to {size:,} bytes, more than {MOST_UNPACKED} times its size")


def _check_texts(metadata: Path, batch: pyarrow.RecordBatch) -> None:
    """Demand that no text is far too long for a cell, before there is one for each row."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
        if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
            longest = compute.max(compute.binary_length(values)).as_py() or 0
            if longest > LARGEST_CELL:
                raise UserError(
                    f"{metadata}: column {described(name)} holds a text of {longest:,} bytes; at most {LARGEST_CELL:,}"
                    " are read"
                )
