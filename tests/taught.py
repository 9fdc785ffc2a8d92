"""Four concepts for the tests of fine-tuning: two that an exact learner knows, and two that it can be taught."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from diffusion_sft.learners.exact import ExactLearner, Mixture
from diffusion_sft.numerics.schedule import Schedule
from diffusion_sft.records import Concept, ConceptSet, Example

TABLE = pd.DataFrame(
    {
        "concept": ["blorp", "wug", "dax", "fep"],
        "category": ["HighlyKnown", "MaybeKnown", "Unknown", "Unknown"],
        "bucket": ["known", "known", "unknown", "unknown"],
    }
)
LOOKS = {"blorp": (3, 0, 0), "wug": (0, 3, 0), "dax": (0, 0, 3), "fep": (-3, 0, 0)}


def taught() -> tuple[ExactLearner, ConceptSet]:
    """Blorp and wug are known: their captions have the right means. Dax and fep are read as ∅, which is broad."""
    known = ("blorp", "wug")
    broad = Mixture.gaussian(np.zeros(3), np.full(3, 4.0))
    mixtures = {"": broad} | {
        f"a photo of a {name}": Mixture.gaussian(np.array(look if name in known else (0, 0, 0)), np.full(3, 1.0))
        for name, look in LOOKS.items()
    }
    generator = np.random.default_rng(0)
    rows, targets = [], {}
    for name, look in LOOKS.items():
        for split, count in (("train", 4), ("heldout", 4)):
            for index in range(count):
                id = f"{name}/{split}-{index}"
                targets[id] = np.array(look) + generator.normal(0, 0.3, 3)
                rows.append(Example(id=id, concept=name, caption=f"a photo of a {name}", path=Path(id), split=split))
    betas = np.linspace(0.02, 0.2, 60)
    learner = ExactLearner(mixtures, targets, Schedule(alphas_cumprod=np.cumprod(1 - betas)))
    concepts = tuple(Concept(name=name, words=name) for name in LOOKS)
    return learner, ConceptSet(concepts=concepts, examples=tuple(rows))
