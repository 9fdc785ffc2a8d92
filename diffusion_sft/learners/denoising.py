"""The surprise of any denoiser: ‖ε − ε̂(z_α, cue)‖² at the levels and noises that an estimator draws.

Queries, cues and draws are one stream of network evaluations, cut into batches wherever a batch is full. Levels
and noise come from (draws.seed, example, stream, draw) alone, so that no reading depends on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from ..errors import UserError
from ..learner import NULL_CUE, Query, Reading
from ..numerics.noise import normal
from ..numerics.quadrature import Estimator, Levels, draw_levels, estimator_named
from ..numerics.schedule import Schedule
from ..records import Draws, Example, identity_seed
from .network import to_device


class Denoiser(Protocol):
    """What is asked of a learner that is read by its denoising error."""

    schedule: Schedule

    @property
    def device(self) -> torch.device: ...

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """The clean target of each example, float32 on the CPU, all of one shape."""
        ...

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        """The network's output for each row, float32, in the schedule's prediction type."""
        ...


@dataclass(frozen=True)
class Plan:
    """The levels of one query: `cues` are its distinct ones, ∅ first; one set of levels where they are common."""

    query: Query
    cues: tuple[str, ...]
    levels: tuple[Levels, ...]

    def levels_of(self, row: int) -> Levels:
        """Of one of the cues."""
        return self.levels[row if len(self.levels) > 1 else 0]


@dataclass(frozen=True)
class Job:
    """One network evaluation: the number of a plan, of one of its cues, and of a draw."""

    plan: int
    row: int
    draw: int


@dataclass(frozen=True)
class NoisyRows:
    """What a denoiser is given for some jobs, noisy and noise float32 (num_jobs, ...) on its device."""

    noisy: torch.Tensor
    noise: torch.Tensor
    timesteps: np.ndarray
    cues: list[str]


def read_surprise(denoiser: Denoiser, queries: Sequence[Query], draws: Draws, batch_size: int) -> list[Reading]:
    """Read every query in batches of `batch_size` network evaluations; each distinct cue of a query is read once.

    Raises:
        ValueError: draws that the estimator cannot make (see `draw_levels`).
        UserError: a prediction that is not finite.
    """
    if not queries:
        return []
    estimator = estimator_named(draws.estimator)
    targets = denoiser.targets([query.example for query in queries])
    plans = [plan_query(query, draws, denoiser.schedule) for query in queries]
    jobs = _jobs(plans, draws.count)
    norms: list[torch.Tensor] = []
    null_prediction = torch.empty(0)
    with torch.no_grad():
        while batch := list(islice(jobs, batch_size)):
            rows = noisy_rows(denoiser, plans, targets, batch, draws)
            prediction = denoiser.predict(rows.noisy, rows.timesteps, rows.cues)
            prediction = denoiser.schedule.noise_from_prediction(prediction, rows.noisy, rows.timesteps)
            null_prediction, nulls = _null_predictions(prediction, null_prediction, batch)
            differences = (rows.noise, rows.noise - prediction, nulls - prediction)
            norms.append(torch.stack([_squared_norm(difference) for difference in differences]))
    squared_norms = torch.cat(norms, dim=1).cpu().numpy()  # ‖ε‖², error and opinion of every job
    if not estimator.common:
        squared_norms[2] = np.nan
    ends = np.cumsum([len(plan.cues) * draws.count for plan in plans])
    parts = np.split(squared_norms, ends[:-1], axis=1)
    return [
        _reading(plan, estimator, target.numel(), part)
        for plan, target, part in zip(plans, targets, parts, strict=True)
    ]


def plan_query(query: Query, draws: Draws, schedule: Schedule) -> Plan:
    """The cues to be read, and the levels that the draws' estimator gives them."""
    estimator = estimator_named(draws.estimator)
    cues = tuple(dict.fromkeys((NULL_CUE, *query.cues)))
    identity = (query.example.id, query.stream, "levels")
    own = [()] if estimator.common else [(cue,) for cue in cues]
    seeds = [identity_seed(draws.seed, *identity, *cue) for cue in own]
    return Plan(query, cues, tuple(draw_levels(estimator, schedule, draws.count, seed) for seed in seeds))


