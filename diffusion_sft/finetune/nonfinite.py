"""Updates whose loss or gradient is not finite: skipped and counted, and the end of the run when they do not stop.

Losses are gathered from all processes and gradients are added up over them, so that every process sees the same
numbers and decides alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json
from ..learner import TrainingItem
from ..parsing import printable

NONFINITE = "nonfinite.json"
logger = logging.getLogger(__name__)


@dataclass
class Nonfinite:
    """How many updates were skipped: one after the other up to now, and in all."""

    in_a_row: int = 0
    total: int = 0

    def took(self) -> None:
        """An update was made."""
        self.in_a_row = 0

    def skipped(self, update: int, what: str, examples: Sequence[str]) -> None:
        """Count and report an update that was not made."""
        self.in_a_row += 1
        self.total += 1
        named = printable(", ".join(examples))
        logger.warning("update %d skipped: its %s is not finite; examples %s", update, what, named)


def offenders(items: Sequence[TrainingItem], losses: Sequence[float]) -> list[str]:
    """Ids of the examples whose loss is not finite, each once; all of the update where every loss is finite."""
    found = [item.example.id for item, loss in zip(items, losses, strict=True) if not math.isfinite(loss)]
    return list(dict.fromkeys(found or (item.example.id for item in items)))


def dump(
    folder: Path, update: int, what: str, items: Sequence[TrainingItem], losses: Sequence[float], seed: int
) -> Path:
    """Write what the last skipped update consisted of; returns the file.

    An item's timestep and noise follow from seed, visit and id (`Learner.loss`).
    """
    rows: list[dict[str, Any]] = [
        {
            "id": item.example.id,
            "path": str(item.example.path),
            "caption": item.caption,
            "visit": item.visit,
            "flipped": item.flipped,
            "size": item.size,
            "weight": item.weight,
            "loss": loss if math.isfinite(loss) else str(loss),
        }
        for item, loss in zip(items, losses, strict=True)
    ]
    write_json(folder / NONFINITE, {"update": update, "not_finite": what, "seed": seed, "items": rows})
    return folder / NONFINITE


def end_of_run(folder: Path, update: int, what: str, count: int, last: int | None) -> UserError:
    """The line that the run ends with; `last` is the update of the last checkpoint."""
    good = f"the last good checkpoint is checkpoint-{last}" if last is not None else "there is no checkpoint"
    times = "is" if count == 1 else f"and of the {count - 1} before it is"
    return UserError(
        f"{folder}: the {what} of update {update} {times} not finite; {folder / NONFINITE} has its examples, {good}; "
        "lower learning_rate, or use mixed_precision bf16 or no"
    )
