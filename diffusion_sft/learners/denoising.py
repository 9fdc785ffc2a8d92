"""The surprise of any denoiser: ‖ε − ε̂(z_α, cue)‖² at the levels and noises that an estimator draws.

Queries, cues and draws are one stream of network evaluations, cut into batches wherever a batch is full. Levels
and noise come from (draws.seed, example, stream, draw) alone, so that no reading depends on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from ..errors import NotFinite
from ..learner import NULL_CUE, Query, Reading
from ..numerics.noise import normals
from ..numerics.quadrature import Levels, draw_levels, estimator_named
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
    targets: dict[int, torch.Tensor] = {}
    plans = [plan_query(query, draws, denoiser.schedule) for query in queries]
    jobs = _jobs(plans, draws.numbers)
    norms: list[torch.Tensor] = []
    null_prediction = torch.empty(0)
    with torch.no_grad():
        while batch := list(islice(jobs, batch_size)):
            targets = _targets(denoiser, plans, batch, targets)
            rows = noisy_rows(denoiser, plans, targets, batch, draws)
            prediction = denoiser.predict(rows.noisy, rows.timesteps, rows.cues)
            prediction = denoiser.schedule.noise_from_prediction(prediction, rows.noisy, rows.timesteps)
            null_prediction, nulls = _null_predictions(prediction, null_prediction, batch)
            differences = (rows.noise, rows.noise - prediction, nulls - prediction)
            norms.append(torch.stack([_squared_norm(difference) for difference in differences]))
    squared_norms = torch.cat(norms, dim=1).cpu().numpy()  # ‖ε‖², error and opinion of every job
    if not estimator.common:
        squared_norms[2] = np.nan
    ends = np.cumsum([len(plan.cues) * len(draws.numbers) for plan in plans])
    parts = np.split(squared_norms, ends[:-1], axis=1)
    num_dims = next(iter(targets.values())).numel()
    return [_reading(plan, draws, num_dims, part) for plan, part in zip(plans, parts, strict=True)]


def plan_query(query: Query, draws: Draws, schedule: Schedule) -> Plan:
    """The cues to be read, and the levels that the draws' estimator gives them."""
    estimator = estimator_named(draws.estimator)
    cues = tuple(dict.fromkeys((NULL_CUE, *query.cues)))
    identity = (query.example.id, query.stream, "levels")
    own = [()] if estimator.common else [(cue,) for cue in cues]
    seeds = [identity_seed(draws.seed, *identity, *cue) for cue in own]
    return Plan(query, cues, tuple(draw_levels(estimator, schedule, draws.count, seed) for seed in seeds))


def _jobs(plans: Sequence[Plan], numbers: Sequence[int]) -> Iterator[Job]:
    """For each query and draw first ∅ and then every cue, so that opinions need one remembered prediction."""
    for index, plan in enumerate(plans):
        for draw in numbers:
            for row in range(len(plan.cues)):
                yield Job(index, row, draw)


def _targets(
    denoiser: Denoiser, plans: Sequence[Plan], batch: Sequence[Job], held: Mapping[int, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The targets that a batch needs, by plan; those that are held are not asked for again, and others go."""
    wanted = list(dict.fromkeys(job.plan for job in batch))
    missing = [plan for plan in wanted if plan not in held]
    found = denoiser.targets([plans[plan].query.example for plan in missing]) if missing else []
    fresh = dict(zip(missing, found, strict=True))
    return {plan: fresh[plan] if plan in fresh else held[plan] for plan in wanted}


def noisy_rows(
    denoiser: Denoiser,
    plans: Sequence[Plan],
    targets: Sequence[torch.Tensor] | Mapping[int, torch.Tensor],
    batch: Sequence[Job],
    draws: Draws,
) -> NoisyRows:
    """Noisy targets, noise, timesteps and cues of each job; targets are by plan.

    Each target and each noise of the batch is put on the device once, and the rows are put together there.
    """
    wanted = list(dict.fromkeys(job.plan for job in batch))
    own = torch.stack([targets[number] for number in wanted])
    clean = to_device(own, denoiser.device)[_places([job.plan for job in batch], denoiser.device)]
    seeds, signs = zip(*(_noise_of(plans[job.plan], job, draws) for job in batch), strict=True)
    noise = normals(own.shape[1:], list(dict.fromkeys(seeds)), denoiser.device)[_places(seeds, denoiser.device)]
    sign = to_device(torch.tensor(signs, dtype=torch.float32), denoiser.device)
    noise = noise * sign.view(-1, *[1] * (noise.ndim - 1))
    timesteps = np.array([plans[job.plan].levels_of(job.row).timesteps[job.draw] for job in batch])
    noisy = denoiser.schedule.add_noise(clean, noise, timesteps)
    return NoisyRows(noisy, noise, timesteps, [plans[job.plan].cues[job.row] for job in batch])


def _noise_of(plan: Plan, job: Job, draws: Draws) -> tuple[int, int]:
    """The seed and the sign of ε of one job: of its draw, or of its antithetic pair with the pair's sign."""
    estimator = estimator_named(draws.estimator)
    own = () if estimator.common else (plan.cues[job.row],)
    number, sign = (job.draw // 2, 1 - 2 * (job.draw % 2)) if estimator.antithetic else (job.draw, 1)
    return identity_seed(draws.seed, plan.query.example.id, plan.query.stream, "noise", number, *own), sign


def _places(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """The place of each value among the distinct ones, in the order in which they come first."""
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return to_device(torch.tensor([places[value] for value in values]), device)


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


def _reading(plan: Plan, draws: Draws, num_dims: int, squared_norms: np.ndarray) -> Reading:
    """From one row for each distinct cue to one row for ∅ and for each cue asked about."""
    noise_norm, squared_error, opinion = squared_norms.reshape(3, -1, len(plan.cues)).transpose(0, 2, 1)
    if not np.isfinite(squared_error).all():
        where = plan.query.example.id
        raise NotFinite(f"{where}: the network's prediction is not finite")
    rows = [plan.cues.index(cue) for cue in (NULL_CUE, *plan.query.cues)]
    levels = [plan.levels_of(row).at(draws.numbers) for row in rows]
    pairs = list(zip(levels, noise_norm[rows], strict=True))
    controlled = float(estimator_named(draws.estimator).control)
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
