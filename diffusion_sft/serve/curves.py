"""Curves over updates as small SVG drawings, made anew at every refresh: loss, and shares by category.

No text from files is drawn; colours and shapes of the categories are the report's (`var(--HighlyKnown)`, circles, ...),
set by classes, since the page's policy allows no inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ..records import CATEGORIES
from ..report.svg import MARKERS
from ..report.wording import number, share
from .shares import Curves, Share
from .training import Stretch

WIDTH, HEIGHT = 280, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 34
SPARK = (120, 30)
MARKED = 25
"""A line of more points than these has no marks."""
SHAPES = {
    "o": "M{l} {y}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z",
    "s": "M{l} {t}h{d}v{d}h-{d}z",
    "^": "M{x} {t}L{e} {b}H{l}z",
    "D": "M{x} {t}L{e} {y}L{x} {b}L{l} {y}z",
}
"""Paths around x, y: l and e are r to the left and right, t and b r above and below, d twice r."""


def loss_curve(loss: Sequence[Stretch], last_update: int | None) -> Markup:
    """Mean loss of equal stretches of updates, with the band between the lowest and highest of each."""
    lows, highs = [point.low for point in loss], [point.high for point in loss]
    low, high = min(0.0, *lows), max(*highs, 1e-12)
    frame = _Frame(last=max(loss[-1].update, last_update or 0), low=low, high=high)
    band = _band(frame, [(point.update, point.low, point.high) for point in loss])
    line = _line(frame, [(point.update, point.mean) for point in loss])
    ticks = [(value, f"{value:.6g}".replace("-", "−")) for value in nice_ticks(low, high)]
    told = f"loss over updates, from {number(loss[0].mean)} to {number(loss[-1].mean)}"
    return _drawing(frame, ticks, f'<g class="loss">{band}{line}</g>', told)


def share_curve(curves: Curves, last_update: int | None) -> Markup:
    """Share of right answers by category, with the band of its intervals."""
    furthest = max(points[-1].update for points in curves.values())
    frame = _Frame(last=max(1, furthest, last_update or 0), low=0.0, high=1.0)
    parts, told = [], []
    for category, points in curves.items():
        band = _band(frame, [(point.update, point.low, point.high) for point in points])
        line = _line(frame, [(point.update, point.share) for point in points])
        marks = _marks(frame, category, points) if len(points) <= MARKED else ""
        parts.append(f'<g class="{_class(category)}">{band}{line}{marks}</g>')
        told.append(f"{category if category in CATEGORIES else 'other'} {share(points[-1].share)}")
    ticks = [(value, share(value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _drawing(frame, ticks, "".join(parts), f"share of right answers over updates, at last {', '.join(told)}")


def loss_spark(loss: Sequence[Stretch]) -> Markup:
    """The loss as a line in a table's cell."""
    values = [point.mean for point in loss]
    frame = _Frame(last=max(1, loss[-1].update), low=min(0.0, *values), high=max(*values, 1e-12), spark=True)
    return _spark(f'<g class="loss">{_line(frame, [(point.update, point.mean) for point in loss])}</g>')


def share_spark(curves: Curves) -> Markup:
    """Shares by category as lines in a table's cell."""
    furthest = max(points[-1].update for points in curves.values())
    frame = _Frame(last=max(1, furthest), low=0.0, high=1.0, spark=True)
    lines = [
        f'<g class="{_class(name)}">{_line(frame, [(point.update, point.share) for point in points])}</g>'
        for name, points in curves.items()
    ]
    return _spark("".join(lines))


def mark(label: str) -> Markup:
    """The shape of a category or bucket before its name; nothing for other labels."""
    if label not in MARKERS:
        return Markup("")
    shape = _shape(MARKERS[label], 6, 6, 5)
    return Markup(
        f'<svg class="mark {_class(label)}" viewBox="0 0 12 12" aria-hidden="true"><path d="{shape}"/></svg>'
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, at most so many: 0, 0.5, 1, ..."""
    width = (high - low) / most
    if not (width > 0 and math.isfinite(width)):
        return [low]
    size = 10.0 ** math.floor(math.log10(width))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= width * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(first + place) * step for place in range(most + 1) if (first + place) * step <= high * (1 + 1e-9)]


class _Frame:
    """From updates and values to the drawing's own units."""

    def __init__(self, *, last: int, low: float, high: float, spark: bool = False) -> None:
        self.last, self.low, self.high = max(1, last), low, high if high > low else low + 1.0
        self.left, self.right = (2, SPARK[0] - 2) if spark else (LEFT, WIDTH - RIGHT)
        self.top, self.bottom = (3, SPARK[1] - 3) if spark else (TOP, HEIGHT - BOTTOM)

    def x(self, update: float) -> float:
        return self.left + (self.right - self.left) * update / self.last

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)


def _line(frame: _Frame, points: Sequence[tuple[int, float]]) -> str:
    steps = " ".join(f"{frame.x(update):.1f},{frame.y(value):.1f}" for update, value in points)
    return f'<polyline class="line" points="{steps}"/>'


def _band(frame: _Frame, points: Sequence[tuple[int, float, float]]) -> str:
    there = [f"{frame.x(update):.1f},{frame.y(high):.1f}" for update, _, high in points]
    back = [f"{frame.x(update):.1f},{frame.y(low):.1f}" for update, low, _ in reversed(points)]
    return f'<polygon class="band" points="{" ".join(there + back)}"/>'


def _marks(frame: _Frame, category: str, points: Sequence[Share]) -> str:
    shape, name = MARKERS.get(category, "o"), category if category in CATEGORIES else "other"
    drawn = []
    for point in points:
        told = f"{name}, update {point.update:,}: {share(point.share)} [{share(point.low)}, {share(point.high)}]"
        path = _shape(shape, frame.x(point.update), frame.y(point.share), 3.2)
        drawn.append(f'<path class="point" d="{path}"><title>{told}</title></path>')
    return "".join(drawn)


def _shape(marker: str, x: float, y: float, radius: float) -> str:
    places = {"x": x, "y": y, "l": x - radius, "e": x + radius, "t": y - radius, "b": y + radius}
    rounded = {name: f"{value:.1f}" for name, value in places.items()}
    return SHAPES[marker].format(**rounded, r=radius, d=2 * radius)


def _class(label: str) -> str:
    """The class that carries a category's colour; never a text out of a file."""
    return f"of-{label}" if label in MARKERS else "of-other"


def _drawing(frame: _Frame, ticks: Sequence[tuple[float, str]], inside: str, told: str) -> Markup:
    axes = []
    for value, label in ticks:
        y = frame.y(value)
        axes.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        axes.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    for update in nice_ticks(0, frame.last):
        if update == int(update):
            label = f"{update / 1000:,g}k" if frame.last >= 20_000 and update else f"{update:,.0f}"
            axes.append(
                f'<text class="tick middle" x="{frame.x(update):.1f}" y="{HEIGHT - BOTTOM + 16}">{label}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    axes.append(f'<text class="tick middle" x="{middle}" y="{HEIGHT - 4}">updates</text>')
    head = f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">'
    return Markup(f"{head}{''.join(axes)}{inside}</svg>")


def _spark(inside: str) -> Markup:
    head = f'<svg class="spark" viewBox="0 0 {SPARK[0]} {SPARK[1]}" aria-hidden="true">'
    return Markup(f"{head}{inside}</svg>")
