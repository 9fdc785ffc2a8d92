"""The nouns of generation, inputs and weights read as systems of equations, the same for both learners.

    S1  generation      all unknowns y at once:  y_n = F_n(y_<n, cue, noise)         one solution for each noise
    S2  the input side  the weights fixed:       which x makes the learner say b?
    S3  the weight side the inputs fixed:        J δ = r, fine-tuning linearised at the base

Learners fill these in (`learners/`), the solve stage reads them (`solve/`); neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .learner import Question
from .numerics.linear_map import LinearMap


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
    distance: float
    """From the named input, relative to that one's norm; NaN where there is none."""
    solved: bool
    """Tokens: greedy decoding says the answer. Latents: the residual is at most that of the named input."""
    solution: np.ndarray
    """The vectors found, flat."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSolutions:
    """One concept's inputs from several random starts (S2)."""

    kind: str
    """textual_inversion, soft_prompt, answer_block."""
    named_residual: float
    """Of the input as its words have it."""
    starts: tuple[InputSolution, ...]
    num_minima: int
    """Distinct ones among the starts' solutions."""
    num_free: int
    """k·d, the free input's dimensions."""
    rank: int
    """Of the outputs' Jacobian in the input at the best solution; num_free − rank is the solution set's dimension."""
    condition: float
    """Largest over smallest singular value within that rank."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Equations:
    """J δ = r of some examples at the base (S3): one block of rows for each example."""

    jacobian: LinearMap
    residual: torch.Tensor
    """r = target − output, (num_rows,)."""
    blocks: tuple[slice, ...]
    """The rows of each example, in their order."""
