"""How far the rules agree, how stable they are, and how well they follow the exposure where it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ..numerics.statistics import Interval, auroc, cohen_kappa, spearman
from ..records import CATEGORIES, RULES
from .rules import ranking_score

BUCKETS = ("known", "unknown")
FEW_CONCEPTS = 10
"""A bucket with fewer concepts than this is warned about."""
FEW_EXAMPLES = 5
"""Below this a bootstrap over examples is plainly too sure (see `bootstrap_noisy_means`)."""


def summarise(
    concepts: pd.DataFrame, answers: pd.DataFrame, thresholds: dict[str, float], seen_at_least: int
) -> dict[str, Any]:
    """Counts, thresholds, agreement, stability, exposure and warnings, as plain values for JSON (None for NaN)."""
    num_renderings = int(answers.groupby("concept").size().max())
    summary = {
        "num_concepts": len(concepts),
        "buckets": {name: int((concepts["bucket"] == name).sum()) for name in BUCKETS},
        "categories": {name: int((concepts["category"] == name).sum()) for name in CATEGORIES},
        "known_by_rule": {rule: int(concepts[f"known_{rule}"].sum()) for rule in RULES},
        "num_misknown": int(concepts["misknown"].sum()),
        "chance_of_greedy_reading": float((1 / answers["num_candidates"]).mean()),
        "thresholds": thresholds,
        "agreement": [_agreement(concepts, first, second) for first, second in combinations(RULES, 2)],
        "stability": {name: _stability(concepts[f"confidence_{name}"]) for name in RULES}
        | {"category": _stability(concepts["category_confidence"])},
        "exposure": _exposure(concepts, num_renderings, seen_at_least),
        "warnings": _warnings(concepts),
    }
    plain = _without_nan(summary)
    assert isinstance(plain, dict)
    return plain


def _agreement(concepts: pd.DataFrame, first: str, second: str) -> dict[str, Any]:
    one, other = concepts[f"known_{first}"], concepts[f"known_{second}"]
    kappa = cohen_kappa(one.tolist(), other.tolist())
    return {"first": first, "second": second, "share": float((one == other).mean()), "kappa": kappa}


def _stability(confidence: pd.Series) -> dict[str, float]:
    return {"mean_confidence": float(confidence.mean()), "share_at_least_0.95": float((confidence >= 0.95).mean())}


def _exposure(concepts: pd.DataFrame, num_renderings: int, seen_at_least: int) -> dict[str, Any] | None:
    """AUROC of well-seen against unseen concepts, and rank correlation with log exposure among the seen ones."""
    known = concepts[concepts["exposure"].notna()]
    if known.empty:
        return None
    exposure = known["exposure"].to_numpy(float)
    well_seen, unseen, seen = exposure >= seen_at_least, exposure == 0, exposure > 0
    result: dict[str, Any] = {
        "seen_at_least": seen_at_least,
        "num_well_seen": int(well_seen.sum()),
        "num_unseen": int(unseen.sum()),
        "num_seen": int(seen.sum()),
        "auroc": {},
        "spearman_with_log_exposure": {},
    }
    for rule in RULES:
        score = ranking_score(known, rule, num_renderings)
        both = well_seen.any() and unseen.any()
        separation = (
            auroc(score[well_seen], score[unseen]) if both else Interval(value=math.nan, low=math.nan, high=math.nan)
        )
        result["auroc"][rule] = asdict(separation)
        result["spearman_with_log_exposure"][rule] = asdict(spearman(score[seen], np.log(exposure[seen])))
    return result


def _warnings(concepts: pd.DataFrame) -> list[str]:
    warnings = []
    for name in BUCKETS:
        count = int((concepts["bucket"] == name).sum())
        if count == 0:
            warnings.append(f"bucket {name} is empty: no mix can draw from it and it has no FID")
        elif count < FEW_CONCEPTS:
            warnings.append(f"bucket {name} holds only {_concepts(count)}: figures for it say little beyond these")
    unsampled = int(((concepts["greedy_share"] == 0) & concepts["sampled_share"].isna()).sum())
    if unsampled:
        warnings.append(
            f"no sampled reading of {_concepts(unsampled)} whose greedy share is 0: called Unknown, but some of them"
            " may be WeaklyKnown"
        )
    few = int((concepts["num_examples"] < FEW_EXAMPLES).sum())
    if few:
        warnings.append(
            f"fewer than {FEW_EXAMPLES} held-out examples of {_concepts(few)}: their intervals and confidences are"
            " too sure where a concept's examples differ much"
        )
    return warnings


def _concepts(count: int) -> str:
    return "1 concept" if count == 1 else f"{count} concepts"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as a few lines of plain text: counts, the exposure's verdict on each rule, warnings."""
    shown = ", ".join(f"{name} {count}" for name, count in (summary["buckets"] | summary["categories"]).items())
    lines = [f"{summary['num_concepts']} concepts: {shown}"]
    exposure = summary["exposure"]
    if exposure:
        lines.append(
            f"against exposure: {exposure['num_well_seen']} concepts seen at least {exposure['seen_at_least']} times, "
            f"{exposure['num_unseen']} never seen, {exposure['num_seen']} seen at all"
        )
        lines.append(f"  {'rule':<10}{'AUROC well seen / unseen':>28}{'Spearman with log exposure':>32}")
        for rule in exposure["auroc"]:
            lines.append(
                f"  {rule:<10}{_interval_text(exposure['auroc'][rule]):>28}"
                f"{_interval_text(exposure['spearman_with_log_exposure'][rule]):>32}"
            )
    return "\n".join([*lines, *(f"note: {warning}" for warning in summary["warnings"])])


def _interval_text(interval: dict[str, Any]) -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{value:.3f}"
