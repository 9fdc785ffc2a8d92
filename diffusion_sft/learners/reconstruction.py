"""Does a target come back from noise? DDIM inversion and SDEdit of any denoiser, ‖x − x̃‖² / d, without guidance.

One step of the deterministic DDIM sampler (Song et al., 2021, equation 12 with η = 0), in either direction:

    x_s = alpha_s x̂ + sigma_s ε̂,   x̂ = (x_t − sigma_t ε̂) / alpha_t,   ε̂ the network's reading of x_t at t

The grid: for S steps the trained timesteps nearest to k·top/S, k = 0 … S, from the cleanest one (0) to the noisiest
that holds any signal (`top`). With ᾱ = 0, as after a rescaling to zero terminal SNR, x̂ could not be had from ε̂; those
timesteps are left out, as they are in the denoising error. The target stands at timestep 0, as diffusers puts it with
`set_alpha_to_one=False` (Stable Diffusion's own setting), and is compared with what comes back there.

Unlike diffusers' inversion loops, which ask the network at the timestep that a step leads to, every state here is read
at its own timestep: there x_t, ε̂, v̂ and x̂ belong together, whatever the network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..errors import NotFinite, UserError
from ..learner import NULL_CUE, Query, Reconstruction
from ..numerics.noise import normals
from ..numerics.schedule import Schedule
from ..records import Draws, identity_seed
from .denoising import Denoiser


@dataclass(frozen=True)
class _Job:
    """One trajectory: a query's number, a cue, and a draw."""

    query: int
    cue: str
    draw: int


def read_reconstruction(
    denoiser: Denoiser,
    queries: Sequence[Query],
    reconstruction: Reconstruction,
    draws: Draws,
    *,
    batch_size: int,
) -> list[np.ndarray]:
    """The reconstruction error per dimension of each query's target, `batch_size` trajectories at a time.

    inversion: the target goes along the DDIM trajectory into noise and back (Dhariwal & Nichol, 2021, section F); it is
    deterministic and has one column. sdedit: the target gets the noise of each draw at once, which is the same for
    all cues, and is denoised (Meng et al., 2022). Each distinct cue of a query is read once.

    Returns:
        For each query ‖x − x̃‖² / d, float64 (1 + num_cues, num_columns), row 0 under ∅.

    Raises:
        UserError: more steps than trained timesteps, a strength of no step at all, or a state that is not finite.
    """
    timesteps = trajectory(denoiser.schedule, reconstruction)
    targets = denoiser.targets([query.example for query in queries])
    num_columns = draws.count if reconstruction.kind == "sdedit" else 1
    jobs = [
        _Job(number, cue, draw)
        for number, query in enumerate(queries)
        for cue in distinct_cues(query)
        for draw in range(num_columns)
    ]
    errors: dict[_Job, float] = {}
    with torch.no_grad():
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            clean = torch.stack([targets[job.query] for job in batch]).to(denoiser.device)
            cues = [job.cue for job in batch]
            if reconstruction.kind == "inversion":
                noisy = travel(denoiser, clean, timesteps, cues)
            else:
                seeds = [_noise_seed(queries[job.query], job.draw, draws) for job in batch]
                noise = normals(clean.shape[1:], seeds, denoiser.device).to(clean.dtype)
                noisy = denoiser.schedule.add_noise(clean, noise, np.repeat(timesteps[-1:], len(batch)))
            difference = travel(denoiser, noisy, timesteps[::-1], cues) - clean
            means = difference.flatten(1).square().mean(dim=1, dtype=torch.float64)
            errors.update(zip(batch, means.tolist(), strict=True))
    results = []
    for number, query in enumerate(queries):
        rows = [[errors[_Job(number, cue, k)] for k in range(num_columns)] for cue in (NULL_CUE, *query.cues)]
        results.append(_finite(np.array(rows), query))
    return results


def distinct_cues(query: Query) -> tuple[str, ...]:
    """What is read for a query: ∅ first, then each other cue once."""
    return tuple(dict.fromkeys((NULL_CUE, *query.cues)))


def trajectory(schedule: Schedule, reconstruction: Reconstruction) -> np.ndarray:
    """The timesteps of the states from clean to noisy, rising from 0, (steps + 1,); see the module.

    As in diffusers' image-to-image pipelines, int(num_inference_steps · strength) steps are gone through.
    """
    steps, top = reconstruction.num_inference_steps, len(schedule.log_snr) - 1
    if not 1 <= steps <= top:
        raise UserError(
            f"num_inference_steps={steps}: reconstruction needs between 1 step and the {top} between trained timesteps"
        )
    taken = int(steps * reconstruction.strength)
    if not 1 <= taken <= steps:
        raise UserError(
            f"strength={reconstruction.strength}: that share of {steps} steps is {taken}, not 1 to {steps}; "
            "raise strength or num_inference_steps"
        )
    grid = np.rint(np.arange(steps + 1) * (top / steps)).astype(np.int64)
    return grid[: taken + 1]


def travel(denoiser: Denoiser, states: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
    """Deterministic DDIM steps along the timesteps, in either direction, from states at the first one."""
    schedule, count = denoiser.schedule, len(states)
    for here, there in pairwise(timesteps):
        at = np.repeat(here, count)
        prediction = denoiser.predict(states, at, cues)
        noise = schedule.noise_from_prediction(prediction, states, at)
        alpha, sigma = float(schedule.alpha[here]), float(schedule.sigma[here])
        if schedule.prediction_type == "epsilon":
            clean = (states - sigma * noise) / alpha
        elif schedule.prediction_type == "sample":
            clean = prediction
        else:
            clean = alpha * states - sigma * prediction
        states = schedule.add_noise(clean, noise, np.repeat(there, count))
    return states


def _noise_seed(query: Query, draw: int, draws: Draws) -> int:
    """Of the noise of one draw, whatever the cue."""
    return identity_seed(draws.seed, query.example.id, query.stream, "noise", draw)


def _finite(errors: np.ndarray, query: Query) -> np.ndarray:
    if not np.isfinite(errors).all():
        raise NotFinite(f"{query.example.id}: its reconstruction is not finite")
    return errors
