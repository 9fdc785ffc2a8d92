"""The metadata file of an ImageFolder: which one it is, and its records one by one."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..errors import UserError
from .rows import Problem, few

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

Record = tuple[str, dict[str, Any]]
"""Where a record stands ("metadata.jsonl line 3"), and its cells."""


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
    try:
        content = metadata.read_bytes()
    except OSError as error:
        raise UserError(f"{metadata}: cannot be read ({error.strerror})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{metadata}: is UTF-16; save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    return _jsonl(metadata.name, content) if metadata.suffix == ".jsonl" else _csv(metadata, content)


def _jsonl(name: str, content: bytes) -> Iterator[Record | Problem]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{name} line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Problem(where=where, file="", reason="is not UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield Problem(where=where, file="", reason=f"is not valid JSON ({error})")
        else:
            if isinstance(record, dict):
                yield where, record
            else:
                yield Problem(where=where, file="", reason='is JSON but not an object {"file_name": ...}')


def _csv(metadata: Path, content: bytes) -> Iterator[Record | Problem]:
    # surrogateescape keeps undecodable bytes visible, so that only the rows that hold them are refused
    reader = csv.reader(io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline=""), strict=True)
    header: list[str] = []
    while True:
        where = f"{metadata.name} line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(where=where, file="", reason=f"is not valid CSV ({error})")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise UserError(f"{metadata}: a column name occurs twice: {few(header)}")
        elif len(cells) != len(header):
            yield Problem(where=where, file="", reason=f"has {len(cells)} fields where the header has {len(header)}")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _parquet(metadata: Path) -> Iterator[Record | Problem]:
    try:
        schema = pyarrow.parquet.read_schema(metadata)
        scalar = [
            field.name
            for field in schema
            if not pyarrow.types.is_nested(field.type) and not pyarrow.types.is_binary(field.type)
        ]
        table = pyarrow.parquet.read_table(metadata, columns=scalar)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{metadata}: not a readable parquet file ({' '.join(str(error).split())})") from None
    for number, record in enumerate(table.to_pylist(), start=1):
        yield f"{metadata.name} row {number}", record


def closest(word: str, names: Sequence[str], cutoff: float) -> list[str]:
    """The name nearest to the word, whatever the case of either; empty where none is that close."""
    by_lower = {name.lower(): name for name in names}
    return [by_lower[near] for near in difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=cutoff)]
