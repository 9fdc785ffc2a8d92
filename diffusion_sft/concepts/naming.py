"""The concepts that rows add up to: their words, exposures and attributes."""

from __future__ import annotations

import re
from collections import defaultdict

from ..parsing import few
from ..records import Concept
from .rows import Row

_RESERVED = {"concept", "words", "exposure"}


def concepts_of(rows: list[Row]) -> tuple[tuple[Concept, ...], list[str]]:
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
    underscores), else the first caption, else the name.
    """
    if rows[0].words:
        return rows[0].words, all(_find(rows[0].words, row.caption) for row in rows)
    found = [_find(name, row.caption) for row in rows]
    if all(found):
        return found[0], True
    first = next((row.caption for row in rows if row.caption), name)
    return first, all(row.caption == first for row in rows)


def _find(name: str, caption: str) -> str:
    """The part of the caption that reads as the name, "" where there is none."""
    pattern = r"[\s_]+".join(re.escape(part) for part in re.split(r"[\s_]+", name) if part)
    match = re.search(rf"(?<!\w){pattern}(?!\w)", caption, flags=re.IGNORECASE) if pattern else None
    return match.group() if match else ""
