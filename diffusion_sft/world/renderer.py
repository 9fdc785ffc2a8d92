"""The deterministic renderer: a look and a scene to 64x64 pixels.

A shape is a signed distance field d(p) in pixels (negative inside); its antialiased coverage is
clip(1/2 − d, 0, 1), and a pattern is a second coverage inside it. The scene is the nuisance: position, scale,
rotation and background light, drawn from a seed. numpy only, so that pixels are the same on every machine
up to the rounding of elementary functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..records import identity_seed
from .looks import COLOURS, Look

RESOLUTION = 64
SECOND_COLOUR_WHITENESS = 0.78
Field = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The nuisance of one rendering; lengths in pixels of a 64x64 image, angles in radians."""

    centre_x: float
    centre_y: float
    radius: float
    angle: float
    background: float
    gradient: float
    gradient_angle: float
    light: float


def draw_scene(seed: int, *identity: str | int) -> Scene:
    """The scene that belongs to this seed and identity."""
    uniform = np.random.default_rng(identity_seed(seed, "scene", *identity)).uniform
    return Scene(
        centre_x=uniform(28.0, 36.0),
        centre_y=uniform(28.0, 36.0),
        radius=uniform(19.0, 25.0),
        angle=uniform(-0.35, 0.35),
        background=uniform(0.45, 0.72),
        gradient=uniform(-0.16, 0.16),
        gradient_angle=uniform(0.0, 2 * np.pi),
        light=uniform(0.86, 1.04),
    )


def render(look: Look, scene: Scene, colour: tuple[float, float, float] | None = None) -> np.ndarray:
    """Draw one image.

    Args:
        look: shape, colour and pattern.
        scene: position, scale, rotation and light.
        colour: RGB in [0, 1] in place of the look's own colour.

    Returns:
        uint8 array (64, 64, 3).
    """
    x, y = _object_coordinates(scene)
    inside = _coverage(SHAPE_FIELDS[look.shape](x, y, scene.radius))
    second = _coverage(PATTERN_FIELDS[look.pattern](x, y))
    paint = np.array(COLOURS[look.colour] if colour is None else colour)
    surface = paint + second[..., None] * SECOND_COLOUR_WHITENESS * (1.0 - paint)
    picture = _background(scene)
    picture = picture + inside[..., None] * (surface * scene.light - picture)
    return np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)


def _object_coordinates(scene: Scene) -> tuple[Field, Field]:
    """Pixel centres in the object's own frame (x right, y up), in pixels."""
    rows, columns = np.meshgrid(np.arange(RESOLUTION) + 0.5, np.arange(RESOLUTION) + 0.5, indexing="ij")
    dx, dy = columns - scene.centre_x, scene.centre_y - rows
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    return cos * dx + sin * dy, -sin * dx + cos * dy


def _background(scene: Scene) -> Field:
    rows, columns = np.meshgrid(np.arange(RESOLUTION), np.arange(RESOLUTION), indexing="ij")
    along = np.cos(scene.gradient_angle) * columns + np.sin(scene.gradient_angle) * rows
    level = scene.background + scene.gradient * (along - along.mean()) / RESOLUTION
    return np.repeat(level[..., None], 3, axis=2)


def _coverage(distance: Field) -> Field:
    return np.clip(0.5 - distance, 0.0, 1.0)


# Shapes: (x, y, radius) -> signed distance in pixels.


def _circle(x: Field, y: Field, r: float) -> Field:
    return np.hypot(x, y) - 0.92 * r


def _ring(x: Field, y: Field, r: float) -> Field:
    return np.abs(np.hypot(x, y) - 0.72 * r) - 0.27 * r


def _oval(x: Field, y: Field, r: float) -> Field:
    a, b = 1.08 * r, 0.62 * r
    scaled = np.hypot(x / a, y / b)
    return (scaled - 1.0) * scaled / np.maximum(np.hypot(x / a**2, y / b**2), 1e-9)


def _crescent(x: Field, y: Field, r: float) -> Field:
    return np.maximum(np.hypot(x, y) - r, 0.74 * r - np.hypot(x - 0.48 * r, y))


def _heart(x: Field, y: Field, r: float) -> Field:
    lobes = np.minimum(np.hypot(x - 0.44 * r, y - 0.3 * r), np.hypot(x + 0.44 * r, y - 0.3 * r)) - 0.5 * r
    tip = _polygon_field(x, y, r * np.array([(-0.85, 0.02), (0.0, -0.98), (0.85, 0.02), (0.0, 0.42)]))
    return np.minimum(lobes, tip)


