"""Values out of files that may be anything: taken for what they should be, or for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST = 2**53
"""Above it a count is none."""


def whole(value: object) -> int | None:
    """A count from 0 on."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST else None


def real(value: object) -> float | None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text(value: object) -> str:
    """A text; empty for anything else."""
    return value if isinstance(value, str) else ""


def texts(value: object) -> list[str]:
    """The texts of a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def mapping(value: object) -> Mapping[str, Any]:
    """Names and values; empty for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Mapping[str, Any]]:
    """The items of a list that hold names and values."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def counts(value: object) -> dict[str, int]:
    """Names and counts."""
    return {name: number for name, given in mapping(value).items() if (number := whole(given)) is not None}
