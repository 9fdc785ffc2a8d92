"""Which noise makes this picture? x_T by DDIM inversion, what the sampler makes of it, and how Gaussian it is (S2).

The trajectory is that of the inversion error (`reconstruction.py`), from one end to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from ..errors import NotFinite
from ..learner import Query, Reconstruction
from ..numerics.gaussianity import gaussianity
from ..systems import Inversion
from .denoising import Denoiser
from .modes import evaluating
from .reconstruction import trajectory, travel


class DenoisingLearner(Denoiser, Protocol):
    """A denoiser with a network that may be in training."""

    network: nn.Module


def invert(
    learner: DenoisingLearner, queries: Sequence[Query], num_inference_steps: int, batch_size: int
) -> list[Inversion]:
    """x_T of each query's target under its example's own caption, `batch_size` trajectories at a time; order as given.

    Raises:
        UserError: more steps than trained timesteps, or a state that is not finite.
    """
    how = Reconstruction(kind="inversion", num_inference_steps=num_inference_steps)
    timesteps = trajectory(learner.schedule, how)
    targets = learner.targets([query.example for query in queries])
    found = []
    with torch.no_grad(), evaluating(learner.network):
        for start in range(0, len(queries), batch_size):
            chunk = queries[start : start + batch_size]
            clean = torch.stack(targets[start : start + batch_size]).to(learner.device)
            captions = [query.example.caption for query in chunk]
            noise = travel(learner, clean, timesteps, captions)
            back = travel(learner, noise, timesteps[::-1], captions)
            errors = (back - clean).flatten(1).square().mean(dim=1, dtype=torch.float64)
            found += [
                _inversion(query, own, float(error))
                for query, own, error in zip(chunk, noise.cpu(), errors, strict=True)
            ]
    return found


def _inversion(query: Query, noise: torch.Tensor, residual: float) -> Inversion:
    example = query.example
    if not (torch.isfinite(noise).all() and residual < float("inf")):
        raise NotFinite(f"{example.id}: its inversion is not finite")
    return Inversion(
        concept=example.concept, example_id=example.id, residual=residual, gaussianity=gaussianity(noise.numpy())
    )
