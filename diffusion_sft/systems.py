"""The nouns of generation, inputs and weights read as systems of equations, the same for both learners.

    S1  generation      all unknowns y at once:  y_n = F_n(y_<n, cue, noise)         one solution for each noise
    S2  the input side  the weights fixed:       which x makes the learner say b?
    S3  the weight side the inputs fixed:        J δ = r, fine-tuning linearised at the base

Learners fill these in (`learners/`), the solve stage reads them (`solve/`); neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .learner import Answer, Question
from .numerics.gaussianity import Gaussianity
from .numerics.linear_map import LinearMap
from .records import Draws, Example


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """One generation, all of whose unknowns were solved for in parallel (S1)."""

    concept: str
    rendering: int
    draw: int
    """Which random start: of a diffusion model the noise x_T, of a language model the guessed tokens."""
    answer: str
    """What was said, or what the picture shows; "" for nothing that is known."""
    correct: bool
    num_steps: int
    """N: the sampler's steps, or the answer's tokens."""
    rounds: int
    """R: parallel passes until the fixed point; at most N."""
    num_evaluations: int
    """Evaluations of the network's rows in all passes."""
    residuals: np.ndarray
    """(rounds, num_steps): the defect of every equation at the iterate that a round starts from, NaN where it was not
    evaluated. Latents: RMS relative to the noise level. Tokens: 1 where the token is not what its prefix asks for."""
    first_passage: int
    """The round after which the final answer stood for good."""
    sensitivity: float
    """Latents: the largest Lyapunov exponent in nats per step. Tokens: the share of later tokens that one sweep changes
    when one token is replaced by its runner-up. NaN where there is nothing to follow."""
    null_distance: float
    """How far the solution lies from the one under ∅ with the same noise. Latents: RMS. Tokens: share that differ."""
    null_rounds: int
    """R of that one."""


ReadGenerations = Callable[[Sequence[Question]], list[Generation]]
"""S1: all draws of each question's concept in its rendering; order as given, a question's draws together."""
ReadRecoveries = Callable[[Sequence[Question]], list[float]]
"""For each question the smallest share of its answer that must be given before the learner completes it, from 0 to 1:
of a text its tokens, of a picture the log-SNR range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSolution:
    """Where one random start of the input ended (S2)."""

    residual: float
    """What is left under the budget of steps: nats per answer token, or squared error per dimension."""
    num_steps: int
    """Steps until the residual came within a tenth of its whole descent of that floor."""
    first_solved: int | None = None
    """After how many steps it was solved for the first time; None: never."""
    fresh_residual: float = float("nan")
    """At draws that it was not solved for; NaN where there are none, as of tokens."""
    distance: float
    """From the named input, relative to that one's norm; NaN where there is none."""
    solved: bool
    """Within the budget, tokens: greedy decoding says the answer's tokens. Latents: the residual is at most that of the
    named input."""
    solution: np.ndarray
    """The vectors found, flat."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSolutions:
    """One concept's inputs from several random starts (S2)."""

    kind: str
    """textual_inversion, soft_prompt, answer_block."""
    named_residual: float
    """Of the input as its words have it."""
    named_fresh_residual: float = float("nan")
    """That one at the draws of `InputSolution.fresh_residual`."""
    floor: float = 0.0
    """Of the residual: what no free input can take away. Of an answer block, whose vectors stand after the first answer
    token, that token's share; 0 elsewhere."""
    starts: tuple[InputSolution, ...]
    num_minima: int
    """Distinct ones among the starts' solutions."""
    num_free: int
    """k·d, the free input's dimensions."""
    rank: int
    """Of the outputs' Jacobian in the input at the best solution; num_free − rank is the solution set's dimension."""
    condition: float
    """Largest over smallest singular value within that rank."""


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """The noise that the deterministic sampler makes a picture from, solved for from the picture (S2)."""

    concept: str
    example_id: str
    residual: float
    """‖x − x̃‖² / d of the picture's latents and what the sampler makes of that noise."""
    gaussianity: Gaussianity
    """Of that noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Equations:
    """J δ = r of some examples at the base (S3): one block of rows for each example."""

    jacobian: LinearMap
    residual: torch.Tensor
    """r = target − output, (num_rows,)."""
    blocks: tuple[slice, ...]
    """The rows of each example, in their order."""


ReadInputs = Callable[[Sequence[Sequence[Question]]], list[InputSolutions]]
"""S2: takes each concept's questions; one result for each concept."""
ReadInversions = Callable[[Sequence[Question]], list[Mapping[str, float]]]
"""S2: each question's own target sent to its noise and back; measures by name."""


@dataclass(frozen=True, kw_only=True)
class WeightSide:
    """S3: the equations of examples in one choice of trainable weights θ, and what a step δ in them would do."""

    equations: Callable[[Sequence[Example]], Equations]
    """Of what is to be known."""
    lessons: Callable[[Sequence[Example]], Equations]
    """Of all that fine-tuning teaches, where an answer ends too."""
    answers_at: Callable[[torch.Tensor, Sequence[Question], Draws], list[Answer]]
    """The answers that f(θ0) + J δ amounts to, at these draws."""
    parameters: Mapping[str, torch.Tensor]
    """θ0 by name, in the order of J's columns."""
    linearisation_error: Callable[[Equations, torch.Tensor], float]
    """‖f(θ0 + δ) − f(θ0) − J δ‖ / ‖J δ‖."""


@dataclass(frozen=True, kw_only=True)
class Systems:
    """One base and all ways of reading it as a system; what is None is not read."""

    identity: Mapping[str, Any]
    generations: ReadGenerations | None = None
    recoveries: ReadRecoveries | None = None
    inputs: ReadInputs | None = None
    """Free vectors in the place of the name's."""
    blocks: ReadInputs | None = None
    """Free vectors in the place of the answer's, the seed's own x'_gen."""
    inversions: ReadInversions | None = None
    weights: WeightSide | None = None

    @property
    def nothing(self) -> bool:
        """Whether none of them is read."""
        readers = (self.generations, self.recoveries, self.inputs, self.blocks, self.inversions, self.weights)
        return all(reader is None for reader in readers)


@dataclass(frozen=True, kw_only=True)
class ForecastRun:
    """A real fine-tuning run, to be forecast from the base and then compared."""

    concept: str
    """The run's name, which work is dealt out by."""
    examples: Sequence[Example]
    """What was trained on."""
    questions: Mapping[str, Sequence[Question]]
    """What was asked at its evaluations, by role."""
    categories: Mapping[str, str]
    """Of each concept asked about."""
    draws: Draws
    """At which they were asked."""
    evaluations: pd.DataFrame
    """Its evaluations by update, role and category; the base's are those of update 0."""
    early_update: int | None
    real_step: Callable[[Mapping[str, torch.Tensor]], torch.Tensor | None]
    """θ after the run less these θ0, flat, in their order; None where that is not to be had."""
