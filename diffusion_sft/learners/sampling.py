"""The DDIM sampler of a Stable Diffusion as a triangular system of equations, to be solved in any order.

One step of diffusers' DDIMScheduler from timestep t to s (Song et al., 2021, equation 12) is linear in the state and
in the network's own output f (ε̂, v̂ or x̂), guidance included:

    x_s = a x_t + b f(x_t, t) + c ξ,   c = η √((1 − ᾱ_s) / (1 − ᾱ_t)) √(1 − ᾱ_t / ᾱ_s),   d = √(1 − ᾱ_s − c²)
    ε̂:  a = alpha_s / alpha_t                   b = d − a sigma_t
    v̂:  a = alpha_s alpha_t + d sigma_t         b = d alpha_t − alpha_s sigma_t
    x̂:  a = d / sigma_t                         b = alpha_s − a alpha_t

so that v̂ and x̂ stay finite where ᾱ_t = 0. η = 0 is DDIM; with η = 1 it is ancestral sampling, whose noises ξ are
drawn once from the cue's seed and belong to the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler

from ..errors import UserError
from ..learner import Cue
from ..numerics.fixed_point import Solver
from ..numerics.schedule import PredictionType
from ..numerics.triangular import Evaluate, Solution, TriangularSystem
from .conditioning import Framing, time_ids
from .diffusion import DiffusionLearner
from .modes import evaluating
from .network import POOLED, PROMPT_EMBEDS, to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """The numbers of a sampler's N steps, (N,) each; see the module."""

    timesteps: np.ndarray
    """int64, falling."""
    decay: np.ndarray
    gain: np.ndarray
    noise: np.ndarray
    """c."""
    scale: np.ndarray
    """sigma_s, or the noise level before it where a schedule ends in none at all."""


def uses_ddim(learner: DiffusionLearner) -> bool:
    """Whether the pipeline's own sampler is the one that is written as equations here."""
    return isinstance(learner.pipeline.scheduler, DDIMScheduler)


def rows_per_evaluation(guidance_scale: float) -> int:
    """How many of the network's rows one value of f takes: both sides of guidance, which has none up to 1."""
    return 2 if guidance_scale > 1 else 1


def ddim_steps(learner: DiffusionLearner, num_inference_steps: int, eta: float = 0.0) -> Steps:
    """DDIM's steps under the settings of the pipeline's own scheduler, whatever its kind.

    Raises:
        UserError: settings that are not linear in the output (clip_sample, thresholding), no eta from 0 to 1, or a
            number of steps that the schedule has not.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta={eta}: must be from 0 (DDIM) to 1 (ancestral)")
    scheduler = _ddim(learner)
    trained = len(scheduler.alphas_cumprod)
    if not 1 <= num_inference_steps <= trained:
        raise UserError(
            f"num_inference_steps={num_inference_steps}: must be from 1 to the {trained} trained timesteps"
        )
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.numpy()
    if timesteps.max() >= trained:
        raise UserError(
            f"num_inference_steps={num_inference_steps}: the first step would be at timestep {timesteps.max()}, beyond "
            f"the {trained} trained ones (the scheduler's steps_offset is {scheduler.config.steps_offset}); take fewer"
        )
    levels = scheduler.alphas_cumprod.double().numpy()
    following = timesteps - trained // num_inference_steps
    after = np.where(following >= 0, levels[following], float(scheduler.final_alpha_cumprod))
    kind: PredictionType = scheduler.config.prediction_type
    decay, gain, noise = coefficients(levels[timesteps], after, kind, eta)
    sigma, sigma_after = np.sqrt(1 - levels[timesteps]), np.sqrt(1 - after)
    scale = np.where(sigma_after > 0, sigma_after, sigma)
    return Steps(timesteps=timesteps, decay=decay, gain=gain, noise=noise, scale=scale)


def coefficients(
    before: np.ndarray, after: np.ndarray, prediction_type: PredictionType, eta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and c of steps from ᾱ_t to ᾱ_s, (N,) each; see the module."""
    alpha, sigma = np.sqrt(before), np.sqrt(1 - before)
    alpha_after = np.sqrt(after)
    noise = eta * np.sqrt((1 - after) / (1 - before) * np.maximum(1 - before / after, 0))
    direction = np.sqrt(np.maximum(1 - after - noise**2, 0))
    if prediction_type == "epsilon":
        decay = alpha_after / alpha
        return decay, direction - decay * sigma, noise
    if prediction_type == "v_prediction":
        return alpha_after * alpha + direction * sigma, direction * alpha - alpha_after * sigma, noise
    decay = direction / sigma
    return decay, alpha_after - decay * alpha, noise


def sampling_system(
    learner: DiffusionLearner,
    cues: Sequence[Cue],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    batch_size: int,
) -> TriangularSystem:
    """The equations whose solution is what the pipeline, with DDIM, draws for each cue: x_0 its start noise, x_N its
    latents.

    States are float64, but on Apple's GPUs, which have none. The network is asked for at most `batch_size` rows at a
    time (two where both sides of guidance need them).

    Raises:
        UserError: see `ddim_steps`.
    """
    steps = ddim_steps(learner, num_inference_steps, eta)
    dtype = torch.float32 if learner.device.type == "mps" else torch.float64
    noises = _noises(learner, cues, num_inference_steps if eta > 0 else 0).to(learner.device, dtype)
    sizes = torch.from_numpy(steps.noise).to(noises).reshape(-1, *[1] * (noises.ndim - 1))
    return TriangularSystem(
        start=noises[0],
        decay=steps.decay,
        gain=steps.gain,
        offsets=sizes * noises[1:] if eta > 0 else None,
        evaluate=_guided(learner, [cue.prompt for cue in cues], steps.timesteps, guidance_scale, batch_size),
        scale=steps.scale,
        # Outputs are about as large as noise of unit variance, and rounded to the type's relative precision.
        rounding=2 * torch.finfo(learner.dtype).eps * np.abs(steps.gain) / steps.scale,
    )


