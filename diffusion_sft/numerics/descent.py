"""Adam from many starts at once, each on its own: how low, how soon, and where.

One start's path is a function of its own values and gradients alone, so that starts can share every pass through a
network without knowing of each other. The step falls linearly to nothing over the budget, and the best point on the
way is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam (Kingma & Ba, 2015), as published."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What is known of some starts' points."""

    values: torch.Tensor
    """(num_points,)."""
    gradients: torch.Tensor
    """(num_points, num_free)."""
    solved: torch.Tensor
    """bool (num_points,): whether a point does what is asked for."""


Evaluate = Callable[[torch.Tensor, torch.Tensor], Evaluation]
"""From points (num_points, num_free) and the numbers of their starts (num_points,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """Where one start went."""

    residual: float
    """The lowest value within the budget."""
    num_steps: int
    """Steps until the value came within a tenth of the whole descent of that."""
    first_solved: int | None
    """After how many steps a point did what is asked for; None: none did."""
    solution: torch.Tensor
    """The point of the lowest value, (num_free,)."""
    history: np.ndarray
    """The value before each step and after the last, until the start was left."""


def descend(
    evaluate: Evaluate,
    starts: torch.Tensor,
    *,
    num_steps: int,
    learning_rate: float,
    enough: torch.Tensor | None = None,
) -> list[Descent]:
    """Adam with a linearly falling step.

    Args:
        evaluate: values and gradients of the points that are still on their way.
        starts: (num_starts, num_free).
        num_steps: the budget of each.
        learning_rate: the first step's size.
        enough: (num_starts,): a start whose value comes this low is left there; None: never.

    Returns:
        One for each start. A value that is not a number is never the lowest: a residual of +∞ means there was none.
    """
    points, lowest = starts.clone(), starts.clone()
    first, second = torch.zeros_like(starts), torch.zeros_like(starts)
    best = torch.full((len(starts),), torch.inf, dtype=starts.dtype, device=starts.device)
    histories: list[list[float]] = [[] for _ in starts]
    solved: list[int | None] = [None] * len(starts)
    active = torch.arange(len(starts), device=starts.device)
    for step in range(num_steps + 1):
        found = evaluate(points[active], active)
        better = found.values < best[active]
        best[active[better]] = found.values[better].to(best.dtype)
        lowest[active[better]] = points[active[better]]
        for number, value, met in zip(active.tolist(), found.values.tolist(), found.solved.tolist(), strict=True):
            histories[number].append(value)
            if met and solved[number] is None:
                solved[number] = step
        going = torch.ones_like(active, dtype=torch.bool) if enough is None else ~(found.values <= enough[active])
        active = active[going]
        if step == num_steps or not len(active):
            break
        gradient = found.gradients[going]
        first[active] = BETAS[0] * first[active] + (1 - BETAS[0]) * gradient
        second[active] = BETAS[1] * second[active] + (1 - BETAS[1]) * gradient.square()
        direction = first[active] / (1 - BETAS[0] ** (step + 1))
        spread = (second[active] / (1 - BETAS[1] ** (step + 1))).sqrt()
        points[active] -= learning_rate * (1 - step / num_steps) * direction / (spread + EPSILON)
    return [
        Descent(
            residual=float(best[number]),
            num_steps=steps_to_floor(np.array(histories[number])),
            first_solved=solved[number],
            solution=lowest[number],
            history=np.array(histories[number]),
        )
        for number in range(len(starts))
    ]


def steps_to_floor(history: np.ndarray) -> int:
    """The first place whose value is within a tenth of the whole descent of the lowest; 0 where nothing descended."""
    floor = float(np.nanmin(history)) if np.isfinite(history).any() else np.nan
    near = np.flatnonzero(history <= floor + 0.1 * (history[0] - floor))
    return int(near[0]) if len(near) else 0
