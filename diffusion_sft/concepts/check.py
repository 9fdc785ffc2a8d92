"""Is every row's image whole, listed once, and on one side of the line between training and evaluation?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..files import file_hash
from ..parsing import Problem, described
from ..records import HELDOUT, REFERENCE, REGULARISATION, TRAIN
from .images import UnreadableImage, load_image
from .looks import Look, look_at, near_pairs
from .rows import Row

TRAINED = {TRAIN, REGULARISATION}
"""Splits whose images shape the weights; none of them may show what the others measure with."""
MEASURED = {HELDOUT, REFERENCE}


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


def drop_unreadable(rows: list[Row]) -> tuple[list[Row], list[Problem], dict[Path, Look]]:
    """Decode every file to its last byte (with a progress bar); those that fail are problems.

    Returns:
        The rows that are left, the problems, and what each picture looks like.
    """
    good, problems, looks = [], [], {}
    for row in tqdm(rows, desc="checking images", unit="image", disable=None):
        try:
            looks[row.path] = look_at(load_image(row.path))
        except UnreadableImage as error:
            problems.append(_problem(row, error.reason))
        else:
            good.append(row)
    return good, problems, looks


def drop_copies(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Drop all but the first of rows with the same bytes in a set that is yet to be split.

    Any copy could end up on the other side of the split.
    """
    bad = {
        row.id: _problem(row, f"has the same bytes as {copies[0].id}")
        for copies in _same_bytes([row for row in rows if row.split is None])
        for row in copies[1:]
    }
    return [row for row in rows if row.id not in bad], list(bad.values())


def drop_leaks(rows: list[Row], splits: Mapping[str, tuple[str, ...]]) -> tuple[list[Row], list[Problem]]:
    """Drop images that are trained on with the same bytes as a held-out or reference image."""
    bad: dict[str, Problem] = {}
    for copies in _same_bytes(rows):
        measured = [row for row in copies if MEASURED.intersection(splits[row.id])]
        for row in copies if measured else []:
            if TRAINED.issuperset(splits[row.id]):
                mine, theirs = splits[row.id][0], splits[measured[0].id][0]
                reason = f"is in {mine} with the same bytes as {measured[0].id}, which is in {theirs}"
                bad[row.id] = _problem(row, reason)
    return [row for row in rows if row.id not in bad], list(bad.values())


def drop_near_leaks(
    rows: list[Row], splits: Mapping[str, tuple[str, ...]], sets: Mapping[str, str], looks: Mapping[Path, Look]
) -> tuple[list[Row], list[Problem]]:
    """Drop images that are trained on and look the same as a held-out or reference image of another set.

    Within one set pictures may well be alike (frames, renderings) and its splits are its maker's business; two sets
    with different roles are said to be independent. `sets` names the set of each row's id.
    """
    if len(set(sets.values())) < 2:
        return rows, []
    trained = [row for row in rows if TRAINED.issuperset(splits[row.id])]
    measured = [row for row in rows if MEASURED.intersection(splits[row.id])]
    bad: dict[str, Problem] = {}
    for i, j, _ in near_pairs([looks[row.path] for row in trained], [looks[row.path] for row in measured]):
        row, other = trained[i], measured[j]
        if sets[row.id] != sets[other.id] and row.id not in bad:
            mine, theirs = splits[row.id][0], splits[other.id][0]
            reason = f"is in {mine} and looks the same as {other.id}, which is in {theirs}"
            bad[row.id] = _problem(row, reason)
    return [row for row in rows if row.id not in bad], list(bad.values())


def drop_contradictions(rows: list[Row]) -> tuple[list[Row], list[Problem]]:
    """Drop rows that give their concept another exposure or other words than most of its rows do."""
    problems: dict[str, Problem] = {}
    for name in ("exposure", "words"):
        given: defaultdict[str, Counter[object]] = defaultdict(Counter)
        for row in rows:
            given[row.concept][getattr(row, name)] += 1
        usual = {concept: counts.most_common(1)[0][0] for concept, counts in given.items()}
        for row in rows:
            if (value := getattr(row, name)) != (said := usual[row.concept]):
                said, found = described(said), described(value)
                reason = f"gives concept {described(row.concept)} the {name} {found} where other rows say {said}"
                problems[row.id] = _problem(row, reason)
    return [row for row in rows if row.id not in problems], list(problems.values())


def share_facts(rows: list[Row], sets: Mapping[str, str]) -> list[Row]:
    """Let sets that do not say a concept's words, exposure or further columns take them from those that do."""
    facts: dict[str, dict[str, object]] = {}
    silent: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        said = {"words": row.words, "exposure": row.exposure, **row.columns}
        known = {key: value for key, value in said.items() if value not in ("", None)}
        facts[row.concept] = known | facts.get(row.concept, {})
        silent[sets[row.id], row.concept] |= set(known)
    filled = []
    for row in rows:
        spoken = silent[sets[row.id], row.concept]
        lent = {key: value for key, value in facts[row.concept].items() if key not in spoken}
        own = {key: lent.pop(key) for key in ("words", "exposure") if key in lent}
        columns = dict(row.columns) | {key: str(value) for key, value in lent.items()}
        filled.append(replace(row, columns=columns, **own))  # type: ignore[arg-type]
    return filled


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
