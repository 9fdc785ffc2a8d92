"""What a stage wrote, with sizes and hashes, so that a file that was cut short or altered later is seen and named.

A stage's record (`probe.json`, `finetune.json`, a checkpoint's `state.json`, ...) is written last and holds `files`, and
`seal`, which is the hash of all the rest of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import file_hash, read_object, read_table, write_csv, write_json

FILES, SEAL = "files", "seal"
logger = logging.getLogger(__name__)


def listed(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of files by their names in the folder, sorted."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)} for name in sorted(names)
    }


def table_files(names: Iterable[str]) -> list[str]:
    """The files that `files.write_table` writes for tables of these names."""
    return [f"{name}.{ending}" for name in names for ending in ("parquet", "csv")]


def files_below(folder: Path, path: Path) -> list[str]:
    """The names in `folder` of a file, or of all files of a folder in it."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file.relative_to(folder).as_posix() for file in inside if file.is_file()]


def changes(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is wrong with the files that are not as they were listed, by name."""
    found = {}
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            found[name] = "is gone"
        elif (size := path.stat().st_size) != entry["bytes"]:
            found[name] = f"has {size:,} bytes, and had {entry['bytes']:,}"
        elif file_hash(path) != entry["sha256"]:
            found[name] = "has other content than was written"
    return found


def finished(record: Path, key: str) -> dict[str, Any] | None:
    """The content of a stage's record, if it is of this key and all its files are as they were written.

    What was altered is named, and the stage is to be done again; CSV tables alone are written again from their parquet.
    """
    if not record.exists():
        return None
    try:
        content = read_record(record)
    except UserError as error:
        logger.warning("%s; it is made again", error)
        return None
    if content.get("key") != key:
        return None
    changed = changes(record.parent, content[FILES])
    if not changed:
        return content
    logger.warning("%s; it is made again", told(record.parent, changed))
    tables = {name: str(Path(name).with_suffix(".parquet")) for name in changed}
    if any(
        not name.endswith(".csv") or tables[name] not in content[FILES] or tables[name] in changed for name in changed
    ):
        return None
    for table in tables.values():
        write_csv(record.parent / table, read_table(record.parent / table))
    return None if changes(record.parent, content[FILES]) else content


def told(folder: Path, changed: Mapping[str, str]) -> str:
    """The first change, and how many more there are, for a message."""
    name = next(iter(changed))
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{folder / name}: {changed[name]}{more}"


def write_record(path: Path, content: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write a stage's record as sealed JSON.

    Args:
        files: of the record's folder, as `listed` gives them.
    """
    whole = json.loads(json.dumps({**content, FILES: dict(files)}))  # As it will be read: keys are texts.
    write_json(path, whole | {SEAL: _digest(whole)})


def read_record(path: Path) -> dict[str, Any]:
    """The content of a sealed record.

    Raises:
        UserError: missing, broken, without a seal, or altered since it was written.
    """
    content = read_object(path)
    seal = content.pop(SEAL, None)
    if seal is None or not isinstance(content.get(FILES), dict):
        raise UserError(f"{path}: written by another version of this program, which listed no files")
    if seal != _digest(content):
        raise UserError(f"{path}: has other content than was written")
    return content


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
