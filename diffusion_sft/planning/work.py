"""A study's work as a list of lines: so many units of one kind, in one stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["reading", "training", "drawing", "encoding", "decoding", "prompt", "text", "sample", "lesson"]
"""Of pictures. reading: one latent under one caption through the UNet. training: one example forward and back.
drawing: a reading at one step of a sampler. encoding, decoding: one image through the VAE. Of texts. prompt: one prompt
read. text: one answer written, greedily. sample: one of many sampled after the same prompt. lesson: one question trained on."""
Sure = Literal["exact", "at most", "about"]
TRAINING_EVALUATIONS = 3
"""An example that is trained on counts as so many evaluations of the network: forward, and twice as much back."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """`count` units of a kind."""

    stage: str
    """One of the study's stages."""
    what: str
    kind: Kind
    count: int
    evaluations: int
    """Of the network, which they come to; 0 for what other networks do."""
    sure: Sure = "exact"


def evaluations_by_stage(work: Iterable[Work]) -> dict[str, int]:
    """The network's evaluations of each stage, in the order of the work."""
    found: dict[str, int] = {}
    for line in work:
        found[line.stage] = found.get(line.stage, 0) + line.evaluations
    return found


def seconds_of(work: Iterable[Work], seconds: Mapping[Kind, float]) -> float:
    """How long it all takes, given the seconds of one unit of each kind; NaN where one of them is not known."""
    return sum(line.count * seconds.get(line.kind, float("nan")) for line in work if line.count)
