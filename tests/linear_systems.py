"""A linear network whose answers follow from arithmetic: concepts are rows of features, weights are their dot products.

The network says about a concept the sign of x · θ: +1 is the right answer. One rendering adds its own vector to x. So
whether an answer is the solution, what it takes to make it so, and what else moves, can be read off the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion_sft.learner import Answer, Question
from diffusion_sft.numerics.linear_map import DenseMap
from diffusion_sft.records import HELDOUT, TRAIN, Concept, ConceptSet, Draws, Example
from diffusion_sft.solve.choose import FIRST_RENDERING
from diffusion_sft.systems import Equations, Generation, Systems, WeightSide

TARGET = 1.0


@dataclass(frozen=True)
class LinearNetwork:
    """f = x · θ for each concept's features x, θ0 as given."""

    features: Mapping[str, np.ndarray]
    weights: np.ndarray
    renderings: np.ndarray
    """What each rendering adds to x, (num_renderings, num_weights)."""

    def matrix(self, names: Sequence[str]) -> torch.Tensor:
        """The features of these concepts, (num_names, num_weights) float64."""
        return torch.from_numpy(np.stack([self.features[name] for name in names]))

    def says(self, concept: str, rendering: int, weights: np.ndarray) -> bool:
        """Whether the answer is right under a rendering."""
        return bool((self.features[concept] + self.renderings[rendering % len(self.renderings)]) @ weights > 0)

    def systems(self) -> Systems:
        """All of it but the inputs."""
        return Systems(
            identity={"source": "linear", "weights": self.weights.tolist()},
            generations=lambda questions: [g for question in questions for g in self._generations(question)],
            recoveries=lambda questions: [
                0.0 if self.says(q.concept, q.rendering - FIRST_RENDERING, self.weights) else 1.0 for q in questions
            ],
            weights=WeightSide(
                equations=self.equations,
                lessons=self.equations,
                answers_at=self._answers_at,
                linearisation_error=lambda equations, step: 0.0,
                parameters={"theta": torch.from_numpy(self.weights)},
            ),
        )

    def equations(self, examples: Sequence[Example]) -> Equations:
        """x · δ = max(0, 1 − f), or −1 − f for an example whose caption is another concept's (the shuffled control)."""
        own = self.matrix([example.concept for example in examples])
        wanted = torch.tensor([TARGET if example.concept in example.caption else -TARGET for example in examples])
        left = wanted.double() - own @ torch.from_numpy(self.weights)
        residual = torch.where(wanted > 0, left.clamp(min=0), left.clamp(max=0))
        blocks = tuple(slice(place, place + 1) for place in range(len(examples)))
        return Equations(jacobian=DenseMap(own), residual=residual, blocks=blocks)

    def _generations(self, question: Question) -> list[Generation]:
        right = self.says(question.concept, question.rendering - FIRST_RENDERING, self.weights)
        return [
            Generation(
                concept=question.concept,
                rendering=question.rendering,
                draw=draw,
                answer=question.concept if right else "something else",
                correct=right,
                num_steps=4,
                rounds=2,
                num_evaluations=6,
                residuals=np.array([[0.0, 1.0, 1.0, 1.0], [np.nan, 0.1, 0.1, 0.1]]),
                first_passage=1,
                sensitivity=0.0,
                null_distance=0.5,
                null_rounds=2,
            )
            for draw in range(2)
        ]

    def _answers_at(self, step: torch.Tensor, questions: Sequence[Question], draws: Draws) -> list[Answer]:
        values = self.matrix([q.concept for q in questions]) @ (torch.from_numpy(self.weights) + step)
        return [
            Answer(
                text="yes" if value > 0 else "no",
                correct=bool(value > 0),
                answered=True,
                true_gain_nats=float(value),
                best_other_gain_nats=0.0,
                error_nats=-float(value),
            )
            for value in values
        ]


def concept_set_of(names: Sequence[str]) -> ConceptSet:
    """One training and one held-out example of each concept."""
    return ConceptSet(
        concepts=tuple(Concept(name=name, words=name) for name in names),
        examples=tuple(
            Example(
                id=f"{split}/{name}.png",
                concept=name,
                caption=f"a photo of a {name}",
                path=Path(f"{split}/{name}.png"),
                split=split,
            )
            for name in names
            for split in (TRAIN, HELDOUT)
        ),
    )
