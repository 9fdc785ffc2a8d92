"""From a folder to a concept set: read the rows, check every file, split, and gather the concepts."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..records import HELDOUT, Concept, ConceptSet, Example
from .check import drop_contradictions, drop_copies, drop_repeated, drop_unreadable
from .config import ConceptsConfig
from .dreambooth import has_photo_folders, read_dreambooth
from .image_folder import read_image_folder
from .metadata import METADATA_FILES, find_metadata
from .rows import Listing, Problem, Row, few
from .splits import assign_splits

_RESERVED = {"concept", "words", "exposure"}


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A concept set, what was left out of it, and remarks on how it was read that the user should see."""

    concept_set: ConceptSet
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def problems_table(self) -> pd.DataFrame:
        """One row per skipped row or file: where, file, reason."""
        rows = [(problem.where, problem.file, problem.reason) for problem in self.problems]
        return pd.DataFrame(rows, columns=["where", "file", "reason"], dtype=str)


def read_concept_set(config: ConceptsConfig) -> ReadResult:
    """Read a concept set and decode every one of its images.

    An image that serves as held-out and as reference both is two examples with the same id.

    Raises:
        UserError: no such set, metadata that cannot be read, any bad row or file (all of them in one message)
            unless `on_bad` is skip, or nothing left to probe.
    """
    root = Path(config.path).expanduser()
    if not config.path:
        raise UserError("the concept set's path is empty: give the folder that holds the images")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of concepts")
    listing = _listing(root, config)
    rows, problems = listing.rows, list(listing.problems)
    for drop in (drop_repeated, drop_unreadable, drop_copies, drop_contradictions):
        rows, found = drop(rows)
        problems += found
    if problems and config.on_bad == "stop":
        raise UserError(_problems_text(root, problems))
    splits, notes = assign_splits(rows, config)
    if not any(HELDOUT in names for names in splits.values()):
        found_out = f" ({len(problems)} bad ones skipped)" if problems else ""
        raise UserError(f"{root}: no held-out image is left of {len(rows)} usable rows{found_out}; nothing to probe")
    concepts, concept_notes = _concepts(rows)
    examples = tuple(
        Example(id=row.id, concept=row.concept, caption=row.caption, path=row.path, split=split)
        for row in rows
        for split in splits[row.id]
    )
    return ReadResult(
        concept_set=ConceptSet(concepts=concepts, examples=examples),
        problems=tuple(problems),
        notes=(*listing.notes, *notes, *concept_notes),
    )


def _listing(root: Path, config: ConceptsConfig) -> Listing:
    if config.layout == "imagefolder" or (config.layout == "auto" and find_metadata(root) is not None):
        return read_image_folder(root, config)
    if config.layout == "dreambooth" or has_photo_folders(root):
        return read_dreambooth(root, config)
    seen = few(sorted(path.name for path in root.iterdir())) or "nothing"
    raise UserError(
        f"{root}: neither a metadata file ({', '.join(METADATA_FILES)}) nor a folder of photos per subject here;"
        f" found {seen}"
    )


def _problems_text(root: Path, problems: list[Problem], limit: int = 20) -> str:
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  and {len(problems) - limit} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{root}: {count}; mend them, or set on_bad=skip to go on without these rows:", *lines])


def _concepts(rows: list[Row]) -> tuple[tuple[Concept, ...], list[str]]:
    """The concepts in the order of their first row, with the columns that are constant within every concept."""
    by_concept: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_concept[row.concept].append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row.columns))
    varying = [
        key
        for key in columns
        if key in _RESERVED
        or any(len({row.columns.get(key, "") for row in group}) > 1 for group in by_concept.values())
    ]
    kept = [key for key in columns if key not in varying]
    concepts, unspoken = [], []
    for name, group in by_concept.items():
        words, spoken = _words(name, group)
        if not spoken:
            unspoken.append(name)
        attributes = {key: group[0].columns.get(key, "") for key in kept}
        concepts.append(Concept(name=name, words=words, exposure=group[0].exposure, attributes=attributes))
    notes = [f"columns that differ within a concept are no attributes of it: {few(varying)}"] if varying else []
    if unspoken:
        notes.append(
            f"the words that stand for these concepts are missing from some of their captions: {few(unspoken)}"
        )
    return tuple(concepts), notes


def _words(name: str, rows: list[Row]) -> tuple[str, bool]:
    """The text that stands for the concept in its captions, and whether every caption contains it.

    The set's own `words`, else the name as the captions write it (whole words, any case, spaces or
    underscores), else the first caption.
    """
    if rows[0].words:
        return rows[0].words, all(_find(rows[0].words, row.caption) for row in rows)
    found = [_find(name, row.caption) for row in rows]
    if all(found):
        return found[0], True
    return rows[0].caption, len({row.caption for row in rows}) == 1


def _find(name: str, caption: str) -> str:
    """The part of the caption that reads as the name, "" where there is none."""
    pattern = r"[\s_]+".join(re.escape(part) for part in re.split(r"[\s_]+", name) if part)
    match = re.search(rf"(?<!\w){pattern}(?!\w)", caption, flags=re.IGNORECASE) if pattern else None
    return match.group() if match else ""
