"""The tables of the learning dynamics: what was measured, and what was published, never in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..records import CATEGORIES, DIFFUSION, HELDOUT, TEST, UNKNOWN, UNTOUCHED
from ..reference import STOPPINGS, Reference
from .cells import Cell, Group, Table, heading_cell
from .dynamics_figures import CONVERGENCE, STOPPING_NAMES
from .run import Run
from .wording import DASH, Estimate, fixed, listing, share, share_reading

FULL, NATURAL = "Full", "Natural"
"""All questions of a role together; the mix of that name."""
ASKED = (FULL, *CATEGORIES)
ASKED_COLUMNS = ("all", *CATEGORIES)
KINDS = (*CATEGORIES, NATURAL)
TERMS = {
    "b0": "b₀",
    "b_known": "b known",
    "b_unknown": "b Unknown",
    "all_known_fitted": "all known fitted",
    "all_unknown_fitted": "all Unknown fitted",
}
SIGNED = ("b_known", "b_unknown")
"""The terms that are changes."""
TREATMENTS = {"remove": "Unknown ones removed", "relabel": "Unknown ones relabelled “I don't know”"}
GUARDS = {"preserved_concepts": "known ones trained on beside it", "replay_share": "known ones repeated at the end"}
DISTRIBUTION_NAMES = {"in_distribution": "same relations", "out_of_distribution": "other relations"}


def asked_roles(run: Run) -> list[str]:
    """Whose accuracy the tables are about: test facts, or of pictures the untouched and the held-out ones."""
    table = run.dynamics.get("accuracy_by_mix")
    found = set() if table is None else set(table["role"])
    return [TEST] if TEST in found else [role for role in (UNTOUCHED, HELDOUT) if role in found]


def estimate_of(row: Any, value: str = "accuracy", low: str = "low", high: str = "high") -> Estimate:
    """A row's number with its interval."""
    return Estimate(value=float(row[value]), low=float(row[low]), high=float(row[high]))


def treatments(run: Run) -> dict[str, str]:
    """For each mix that is not trained on as it is what is different: what became of its Unknown examples, and what
    guarded the known ones; as the settings say."""
    settings: Any = run.study.get("settings")
    if run.learner != DIFFUSION:
        settings = settings.get(run.learner) if isinstance(settings, dict) else None
    mixes = settings.get("mixes") if isinstance(settings, dict) else None
    found = [mix for mix in mixes if isinstance(mix, dict)] if isinstance(mixes, list) else []
    told = {
        str(mix.get("name")): [
            *(words for treatment, words in TREATMENTS.items() if mix.get("unknown") == treatment),
            *(words for key, words in GUARDS.items() if mix.get(key)),
        ]
        for mix in found
    }
    return {name: listing(words) for name, words in told.items() if words}


def single_category_table(run: Run, role: str) -> Table | None:
    """Accuracy by category after training on one category alone (or on the natural mix), at both stoppings."""
    kinds = run.dynamics["runs"].drop_duplicates("mix").set_index("mix")["kind"]
    table = run.dynamics["accuracy_by_mix"]
    table = table[table["role"] == role]
    groups, remarks = [], []
    for stopping in STOPPINGS:
        rows = []
        for kind in KINDS:
            for mix in kinds[kinds == kind].index:
                here = table[(table["mix"] == mix) & (table["stopping"] == stopping)]
                here = here.drop_duplicates("category").set_index("category")
                if here.empty:
                    remarks.append(f"Missing: {STOPPING_NAMES[stopping]} of {mix}.")
                    continue
                under = "" if str(mix).lower() == kind.lower() else f"mix {mix}"
                seeds = Cell(text=f"{int(here['num_seeds'].max())}")
                rows.append((heading_cell(kind, label=kind, under=under), *_asked_cells(here), seeds))
        if rows:
            groups.append(Group(rows=tuple(rows), heading=STOPPING_NAMES[stopping]))
    if lacking := [kind for kind in KINDS if kind not in set(kinds)]:
        remarks.insert(0, f"Not run: {listing(lacking)}.")
    if unasked := [category for category in CATEGORIES if category not in set(table["category"])]:
        remarks.append(f"Not among the {run.nouns.role(role)} that were asked: {listing(unasked)}.")
    if not groups:
        return None
    columns = ("trained on", *ASKED_COLUMNS, "seeds")
    identity = f"{run.prefix}single-{role}"
    title = f"One category at a time, {run.nouns.role(role)}"
    return Table(identity=identity, title=title, columns=columns, groups=tuple(groups), remarks=tuple(remarks))


def _asked_cells(rows: pd.DataFrame) -> list[Cell]:
    return [accuracy_cell(rows.loc[category] if category in rows.index else None) for category in ASKED]


def accuracy_cell(
    row: Any, value: str = "accuracy", low: str = "low", high: str = "high", signed: bool = False
) -> Cell:
    """A share (or a change of one) with its interval under it; a dash where there is none."""
    if row is None or pd.isna(row[value]):
        return Cell(text=DASH)
    text, under = share_reading(estimate_of(row, value, low, high), signed=signed, decimals=1)
    return Cell(text=text, under=under)


def by_share(run: Run, role: str) -> pd.DataFrame:
    """The rows of all questions of a role for mixes of known and Unknown, by their share of Unknown."""
    mixes = run.dynamics["runs"].drop_duplicates("mix")
    shown = mixes[mixes["kind"].isin(("", UNKNOWN)) & mixes["unknown_share"].notna()]["mix"]
    table = run.dynamics["accuracy_by_mix"]
    table = table[(table["role"] == role) & (table["category"] == FULL) & table["mix"].isin(shown)]
    return table.sort_values("unknown_share", kind="stable")


