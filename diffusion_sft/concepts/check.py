"""Is every row's image whole, listed once, and on one side of the line between training and evaluation?"""

from __future__ import annotations

from collections import Counter, defaultdict

from tqdm import tqdm

from ..files import file_hash
from ..records import TRAIN
from .images import UnreadableImage, load_image
from .rows import Problem, Row


def drop_repeated(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Keep the first row of each file; the others are problems that name it."""
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        if row.id in first:
            problems.append(_problem(row, f"is listed twice, first at {first[row.id].where}"))
        else:
            first[row.id] = row
    return list(first.values()), problems


def drop_unreadable(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Decode every file to its last byte (with a progress bar); those that fail are problems."""
    good, problems = [], []
    for row in tqdm(rows, desc="checking images", unit="image", disable=None):
        try:
            load_image(row.path)
        except UnreadableImage as error:
            problems.append(_problem(row, error.reason))
        else:
            good.append(row)
    return good, problems


def drop_copies(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Drop rows whose bytes would stand on both sides of the split.

    Where the set has splits, that is a training image with the bytes of a held-out or reference image. Where it
    has none, any copy could end up so, and all but the first are dropped.
    """
    bad: dict[str, Problem] = {}
    for copies in _same_bytes(rows):
        elsewhere = [row for row in copies if row.split not in (None, TRAIN)]
        for row in copies:
            if row.split == TRAIN and elsewhere:
                other = elsewhere[0]
                bad[row.id] = _problem(
                    row, f"is in train with the same bytes as {other.id}, which is in {other.split}"
                )
            elif row.split is None and row is not copies[0]:
                bad[row.id] = _problem(row, f"has the same bytes as {copies[0].id}")
    return [row for row in rows if row.id not in bad], list(bad.values())


def drop_contradictions(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Drop rows that give their concept another exposure or other words than most of its rows do."""
    problems: dict[str, Problem] = {}
    for name in ("exposure", "words"):
        given: defaultdict[str, Counter[object]] = defaultdict(Counter)
        for row in rows:
            given[row.concept][getattr(row, name)] += 1
        for row in rows:
            usual = given[row.concept].most_common(1)[0][0]
            if (value := getattr(row, name)) != usual:
                reason = f"gives concept {row.concept!r} the {name} {value!r} where other rows say {usual!r}"
                problems[row.id] = _problem(row, reason)
    return [row for row in rows if row.id not in problems], list(problems.values())


def _same_bytes(rows: list[Row]) -> list[list[Row]]:
    """Groups of at least two rows with identical file contents; only files of equal size are hashed."""
    by_size: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_size[row.path.stat().st_size].append(row)
    by_hash: defaultdict[str, list[Row]] = defaultdict(list)
    for group in by_size.values():
        for row in group if len(group) > 1 else []:
            by_hash[file_hash(row.path)].append(row)
    return [group for group in by_hash.values() if len(group) > 1]


def _problem(row: Row, reason: str) -> Problem:
    return Problem(where=row.where, file=row.id, reason=reason)
