"""How fast do neighbouring trajectories part? The largest Lyapunov exponent along a trajectory, by finite differences.

    λ = (1 / N) log(‖J_{N−1} … J_0 v‖ / ‖v‖)   nats per step, J_n the Jacobian of step n at its state, v random

Negative where errors die out, positive where they grow: what decides how well the steps can be taken in parallel
(Gonzalez et al., 2025).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def lyapunov_exponents(
    step: Callable[[int, torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    num_steps: int,
    perturbation: float,
    seed: int,
) -> np.ndarray:
    """Follow each trajectory and a neighbour of it, which is brought back to its distance after every step.

    With N finite the first direction counts for O(1/N). A linear step is read without error, whatever the
    perturbation; else choose one well above the step's own rounding and below what the step can bend over.

    Args:
        step: (n, states (2B, *shape)) -> next states; rows b and B + b belong together.
        start: (B, *shape).
        num_steps: N.
        perturbation: the neighbour's distance, RMS over the dimensions.
        seed: of the first direction, which is the same for all, so that none depends on its company.

    Returns:
        (B,) float64, nats per step; −inf where a step makes the two the same.
    """
    if num_steps < 1 or not perturbation > 0:
        raise ValueError(f"num_steps={num_steps} and perturbation={perturbation} must be above 0")
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(start.shape[1:], generator=generator, dtype=torch.float64)
    direction = drawn.to(start.dtype).to(start.device).expand_as(start)
    states, total = start, torch.zeros(len(start), dtype=torch.float64)
    direction = direction / _rms(direction)
    for number in range(num_steps):
        both = step(number, torch.cat([states, states + perturbation * direction]))
        states, neighbours = both.chunk(2)
        apart = _rms(neighbours - states)
        total += torch.log(apart.flatten().cpu().double() / perturbation)
        direction = torch.where(apart > 0, (neighbours - states) / apart, direction)
    return np.asarray((total / num_steps).numpy())


def _rms(states: torch.Tensor) -> torch.Tensor:
    """Of each row, (B, 1 …)."""
    return states.square().mean(dim=tuple(range(1, states.ndim)), keepdim=True).sqrt()
