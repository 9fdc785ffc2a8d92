"""From a record of named cells to a row: the columns that mean something, and what is wrong with their cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..parsing import closest, count_of, described, few, scalar
from ..records import HELDOUT, REFERENCE, REGULARISATION, TRAIN
from .captions import LARGEST_CAPTION, caption_or_template
from .config import DEFAULT_CONCEPT_COLUMN, DEFAULT_SPLIT_COLUMN, ConceptSourceConfig
from .rows import Row, locate

SPLIT_WORDS = {
    "train": TRAIN,
    "heldout": HELDOUT,
    "validation": HELDOUT,
    "val": HELDOUT,
    "test": HELDOUT,
    "reference": REFERENCE,
    "regularisation": REGULARISATION,
    "regularization": REGULARISATION,
}
"""Words a split column may use, in any case, and the split each one means."""
WORDS_COLUMN = "words"
EXPOSURE_COLUMN = "exposure"
_SYNONYMS = {"text": ("caption", "prompt", "description"), "file_name": ("image", "filename", "file", "path")}


def check_columns(where: str, columns: list[str], config: ConceptSourceConfig) -> list[str]:
    """Demand the required columns and those that the user named; remark on near misses of the optional ones.

    Raises:
        UserError: a required column is missing; it names what was found and the nearest name.
    """
    required = {"image_column": config.image_column, "caption_column": config.caption_column}
    notes = []
    if config.caption_column not in columns and (config.template is not None or config.allow_empty):
        del required["caption_column"]
        notes.append(f"{where}: no column {config.caption_column!r}; no image has a caption of its own")
    if config.concept_column != DEFAULT_CONCEPT_COLUMN:
        required["concept_column"] = config.concept_column
    if config.split_column != DEFAULT_SPLIT_COLUMN:
        required["split_column"] = config.split_column
    for key, wanted in required.items():
        if wanted not in columns:
            near = closest(wanted, columns, 0.6) or [s for s in _SYNONYMS.get(wanted, ()) if s in columns]
            hint = f"; set {key}={near[0]} if that is the one" if near else ""
            raise UserError(f"{where}: no column {wanted!r}; found {few(columns)}{hint}")
    for wanted in (config.concept_column, config.split_column, WORDS_COLUMN, EXPOSURE_COLUMN):
        for near_miss in closest(wanted, columns, 0.85) if wanted not in columns else []:
            name = where.rpartition("/")[2]
            notes.append(f"{name}: column {near_miss!r} is not read as {wanted!r}; rename it if that is meant")
    return notes


def row_of(root: Path, where: str, record: dict[str, Any], columns: list[str], config: ConceptSourceConfig) -> Row:
    """Turn one record into a row; ValueError says what is wrong with it."""
    identity, path = locate(root, _string(record, config.image_column))
    said = _string(record, config.caption_column)
    concept = " ".join((config.concept or said).split())
    if not config.concept and config.concept_column in columns:
        concept = " ".join(_cell(record, config.concept_column).split())
        if not concept:
            raise ValueError(f"{config.concept_column} is empty or missing")
    missing = f"the caption ({config.caption_column}) is empty or missing"
    if not concept:
        raise ValueError(f"{missing}, and nothing else names its concept")
    read = {config.image_column, config.caption_column, config.concept_column, config.split_column}
    further = {
        scalar(key): _cell(record, key)
        for key, value in record.items()
        if key and key not in read | {WORDS_COLUMN, EXPOSURE_COLUMN} and not isinstance(value, (dict, list, bytes))
    }
    return Row(
        id=identity,
        path=path,
        caption=caption_or_template(said, concept, config, missing),
        concept=concept,
        where=where,
        split=split_of(record.get(config.split_column), config.split_column)
        if config.split_column in columns
        else None,
        words=" ".join(_cell(record, WORDS_COLUMN).split()),
        exposure=count_of(record.get(EXPOSURE_COLUMN), EXPOSURE_COLUMN),
        columns=further,
    )


def split_of(value: Any, column: str) -> str:
    """The split that a cell names; ValueError for a word that means none."""
    word = scalar(value)
    if word.lower() not in SPLIT_WORDS:
        raise ValueError(f"{column} {described(word)} is none of {', '.join(SPLIT_WORDS)}")
    return SPLIT_WORDS[word.lower()]


def _string(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column} is not text but {described(value)}")
    return _cell(record, column)


def _cell(record: dict[str, Any], column: str) -> str:
    text = scalar(record.get(column))
    if len(text) > LARGEST_CAPTION:
        raise ValueError(f"{described(column)} has {len(text)} characters; at most {LARGEST_CAPTION} are read")
    return text
