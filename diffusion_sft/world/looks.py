"""What things can look like: shape x colour x pattern, and which of the parts the base has seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

SEEN_SHAPES = (
    "circle",
    "square",
    "triangle",
    "pentagon",
    "star",
    "cross",
    "ring",
    "heart",
    "crescent",
    "diamond",
    "oval",
    "arrow",
)
NOVEL_SHAPES = ("flower", "bolt", "gear")
SEEN_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.11, 0.12),
    "orange": (0.97, 0.50, 0.05),
    "yellow": (0.95, 0.83, 0.08),
    "green": (0.10, 0.58, 0.20),
    "cyan": (0.08, 0.74, 0.80),
    "blue": (0.12, 0.27, 0.85),
    "purple": (0.48, 0.14, 0.66),
    "pink": (0.97, 0.52, 0.72),
    "brown": (0.46, 0.27, 0.12),
    "black": (0.07, 0.07, 0.08),
}
NOVEL_COLOURS: dict[str, tuple[float, float, float]] = {
    "lime": (0.66, 0.94, 0.10),
    "navy": (0.05, 0.07, 0.38),
}
SEEN_PATTERNS = ("plain", "striped", "dotted", "checkered", "ringed")
NOVEL_PATTERNS = ("zigzag",)

SHAPES = SEEN_SHAPES + NOVEL_SHAPES
COLOURS = SEEN_COLOURS | NOVEL_COLOURS
PATTERNS = SEEN_PATTERNS + NOVEL_PATTERNS


@dataclass(frozen=True, order=True)
class Look:
    """One way to look; its parts are the words of the readout and of the descriptive captions."""

    shape: str
    colour: str
    pattern: str

    def describe(self) -> str:
        """The look in words: colour, pattern, shape."""
        return f"{self.colour} {self.pattern} {self.shape}"

    def is_novel(self) -> bool:
        """Whether any part of it was never shown to the base."""
        return self.shape in NOVEL_SHAPES or self.colour in NOVEL_COLOURS or self.pattern in NOVEL_PATTERNS


def seen_looks() -> list[Look]:
    """Every look made of seen parts, in a fixed order."""
    return [Look(*parts) for parts in product(SEEN_SHAPES, SEEN_COLOURS, SEEN_PATTERNS)]


def novel_looks() -> list[Look]:
    """Every look with exactly one novel part, in a fixed order."""
    everything = (Look(*parts) for parts in product(SHAPES, COLOURS, PATTERNS))

    def num_novel(look: Look) -> int:
        return (look.shape in NOVEL_SHAPES) + (look.colour in NOVEL_COLOURS) + (look.pattern in NOVEL_PATTERNS)

    return [look for look in everything if num_novel(look) == 1]
