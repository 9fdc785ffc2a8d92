"""What a user may say about buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ranges import check_range


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """How concepts are sorted into known and unknown."""

    rule: Literal["error", "relative", "gain", "slick"] = "gain"
    """The rule that fills the column `bucket`; the others are written beside it."""
    error_quantile: float = 0.5
    """Share of the concepts that the rule `error` calls known, where no threshold is given."""
    error_threshold: float | None = None
    """Of a concept's mean error, for sets of which no share is to be taken for known: in nats, or the mean squared
    error per dimension where the probe's error_kind is inversion or sdedit."""
    relative_quantile: float = 0.5
    relative_threshold: float | None = None
    """Of err(c)/err(∅); below 1 the words help."""
    gain_confidence: float = 0.95
    """Of the two-sided interval of a concept's mean gain."""
    num_bootstrap: int = 1000
    seed: int = 0
    seen_at_least: int = 200
    """Exposure from which a concept counts as seen, where exposures are known; those of exposure 0 are unseen."""

    def __post_init__(self) -> None:
        check_range(self, "error_quantile", "relative_quantile", "gain_confidence", above=0, below=1)
        check_range(self, "error_threshold", "relative_threshold")
        check_range(self, "num_bootstrap", least=100)
        check_range(self, "seed", least=0)
        check_range(self, "seen_at_least", least=1)
