"""What a half says of single concepts: one row for each metric, run, concept and (of what was trained or asked) example.

Every reader takes a half and returns a table with metric, run, concept, category, value, or raises Lacking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from ..records import CATEGORIES, DIFFUSION, HELDOUT, TEST, TRAINED, UNKNOWN, UNTOUCHED
from .half import Half, Lacking
from .metrics import STOPPINGS

COLUMNS = ("metric", "run", "concept", "category", "value")
NATURAL = "Natural"
PRIOR = {
    "prior_error": "error_nats",
    "prior_error_per_dim": "error_per_dim",
    "relative_error": "relative_error",
    "gain": "gain_nats",
}
SYSTEMS = {
    "rounds_per_step": ("generation", "rounds_per_step"),
    "slope": ("generation", "slope"),
    "effective_answers": ("generation", "effective_answers"),
    "recovery": ("generation", "recovery"),
    "residual_floor": ("inputs", "residual_floor"),
    "block_residual": ("inputs", "block_residual_floor"),
    "input_distance": ("inputs", "distance"),
    "residual_10": ("weights", "residual_10"),
    "solution_norm": ("weights", "solution_norm"),
    "solvable_share": ("weights", "solvable_share"),
}
"""System and measure of `solve/systems`."""
INVERSION = ("inputs", "inversion_residual")
"""What a picture has for the answer's own block: the start noise that it is inverted to."""
STEPS = 10


@dataclass(frozen=True)
class Reader:
    """A reader and the metrics that it may give."""

    metrics: tuple[str, ...]
    read: Callable[[Half], pd.DataFrame]


def _category_shares(half: Half) -> pd.DataFrame:
    own = half.concepts
    return pd.concat(
        [
            _rows("category_share", half.label, own.assign(category=category), own["category"] == category)
            for category in CATEGORIES
        ]
    )


def _prior(half: Half) -> pd.DataFrame:
    own = half.concepts
    there = {metric: column for metric, column in PRIOR.items() if column in own}
    if not there:
        raise Lacking(f"buckets/concepts.parquet: no column {', '.join(PRIOR.values())}")
    return pd.concat([_rows(metric, half.label, own, own[column]) for metric, column in there.items()])


def _systems(half: Half) -> pd.DataFrame:
    table = half.table("solve/systems", "system", "measure", "concept", "category", "value")
    wanted = SYSTEMS | ({"block_residual": INVERSION} if half.learner == DIFFUSION else {})
    keys = list(zip(table["system"], table["measure"], strict=True))
    metric_of = {key: metric for metric, key in wanted.items()}
    table = table.assign(metric=[metric_of.get(key, "") for key in keys], run=half.label)
    return table[table["metric"] != ""]


def _classes(half: Half) -> pd.DataFrame:
    own = classified(half)
    names = {"class_one": "one", "class_many": "many", "class_none": "none"}
    return pd.concat(
        [_rows(metric, half.label, own, own["solution_class"] == name) for metric, name in names.items()]
    )


def classified(half: Half) -> pd.DataFrame:
    """Concept, category and solution class of what was solved.

    Raises:
        Lacking: a table is missing, or none of its concepts has a category.
    """
    classes = half.table("solve/classes", "concept", "solution_class")
    table = classes[["concept", "solution_class"]].merge(half.concepts[["concept", "category"]], on="concept")
    table = table.drop_duplicates("concept")
    if table.empty:
        raise Lacking("solve/classes.parquet: no concept of buckets/concepts.parquet in it")
    return table


def _fit(half: Half) -> pd.DataFrame:
    own = half.outcomes
    own = own[own["role"] == TRAINED]
    parts = [
        _rows("updates_to_fit", own["run"], own, own["first_fit"]),
        _rows("passes_to_fit", own["run"], own, own["first_fit"] * own["passes_per_update"]),
    ]
    parts += [_rows(f"fitted_share_{stop}", own["run"], own, own[stop]) for stop in STOPPINGS]
    return pd.concat(parts)


def _held_out(half: Half) -> pd.DataFrame:
    own = half.outcomes
    own = own[own["role"] == HELDOUT]
    return pd.concat([_changes(f"heldout_change_{stop}", own, stop) for stop in STOPPINGS])


def _outside_most(half: Half) -> pd.DataFrame:
    own = outside(most_unknown(half.outcomes))
    return pd.concat([_changes(f"outside_change_{stop}", own, stop) for stop in STOPPINGS])


def _outside_known(half: Half) -> pd.DataFrame:
    own = outside(known_only(half.outcomes))
    return pd.concat([_changes(f"outside_change_known_{stop}", own, stop) for stop in STOPPINGS])


