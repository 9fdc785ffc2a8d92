"""Invented names: syllables that no dictionary owns, so that a name means only what pretraining made it mean."""

from __future__ import annotations

import numpy as np

from ..records import identity_seed

ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "bl",
    "dr",
    "fl",
    "gr",
    "kr",
    "sk",
    "tr",
)
VOWELS = ("a", "e", "i", "o", "u")
SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in VOWELS)
CODAS = ("", "n", "p", "x", "m", "sh")


def invent_name(generator: np.random.Generator) -> str:
    """Two or three syllables and sometimes a closing consonant, for example `blorazun`."""
    count = 2 + int(generator.random() < 0.5)
    syllables = [SYLLABLES[int(i)] for i in generator.integers(len(SYLLABLES), size=count)]
    return "".join(syllables) + CODAS[int(generator.integers(len(CODAS)))]


def invent_names(count: int, seed: int, *identity: str | int, avoid: frozenset[str] = frozenset()) -> list[str]:
    """`count` different names, none of them in `avoid`, in an order fixed by seed and identity."""
    generator = np.random.default_rng(identity_seed(seed, "names", *identity))
    names: dict[str, None] = {}
    while len(names) < count:
        name = invent_name(generator)
        if name not in avoid:
            names[name] = None
    return list(names)