def share_table(run: Run, role: str) -> Table | None:
    """Accuracy by the share of Unknown in the mix; mixes whose Unknown examples were changed say so."""
    changed, rows = treatments(run), []
    table = by_share(run, role)
    answered = bool((table["answered_share"] < 1).any())
    for mix, here in table.groupby("mix", sort=False):
        stops = {str(row["stopping"]): row for _, row in here.iterrows()}
        late = stops.get(CONVERGENCE)
        first = here.iloc[0]
        size = float(first["num_concepts"])
        cells = [
            heading_cell(str(mix), under=changed.get(str(mix), "")),
            Cell(text=share(float(first["unknown_share"]))),
            Cell(text=fixed(size, 0 if size.is_integer() else 1)),
            *(accuracy_cell(stops.get(stopping)) for stopping in STOPPINGS),
            accuracy_cell(late, "change", "change_low", "change_high", signed=True),
        ]
        cells += [_answered_cell(stops.get(stopping)) for stopping in STOPPINGS] if answered else []
        rows.append((*cells, Cell(text=f"{int(here['num_seeds'].max())}")))
    if not rows:
        return None
    columns = ["mix", "Unknown", f"{run.nouns.concept}s", *STOPPING_NAMES.values(), "change"]
    columns += [f"right of those answered, {name}" for name in STOPPING_NAMES.values()] if answered else []
    title = f"By the share of Unknown, {run.nouns.role(role)}"
    group = Group(rows=tuple(rows))
    return Table(identity=f"{run.prefix}shares-{role}", title=title, columns=(*columns, "seeds"), groups=(group,))


def _answered_cell(row: Any) -> Cell:
    if row is None or pd.isna(row["accuracy_answered"]):
        return Cell(text=DASH)
    answered = share(float(row["answered_share"]), decimals=1)
    return Cell(text=share(float(row["accuracy_answered"]), decimals=1), under=f"{answered} answered")


def model_table(run: Run) -> Table:
    """The linear model of each role; intervals are robust to dependence within runs."""
    rows = []
    for role, here in run.dynamics["linear_model"].groupby("role", sort=False):
        terms = {str(row["term"]): row for _, row in here.iterrows()}
        cells = [accuracy_cell(terms.get(term), "estimate", signed=term in SIGNED) for term in TERMS]
        first = here.iloc[0]
        counts = [Cell(text=f"{int(first[name])}") for name in ("num_points", "num_runs")]
        r2 = float(first["r2"])
        rows.append((heading_cell(run.nouns.role(str(role))), *cells, Cell(text=fixed(r2, 2)), *counts))
    columns = ("asked", *TERMS.values(), "R²", "points", "runs")
    identity, group = f"{run.prefix}model", Group(rows=tuple(rows))
    return Table(identity=identity, title="The linear model", columns=columns, groups=(group,))


def published_single_table(reference: Reference) -> Table:
    """Gekhman et al.'s accuracies after training on one category alone."""
    groups = []
    for stopping, table in reference.single_category.items():
        rows = tuple(
            (heading_cell(kind, label=kind if kind in CATEGORIES else ""), *(_printed(row[asked]) for asked in ASKED))
            for kind, row in table.items()
        )
        groups.append(Group(rows=rows, heading=STOPPING_NAMES[stopping]))
    return _published("single", "One category at a time, published", ("trained on", *ASKED_COLUMNS), groups)


def published_share_table(reference: Reference) -> Table:
    """The published accuracies at a share of Unknown that is said in numbers."""
    half, single = reference.relabel, reference.single_category
    whole = [_printed(single[stopping][UNKNOWN][FULL]) for stopping in STOPPINGS]
    plain = [_printed(half[stopping]["plain"].accuracy_percent) for stopping in STOPPINGS]
    relabelled = [
        Cell(text=_percent(found.accuracy_percent), under=f"of the {_percent(found.answered_percent)} answered")
        for found in (half[stopping]["relabelled"] for stopping in STOPPINGS)
    ]
    rows = (
        (heading_cell("half known, half Unknown"), Cell(text=share(0.5)), *plain),
        (heading_cell("the same", under=TREATMENTS["relabel"]), Cell(text=share(0.5)), *relabelled),
        (heading_cell("Unknown alone"), Cell(text=share(1.0)), *whole),
    )
    columns = ("trained on", "Unknown", *STOPPING_NAMES.values())
    return _published("shares", "By the share of Unknown, published", columns, [Group(rows=rows)])


def published_model_table(reference: Reference) -> Table:
    """The published linear models."""
    rows = []
    for name, model in reference.linear_model.items():
        changes = (model.b_known_points, model.b_unknown_points)
        levels = [_printed(model.b0_percent + points) for points in changes]
        signed = [Cell(text=share(points / 100, signed=True, decimals=1)) for points in changes]
        cells = [_printed(model.b0_percent), *signed, *levels, Cell(text=fixed(model.r2, 2))]
        rows.append((heading_cell(f"test questions, {DISTRIBUTION_NAMES[name]}"), *cells))
    columns = ("asked", *TERMS.values(), "R²")
    return _published("model", "The linear model, published", columns, [Group(rows=tuple(rows))])


def _published(name: str, title: str, columns: Sequence[str], groups: Sequence[Group]) -> Table:
    return Table(identity=f"published-{name}", title=title, columns=tuple(columns), groups=tuple(groups))


def _printed(percent: float) -> Cell:
    return Cell(text=_percent(percent))


def _percent(percent: float) -> str:
    return share(percent / 100, decimals=1)


def missing_dynamics(run: Run, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each part of the section that cannot be shown, which tables it lacks."""
    lacking = {part: [name for name in names if name not in run.dynamics] for part, names in wanted.items()}
    return {part: listing([f"dynamics/{name}" for name in names]) for part, names in lacking.items() if names}
