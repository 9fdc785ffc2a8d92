"""What `buckets.json` says about the rules: how well each follows the exposure, and how far two of them agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .wording import Estimate


def auroc(buckets: Mapping[str, Any], rule: str) -> Estimate | None:
    """How well a rule's score tells well-seen concepts from unseen ones, as `buckets.json` has it; None without."""
    return _of_exposure(buckets, "auroc", rule)


def rank_correlation(buckets: Mapping[str, Any], rule: str) -> Estimate | None:
    """Spearman's correlation of a rule's score with log exposure among seen concepts; None without."""
    return _of_exposure(buckets, "spearman_with_log_exposure", rule)


def kappa(buckets: Mapping[str, Any], rule: str, other: str) -> float | None:
    """Cohen's kappa of two rules, as `buckets.json` has it; None without."""
    pairs = buckets.get("agreement")
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, dict) and {pair.get("first"), pair.get("second")} == {rule, other}:
            return _number(pair.get("kappa"))
    return None


def seen_at_least(buckets: Mapping[str, Any]) -> int | None:
    """From which exposure on a concept counts as well seen; None where no exposure is known."""
    exposure = buckets.get("exposure")
    given = exposure.get("seen_at_least") if isinstance(exposure, dict) else None
    return given if isinstance(given, int) else None


def _of_exposure(buckets: Mapping[str, Any], name: str, rule: str) -> Estimate | None:
    given: Any = buckets.get("exposure")
    for key in (name, rule):
        given = given.get(key) if isinstance(given, dict) else None
    if not isinstance(given, dict) or (value := _number(given.get("value"))) is None:
        return None
    low, high = (_number(given.get(end)) for end in ("low", "high"))
    return Estimate(value=value) if low is None or high is None else Estimate(value=value, low=low, high=high)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
