"""From one set or several to a concept set: read the rows, check every file, split, and gather the concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from ..errors import UserError
from ..files import user_path
from ..parsing import Problem, printable, problems_table, problems_text
from ..records import HELDOUT, REGULARISATION, ConceptSet, Example
from .check import (
    drop_contradictions,
    drop_copies,
    drop_leaks,
    drop_near_leaks,
    drop_repeated,
    drop_unreadable,
    share_facts,
)
from .config import ConceptsConfig, ConceptSourceConfig
from .layouts import read_source
from .looks import Look
from .naming import concepts_of
from .rows import Row
from .splits import Splits, assign_splits, lend_references
from .store import Store, image_store


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A concept set, what was left out of it, and remarks on how it was read that the user should see."""

    concept_set: ConceptSet
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    looks: Mapping[Path, Look] = field(default_factory=dict, repr=False)
    """The size of every image and what it looks like, by its file."""

    def problems_table(self) -> pd.DataFrame:
        """One row per skipped row or file: where, file, reason."""
        return problems_table(self.problems)


@dataclass(kw_only=True)
class _Gathered:
    """What the sets hold together, in their order."""

    rows: list[Row] = field(default_factory=list)
    splits: Splits = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looks: dict[Path, Look] = field(default_factory=dict)


def read_concept_set(config: ConceptsConfig, *, keep_alike: bool = False) -> ReadResult:
    """Read one concept set or several and decode every one of their images.

    An image that serves as held-out and as reference both is two examples with the same id. Ids of several sets start
    with the set's name. A regularisation image belongs to the concept that its folder, column or setting names; that
    need not be one of the set's concepts, and is none where nothing but regularisation images shows it.

    Args:
        config: the sets and how to read them.
        keep_alike: do not take it as a problem that an image that is trained on looks the same as one of another set
            that measures; for looking at such pairs.

    Raises:
        UserError: no such set, metadata that cannot be read, any bad row or file (all of them in one message)
            unless `on_bad` is skip, or nothing left.
    """
    found = _Gathered()
    store = image_store(config.cache_dir)
    for name, source in _named_sources(config):
        _read_one(found, name, source, config, store)
    taught = [row for row in found.rows if found.splits[row.id] != (REGULARISATION,)]
    others = [row for row in found.rows if found.splits[row.id] == (REGULARISATION,)]
    if config.sets:
        taught, bad = drop_contradictions(share_facts(taught, found.sets))
        found.problems += bad
    rows, bad = drop_leaks([*taught, *others], found.splits)
    found.problems += bad
    if not keep_alike:
        rows, bad = drop_near_leaks(rows, found.splits, found.sets, found.looks)
        found.problems += bad
    if found.problems and config.on_bad == "stop":
        raise UserError(problems_text(_title(config), found.problems))
    splits, notes = lend_references(rows, {row.id: found.splits[row.id] for row in rows})
    found.rows, found.splits = rows, splits
    _check_rest(found, config)
    concepts, concept_notes = concepts_of([row for row in rows if splits[row.id] != (REGULARISATION,)])
    return ReadResult(
        concept_set=ConceptSet(concepts=concepts, examples=_examples(rows, splits)),
        problems=tuple(found.problems),
        notes=(*found.notes, *notes, *concept_notes),
        looks={row.path: found.looks[row.path] for row in rows},
    )


def _read_one(found: _Gathered, name: str, source: ConceptSourceConfig, config: ConceptsConfig, store: Store) -> None:
    """Read and check one set, split it, and add it to what was found, its ids after its name where it has one."""
    listing = read_source(source, store)
    rows, problems = drop_repeated(listing.rows)
    rows, unreadable, looks = drop_unreadable(rows)
    rows, copies = drop_copies(rows) if source.role == "all" else (rows, [])
    rows, contradictions = drop_contradictions(rows)
    problems = [*listing.problems, *problems, *unreadable, *copies, *contradictions]
    splits, notes = assign_splits(rows, source.role, config)
    notes = [*listing.notes, *notes]
    if name:
        problems = [_of_set(name, problem) for problem in problems]
        notes = [f"set {printable(name)}: {note}" for note in notes]
    for row in rows:
        identity = f"{name}/{row.id}" if name else row.id
        where = identity if row.where == row.id else f"set {name}, {row.where}" if name else row.where
        found.rows.append(replace(row, id=identity, where=where, repeats=row.repeats * source.repeats))
        found.splits[identity] = splits[row.id]
        found.sets[identity] = name
    found.problems += problems
    found.notes += notes
    found.looks |= looks


def _of_set(name: str, problem: Problem) -> Problem:
    file = f"{name}/{problem.file}" if problem.file else ""
    where = file if problem.where == problem.file else f"set {name}, {problem.where}"
    return replace(problem, where=where, file=file)


def _named_sources(config: ConceptsConfig) -> list[tuple[str, ConceptSourceConfig]]:
    """The sets with the names that stand before their ids; a set by `path` alone needs none."""
    if not config.sets:
        return [("", config)]
    named: dict[str, ConceptSourceConfig] = {}
    for number, source in enumerate(config.sets):
        name = source.name or PurePosixPath(user_path(source.path).as_posix()).name
        if not name or "/" in name or not name.isprintable() or name in (".", ".."):
            raise UserError(f"concepts.sets[{number}]: give it a path and a name without '/', not {name!r}")
        if name in named:
            raise UserError(
                f"concepts.sets[{number}]: another set is called {name!r} too; give each a name of its own"
            )
        named[name] = source
    return list(named.items())


def _check_rest(found: _Gathered, config: ConceptsConfig) -> None:
    """Demand that something is left, and a held-out image where any set was to have some."""
    skipped = f" ({len(found.problems)} bad ones skipped)" if found.problems else ""
    count = f"{len(found.rows)} usable rows{skipped}"
    roles = {source.role for source in (config.sets or [config])}
    if any(HELDOUT in names for names in found.splits.values()):
        return
    if roles & {"all", "heldout"} or not found.rows:
        raise UserError(
            f"{_title(config)}: no held-out image is left of {count}; nothing to probe (role=train reads a set for"
            " training alone)"
        )


def _title(config: ConceptsConfig) -> str:
    return str(user_path(config.path)) if config.path else f"the {len(config.sets)} concept sets"


def _examples(rows: list[Row], splits: Splits) -> tuple[Example, ...]:
    return tuple(
        Example(id=row.id, concept=row.concept, caption=row.caption, path=row.path, split=split, repeats=row.repeats)
        for row in rows
        for split in splits[row.id]
    )
