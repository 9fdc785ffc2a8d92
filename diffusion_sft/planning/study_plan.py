"""The nouns of a plan: what is known of each half, and all that is said about a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..finetune.estimate import Plan
from ..plan import StudyConfig
from ..records import ConceptSet
from .advice import Advice
from .language import TextBase
from .measuring import Speed
from .needs import RESERVED, Need, total
from .networks import Base
from .work import Kind, Work


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is known of the diffusion half."""

    concept_set: ConceptSet
    base: Base
    flops: Mapping[Kind, int]
    speed: Speed
    plan: Plan | None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is known of the language model's half."""

    concept_set: ConceptSet
    base: TextBase
    speed: Speed


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """All that the planner says."""

    config: StudyConfig
    device: torch.device
    pictures: Pictures | None
    texts: Texts | None
    work: Mapping[str, Sequence[Work]]
    """Of each half."""
    seconds: float
    """Of the whole study on this device."""
    disk: Sequence[Need]
    free: int
    there: int
    """Bytes of the output folder that are there already, and are not needed again."""
    training: Sequence[Need] = ()
    reading: Sequence[Need] = ()
    memory: int = 0
    """Of the device in all."""
    faster: Sequence[Advice] = ()
    smaller: Sequence[Advice] = ()
    """What lowers memory, where that is short."""
    lighter: Sequence[Advice] = ()
    """What lowers disk, where that is short."""
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def fits_disk(self) -> bool:
        """Whether there is room for what is not there yet."""
        return total(self.disk) - self.there <= self.free

    @property
    def memory_needed(self) -> int:
        """Of the stage that needs most."""
        return max([total(self.training), *(need.size for need in self.reading)], default=0)

    @property
    def fits_memory(self) -> bool:
        """Whether the GPU holds the largest stage; true without a GPU, where memory is not what decides."""
        if self.device.type != "cuda":
            return True
        measured = self.pictures.speed.training_peak if self.pictures is not None else None
        return max(self.memory_needed, measured or 0) + RESERVED <= self.memory
