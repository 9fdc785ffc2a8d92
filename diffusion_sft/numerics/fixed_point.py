"""Solvers of triangular systems that update many states at once, until every equation's residual has closed.

    Sequential   one state in each round, as the sampler does it
    Picard       F^(k) of the system for all states of a window (Shih et al., 2023; Tang et al., 2024)
    Anderson     the same, extrapolated from the last rounds (Tang et al., 2024, ParaTAA)
    Parareal     long jumps in turn, corrected by short steps in parallel (Lions et al., 2001; Selvam et al., 2024)

A solver is its own settings; called with a system, it gives one `Solution` for each trajectory. In every round the
leading states whose residual, RMS over the scale, is at most tolerance / N are accepted (`Chain.accepts`), and the one
after them takes its own step from the last of these, so that at least one state is solved in a round and N rounds
always suffice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch

from .parareal import sweep_blocks
from .triangular import Chain, Course, Request, Solution, TriangularSystem, solve_each

Update: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(first, x_first … x_{first+m}, drive of the m equations) -> new x_{first+1} … x_{first+m}."""


class Solver(Protocol):
    """What all solvers are."""

    def __call__(self, system: TriangularSystem, initial: torch.Tensor | None = None) -> list[Solution]:
        """Solve every trajectory, from copies of its start or from `initial`, (B, N + 1, *shape)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """N rounds of one step each: the reference."""

    def __call__(self, system: TriangularSystem, initial: torch.Tensor | None = None) -> list[Solution]:
        """Solve every trajectory; `initial` decides nothing but the residuals that are reported."""
        return Picard(window=1, tolerance=0.0)(system, initial)


@dataclass(frozen=True, kw_only=True)
class Picard:
    """Fixed-point sweeps of the order-k system over a window that moves on to the first state not solved."""

    window: int | None = None
    """How many equations are evaluated in a round; None for all that are left."""
    order: int | None = None
    """k; None for the window's whole history, 1 for Jacobi's sweeps."""
    tolerance: float = 1e-3
    """What all order-1 residuals may add up to, relative to the noise level; 0 for the sequential trajectory itself."""
    max_rounds: int | None = None
    """Rounds after which it gives up; None for no limit but N."""

    def __post_init__(self) -> None:
        _check(self.tolerance, window=self.window, order=self.order, max_rounds=self.max_rounds)

    def __call__(self, system: TriangularSystem, initial: torch.Tensor | None = None) -> list[Solution]:
        """Solve every trajectory."""

        def solve(chain: Chain, own: torch.Tensor | None) -> Generator[Request, torch.Tensor, Course]:
            return _rounds(chain, own, self, partial(_sweep, chain, self.order))

        return solve_each(system, solve, initial)


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Picard's sweeps, extrapolated by triangular Anderson acceleration (Tang et al., 2024)."""

    window: int | None = None
    """How many equations are evaluated in a round; None for all that are left."""
    order: int | None = None
    """k; None for the window's whole history."""
    memory: int = 2
    """Differences of successive rounds that are extrapolated from."""
    ridge: float = 1e-3
    """Added to the Gram matrix of the differences, as a share of its mean diagonal."""
    tolerance: float = 1e-3
    """What all order-1 residuals may add up to, relative to the noise level; 0 for the sequential trajectory itself."""
    max_rounds: int | None = None
    """Rounds after which it gives up; None for no limit but N."""

    def __post_init__(self) -> None:
        _check(self.tolerance, window=self.window, order=self.order, max_rounds=self.max_rounds, memory=self.memory)
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, not {self.ridge}")

    def __call__(self, system: TriangularSystem, initial: torch.Tensor | None = None) -> list[Solution]:
        """Solve every trajectory."""

        def solve(chain: Chain, own: torch.Tensor | None) -> Generator[Request, torch.Tensor, Course]:
            return _rounds(chain, own, self, _Mixing(chain, self))

        return solve_each(system, solve, initial)


@dataclass(frozen=True, kw_only=True)
class Parareal:
    """x_{b+1} ← F(x_b) + G(new x_b) − G(x_b) for the starts x_b of blocks of steps; a round is one sweep over blocks.

    F takes the block's own steps, all blocks side by side; G jumps over the block with f frozen at its start, which
    for a network that predicts ε is one long DDIM step. The blocks are solved after as many sweeps as there are.
    """

    block: int | None = None
    """Steps of a block; None for √N."""
    tolerance: float = 1e-3
    """What all gaps between blocks may add up to, relative to the noise level; 0 for the sequential trajectory itself."""
    max_rounds: int | None = None
    """Sweeps after which it gives up; None for no limit but the number of blocks."""

    def __post_init__(self) -> None:
        _check(self.tolerance, block=self.block, max_rounds=self.max_rounds)

    def __call__(self, system: TriangularSystem, initial: torch.Tensor | None = None) -> list[Solution]:
        """Solve every trajectory."""

        def solve(chain: Chain, own: torch.Tensor | None) -> Generator[Request, torch.Tensor, Course]:
            return sweep_blocks(chain, own, self.block, self.tolerance, self.max_rounds)

        return solve_each(system, solve, initial)