def _jobs(plans: Sequence[Plan], count: int) -> Iterator[Job]:
    """For each query and draw first ∅ and then every cue, so that opinions need one remembered prediction."""
    for index, plan in enumerate(plans):
        for draw in range(count):
            for row in range(len(plan.cues)):
                yield Job(index, row, draw)


def noisy_rows(
    denoiser: Denoiser, plans: Sequence[Plan], targets: Sequence[torch.Tensor], batch: Sequence[Job], draws: Draws
) -> NoisyRows:
    """Noisy targets, noise, timesteps and cues of each job."""
    made: dict[int, torch.Tensor] = {}
    noises = [_noise(plans[job.plan], job, draws, targets[job.plan].shape, made) for job in batch]
    noise, clean = torch.stack(noises), torch.stack([targets[job.plan] for job in batch])
    timesteps = np.array([plans[job.plan].levels_of(job.row).timesteps[job.draw] for job in batch])
    # Mixed on the CPU, so that the device gets it in one go and is never waited for.
    noisy = to_device(denoiser.schedule.add_noise(clean, noise, timesteps), denoiser.device)
    noise = to_device(noise, denoiser.device)
    return NoisyRows(noisy, noise, timesteps, [plans[job.plan].cues[job.row] for job in batch])


def _noise(plan: Plan, job: Job, draws: Draws, shape: torch.Size, made: dict[int, torch.Tensor]) -> torch.Tensor:
    """ε of one job: of its draw, or of its antithetic pair with the pair's sign; each made once a batch."""
    estimator = estimator_named(draws.estimator)
    own = () if estimator.common else (plan.cues[job.row],)
    number, sign = (job.draw // 2, 1 - 2 * (job.draw % 2)) if estimator.antithetic else (job.draw, 1)
    seed = identity_seed(draws.seed, plan.query.example.id, plan.query.stream, "noise", number, *own)
    if seed not in made:
        made[seed] = normal(shape, seed)
    return sign * made[seed]


def _null_predictions(
    prediction: torch.Tensor, remembered: torch.Tensor, batch: Sequence[Job]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last ∅ prediction of the batch, and for each job the ∅ prediction of its query and draw."""
    if batch[0].row == 0:
        remembered = prediction[:1]
    nulls = np.array([index + 1 if job.row == 0 else 0 for index, job in enumerate(batch)])
    candidates = torch.cat([remembered, prediction])
    # Jobs come in groups that start with ∅, so that a job's ∅ is the latest one so far (0: the remembered one).
    latest = to_device(torch.from_numpy(np.maximum.accumulate(nulls)), prediction.device)
    return candidates[latest[-1:]], candidates[latest]


def _squared_norm(difference: torch.Tensor) -> torch.Tensor:
    return difference.flatten(1).square().sum(dim=1, dtype=torch.float64)


def _reading(plan: Plan, estimator: Estimator, num_dims: int, squared_norms: np.ndarray) -> Reading:
    """From one row for each distinct cue to one row for ∅ and for each cue asked about."""
    noise_norm, squared_error, opinion = squared_norms.reshape(3, -1, len(plan.cues)).transpose(0, 2, 1)
    if not np.isfinite(squared_error).all():
        where = plan.query.example.id
        raise UserError(f"{where}: the network's prediction is not finite; try dtype=bfloat16 or dtype=float32")
    rows = [plan.cues.index(cue) for cue in (NULL_CUE, *plan.query.cues)]
    levels = [plan.levels_of(row) for row in rows]
    pairs = list(zip(levels, noise_norm[rows], strict=True))
    controlled = float(estimator.control)
    return Reading(
        squared_error=squared_error[rows],
        weights=np.stack([level.weights for level in levels]),
        uniform_weights=np.stack([level.uniform_weights for level in levels]),
        opinion=opinion[rows],
        control=controlled * np.stack([level.control(norm, num_dims) for level, norm in pairs]),
        uniform_control=controlled * np.stack([level.uniform_control(norm, num_dims) for level, norm in pairs]),
        log_snr=np.stack([level.log_snr for level in levels]),
        num_dims=num_dims,
    )
