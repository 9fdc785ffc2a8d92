"""The seed's hypothesis in numbers: category against solution class, and what teaching `none` brought and cost.

The hypothesis: no solution is Unknown, one solution is HighlyKnown, many are MaybeKnown and WeaklyKnown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..numerics.association import contingency_table, cramers_v, permutation_p
from ..numerics.statistics import cohen_kappa, wilson
from ..records import CATEGORIES, HELDOUT, HIGHLY_KNOWN, MAYBE_KNOWN, TRAINED, UNKNOWN, WEAKLY_KNOWN
from .estimates import Draws, Estimate, difference_of, mean_of, over_runs, within
from .half import Half, Lacking
from .metrics import STOPPINGS
from .readings import changes, classified, known_only, most_unknown, outside

CLASSES = ("one", "many", "none")
PREDICTED = {HIGHLY_KNOWN: "one", MAYBE_KNOWN: "many", WEAKLY_KNOWN: "many", UNKNOWN: "none"}
KNOWN = tuple(category for category in CATEGORIES if category != UNKNOWN)
SIGNIFICANT = 0.05
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SUPPORTED, IN_PART, AGAINST, OPEN = "supported", "supported in part", "not supported", "open"
DISTANCES = ("fid_change", "kid_change")
KNOWN_BUCKET = "known"


def association(halves: Sequence[Half], draws: Draws) -> dict[str, Any]:
    """Category × solution class of one learner: the table, Cramér's V and its permutation p, and what of the hypothesis
    holds. A concept that was read in several runs counts once, in the first of them, so that all are independent.

    V is not corrected for bias; `cramers_v_corrected` is Bergsma's (2013).
    """
    tables, missing = [], []
    for half in halves:
        try:
            tables.append(classified(half).assign(run=half.label))
        except Lacking as reason:
            missing.append(f"{half.label}: {reason}")
    if not tables:
        return {"verdict": OPEN, "missing": missing}
    every = pd.concat(tables, ignore_index=True)
    every = every[every["solution_class"].isin(CLASSES)]
    once = every.drop_duplicates("concept")
    found = _association(once, draws) | {"missing": missing, "noun": halves[0].noun}
    if len(tables) > 1:
        by_run = {str(run): _association(own, draws) for run, own in every.groupby("run", sort=False)}
        kept = ("num_concepts", "cramers_v", "permutation_p", "verdict")
        found["by_run"] = {run: {name: own[name] for name in kept} for run, own in by_run.items()}
    return found


def _association(table: pd.DataFrame, draws: Draws) -> dict[str, Any]:
    categories, classes = table["category"].tolist(), table["solution_class"].tolist()
    counts = pd.crosstab(table["category"], table["solution_class"])
    counts = counts.reindex(index=list(CATEGORIES), columns=list(CLASSES), fill_value=0)
    observed = contingency_table(categories, classes)
    v, p = math.nan, math.nan
    if min(observed.shape, default=0) > 1:
        v = cramers_v(observed)
        p = permutation_p(categories, classes, draws.num_permutations, draws.seed)
    claims = _claims(counts)
    predicted = [PREDICTED[category] for category in categories]
    right = sum(a == b for a, b in zip(predicted, classes, strict=True))
    matching = wilson(right, len(classes))
    return {
        "num_concepts": len(table),
        "table": {
            category: {name: _count(counts, [category], [name]) for name in CLASSES} for category in CATEGORIES
        },
        "cramers_v": _number(v),
        "cramers_v_corrected": _number(_corrected(observed, v)),
        "permutation_p": _number(p),
        "num_permutations": draws.num_permutations,
        "as_predicted": {"count": right, "share": matching.value, "low": matching.low, "high": matching.high},
        "kappa": _number(cohen_kappa(predicted, classes)) if classes else None,
        "claims": claims,
        "verdict": _verdict(p, claims),
    }


def _claims(counts: pd.DataFrame) -> list[dict[str, Any]]:
    """Both directions: how many of a category have the class that it should have, and how many of a class are of the
    category that it should be of. A claim holds where the interval of that share lies above one half."""
    found = []
    for category, name in PREDICTED.items():
        claimed, of = _count(counts, [category], [name]), _count(counts, [category], CLASSES)
        found.append(_claim(f"{category} is '{name}'", claimed, of))
    for name in CLASSES:
        own = [category for category, predicted in PREDICTED.items() if predicted == name]
        claimed, of = _count(counts, own, [name]), _count(counts, CATEGORIES, [name])
        found.append(_claim(f"'{name}' is {' or '.join(own)}", claimed, of))
    return found


def _count(counts: pd.DataFrame, categories: Sequence[str], classes: Sequence[str]) -> int:
    return int(counts.loc[list(categories), list(classes)].to_numpy().sum())


def _claim(says: str, count: int, of: int) -> dict[str, Any]:
    share = wilson(count, of)
    held = HOLDS if share.low > 0.5 else FAILS if share.high < 0.5 else UNDECIDED
    numbers = {"share": _number(share.value), "low": _number(share.low), "high": _number(share.high)}
    return {"claim": says, "count": count, "of": of, **numbers, "outcome": held}


def _verdict(p: float, claims: Sequence[Mapping[str, Any]]) -> str:
    """open: one category or class alone, or every claim undecided; not supported: no association beyond chance, or no
    claim holds; supported: every claim holds; else supported in part."""
    outcomes = [claim["outcome"] for claim in claims]
    if math.isnan(p) or set(outcomes) == {UNDECIDED}:
        return OPEN
    if p >= SIGNIFICANT or HOLDS not in outcomes:
        return AGAINST
    return SUPPORTED if set(outcomes) == {HOLDS} else IN_PART


def _corrected(table: np.ndarray, v: float) -> float:
    """Bergsma's (2013) bias-corrected V, 0 for independence on average."""
    n = int(table.sum())
    if math.isnan(v) or n < 2:
        return math.nan
    rows, columns = ((table.sum(axis=axis) > 0).sum() for axis in (1, 0))
    phi = v**2 * (min(rows, columns) - 1) - (rows - 1) * (columns - 1) / (n - 1)
    smaller = min(size - (size - 1) ** 2 / (n - 1) for size in (rows, columns))
    return math.sqrt(max(0.0, phi) / (smaller - 1)) if smaller > 1 else math.nan