def _check(tolerance: float, **counts: int | None) -> None:
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def triangular_weights(differences: torch.Tensor, residuals: torch.Tensor, ridge: float) -> torch.Tensor:
    """γ_i = (B_i + λ_i I)⁻¹ d_i with B_i = Σ_{j≤i} ΔR_jᵀ ΔR_j and d_i = Σ_{j≤i} ΔR_jᵀ R_j, λ_i = ridge · tr(B_i) / m.

    State i learns from the states before it and from itself alone, which keeps the system triangular (Tang et al.,
    2024). An absolute λ, as published, would make the number of rounds depend on the data's scale.

    Args:
        differences: ΔR, (m, w, d).
        residuals: R, (w, d).

    Returns:
        γ, (w, m); 0 for states that have no differences.
    """
    gram = torch.einsum("awd,bwd->wab", differences, differences).cumsum(dim=0)
    right = torch.einsum("awd,wd->wa", differences, residuals).cumsum(dim=0)
    level = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    usable = torch.isfinite(level) & (level > 0)
    # Divided by the mean diagonal, so that the ridge is a share of it; states without differences get γ = 0.
    safe = torch.where(usable, level, torch.ones_like(level))[:, None]
    gram = torch.where(usable[:, None, None], gram / safe[:, :, None], torch.zeros_like(gram))
    right = torch.where(usable[:, None], right / safe, torch.zeros_like(right))
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge * identity, right[:, :, None])
    return weights[:, :, 0]


def _rounds(
    chain: Chain, initial: torch.Tensor | None, settings: Picard | Anderson, update: Update
) -> Generator[Request, torch.Tensor, Course]:
    """Rounds of an update over a window until all states are solved."""
    course, total = Course.begin(chain, initial), chain.num_steps
    steps = torch.arange(total, device=chain.start.device)
    states, reached = course.states, 0
    while course.solved < total and len(course.frontiers) < (settings.max_rounds or total):
        first = course.solved
        last = min(first + (settings.window or total), total)
        if initial is None:
            # What the window has not been at yet starts as a copy of the last state that it has been at.
            states[reached + 1 : last + 1] = states[reached].clone()
        values = yield steps[first:last], states[first:last]
        drive = chain.drive(first, values)
        residuals = chain.defects(first, states[first : last + 1], drive)
        solved = first + min(chain.accepts(first, residuals, settings.tolerance) + 1, last - first)
        proposal = update(first, states[first : last + 1], drive)
        # Those accepted are carried through the sweep once more, which costs nothing: their values of f are there.
        proposal[: solved - first] = chain.settle(first, states[first : first + 1], drive[: solved - first])
        states[first + 1 : last + 1] = proposal
        reached = last
        course.record(first, residuals, solved, states[total] if initial is not None else states[reached])
    if initial is None:
        states[reached + 1 :] = states[reached].clone()
    return course


def _sweep(chain: Chain, order: int | None, first: int, states: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
    return chain.sweep(first, states, drive, order)


class _Mixing:
    """Anderson's update of one chain, with the rounds that it remembers."""

    def __init__(self, chain: Chain, settings: Anderson) -> None:
        self.chain, self.settings = chain, settings
        self.past: deque[tuple[int, torch.Tensor, torch.Tensor]] = deque(maxlen=settings.memory + 1)
        """First equation, iterate x_{first+1} … and residual R of it, newest last."""

    def __call__(self, first: int, states: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        """x + R − (ΔX + ΔR) γ, R = F^(k)(x) − x."""
        swept = self.chain.sweep(first, states, drive, self.settings.order)
        old = states[1:].clone()
        residuals = torch.where(torch.isfinite(swept - old), swept - old, 0.0)
        self.past.append((first, old, residuals))
        if len(self.past) == 1:
            return swept
        pairs = [self._differences(before, after, first, len(old)) for before, after in pairwise(self.past)]
        moves, changes = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
        weights = triangular_weights(changes, residuals, self.settings.ridge)
        return swept - torch.einsum("mwd,wm->wd", moves + changes, weights)

    def _differences(
        self,
        before: tuple[int, torch.Tensor, torch.Tensor],
        after: tuple[int, torch.Tensor, torch.Tensor],
        first: int,
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ΔX and ΔR of the present window's states, (count, d) each; 0 for those that were not in both windows."""
        (start, x, r), (other_start, other_x, other_r) = before, after
        low = max(start, other_start, first)
        high = min(start + len(x), other_start + len(other_x), first + count)
        move, change = (torch.zeros_like(x[:1]).repeat(count, 1) for _ in range(2))
        if high > low:
            here, then, now = (slice(low - s, high - s) for s in (first, start, other_start))
            move[here] = other_x[now] - x[then]
            change[here] = other_r[now] - r[then]
        return torch.nan_to_num(move, 0.0, 0.0, 0.0), change
