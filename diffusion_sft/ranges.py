"""The one way in which settings say which numbers they take."""

from __future__ import annotations

import math
from typing import Any

MOST_PIXELS = 16_384
"""Of a picture's side: more than any network here was trained on, and what a picture in memory can be."""
MOST_STEPS = 1000
"""Of a sampler: the timesteps that bases are trained on, of which each step takes another."""


def check_range(
    settings: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ValueError naming the first of these fields that is out of range; None, where a field may be that, is in.

    NaN and the infinities are out of every range, that of a field without bounds too.

    Args:
        settings: a dataclass.
        names: of its fields, each a number, a list of numbers, or None.
        least, most: bounds that belong to the range.
        above, below: bounds that do not.
    """
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not _inside(number, least, above, most, below):
                raise ValueError(f"{name} must be {_in_words(least, above, most, below)}, not {number}")


def _inside(number: float, least: float | None, above: float | None, most: float | None, below: float | None) -> bool:
    return (
        (isinstance(number, int) or math.isfinite(number))
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )


def _in_words(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    named = (("at least", least), ("above", above), ("at most", most), ("below", below))
    return " and ".join(f"{word} {bound:,}" for word, bound in named if bound is not None) or "a finite number"
