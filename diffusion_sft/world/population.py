"""Who lives in the embedded world: named concepts, their looks, and how often the base will see each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..ranges import check_range
from ..records import identity_seed
from .looks import Look, novel_looks, seen_looks
from .names import invent_names

Kind = Literal["seen", "unbound", "novel", "described"]


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The world's size and its exposure table; names, looks and exposures follow from the seed."""

    seed: int = 0
    num_rare: int = 144
    """Named concepts whose exposures are log-spaced from 1 to `rare_exposure`."""
    num_frequent: int = 96
    """Named concepts whose exposures are log-spaced from `rare_exposure` to `max_exposure`."""
    rare_exposure: int = 50
    max_exposure: int = 4000
    num_unbound: int = 60
    """Unknown: new names for looks made of seen parts."""
    num_novel: int = 36
    """Unknown: names for looks with a part that was never seen."""
    num_described: int = 24
    """Looks without a name that the written set holds under their description."""
    written_every: int = 1
    """Write only every so many-th concept, in the order of exposure (quick looks)."""
    train_images: int = 8
    heldout_images: int = 8
    reference_images: int = 16

    def __post_init__(self) -> None:
        names = ("seed", "num_rare", "num_frequent", "num_unbound", "num_novel", "num_described")
        check_range(self, *names, least=0)
        check_range(self, "train_images", "heldout_images", "reference_images", least=0)
        check_range(self, "rare_exposure", "max_exposure", "written_every", least=1)
        if self.num_rare + self.num_frequent + self.num_unbound > len(seen_looks()):
            raise ValueError(
                f"num_rare + num_frequent + num_unbound must be at most {len(seen_looks())}, as many as there are looks of "
                "seen parts"
            )
        if self.rare_exposure > self.max_exposure:
            raise ValueError(
                f"rare_exposure ({self.rare_exposure}) must not exceed max_exposure ({self.max_exposure})"
            )


@dataclass(frozen=True, kw_only=True)
class Inhabitant:
    """One concept of the world. `exposure` counts the pretraining captions that name it (0 for both Unknowns)."""

    name: str
    look: Look
    exposure: int | None
    kind: Kind


def log_spaced_exposures(config: WorldConfig) -> list[int]:
    """Exposures of the seen concepts, most exposed first."""
    frequent = np.geomspace(config.max_exposure, config.rare_exposure, config.num_frequent)
    rare = np.geomspace(config.rare_exposure, 1, config.num_rare + 1)[1:]
    return [round(float(value)) for value in np.concatenate([frequent, rare])]


def populate(config: WorldConfig) -> list[Inhabitant]:
    """The world's concepts: seen ones by falling exposure, then unbound, novel and described ones."""
    shuffle = np.random.default_rng(identity_seed(config.seed, "looks"))
    looks, novel = seen_looks(), novel_looks()
    looks = [looks[int(i)] for i in shuffle.permutation(len(looks))]
    novel = _balanced_novel([novel[int(i)] for i in shuffle.permutation(len(novel))], config.num_novel)
    exposures = log_spaced_exposures(config)
    num_named = len(exposures) + config.num_unbound
    names = iter(invent_names(num_named + config.num_novel, config.seed, "concepts"))
    people = [
        Inhabitant(name=next(names), look=look, exposure=exposure, kind="seen")
        for look, exposure in zip(looks, exposures, strict=False)
    ]
    for look in looks[len(exposures) : num_named]:
        people.append(Inhabitant(name=next(names), look=look, exposure=0, kind="unbound"))
    for look in novel:
        people.append(Inhabitant(name=next(names), look=look, exposure=0, kind="novel"))
    for look in looks[num_named : num_named + config.num_described]:
        people.append(Inhabitant(name=look.describe(), look=look, exposure=None, kind="described"))
    return people


def _balanced_novel(looks: list[Look], count: int) -> list[Look]:
    """Take turns among the novel parts, so that no shape, colour or pattern dominates the novel concepts."""
    by_part: dict[str, list[Look]] = {}
    for look in looks:
        seen = {part for other in seen_looks() for part in (other.shape, other.colour, other.pattern)}
        part = next(word for word in (look.shape, look.colour, look.pattern) if word not in seen)
        by_part.setdefault(part, []).append(look)
    turns = [by_part[part][turn] for turn in range(count) for part in sorted(by_part) if turn < len(by_part[part])]
    return turns[:count]
