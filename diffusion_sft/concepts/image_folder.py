"""ImageFolder sets: a folder with exactly one of metadata.jsonl, metadata.csv and metadata.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..records import HELDOUT, REFERENCE, TRAIN
from .config import DEFAULT_CONCEPT_COLUMN, DEFAULT_SPLIT_COLUMN, ConceptsConfig
from .metadata import METADATA_FILES, Record, closest, find_metadata, read_records
from .rows import Listing, Problem, Row, few, locate

SPLIT_WORDS = {
    "train": TRAIN,
    "heldout": HELDOUT,
    "validation": HELDOUT,
    "val": HELDOUT,
    "test": HELDOUT,
    "reference": REFERENCE,
}
"""Words a split column may use, in any case, and the split each one means."""
WORDS_COLUMN = "words"
EXPOSURE_COLUMN = "exposure"
_SYNONYMS = {"text": ("caption", "prompt", "description"), "file_name": ("image", "filename", "file", "path")}


def read_image_folder(root: Path, config: ConceptsConfig) -> Listing:
    """Read the metadata's rows; files are located, not opened.

    Raises:
        UserError: no metadata file, a file that cannot be parsed at all, or a missing column.
    """
    metadata = find_metadata(root)
    if metadata is None:
        seen = few(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(f"{root}: none of {', '.join(METADATA_FILES)} here; found {seen}")
    records: list[Record] = []
    problems: list[Problem] = []
    for item in read_records(metadata):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            records.append(item)
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    notes = _check_columns(metadata, columns, config) if records else []
    rows = []
    for where, record in records:
        try:
            rows.append(_row(root, where, record, columns, config))
        except ValueError as error:
            name = record.get(config.image_column)
            problems.append(Problem(where=where, file=name if isinstance(name, str) else "", reason=str(error)))
    return Listing(rows=rows, problems=problems, notes=notes)


def _check_columns(metadata: Path, columns: list[str], config: ConceptsConfig) -> list[str]:
    """Demand the required columns and those that the user named; remark on near misses of the optional ones."""
    required = {"image_column": config.image_column, "caption_column": config.caption_column}
    if config.concept_column != DEFAULT_CONCEPT_COLUMN:
        required["concept_column"] = config.concept_column
    if config.split_column != DEFAULT_SPLIT_COLUMN:
        required["split_column"] = config.split_column
    for key, wanted in required.items():
        if wanted not in columns:
            near = closest(wanted, columns, 0.6) or [s for s in _SYNONYMS.get(wanted, ()) if s in columns]
            hint = f"; set {key}={near[0]} if that is the one" if near else ""
            raise UserError(f"{metadata}: no column {wanted!r}; found {few(columns)}{hint}")
    notes = []
    for wanted in (config.concept_column, config.split_column, WORDS_COLUMN, EXPOSURE_COLUMN):
        for near_miss in closest(wanted, columns, 0.85) if wanted not in columns else []:
            notes.append(
                f"{metadata.name}: column {near_miss!r} is not read as {wanted!r}; rename it if that is meant"
            )
    return notes


def _row(root: Path, where: str, record: dict[str, Any], columns: list[str], config: ConceptsConfig) -> Row:
    """Turn one record into a row; ValueError says what is wrong with it."""
    name = _string(record, config.image_column)
    identity, path = locate(root, name)
    caption = _string(record, config.caption_column)
    if not caption:
        raise ValueError(f"the caption ({config.caption_column}) is empty or missing")
    concept = caption
    if config.concept_column in columns:
        concept = _scalar(record.get(config.concept_column))
        if not concept:
            raise ValueError(f"{config.concept_column} is empty or missing")
    read = {config.image_column, config.caption_column, config.concept_column, config.split_column}
    further = {
        key: _scalar(value)
        for key, value in record.items()
        if key and key not in read | {WORDS_COLUMN, EXPOSURE_COLUMN} and not isinstance(value, (dict, list))
    }
    return Row(
        id=identity,
        path=path,
        caption=caption,
        concept=" ".join(concept.split()),
        where=where,
        split=_split(record, config.split_column) if config.split_column in columns else None,
        words=" ".join(_scalar(record.get(WORDS_COLUMN)).split()),
        exposure=_exposure(record.get(EXPOSURE_COLUMN)),
        columns=further,
    )


def _split(record: dict[str, Any], column: str) -> str:
    word = _scalar(record.get(column))
    if word.lower() not in SPLIT_WORDS:
        raise ValueError(f"{column} {word!r} is none of {', '.join(SPLIT_WORDS)}")
    return SPLIT_WORDS[word.lower()]


def _string(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column} is not text but {value!r}")
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A cell as text, "" where it is missing; the same for JSON, CSV and parquet."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if "\x00" in text or not _encodable(text):
        raise ValueError(f"{text!r} is not valid UTF-8 text")
    return text


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _exposure(value: Any) -> int | None:
    text = _scalar(value)
    if not text:
        return None
    try:
        number = float(text)
        if number < 0 or number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{EXPOSURE_COLUMN} {text!r} is not a count (0, 1, 2, ...)") from None
    return int(number)
