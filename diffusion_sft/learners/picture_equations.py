"""Teaching pictures as linear equations in the weights, J δ = ε − ε̂, and what pictures say after such a step.

Levels and noises are those of the same draws in a reading (`denoising`), and so are the answers: only ε̂ + J δ stands
in the place of ε̂.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from ..answers import judge
from ..learner import NULL_CUE, Answer, Query, Question
from ..numerics.schedule import Schedule
from ..records import Draws, Example
from ..systems import Equations
from .denoising import Job, NoisyRows, noisy_rows, plan_query, read_surprise
from .diffusion import DiffusionLearner
from .linearised import Call, Linearised, Weights


def picture_equations(
    learner: DiffusionLearner,
    parameters: Mapping[str, nn.Parameter],
    queries: Sequence[Query],
    draws: Draws,
    *,
    batch_size: int,
) -> Equations:
    """J δ = ε − ε̂ of each query's picture under its cue, one row for each draw and latent dimension.

    Args:
        learner: at θ0.
        parameters: the weights that δ is a change of, of its UNet or also of its text encoders.
        queries: one cue each.
        draws: noise levels and noises of each, as a reading of the same query has them.
        batch_size: evaluations of the network at a time.

    Raises:
        ValueError: a query with more cues than one.
    """
    for query in queries:
        if len(query.cues) != 1:
            raise ValueError(f"{query.example.id}: equations are of one cue, not {len(query.cues)}")
    learner.encode_captions([cue for query in queries for cue in query.cues])
    targets = learner.targets([query.example for query in queries])
    plans = [plan_query(query, draws, learner.schedule) for query in queries]
    jobs = [
        Job(number, plan.cues.index(plan.query.cues[0]), draw)
        for number, plan in enumerate(plans)
        for draw in range(draws.count)
    ]
    batches = [
        noisy_rows(learner, plans, targets, jobs[start : start + batch_size], draws)
        for start in range(0, len(jobs), batch_size)
    ]
    through_text = _reaches_text(learner, parameters)

    def outputs(call: Call, rows: NoisyRows) -> torch.Tensor:
        given = learner.inputs(rows.noisy, rows.timesteps, rows.cues, through_text=through_text)
        prediction = call(*given)
        prediction = prediction if prediction.dtype == torch.float64 else prediction.float()
        return learner.schedule.noise_from_prediction(prediction, rows.noisy, rows.timesteps).flatten()

    jacobian = Linearised(learner.network, parameters, batches, outputs)
    noise = torch.cat([rows.noise.flatten() for rows in batches])
    ends = np.cumsum([0, *(draws.count * target.numel() for target in targets)]).tolist()
    return Equations(
        jacobian=jacobian,
        residual=noise - jacobian.values(),
        blocks=tuple(slice(*pair) for pair in pairwise(ends)),
    )


def picture_answers_at(
    learner: DiffusionLearner,
    parameters: Mapping[str, nn.Parameter],
    delta: torch.Tensor,
    questions: Sequence[Question],
    draws: Draws,
    *,
    batch_size: int,
) -> list[Answer]:
    """The answers that ε̂ + J δ gives under ∅ and every candidate; at δ = 0 those of `learner.answer`.

    Args:
        learner, parameters: as in `picture_equations`.
        delta: δ, (number of weights,).
        questions: with candidates.
        draws: as `learner.answer` takes them.
        batch_size: evaluations of the network at a time.
    """
    queries = [question.query for question in questions]
    learner.encode_captions([NULL_CUE, *(cue for query in queries for cue in query.cues)])
    weights, through_text = Weights(learner.network, parameters), _reaches_text(learner, parameters)
    moved = _Moved(learner, learner.schedule, weights, delta, through_text)
    return judge(questions, read_surprise(moved, queries, draws, batch_size))


@dataclass
class _Moved:
    """The denoiser f(θ0) + J δ."""

    learner: DiffusionLearner
    schedule: Schedule
    weights: Weights
    delta: torch.Tensor
    through_text: bool

    @property
    def device(self) -> torch.device:
        return self.learner.device

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        return self.learner.targets(examples)

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        given = self.learner.inputs(noisy, timesteps, cues, through_text=self.through_text)

        def output(call: Call) -> Any:
            return call(*given)

        return self.weights.moved(output, self.delta)


def _reaches_text(learner: DiffusionLearner, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether any of these weights are a text encoder's, through which captions must then go."""
    ours = {id(parameter) for parameter in parameters.values()}
    encoders = [part for name, part in learner.parts().items() if name != "unet"]
    return any(id(parameter) in ours for part in encoders for parameter in part.parameters())