def taught(halves: Sequence[Half], draws: Draws) -> dict[str, Any]:
    """After fine-tuning on the mixes with the most Unknown: what of it was fitted and carried over, and what it cost.

    Estimates are {value, low, high, num_concepts, num_runs, interval}; what is missing is under `missing` with its
    reason.
    """
    found: dict[str, Any] = {"missing": {}}
    parts, controls = [], []
    groups: dict[str, str] = {}
    for half in halves:
        try:
            parts.append(most_unknown(half.outcomes))
        except Lacking as reason:
            found["missing"][half.label] = str(reason)
            continue
        groups |= _solution_classes(half)
        try:
            controls.append(known_only(half.outcomes))
        except Lacking as reason:
            found["missing"][f"{half.label}, control"] = str(reason)
    if not parts:
        return found
    most = pd.concat(parts, ignore_index=True)
    found |= {
        "mixes": sorted(most["mix"].astype(str).unique()),
        "unknown_share": [float(most["unknown_share"].min()), float(most["unknown_share"].max())],
        "num_runs": int(most["run"].nunique()),
    }
    classes = most["run"].str.rsplit("/", n=1).str[0] + "/" + most["concept"].astype(str)
    for name, own in (("unknown", most["category"] == UNKNOWN), ("none", classes.map(groups) == "none")):
        # Of what was trained on alone: others may be asked outside the mixes.
        trained = most[own & (most["role"] == TRAINED)]
        found[name] = _learnt(trained, most[own & (most["role"] == HELDOUT)], draws) if len(trained) else None
    if found["none"] is None:
        found["missing"]["none"] = "no concept that was trained on has the solution class none"
    found["cost"] = _cost(most, controls, draws, found["missing"])
    return found


def _solution_classes(half: Half) -> dict[str, str]:
    try:
        own = classified(half)
    except Lacking:
        return {}
    return dict(zip(half.label + "/" + own["concept"].astype(str), own["solution_class"], strict=True))


