"""One fine-tuning run, as the page shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..records import UNKNOWN
from .nouns import PICTURES, Nouns

SHOWN_EVALUATIONS = 200


@dataclass(frozen=True, kw_only=True)
class MixRun:
    """One fine-tuning run: its evaluation points, and the summary it wrote at the end (empty where there is none)."""

    name: str
    evaluations: pd.DataFrame | None
    summary: Mapping[str, Any]
    nouns: Nouns = PICTURES

    @property
    def seed(self) -> int | None:
        """The seed that it was drawn and taught with; None where the summary does not say."""
        record = self.summary.get("record")
        seed = record.get("seed") if isinstance(record, dict) else None
        return seed if isinstance(seed, int) else None

    @property
    def mix(self) -> str:
        """The mix's own name, without the seed that a run of several seeds has in its name."""
        named = re.fullmatch(r"(.+)-seed(-?\d+)", self.name)
        return named[1] if named and int(named[2]) == self.seed else self.name

    @property
    def composition(self) -> dict[str, list[str]]:
        """The names of the concepts that were trained on, by category; empty where the summary does not say."""
        given = self.summary.get("concepts")
        if not isinstance(given, dict):
            return {}
        return {
            str(label): [str(name) for name in names] for label, names in given.items() if isinstance(names, list)
        }

    @property
    def unknown_share(self) -> float:
        """The share of Unknown among the concepts trained on; NaN where the summary does not say."""
        sizes = {label: len(names) for label, names in self.composition.items()}
        total = sum(sizes.values())
        return sizes.get(UNKNOWN, 0) / total if total else float("nan")


def thinned(evaluations: pd.DataFrame, summary: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of at most `SHOWN_EVALUATIONS` evaluations, first, last and the stops among them: a page of thousands
    would be tens of megabytes."""
    updates = np.sort(evaluations["update"].unique())
    places = np.linspace(0, len(updates) - 1, min(SHOWN_EVALUATIONS, len(updates))).round().astype(int)
    stops = [summary.get("early_stop_update"), summary.get("converged_update")]
    return evaluations[evaluations["update"].isin([*updates[places], *stops])]
