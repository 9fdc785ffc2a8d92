"""How many network evaluations a second does the probe make, beside plain loops? (`probe.py --gpu`)

Everything is read at the same precision from the same pictures under the same captions; embeddings and latents are at
hand for all. `one at a time` asks the network once for each caption, draw and picture and reads the error; `a caption at
a time` is the published Diffusion Classifier's loop (Li et al., 2023, eval_prob_adaptive.py): batches of one caption's
draws of one picture, read after each; `ours` is `DiffusionLearner.surprise`. The figures are for scores (a caption and ∅)
and for questions (candidates and ∅).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import device_name, flops, meta_inputs, on_meta, peak_gigabytes, synchronised, unet_forward_flops
from torch import nn

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.files import write_json
from diffusion_sft.learner import NULL_CUE, Query
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.modes import evaluating
from diffusion_sft.machine import matrix_rate
from diffusion_sft.numerics.noise import normals
from diffusion_sft.numerics.quadrature import draw_levels, estimator_named
from diffusion_sft.probe.scores import own_caption
from diffusion_sft.records import ConceptSet, Draws, Example, identity_seed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One way of reading, timed over all queries."""

    what: str
    way: str
    batch_size: int
    evaluations: int
    evaluations_per_second: float
    utilisation: float
    """Forward FLOPs over the measured rate of matrix products."""
    peak_gigabytes: float | None


class _Reached(Exception):
    """The first attention to the text is about to be computed."""


def shared_part(unet: nn.Module, resolution: int) -> float:
    """The share of a forward pass before the first attention to the text, which captions of one noisy latent share."""
    copy, inputs = on_meta(unet), meta_inputs(unet, resolution)
    first = next(module for name, module in copy.named_modules() if name.endswith("attn2"))

    def stop(*_: Any) -> None:
        raise _Reached

    def until_text() -> None:
        first.register_forward_pre_hook(stop)
        try:
            with torch.device("meta"):
                copy(**inputs)
        except _Reached:
            return

    return flops(until_text) / unet_forward_flops(unet, resolution)


def one_at_a_time(learner: DiffusionLearner, queries: Sequence[Query], draws: Draws) -> None:
    """A network call and a number for every caption and draw."""
    for query in queries:
        target = learner.targets([query.example])[0].to(learner.device)
        levels = draw_levels(estimator_named("default"), learner.schedule, draws.count, draws.seed)
        for cue in (NULL_CUE, *query.cues):
            for draw in range(draws.count):
                _errors(learner, target, levels.timesteps[draw : draw + 1], [cue], draws.seed)[0].item()


def a_caption_at_a_time(learner: DiffusionLearner, queries: Sequence[Query], draws: Draws, batch_size: int) -> None:
    """Batches of one caption's draws of one picture, each read before the next is begun."""
    for query in queries:
        target = learner.targets([query.example])[0].to(learner.device)
        levels = draw_levels(estimator_named("default"), learner.schedule, draws.count, draws.seed)
        for cue in (NULL_CUE, *query.cues):
            for start in range(0, draws.count, batch_size):
                timesteps = levels.timesteps[start : start + batch_size]
                _errors(learner, target, timesteps, [cue] * len(timesteps), draws.seed).cpu()


def _errors(
    learner: DiffusionLearner, target: torch.Tensor, timesteps: np.ndarray, cues: list[str], seed: int
) -> torch.Tensor:
    seeds = [identity_seed(seed, "bench", int(timestep)) for timestep in timesteps]
    noise = normals(target.shape, seeds, learner.device)
    noisy = learner.schedule.add_noise(target.expand_as(noise), noise, timesteps)
    prediction = learner.predict(noisy, timesteps, cues)
    predicted = learner.schedule.noise_from_prediction(prediction, noisy, timesteps)
    return (noise - predicted).flatten(1).square().mean(dim=1)


