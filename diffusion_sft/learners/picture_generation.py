"""Pictures read as solutions: what a base draws for a prompt, how fast its equations close, and how much it must be given.

One draw is a start noise; the same noise under ∅ is solved beside it. The noises come from (seed, "systems", concept,
rendering, draw), a stream that no probe draws from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from ..learner import NULL_CUE, Cue, Question, ReadLabels, fill
from ..numerics.fixed_point import Picard
from ..numerics.noise import normals
from ..numerics.sensitivity import lyapunov_exponents
from ..numerics.triangular import Solution, TriangularSystem
from ..records import identity_seed
from ..systems import Generation, ReadGenerations, ReadRecoveries
from .diffusion import DiffusionLearner
from .modes import evaluating
from .reconstruction import travel
from .sampling import decode, rows_per_evaluation, sampling_system

STREAM = "systems"


@dataclass(frozen=True)
class _Draw:
    """One picture to be made."""

    question: Question
    number: int

    def cue(self, seed: int, prompt: str) -> Cue:
        """The draw's start noise under a prompt."""
        identity = (STREAM, self.question.concept, self.question.rendering, self.number)
        return Cue(prompt=prompt, seed=identity_seed(seed, *identity))


def picture_generations(
    learner: DiffusionLearner,
    read_labels: ReadLabels,
    *,
    seed: int,
    num_starts: int,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    tolerance: float = 1e-3,
    batch_size: int,
) -> ReadGenerations:
    """A reader of generations by DDIM, whose equations Picard's sweeps solve (`fixed_point.Picard`).

    Args:
        read_labels: says which concept a picture shows.
        num_starts: start noises for each question.
        tolerance: of the solver.
        batch_size: rows of the network at a time, and start noises that are solved side by side.

    Raises:
        UserError: from the reader, where the pipeline's settings are no system of equations (`sampling_system`).
    """

    def read(questions: Sequence[Question]) -> list[Generation]:
        draws = [_Draw(question, number) for question in questions for number in range(num_starts)]
        generations: list[Generation] = []
        for start in range(0, len(draws), batch_size):
            batch = draws[start : start + batch_size]
            prompts = [fill(draw.question.template, draw.question.words) for draw in batch]
            cues = [draw.cue(seed, prompt) for draw, prompt in zip(batch, prompts, strict=True)]
            nulls = [draw.cue(seed, NULL_CUE) for draw in batch]
            system = sampling_system(
                learner,
                [*cues, *nulls],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
            )
            solutions = Picard(tolerance=tolerance)(system)
            exponents = _exponents(learner, system, len(batch), seed)
            given, null = solutions[: len(batch)], solutions[len(batch) :]
            passages = _passages(learner, read_labels, batch, given)
            rows = zip(batch, given, null, exponents, passages, strict=True)
            generations += [_generation(*row, rows_per_evaluation(guidance_scale)) for row in rows]
        return generations

    return read