def _late(half: Half) -> pd.DataFrame:
    own = half.outcomes
    own = outside(own[own["kind"] == UNKNOWN])
    if own.empty:
        raise Lacking("no run on Unknown alone")
    return _rows("late_change", own["run"], own, own["convergence"] - own["early_stop"])


def _natural(half: Half) -> pd.DataFrame:
    own = half.outcomes
    own = outside(own[own["kind"] == NATURAL])
    if own.empty:
        raise Lacking("no run on a mix called natural")
    return pd.concat([_rows(f"natural_accuracy_{stop}", own["run"], own, own[stop]) for stop in STOPPINGS])


def most_unknown(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The runs on the mix or mixes with the largest share of Unknown.

    Raises:
        Lacking: no mix holds any.
    """
    share = outcomes["unknown_share"]
    if not share.max() > 0:
        raise Lacking("no run on a mix with Unknown in it")
    return outcomes[share == share.max()]


def known_only(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The runs on mixes without Unknown.

    Raises:
        Lacking: there are none.
    """
    own = outcomes[outcomes["unknown_share"] == 0]
    if own.empty:
        raise Lacking("no run on a mix without Unknown")
    return own


def outside(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What was asked about nothing that was trained on: test questions, else concepts outside the mix.

    Raises:
        Lacking: neither was asked.
    """
    for role in (TEST, UNTOUCHED):
        own = outcomes[outcomes["role"] == role]
        if len(own):
            return own
    if outcomes.empty:
        return outcomes
    raise Lacking("nothing was asked outside the mixes (validation_untouched_concepts, or a test split)")


def changes(outcomes: pd.DataFrame, stop: str) -> pd.DataFrame:
    """After less before of every question asked at both: run, concept, category, value."""
    return _changes("", outcomes, stop)[["run", "concept", "category", "value"]].dropna()


def _changes(metric: str, own: pd.DataFrame, stop: str) -> pd.DataFrame:
    return _rows(metric, own["run"], own, own[stop] - own["before"])


def _rows(metric: str, run: str | pd.Series, own: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    return own[["concept", "category"]].assign(metric=metric, run=run, value=values.astype(float))


def _stops(*keys: str) -> tuple[str, ...]:
    return tuple(f"{key}_{stop}" for key in keys for stop in STOPPINGS)


READERS = (
    Reader(("category_share",), _category_shares),
    Reader(tuple(PRIOR), _prior),
    Reader(("updates_to_fit", "passes_to_fit", *_stops("fitted_share")), _fit),
    Reader(_stops("heldout_change"), _held_out),
    Reader(_stops("outside_change"), _outside_most),
    Reader(_stops("outside_change_known"), _outside_known),
    Reader(("late_change",), _late),
    Reader(_stops("natural_accuracy"), _natural),
    Reader(tuple(SYSTEMS), _systems),
    Reader(("class_one", "class_many", "class_none"), _classes),
)


@dataclass(frozen=True)
class Readings:
    """All of one learner, and for each metric what the halves lack that do not have it."""

    table: pd.DataFrame
    lacking: Mapping[str, tuple[str, ...]]


def read_all(halves: list[Half]) -> Readings:
    """The readings of one learner's halves."""
    tables = [pd.DataFrame(columns=list(COLUMNS))]
    lacking: dict[str, list[str]] = {}
    for half in halves:
        for reader in READERS:
            try:
                found, reason = reader.read(half), "not in this run's tables"
            except Lacking as error:
                found, reason = tables[0], str(error)
            found = _finite(found, half)
            for metric in reader.metrics:
                if metric not in set(found["metric"]):
                    lacking.setdefault(metric, []).append(f"{half.label}: {reason}")
            if len(found):
                tables.append(found[list(COLUMNS)])
    table = pd.concat(tables[1:] or tables, ignore_index=True)
    return Readings(table=table, lacking={metric: tuple(reasons) for metric, reasons in lacking.items()})


def _finite(found: pd.DataFrame, half: Half) -> pd.DataFrame:
    """What was read; only a time to fit may be infinite (never fitted)."""
    found = found[found["value"].notna() & found["category"].isin(CATEGORIES)]
    odd = found[np.isinf(found["value"].astype(float)) & ~found["metric"].str.endswith("_to_fit")]
    if len(odd):
        row = odd.iloc[0]
        raise UserError(f"{half.folder}: {row['metric']} of {row['concept']!r} is infinite; run its stage again")
    return found