def generate_in_parallel(
    learner: DiffusionLearner,
    cues: Sequence[Cue],
    solver: Solver,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    batch_size: int,
) -> tuple[list[np.ndarray], list[Solution]]:
    """One image per cue, uint8 (height, width, 3), and how its equations were solved, `batch_size` cues at a time.

    Raises:
        UserError: see `ddim_steps`; latents that are not finite.
    """
    images: list[np.ndarray] = []
    solutions: list[Solution] = []
    for start in range(0, len(cues), batch_size):
        system = sampling_system(
            learner,
            cues[start : start + batch_size],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            batch_size=batch_size,
        )
        found = solver(system)
        images += decode(learner, torch.stack([solution.states[-1] for solution in found]))
        solutions += found
    return images, solutions


def in_words(solutions: Sequence[Solution]) -> str:
    """How fast pictures' equations closed, for whoever waits for them."""
    rounds = [solution.rounds for solution in solutions]
    steps, evaluations = len(solutions[0].states) - 1, sum(solution.num_evaluations for solution in solutions)
    return (
        f"{steps} steps in {min(rounds)} to {max(rounds)} rounds (mean {sum(rounds) / len(rounds):.1f}) and "
        f"{evaluations / len(solutions):.0f} evaluations of a picture"
    )


def decode(learner: DiffusionLearner, latents: torch.Tensor) -> list[np.ndarray]:
    """Images of latents (n, channels, height, width), uint8 (height, width, 3) each."""
    return learner._codec.decode(latents)


def _ddim(learner: DiffusionLearner) -> DDIMScheduler:
    config = learner.pipeline.scheduler.config
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting, False):
            raise UserError(
                f"{learner.loaded.source['source']}: its scheduler's {setting} is on, which no system of equations "
                "that are linear in the network's output can have; turn it off in scheduler_config.json"
            )
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)


def _noises(learner: DiffusionLearner, cues: Sequence[Cue], num_inference_steps: int) -> torch.Tensor:
    """ξ from each cue's seed as the pipeline draws them, start noise first, (1 + steps, num_cues, …), on the CPU."""
    channels, side = learner.pipeline.unet.config.in_channels, learner.resolution // learner.pipeline.vae_scale_factor
    rows = []
    for cue in cues:
        generator = torch.Generator("cpu").manual_seed(cue.seed)
        shape = (1, channels, side, side)
        drawn = [torch.randn(shape, generator=generator, dtype=learner.dtype) for _ in range(1 + num_inference_steps)]
        rows.append(torch.stack(drawn))
    return torch.cat(rows, dim=1)


def _guided(
    learner: DiffusionLearner, prompts: Sequence[str], timesteps: np.ndarray, guidance_scale: float, batch_size: int
) -> Evaluate:
    """f: the network's output for rows of any trajectories and steps, with guidance as the pipeline has it."""
    guided = rows_per_evaluation(guidance_scale) == 2
    given = _conditions(learner, prompts, null=False)
    null = _conditions(learner, prompts[:1], null=True)
    times = to_device(torch.from_numpy(timesteps), learner.device)

    def predict(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        text = {name: tensor[members] for name, tensor in given.items()}
        noisy, at = states.to(learner.dtype), times[steps]
        if not guided:
            return _network(learner, noisy, at, text).to(states.dtype)
        both = {name: torch.cat([null[name].expand_as(tensor), tensor]) for name, tensor in text.items()}
        outputs = _network(learner, torch.cat([noisy, noisy]), torch.cat([at, at]), both).to(states.dtype)
        unconditional, conditional = outputs.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def evaluate(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        count = max(1, batch_size // rows_per_evaluation(guidance_scale))
        parts = zip(members.split(count), steps.split(count), states.split(count), strict=True)
        with torch.no_grad(), evaluating(learner.network):
            return torch.cat([predict(*part) for part in parts])

    return evaluate


def _conditions(learner: DiffusionLearner, prompts: Sequence[str], *, null: bool) -> dict[str, torch.Tensor]:
    """Embeddings of prompts, or of guidance's unconditional side, in the UNet's type, on the device."""
    text = learner._text
    found = text.null_embeddings(len(prompts)) if null else text.embeddings(prompts)
    return {name: found[name].to(learner.dtype) for name in (PROMPT_EMBEDS, *([POOLED] if text.is_xl else []))}


def _network(
    learner: DiffusionLearner, noisy: torch.Tensor, timesteps: torch.Tensor, text: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The UNet's output; an SDXL is told that the image always had its size."""
    ids = None
    if learner._text.is_xl:
        size = (learner.resolution, learner.resolution)
        ids = to_device(time_ids([Framing.whole(size)] * len(noisy)), learner.device)
    output: torch.Tensor = learner.network(noisy, timesteps, text, ids)
    return output
