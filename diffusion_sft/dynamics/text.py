"""The tables as plain text: what was measured, then, under a heading of its own, what was published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..records import CATEGORIES, HELDOUT, OTHER_RELATIONS, TEST, UNKNOWN, UNTOUCHED
from ..reference import Reference
from .agreement import agreement
from .runs import CONVERGENCE, EARLY_STOP, FULL, NATURAL, STOPPINGS
from .summarise import DynamicsResult

KINDS = (*CATEGORIES, NATURAL)
SHOWN = {FULL: "Full", "HighlyKnown": "HK", "MaybeKnown": "MK", "WeaklyKnown": "WK", UNKNOWN: "Unk"}
NAMES = {EARLY_STOP: "early stop", CONVERGENCE: "convergence"}
ABSENT = "–"


def dynamics_text(result: DynamicsResult, reference: Reference) -> str:
    """All tables for a terminal, in percent with one decimal; intervals are at 95 %.

    What was not run or not asked is named as missing. Single categories and mixes are shown for the test questions,
    and where there are none for untouched and heldout ones. Of several methods each has all tables to itself.
    """
    methods = dict.fromkeys(result.runs.method)
    return "\n".join(_method_text(result.of_method(method), reference, len(methods) > 1) for method in methods)


def _method_text(result: DynamicsResult, reference: Reference, named: bool) -> str:
    runs = result.runs
    seeds = ", ".join(str(seed) for seed in sorted(set(runs.seed)))
    method = f", method {runs.method.iloc[0]}" if named else ""
    blocks = [
        f"Fine-tuning of the {runs.learner.iloc[0]} learner{method}: {len(runs)} runs, {runs.mix.nunique()} mixes, "
        f"seeds {seeds}\nAccuracies in percent; [low, high] is the 95 % interval"
    ]
    asked = set(result.accuracy_by_mix.role)
    roles = [TEST] if TEST in asked else [role for role in (UNTOUCHED, HELDOUT) if role in asked]
    for role in roles:
        blocks += [_single_categories(result, role, stopping) for stopping in STOPPINGS]
    blocks += [_published_single(reference, stopping) for stopping in STOPPINGS]
    blocks += [_mixes(result, role) for role in roles]
    blocks += [_published_mixes(reference), _model(result), _published_model(reference)]
    blocks += [_agreement(result, reference), _speed(result), _published_speed(reference)]
    return "\n\n".join(blocks) + "\n"


def _single_categories(result: DynamicsResult, role: str, stopping: str) -> str:
    kinds = result.runs.drop_duplicates("mix").set_index("mix").kind
    table = result.accuracy_by_mix
    table = table[(table.role == role) & (table.stopping == stopping)]
    rows, missing, not_run = [], [], []
    for kind in KINDS:
        mixes = [str(mix) for mix, found in kinds.items() if found == kind]
        if not mixes:
            not_run.append(kind)
        for mix in mixes:
            here = table[table.mix == mix].set_index("category")
            if here.empty:
                missing.append(mix)
                continue
            cells = [_cell(here, category) for category in SHOWN]
            rows.append([_label(kind, mix), *cells, str(int(here.num_seeds.max()))])
    unasked = [category for category in CATEGORIES if category not in set(table.category)]
    return _block(
        f"measured: one category at a time, {NAMES[stopping]}, {role} questions",
        ["trained on", *SHOWN.values(), "seeds"],
        rows,
        {"not run": not_run, f"no {NAMES[stopping]}": missing, f"not asked of {role}": unasked},
    )


def _published_single(reference: Reference, stopping: str) -> str:
    rows = [
        [row, *(f"{accuracy[category]:.1f}" for category in SHOWN)]
        for row, accuracy in reference.single_category[stopping].items()
    ]
    heading = _published(reference, "single_category")
    return _block(f"{heading}: {NAMES[stopping]}", ["trained on", *SHOWN.values()], rows)


def _mixes(result: DynamicsResult, role: str) -> str:
    mixes = result.runs.drop_duplicates("mix")
    shown = mixes[mixes.kind.isin(("", UNKNOWN)) & mixes.unknown_share.notna()]
    table = result.accuracy_by_mix
    table = table[(table.role == role) & (table.category == FULL) & table.mix.isin(shown.mix)]
    answered = bool((table.answered_share < 1).any())
    rows = []
    for mix, here in table.sort_values("unknown_share", kind="stable").groupby("mix", sort=False):
        by_stop = here.set_index("stopping")
        late: Any = by_stop.loc[CONVERGENCE]
        change = _interval(late.change, late.change_low, late.change_high, sign=True)
        cells = [*(_cell(by_stop, stopping) for stopping in STOPPINGS), change, str(int(late.num_seeds))]
        if answered:
            cells += [_answered(by_stop, stopping) for stopping in STOPPINGS]
        rows.append([_percent(late.unknown_share), str(mix), _number(late.num_concepts, 0), *cells])
    header = ["Unknown", "mix", "concepts", *NAMES.values(), "change", "seeds"]
    header += [f"{name}: right of answered, answered" for name in NAMES.values()] if answered else []
    lacking = {"not run": ["mixes of known and Unknown"] if not rows else []}
    return _block(f"measured: by the Unknown share of the mix, {role} questions", header, rows, lacking)


def _published_mixes(reference: Reference) -> str:
    """The published accuracies at an Unknown share that is said in numbers."""
    half, table = reference.relabel, reference.single_category
    rows = [
        ["100.0", "Unknown", *(f"{table[stopping][UNKNOWN]['Full']:.1f}" for stopping in STOPPINGS)],
        ["50.0", "half Unknown", *(f"{half[stopping]['plain'].accuracy_percent:.1f}" for stopping in STOPPINGS)],
    ]
    relabelled = [
        f"{NAMES[stopping]} {half[stopping]['relabelled'].accuracy_percent:.1f} right of "
        f"{half[stopping]['relabelled'].answered_percent:.1f} answered"
        for stopping in STOPPINGS
    ]
    drop = reference.largest_drop
    heading = _published(reference, "single_category", "relabel")
    text = _block(heading, ["Unknown", "mix", *NAMES.values()], rows[::-1])
    return (
        f'{text}\n  half Unknown, relabelled "I don\'t know": {"; ".join(relabelled)}\n'
        f"  drop with the Unknown share ({reference.sources['largest_drop']}): up to {drop['in_distribution']:g} points "
        f"in distribution, {drop['out_of_distribution']:g} out of it"
    )


def _model(result: DynamicsResult) -> str:
    rows = []
    row: Any
    for row in result.linear_model.itertuples():
        sign = row.term in ("b_known", "b_unknown")
        estimate, ours, ols = (
            _interval(row.estimate, low, high, sign=sign).partition(" ")
            for low, high in ((math.nan, math.nan), (row.low, row.high), (row.ols_low, row.ols_high))
        )
        fit = [_number(row.r2, 2), str(row.num_points), str(row.num_runs)] if row.term == "b0" else ["", "", ""]
        rows.append([row.role, row.term, estimate[0], ours[2] or ABSENT, ols[2] or ABSENT, *fit])
    there = set(result.linear_model.role)
    return _block(
        "measured: accuracy = b0 + b_known · fitted known share + b_unknown · fitted Unknown share",
        ["questions", "term", "estimate", "robust to runs", "points independent", "R²", "points", "runs"],
        rows,
        {"not asked": [role for role in (TEST, OTHER_RELATIONS) if role not in there]},
    )


def _published_model(reference: Reference) -> str:
    rows = []
    for name, model in reference.linear_model.items():
        implied = [model.b0_percent + points for points in (model.b_known_points, model.b_unknown_points)]
        signed = [f"{points:+.1f}" for points in (model.b_known_points, model.b_unknown_points)]
        cells = [f"{model.b0_percent:.1f}", *signed, *(f"{value:.1f}" for value in implied), f"{model.r2:.2f}"]
        rows.append([name, *cells])
    header = ["questions", "b0", "b_known", "b_unknown", "all known fitted", "all Unknown fitted", "R²"]
    return _block(_published(reference, "linear_model"), header, rows)


def _agreement(result: DynamicsResult, reference: Reference) -> str:
    lines = ["agreement of the linear model's signs with the published ones"]
    row: Any
    for row in agreement(result.linear_model, reference).itertuples():
        place = f"  {row.role} (beside {row.published_as}), {row.term}: "
        if row.sign_agrees is None:
            flat = row.estimate_points == row.estimate_points
            lines.append(
                f"{place}{'none: the accuracy never changed' if flat else 'not estimated, the points cannot tell it'}"
            )
            continue
        zero = {True: "excludes 0", False: "holds 0", None: "is missing (too few runs)"}[row.excludes_zero]
        lines.append(f"{place}sign {'agrees' if row.sign_agrees else 'DISAGREES'}, its interval {zero}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  none: no role with a published counterpart"])


def _speed(result: DynamicsResult) -> str:
    rows = []
    for (mix, category), here in result.fit_speed.groupby(["mix", "category"], sort=False):
        never = int(here.median_update_to_fit.isna().sum())
        medians = [here.median_update_to_fit.mean(), here.median_passes_to_fit.mean()]
        late = f"half never fitted ({never} of {len(here)} seeds)"
        cells = [late, ABSENT] if never else [_number(value, 1) for value in medians]
        shares = [_percent(here[f"fitted_share_{stopping}"].mean()) for stopping in STOPPINGS]
        examples = _number(here.num_examples.mean(), 0)
        rows.append([str(mix), SHOWN[str(category)], examples, *cells, *shares])
    header = [
        "mix",
        "category",
        "examples",
        "median update",
        "median pass",
        *(f"fitted: {n}" for n in NAMES.values()),
    ]
    return _block("measured: when training examples were first answered rightly (means over seeds)", header, rows)


def _published_speed(reference: Reference) -> str:
    return f"{_published(reference, 'fit_speed')}\n  no numbers are printed; {reference.fit_speed}"


def _published(reference: Reference, *blocks: str) -> str:
    sources = " and ".join(reference.sources[block] for block in blocks)
    setup = reference.setup
    return f"published ({reference.citation.short}, {sources}; {setup['base']}, {setup['dataset']})"


def _block(
    heading: str, header: Sequence[str], rows: Sequence[Sequence[str]], lacking: dict[str, list[str]] | None = None
) -> str:
    """A heading, aligned columns (the first to the left) and a line for each kind of thing that is missing."""
    lines = [heading]
    if rows:
        widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
        for row in (header, *rows):
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            lines.append(("  " + "  ".join(cells)).rstrip())
    lines += [f"  {what}: {', '.join(names)}" for what, names in (lacking or {}).items() if names]
    return "\n".join(lines)


def _label(kind: str, mix: str) -> str:
    return kind if mix.lower() == kind.lower() else f"{kind} (mix {mix})"


def _cell(table: pd.DataFrame, key: str) -> str:
    if key not in table.index:
        return ABSENT
    row: Any = table.loc[key]
    return _interval(row.accuracy, row.low, row.high)


def _answered(table: pd.DataFrame, stopping: str) -> str:
    if stopping not in table.index:
        return ABSENT
    row: Any = table.loc[stopping]
    return f"{_percent(row.accuracy_answered)}, {_percent(row.answered_share)}"


def _interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    shown = _percent(value, sign=sign)
    return shown if math.isnan(low) or math.isnan(high) else f"{shown} [{_percent(low)}, {_percent(high)}]"


def _percent(share: float, *, sign: bool = False) -> str:
    return ABSENT if math.isnan(share) else f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"


def _number(value: float, digits: int) -> str:
    return ABSENT if math.isnan(value) else f"{value:.{digits}f}"