def _flower(x: Field, y: Field, r: float) -> Field:
    angles = 2 * np.pi * np.arange(6) / 6
    petals = [np.hypot(x - 0.62 * r * np.cos(a), y - 0.62 * r * np.sin(a)) - 0.36 * r for a in angles]
    return np.minimum(np.minimum.reduce(petals), np.hypot(x, y) - 0.42 * r)


def _gear(x: Field, y: Field, r: float) -> Field:
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    teeth = 0.84 * r + 0.2 * r * np.clip(3.0 * np.cos(8 * angle), -1.0, 1.0)
    return np.maximum(distance - teeth, 0.3 * r - distance)


def _polygon_field(x: Field, y: Field, corners: np.ndarray) -> Field:
    """Exact signed distance to a simple polygon: the nearest edge, with the sign of the crossing number."""
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        squared = np.minimum(squared, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        if ay != by:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


def _polygon(corners: list[tuple[float, float]]) -> Callable[[Field, Field, float], Field]:
    points = np.array(corners)
    return lambda x, y, r: _polygon_field(x, y, r * points)


def _regular(sides: int, size: float) -> list[tuple[float, float]]:
    angles = np.pi / 2 + 2 * np.pi * np.arange(sides) / sides
    return [(size * np.cos(a), size * np.sin(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    angles = np.pi / 2 + 2 * np.pi * np.arange(10) / 10
    return [((1.1, 0.5)[i % 2] * np.cos(a), (1.1, 0.5)[i % 2] * np.sin(a)) for i, a in enumerate(angles)]


_CROSS = [(0.32, 1), (0.32, 0.32), (1, 0.32), (1, -0.32), (0.32, -0.32), (0.32, -1)]
_ARROW = [(1.05, 0.0), (0.2, 0.85), (0.2, 0.36), (-1.0, 0.36), (-1.0, -0.36), (0.2, -0.36), (0.2, -0.85)]
_BOLT = [(0.25, 1.1), (-0.75, -0.15), (-0.08, -0.15), (-0.3, -1.1), (0.75, 0.22), (0.08, 0.22)]
SHAPE_FIELDS: dict[str, Callable[[Field, Field, float], Field]] = {
    "circle": _circle,
    "square": _polygon([(0.8, 0.8), (0.8, -0.8), (-0.8, -0.8), (-0.8, 0.8)]),
    "triangle": _polygon(_regular(3, 1.12)),
    "pentagon": _polygon(_regular(5, 1.0)),
    "star": _polygon(_star()),
    "cross": _polygon(_CROSS + [(-x, -y) for x, y in _CROSS]),
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "diamond": _polygon([(0.0, 1.12), (0.68, 0.0), (0.0, -1.12), (-0.68, 0.0)]),
    "oval": _oval,
    "arrow": _polygon(_ARROW),
    "flower": _flower,
    "bolt": _polygon(_BOLT),
    "gear": _gear,
}

# Patterns: (x, y) -> signed distance in pixels to the second colour.


def _periodic(t: Field, period: float) -> Field:
    """Distance from the nearest multiple of the period."""
    return np.abs(t - period * np.round(t / period))


def _striped(x: Field, y: Field) -> Field:
    return _periodic(x + y, 11 * np.sqrt(2)) / np.sqrt(2) - 2.6


def _dotted(x: Field, y: Field) -> Field:
    return np.hypot(_periodic(x, 10.0), _periodic(y, 10.0)) - 3.1


def _checkered(x: Field, y: Field) -> Field:
    horizontal, vertical = _periodic(x, 14.0) - 3.5, _periodic(y, 14.0) - 3.5
    return np.where(horizontal * vertical > 0, -1.0, 1.0) * np.minimum(np.abs(horizontal), np.abs(vertical))


def _ringed(x: Field, y: Field) -> Field:
    return _periodic(np.hypot(x, y) - 5.0, 10.0) - 2.3


def _zigzag(x: Field, y: Field) -> Field:
    return _periodic(y + _periodic(x, 12.0), 12.0) / np.sqrt(2) - 2.1


PATTERN_FIELDS: dict[str, Callable[[Field, Field], Field]] = {
    "plain": lambda x, y: np.full(x.shape, np.inf),
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "ringed": _ringed,
    "zigzag": _zigzag,
}