def picture_recoveries(
    learner: DiffusionLearner,
    read_labels: ReadLabels,
    *,
    seed: int,
    levels: int = 8,
    num_inference_steps: int = 50,
    batch_size: int,
) -> ReadRecoveries:
    """A reader of recoveries: from how much noise does the held-out picture come back under its prompt?

    The question's own example is noised to each of `levels` log-SNRs, at 0, 1/levels, 2/levels … of the trained range
    from its noisy end, all with the same noise, and taken to timestep 0 by deterministic DDIM without guidance. The
    recovery is the smallest of these shares from which, and from all larger ones, the picture shows the concept; 1
    where there is none, also because the picture itself is not read right.

    Args:
        read_labels: says which concept a picture shows.
        num_inference_steps: of the whole trajectory; from a cleaner level its share of them.
        batch_size: pictures at a time.

    Raises:
        UserError: more steps than trained timesteps.
    """
    top = len(learner.schedule.log_snr) - 1
    if not 1 <= num_inference_steps <= top:
        raise UserError(f"num_inference_steps={num_inference_steps}: must be from 1 to {top}")
    low, high = learner.schedule.log_snr_range
    noised_to = learner.schedule.nearest_timestep(low + (high - low) * np.arange(levels) / levels)

    def read(questions: Sequence[Question]) -> list[float]:
        asked = [question.concept for question in questions]
        returned = np.zeros((len(questions), levels), dtype=bool)
        for level, timestep in enumerate(noised_to):
            pictures: list[np.ndarray] = []
            for start in range(0, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                pictures += _brought_back(learner, batch, int(timestep), num_inference_steps, seed)
            returned[:, level] = [a == b for a, b in zip(read_labels(pictures, asked), asked, strict=True)]
        return [_needed(row) for row in returned]

    return read


def _brought_back(
    learner: DiffusionLearner, questions: Sequence[Question], timestep: int, num_inference_steps: int, seed: int
) -> list[np.ndarray]:
    """Each question's picture, noised to the timestep and denoised under its prompt."""
    clean = torch.stack(learner.targets([question.example for question in questions])).to(learner.device)
    seeds = [identity_seed(seed, STREAM, "recovery", question.concept, question.rendering) for question in questions]
    noise = normals(clean.shape[1:], seeds, learner.device)
    noisy = learner.schedule.add_noise(clean, noise, np.repeat(timestep, len(questions)))
    steps = max(1, round(num_inference_steps * timestep / (len(learner.schedule.log_snr) - 1)))
    path = np.rint(np.linspace(timestep, 0, steps + 1)).astype(np.int64)
    prompts = [fill(question.template, question.words) for question in questions]
    with torch.no_grad(), evaluating(learner.network):
        return decode(learner, travel(learner, noisy, path, prompts))


def _needed(returned: np.ndarray) -> float:
    """The share of the first level from which all later ones return, of (levels,) bool from noisy to clean."""
    failed = np.flatnonzero(~returned)
    return float((failed[-1] + 1) / len(returned)) if len(failed) else 0.0


def _exponents(learner: DiffusionLearner, system: TriangularSystem, count: int, seed: int) -> np.ndarray:
    """The largest Lyapunov exponent of the first `count` trajectories, (count,), nats per step."""
    members = torch.arange(count, device=learner.device).repeat(2)
    return lyapunov_exponents(
        lambda number, states: system.step(number, states, members),
        system.start[:count],
        system.num_steps,
        # Between the network's rounding and the curvature of what it computes, which pull forward differences apart.
        perturbation=torch.finfo(learner.dtype).eps ** 0.5,
        seed=identity_seed(seed, STREAM, "direction"),
    )


def _passages(
    learner: DiffusionLearner, read_labels: ReadLabels, draws: Sequence[_Draw], solutions: Sequence[Solution]
) -> list[tuple[str, int]]:
    """What each picture shows, and the round after which its estimates showed that for good."""
    pictures = [picture for solution in solutions for picture in decode(learner, solution.finals)]
    asked = [draw.question.concept for draw, own in zip(draws, solutions, strict=True) for _ in range(own.rounds)]
    labels = read_labels(pictures, asked)
    found, start = [], 0
    for solution in solutions:
        own = labels[start : start + solution.rounds]
        start += solution.rounds
        others = [number for number, label in enumerate(own, start=1) if label != own[-1]]
        found.append((own[-1], others[-1] + 1 if others else 1))
    return found


def _generation(
    draw: _Draw, given: Solution, null: Solution, exponent: float, passage: tuple[str, int], rows: int
) -> Generation:
    answer, first_passage = passage
    return Generation(
        concept=draw.question.concept,
        rendering=draw.question.rendering,
        draw=draw.number,
        answer=answer,
        correct=answer == draw.question.concept,
        num_steps=given.residuals.shape[1],
        rounds=given.rounds,
        num_evaluations=given.num_evaluations * rows,
        residuals=given.residuals,
        first_passage=first_passage,
        sensitivity=float(exponent),
        null_distance=float((given.states[-1] - null.states[-1]).square().mean().sqrt()),
        null_rounds=null.rounds,
    )