def run(chosen: argparse.Namespace, examples: list[Example], concept_set: ConceptSet) -> None:
    """Time every way on both kinds of queries, print, write."""
    device = torch.device(chosen.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    learner = DiffusionLearner.load(chosen.base, device=device, dtype=dtype)
    side = learner.resolution // learner.pipeline.vae_scale_factor
    unet = learner.pipeline.unet
    per_evaluation, rate = unet_forward_flops(unet, side), matrix_rate(device, dtype)
    asked = make_questions(concept_set, examples, AnswerConfig(num_renderings=1), 0)
    kinds = {"scores": [own_caption(e) for e in examples], "questions": [q.query for q in asked][: len(examples)]}
    speeds: list[Speed] = []

    def add(what: str, way: str, batch_size: int, read: Callable[[], object], evaluations: int) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = synchronised(device)
        read()
        found = evaluations / (synchronised(device) - started)
        speeds.append(
            Speed(
                what=what,
                way=way,
                batch_size=batch_size,
                evaluations=evaluations,
                evaluations_per_second=found,
                utilisation=found * per_evaluation / rate,
                peak_gigabytes=peak_gigabytes(device),
            )
        )

    for what, queries in kinds.items():
        draws = Draws(seed=0, count=chosen.num_draws if what == "scores" else 16)
        few, cues = queries[: chosen.plain_examples], sum(1 + len({*q.cues} - {NULL_CUE}) for q in queries)
        few_cues = sum(1 + len(q.cues) for q in few)
        learner.surprise(queries[:1], draws, batch_size=chosen.batch_size)  # encodes, allocates, picks kernels
        with torch.no_grad(), evaluating(learner.network):
            learner.targets([query.example for query in queries])
            learner.encode_captions([cue for query in queries for cue in query.cues])
            one_at_a_time(learner, few[:1], Draws(seed=0, count=2))
            add(what, "one at a time", 1, lambda q=few, d=draws: one_at_a_time(learner, q, d), few_cues * draws.count)
            add(
                what,
                "a caption at a time",
                min(chosen.batch_size, draws.count),
                lambda q=few, d=draws: a_caption_at_a_time(learner, q, d, chosen.batch_size),
                few_cues * draws.count,
            )
        for size in sorted({max(1, chosen.batch_size // 4), chosen.batch_size, 2 * chosen.batch_size}):
            learner.surprise(queries[:2], draws, batch_size=size)
            add(
                what,
                "ours",
                size,
                lambda q=queries, d=draws, s=size: learner.surprise(q, d, batch_size=s),
                cues * draws.count,
            )
        if chosen.compile_mode:
            unet.compile(mode=chosen.compile_mode)
            learner.surprise(queries, draws, batch_size=chosen.batch_size)
            add(
                what,
                f"ours, compiled ({chosen.compile_mode})",
                chosen.batch_size,
                lambda q=queries, d=draws: learner.surprise(q, d, batch_size=chosen.batch_size),
                cues * draws.count,
            )
            unet._compiled_call_impl = None
    shared = shared_part(unet, side)
    seeds = list(range(chosen.batch_size // 4))
    started = synchronised(device)
    for _ in range(10):
        normals((unet.config.in_channels, side, side), seeds, device)
    noise_seconds = (synchronised(device) - started) / 10
    title = (
        f"{chosen.base}, {side}x{side} latents, {dtype}, {device_name(device)}; {per_evaluation / 1e12:.3g} TFLOP an "
        f"evaluation, matrix products at {rate / 1e12:.3g} TFLOP/s: at most {rate / per_evaluation:.0f} a second"
    )
    _print(speeds, title)
    print(
        f"{shared:.1%} of an evaluation comes before the first attention to the text; "
        f"the noises of a batch of {chosen.batch_size} take {1e3 * noise_seconds:.2f} ms"
    )
    found = {"speeds": [asdict(speed) for speed in speeds], "shared_part": shared, "noise_seconds": noise_seconds}
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    write_json(Path(chosen.output), {"settings": settings, "device": device_name(device), **found})
    print(f"\nwritten to {chosen.output}")


def _print(speeds: Sequence[Speed], title: str) -> None:
    print(f"\n{title}")
    print(f"{'':<10} {'way':<28} {'batch':>6} {'evaluations/s':>14} {'times':>6} {'of the floor':>13} {'peak GB':>8}")
    plain: dict[str, float] = {}
    for speed in speeds:
        base = plain.setdefault(speed.what, speed.evaluations_per_second)
        memory = "" if speed.peak_gigabytes is None else f"{speed.peak_gigabytes:.1f}"
        print(
            f"{speed.what:<10} {speed.way:<28} {speed.batch_size:6d} {speed.evaluations_per_second:14.1f} "
            f"{speed.evaluations_per_second / base:6.2f} {speed.utilisation:13.1%} {memory:>8}"
        )
