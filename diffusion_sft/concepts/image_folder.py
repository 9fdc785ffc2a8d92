"""ImageFolder sets: a folder with exactly one of metadata.jsonl, metadata.csv and metadata.parquet."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..parsing import Problem, Record, seen
from .cells import check_columns, row_of
from .config import ConceptSourceConfig
from .metadata import METADATA_FILES, find_metadata, read_records
from .rows import Listing


def read_image_folder(root: Path, config: ConceptSourceConfig) -> Listing:
    """Read the metadata's rows; files are located, not opened.

    Raises:
        UserError: no metadata file, a file that cannot be parsed at all, or a missing column.
    """
    metadata = find_metadata(root)
    if metadata is None:
        raise UserError(f"{root}: none of {', '.join(METADATA_FILES)} here; found {seen(root)}")
    records: list[Record] = []
    problems: list[Problem] = []
    for item in read_records(metadata):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            records.append(item)
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    notes = check_columns(str(metadata), columns, config) if records else []
    rows = []
    for where, record in records:
        try:
            rows.append(row_of(root, where, record, columns, config))
        except ValueError as error:
            name = record.get(config.image_column)
            problems.append(Problem(where=where, file=name if isinstance(name, str) else "", reason=str(error)))
    return Listing(rows=rows, problems=problems, notes=notes)
