"""Triangular systems: N steps in a row, read as N equations in as many unknown states.

    x_{n+1} = a_n x_n + b_n f_n(x_n) + o_n,   n = 0 … N−1,   x_0 given

Equation n holds states n and n + 1 alone, so there is exactly one solution, the sequential trajectory. The linear part
a_n x_n + o_n is known beforehand; what costs is f, which any number of equations may be asked for at once. A solver
sees one trajectory (`Chain`) and says which values of f it wants; `solve_each` asks for those of all trajectories in
one call, so that what a trajectory comes to does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch

Evaluate: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""f of m rows: members (m,) and steps n (m,), int64 on the states' device, states x_n (m, *shape) -> (m, *shape)."""
Request: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Values of f that one trajectory wants: steps (m,) int64 and flat states (m, d)."""
Stopped: TypeAlias = Literal["exact", "tolerance", "max_rounds", "not finite"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TriangularSystem:
    """The equations of B trajectories that share a_n, b_n and f, each with its own start and offsets."""

    start: torch.Tensor
    """x_0, (B, *shape); its type and device are those of all arithmetic but f's own."""
    decay: np.ndarray
    """a_n, (N,) float64."""
    gain: np.ndarray
    """b_n, (N,) float64."""
    offsets: torch.Tensor | None = None
    """o_n, (N, B, *shape); None for none."""
    evaluate: Evaluate
    scale: np.ndarray
    """What a defect of equation n is measured against, (N,) float64, positive: the noise level of state n + 1."""
    rounding: np.ndarray | None = None
    """Defects over the scale that f's own rounding leaves in any case, (N,); None where f is as exact as the states."""

    def __post_init__(self) -> None:
        shapes = {np.shape(self.decay), np.shape(self.gain), np.shape(self.scale)}
        if shapes != {(self.num_steps,)} or self.num_steps < 1:
            raise ValueError(f"decay, gain and scale must be vectors of one length, not of shapes {sorted(shapes)}")
        if not (np.asarray(self.scale) > 0).all():
            raise ValueError("scale must be positive: a defect is measured against it")
        if self.offsets is not None and self.offsets.shape != (self.num_steps, *self.start.shape):
            raise ValueError(f"offsets of shape {tuple(self.offsets.shape)} are not one for each step and start")

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.decay)

    @property
    def num_trajectories(self) -> int:
        """B."""
        return self.start.shape[0]

    def step(self, number: int, states: torch.Tensor, members: torch.Tensor | None = None) -> torch.Tensor:
        """x_{n+1} from x_n for n = `number`: (m, *shape) of these trajectories, of all where none are named."""
        if members is None:
            members = torch.arange(self.num_trajectories, device=states.device)
        values = self.evaluate(members, torch.full_like(members, number), states)
        moved = float(self.decay[number]) * states + float(self.gain[number]) * values
        return moved if self.offsets is None else moved + self.offsets[number, members]

    def chain(self, member: int) -> Chain:
        """The equations of one trajectory."""
        offsets = None if self.offsets is None else self.offsets[:, member].flatten(1)
        return Chain(
            start=self.start[member].flatten(),
            decay=self.like_start(self.decay)[:, None],
            gain=self.like_start(self.gain)[:, None],
            offsets=offsets,
            scale=np.asarray(self.scale),
            rounding=np.zeros(self.num_steps) if self.rounding is None else np.asarray(self.rounding),
            products=self._products,
        )

    def like_start(self, values: np.ndarray) -> torch.Tensor:
        """Numbers in the type and on the device of the states."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.start.dtype).to(self.start.device)

    @cached_property
    def _products(self) -> torch.Tensor:
        """Entry (n, j), (N, N + 1): a_j a_{j+1} … a_n; 1 for j = n + 1, 0 beyond."""
        n = self.num_steps
        table = np.zeros((n, n + 1))
        for row in range(n):
            table[row, : row + 1] = (table[row - 1, : row + 1] if row else 1.0) * self.decay[row]
            table[row, row + 1] = 1.0
        return self.like_start(table)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """One trajectory's equations on flat states (d,), and their linear part in closed form."""

    start: torch.Tensor
    decay: torch.Tensor
    gain: torch.Tensor
    offsets: torch.Tensor | None
    scale: np.ndarray
    rounding: np.ndarray
    products: torch.Tensor

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.scale)

    def accepts(self, first: int, residuals: np.ndarray, tolerance: float) -> int:
        """How many of the states after x_first are accepted: those before the first residual above tolerance / N.

        The share 1/N is the triangle inequality's: all N defects together then amount to at most `tolerance`, and so
        does the error of x_N as far as later steps do not magnify it (Shih et al., 2023, give every step the same share
        of the total variation). Nothing is asked to close further than f's own rounding lets it, unless the tolerance
        is 0.
        """
        rounding = self.rounding[first : first + len(residuals)] if tolerance > 0 else 0.0
        passed = residuals <= np.maximum(tolerance / self.num_steps, rounding)
        return len(passed) if passed.all() else int(np.argmin(passed))

    def drive(self, first: int, values: torch.Tensor) -> torch.Tensor:
        """b_n f_n + o_n for n = first, first + 1 …, from the values of f, (m, d)."""
        last = first + len(values)
        driven = self.gain[first:last] * values
        return driven if self.offsets is None else driven + self.offsets[first:last]

    def defects(self, first: int, states: torch.Tensor, drive: torch.Tensor) -> np.ndarray:
        """RMS of a_n x_n + (b_n f_n + o_n) − x_{n+1} over the scale, (m,) float64, from m + 1 states."""
        last = first + len(drive)
        differences = self.decay[first:last] * states[:-1] + drive - states[1:]
        return self.relative(first, differences)

    def relative(self, first: int, differences: torch.Tensor) -> np.ndarray:
        """RMS of the differences of states first + 1 … over their scale, (m,) float64."""
        rms = differences.square().mean(dim=1).sqrt().cpu().double().numpy()
        return np.asarray(rms / self.scale[first : first + len(differences)])

    def sweep(self, first: int, states: torch.Tensor, drive: torch.Tensor, order: int | None = None) -> torch.Tensor:
        """F^(k): each state from the one k before it, or from x_first where that is later, with the drive between.

        x_{n+1} = (a_m … a_n) x_m + Σ_{j=m}^{n} (a_{j+1} … a_n)(b_j f_j + o_j), m = max(first, n + 1 − k), which is the
        order-k system of Tang et al. (2024): all k have the same solution. A drive that is not finite counts
        as none, so that what far states do never reaches near ones.

        Args:
            states: x_first … (m or m + 1 of them, d).
            drive: (m, d).
            order: k; None for the whole history, which needs x_first alone.

        Returns:
            x_{first+1} … x_{first+m}, (m, d).
        """
        count = len(drive)
        last = first + count
        weights = self.products[first:last, first + 1 : last + 1]
        rows = torch.arange(count, device=drive.device)
        anchors = torch.zeros_like(rows) if order is None else (rows + 1 - order).clamp(min=0)
        if order is not None:
            weights = torch.where(rows[None, :] >= anchors[:, None], weights, 0.0)
        finite = torch.where(torch.isfinite(drive), drive, 0.0)
        return self.products[first + rows, first + anchors][:, None] * states[anchors] + weights @ finite

    def settle(self, first: int, states: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        """The sweep as what is final: x_{n+1} is not finite where its own drive is not."""
        own = torch.where(torch.isfinite(drive), torch.zeros_like(drive), drive)
        return self.sweep(first, states, drive) + own


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """What a solver made of one trajectory. That it did not converge is a result and not an error."""

    states: torch.Tensor
    """x_0 … x_N, (N + 1, *shape)."""
    rounds: int
    depth: int
    """Calls of f that had to wait for one another."""
    num_evaluations: int
    """Rows that f was asked for."""
    residuals: np.ndarray
    """(rounds, N): RMS over the scale of every equation's defect at the iterate that the round started from, NaN where
    it was not evaluated, infinite where f was not a number."""
    frontiers: np.ndarray
    """(rounds,): how many of the N states were solved after each round."""
    finals: torch.Tensor
    """(rounds, *shape): the estimate of x_N after each round; of a window that has not come there, its last state."""
    stopped: Stopped
    """exact: every state by its own step from a solved one. tolerance: some were accepted for a small residual. not
    finite: the last state is no number, and nothing is solved."""


@dataclass(kw_only=True, eq=False)
class Course:
    """A solver's way along one chain so far."""

    states: torch.Tensor
    """(N + 1, d)."""
    solved: int = 0
    """States 1 … solved are final."""
    approximate: bool = False
    """Whether any of those still had a residual when it was accepted."""
    residuals: list[np.ndarray] = field(default_factory=list)
    frontiers: list[int] = field(default_factory=list)
    finals: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def begin(cls, chain: Chain, initial: torch.Tensor | None) -> Course:
        """At the initial trajectory (N + 1, d), or with copies of x_0."""
        states = chain.start.repeat(chain.num_steps + 1, 1) if initial is None else initial.clone()
        states[0] = chain.start
        return cls(states=states)

    def record(self, first: int, residuals: np.ndarray, solved: int, final: torch.Tensor) -> None:
        """End a round that evaluated equations first, first + 1 …, after which `solved` states are final."""
        row = np.full(len(self.states) - 1, np.nan)
        # NaN is kept for what was not evaluated.
        row[first : first + len(residuals)] = np.where(np.isnan(residuals), np.inf, residuals)
        # The state after the first unsolved equation is its own step; those before were accepted as they stood.
        accepted = residuals[: max(0, solved - first - 1)]
        self.approximate = self.approximate or bool((accepted > 0).any())
        self.residuals.append(row)
        self.frontiers.append(solved)
        self.finals.append(final.clone())
        self.solved = solved

    @property
    def stopped(self) -> Stopped:
        """Why it ended, if it ended here."""
        if self.solved < len(self.states) - 1:
            return "max_rounds"
        if not bool(torch.isfinite(self.states[-1]).all()):
            return "not finite"
        return "tolerance" if self.approximate else "exact"


Solve: TypeAlias = Callable[[Chain, torch.Tensor | None], Generator[Request, torch.Tensor, Course]]
"""One trajectory's solver: takes the initial states (N + 1, d) or None, yields requests, is sent values (m, d)."""


def solve_each(system: TriangularSystem, solve: Solve, initial: torch.Tensor | None) -> list[Solution]:
    """Run one solver for every trajectory, all their requests of a turn in one call of f.

    Args:
        initial: (B, N + 1, *shape), the trajectories to start from; None for copies of the starts.
    """
    shape, device = system.start.shape[1:], system.start.device
    if initial is not None and initial.shape != (system.num_trajectories, system.num_steps + 1, *shape):
        raise ValueError(f"initial states of shape {tuple(initial.shape)} are not N + 1 of every trajectory")
    members = range(system.num_trajectories)
    starts = [None if initial is None else initial[b].flatten(1).to(system.start) for b in members]
    running = {b: solve(system.chain(b), starts[b]) for b in members}
    wanted = {b: next(generator) for b, generator in running.items()}
    asked: dict[int, list[int]] = {b: [] for b in members}
    courses: dict[int, Course] = {}
    while wanted:
        counts = {b: len(steps) for b, (steps, _) in wanted.items()}
        numbers = torch.tensor(list(counts), device=device)
        rows = numbers.repeat_interleave(torch.tensor(list(counts.values()), device=device))
        steps = torch.cat([steps for steps, _ in wanted.values()])
        states = torch.cat([states for _, states in wanted.values()])
        values = system.evaluate(rows, steps, states.reshape(-1, *shape)).to(states).flatten(1)
        for b, own in zip(list(wanted), values.split(list(counts.values())), strict=True):
            asked[b].append(len(own))
            try:
                wanted[b] = running[b].send(own)
            except StopIteration as end:
                courses[b] = end.value
                del wanted[b]
    return [_solution(courses[b], asked[b], shape) for b in members]


def _solution(course: Course, asked: list[int], shape: torch.Size) -> Solution:
    return Solution(
        states=course.states.reshape(-1, *shape),
        rounds=len(course.frontiers),
        depth=len(asked),
        num_evaluations=sum(asked),
        residuals=np.stack(course.residuals),
        frontiers=np.array(course.frontiers),
        finals=torch.stack(course.finals).reshape(-1, *shape),
        stopped=course.stopped,
    )
