"""How numbers, intervals and foreign text are written on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DASH = "–"
"""Stands where there is no number."""

NO_BREAK = "\u00a0"
"""Between a number and its unit and inside an interval, where no line may break."""

BASE = "base"
"""The name under which the model before fine-tuning stands in the evaluation's tables."""

NAME_LENGTH = 60
"""Names of concepts and answers are cut to this many characters on the page; the tables beside it are not cut."""

Sign = Literal["up", "down", "flat"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval; NaN ends where none was measured."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def sign(self) -> Sign | None:
        """up or down where the interval excludes 0, flat where it does not, None without an interval."""
        if not (math.isfinite(self.value) and self.has_interval):
            return None
        return "up" if self.low > 0 else "down" if self.high < 0 else "flat"


def difference(before: Estimate, after: Estimate) -> Estimate:
    """after − before, with the interval of two estimates taken as independent.

    From the two intervals alone (the method of variance estimates recovery; Newcombe, 1998, method 10; Zou and
    Donner, 2008, equation 3). Readings of the same pictures before and after go together rather than against each
    other, so for them the interval is too wide rather than too narrow.
    """
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value=value, low=low, high=high)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Three significant digits, no exponent between 0.001 and a million, a true minus sign, a dash for NaN."""
    if value is None or not math.isfinite(value):
        return DASH if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 < size < 6:
        return ("+" if signed and value > 0 else "") + f"{value:.{digits - 1}e}".replace("-", "−")
    return fixed(value, max(0, digits - 1 - size), signed)


def fixed(value: float, decimals: int, signed: bool = False) -> str:
    """So many decimals, a true minus sign, no sign for what rounds to 0, a dash for NaN."""
    if not math.isfinite(value):
        return number(value)
    rounded = round(value, decimals) or 0.0
    return ("+" if signed and rounded > 0 else "") + f"{rounded:,.{decimals}f}".replace("-", "−")


def reading(estimate: Estimate, signed: bool = False) -> tuple[str, str]:
    """The value and `[low, high]` to the same decimals, as many as give the interval's half two digits.

    Without an interval three significant digits, and nothing for the interval.
    """
    if not (estimate.has_interval and estimate.high > estimate.low):
        return number(estimate.value, signed=signed), ""
    decimals = min(6, max(0, 1 - math.floor(math.log10((estimate.high - estimate.low) / 2))))
    value, low, high = (fixed(end, decimals, signed) for end in (estimate.value, estimate.low, estimate.high))
    return value, f"[{low},{NO_BREAK}{high}]"


def share(value: float | None, signed: bool = False, decimals: int = 0) -> str:
    """A share in per cent, whole unless told; a change of shares (`signed`) in points."""
    if value is None or not math.isfinite(value):
        return DASH
    return fixed(100 * value, decimals, signed) + (f"{NO_BREAK}points" if signed else f"{NO_BREAK}%")


def share_reading(estimate: Estimate, signed: bool = False, decimals: int = 0) -> tuple[str, str]:
    """A share and its `[low, high]`, the latter without a unit; nothing for the interval without one."""
    value = share(estimate.value, signed, decimals)
    if not estimate.has_interval:
        return value, ""
    low, high = (fixed(100 * end, decimals, signed) for end in (estimate.low, estimate.high))
    return value, f"[{low},{NO_BREAK}{high}]"


def model_name(model: str) -> str:
    """How a model is called where buckets stand beside it: a mix may be named like a bucket."""
    return model if model == BASE else f"mix {model}"


def plural(count: int, noun: str) -> str:
    """`1 concept`, `2 concepts`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listing(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def seconds(value: float) -> str:
    """A duration as a person would say it."""
    if value < 99.5:
        return f"{fixed(value, 0 if value >= 10 else 1)}{NO_BREAK}s"
    return f"{value / 60:.0f}{NO_BREAK}min" if value < 5970 else f"{value / 3600:.1f}{NO_BREAK}h"


def printable(text: str) -> str:
    """The text with U+FFFD for what no page should hold: control characters, half surrogate pairs, bidi overrides."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def cut(text: str, length: int = NAME_LENGTH) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
