"""The text that a base is pretrained on: which caption goes with which rendering, in which order.

Four kinds of captions, as real captions have them: names (as often as the exposure table says), descriptions,
names that occur once and never again (so that an unseen name comes to mean nothing), and the empty caption
(for guidance). The whole corpus is one fixed list read once from front to back: an exposure is one reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ranges import check_range
from ..records import identity_seed
from ..world.looks import Look, seen_looks
from ..world.names import invent_name
from ..world.population import Inhabitant

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "this is a {}",
    "a {}",
    "one {} on a grey background",
)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How many captions of each kind besides the names, whose number the exposure table fixes."""

    num_items: int = 448_000
    one_off_share: float = 0.2
    empty_share: float = 0.1
    partial_share: float = 0.15
    """Share of the descriptions that leave out colour or pattern."""
    scenes_per_look: int = 40

    def __post_init__(self) -> None:
        check_range(self, "num_items", "scenes_per_look", least=1)
        check_range(self, "one_off_share", "empty_share", "partial_share", least=0, most=1)
        if self.one_off_share + self.empty_share > 1:
            raise ValueError("one_off_share + empty_share must not exceed 1")


@dataclass(frozen=True, kw_only=True)
class CorpusItem:
    """One reading: a caption, the look it is read with, and which of the look's stored scenes."""

    caption: str
    look: int
    scene: int


def build_corpus(people: list[Inhabitant], config: CorpusConfig, seed: int) -> list[CorpusItem]:
    """The corpus in the order in which it is read.

    Args:
        people: the world's concepts; only seen ones are named.
        config: how many captions of each kind.
        seed: decides captions, scenes and order.

    Raises:
        ValueError: the exposures alone exceed the corpus.
    """
    looks = seen_looks()
    index = {look: number for number, look in enumerate(looks)}
    draw = np.random.default_rng(identity_seed(seed, "corpus"))
    named = {person.name for person in people}
    pairs = [
        (person.name, index[person.look])
        for person in people
        if person.kind == "seen"
        for _ in range(person.exposure or 0)
    ]
    num_one_off, num_empty = int(config.one_off_share * config.num_items), int(config.empty_share * config.num_items)
    num_described = config.num_items - len(pairs) - num_one_off - num_empty
    if num_described < 0:
        raise ValueError(f"{len(pairs)} exposures do not fit into {config.num_items} corpus items")
    captions = [(_in_template(name, draw), look) for name, look in pairs]
    for number in draw.integers(len(looks), size=num_one_off):
        name = invent_name(draw)
        while name in named:
            name = invent_name(draw)
        captions.append((_in_template(name, draw), int(number)))
    for number in draw.integers(len(looks), size=num_described):
        words = _description(looks[int(number)], draw, config.partial_share)
        captions.append((_in_template(words, draw), int(number)))
    captions += [("", int(number)) for number in draw.integers(len(looks), size=num_empty)]
    scenes = draw.integers(config.scenes_per_look, size=len(captions))
    return [
        CorpusItem(caption=captions[i][0], look=captions[i][1], scene=int(scenes[i]))
        for i in draw.permutation(len(captions))
    ]


def _in_template(words: str, draw: np.random.Generator) -> str:
    return TEMPLATES[int(draw.integers(len(TEMPLATES)))].format(words)


def _description(look: Look, draw: np.random.Generator, partial_share: float) -> str:
    if draw.random() >= partial_share:
        return look.describe()
    return f"{look.colour} {look.shape}" if draw.random() < 0.5 else f"{look.pattern} {look.shape}"


def tokenizer_corpus(seed: int, num_names: int = 40_000) -> list[str]:
    """Words for the tokenizer: every template and part, and many invented names, so that merges find syllables."""
    draw = np.random.default_rng(identity_seed(seed, "tokenizer"))
    words = [template.format("") for template in TEMPLATES] * 4000
    words += [look.describe() for look in seen_looks()] * 40
    return words + [invent_name(draw) for _ in range(num_names)]