def _learnt(trained: pd.DataFrame, held_out: pd.DataFrame, draws: Draws) -> dict[str, Any]:
    """Fitted shares and their change on trained examples, and the change on held-out ones of the same concepts."""
    found: dict[str, Any] = {
        f"fitted_{stop}": _estimate(
            trained.assign(value=trained[stop])[["run", "concept", "value"]].dropna(), draws, "share"
        )
        for stop in ("before", *STOPPINGS)
    }
    for stop in STOPPINGS:
        found[f"fitted_change_{stop}"] = _estimate(changes(trained, stop), draws)
        found[f"transfer_{stop}"] = _estimate(changes(held_out, stop), draws)
    return found


def _cost(most: pd.DataFrame, controls: list[pd.DataFrame], draws: Draws, missing: dict[str, str]) -> dict[str, Any]:
    """The change of what is known and was not trained on, and how much of it is beyond that after known-only mixes."""
    found: dict[str, Any] = {}
    try:
        after = _known(most)
        before = _known(pd.concat(controls, ignore_index=True)) if controls else None
    except Lacking as reason:
        missing["cost"] = str(reason)
        return found
    for stop in STOPPINGS:
        own = changes(after, stop)
        found[f"known_change_{stop}"] = _estimate(own, draws)
        highly = own[own["category"] == HIGHLY_KNOWN]
        found[f"highly_known_change_{stop}"] = _estimate(highly, draws)
        control = None if before is None else changes(before, stop)
        found[f"beyond_control_{stop}"] = None
        if control is not None and len(control) and len(own):
            found[f"beyond_control_{stop}"] = _as_dict(within(difference_of(own, control), (-1.0, 1.0)))
    return found


def _known(outcomes: pd.DataFrame) -> pd.DataFrame:
    own = outside(outcomes)
    own = own[own["category"].isin(KNOWN)]
    if own.empty:
        raise Lacking("nothing known was asked outside the mixes")
    return own


def image_cost(halves: Sequence[Half]) -> dict[str, Any]:
    """FID and KID of the known bucket after those mixes less before, paired by prompt and seed; over several runs their
    mean and Student's interval."""
    found: dict[str, Any] = {"missing": {}}
    read: dict[str, list[dict[str, Any]]] = {name: [] for name in DISTANCES}
    for half in halves:
        try:
            models = {run.rsplit("/", 1)[1] for run in most_unknown(half.outcomes)["run"].unique()}
            table = half.table("evaluate/measures", "model", "bucket", "metric", "value", "low", "high")
        except Lacking as reason:
            found["missing"][half.label] = str(reason)
            continue
        table = table[table["model"].isin(models) & (table["bucket"] == KNOWN_BUCKET) & table["value"].notna()]
        for name in DISTANCES:
            for row in table[table["metric"] == name].to_dict("records"):
                read[name].append(
                    {"run": f"{half.label}/{row['model']}"} | {k: float(row[k]) for k in ("value", "low", "high")}
                )
    for name, rows in read.items():
        if len(rows) == 1:
            about = Estimate(value=rows[0]["value"], low=rows[0]["low"], high=rows[0]["high"], num_runs=1)
            kind = "of the run, over prompts and pictures"
            found[name] = _as_dict(about) | {"interval": kind, "by_run": rows}
        elif rows:
            found[name] = _as_dict(over_runs([row["value"] for row in rows])) | {"by_run": rows}
        elif not found["missing"]:
            found["missing"][name] = f"evaluate/measures.parquet: no {name} of the bucket known"
    return found


def _estimate(readings: pd.DataFrame, draws: Draws, kind: str = "change") -> dict[str, Any] | None:
    bounds = (0.0, 1.0) if kind == "share" else (-1.0, 1.0)
    return _as_dict(within(mean_of(readings, draws, kind), bounds)) if len(readings) else None


def _as_dict(found: Estimate) -> dict[str, Any]:
    numbers = {name: _number(getattr(found, name)) for name in ("value", "low", "high")}
    counts = {"num_concepts": found.num_concepts, "num_runs": found.num_runs}
    return {**numbers, **counts, "interval": found.interval, "sign": found.sign}


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None
