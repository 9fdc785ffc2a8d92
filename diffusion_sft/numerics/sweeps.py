"""Discrete triangular systems, solved by sweeps: every unknown at once, or block after block.

    y_i = F_i(y_<i),  i = 1..m        Jacobi:        y_i ← F_i(y_<i) for all i, until it is known to be the solution
                                      Gauss–Seidel:  blocks of unknowns in their order, Jacobi inside each

There is exactly one solution. After j sweeps the first j values are right whatever they began with, so at most m sweeps
reach it (Song et al., 2021; Santilli et al., 2023); how many fewer depends on F and on the start. A sweep tells how far
its result is right: up to and with the first value that it changed. So the last sweep needs no other to confirm it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Sweep = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""F of some rows: takes their numbers (b,) and all of their values (b, m), returns F_i of each value's place, (b, m). All
int64. The value of place i depends on the values before it alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteSolution:
    """One row's solution and the way there, m values in R rounds."""

    values: np.ndarray
    """(m,) int64: where the sweeps ended."""
    solved: bool
    """Whether that is known to be the solution; False where the rounds ran out."""
    rounds: int
    """R: sweeps until then, at most m. None is spent on confirming."""
    history: np.ndarray
    """(R + 1, m) int64: the start, and the values after each round."""
    residuals: np.ndarray
    """(R, m): 1 where a value is not what those before it ask for, at the iterate that a round starts from; NaN outside
    the round's block."""
    first_passage: int
    """The round after which the final values stood for good; 0 if the start was right."""
    num_evaluations: int
    """Equations that were evaluated: m in each round, or the block's."""


def jacobi(
    sweep: Sweep, start: np.ndarray, max_rounds: int | None = None, *, lengths: Sequence[int] | None = None
) -> list[DiscreteSolution]:
    """Update all values of every row at once until each row is solved; solved rows are not evaluated any more.

    Args:
        sweep: the equations.
        start: (num_rows, m) int64.
        max_rounds: stop rows that are not solved by then; None means m, which is enough.
        lengths: the number of each row's unknowns where they differ; the columns beyond are passed on as they are.
    """
    return gauss_seidel_jacobi(sweep, start, max(start.shape[1], 1), max_rounds, lengths=lengths)


def gauss_seidel_jacobi(
    sweep: Sweep,
    start: np.ndarray,
    block: int,
    max_rounds: int | None = None,
    *,
    lengths: Sequence[int] | None = None,
) -> list[DiscreteSolution]:
    """Solve blocks of values in their order, each by Jacobi sweeps; every row goes on to its next block by itself.

    With a block of m this is `jacobi`, with one of 1 it is one value after the other, in m rounds.

    Args:
        sweep: the equations.
        start: (num_rows, m) int64; values stay as they are until their block's turn.
        block: values that are updated at once.
        max_rounds, lengths: as for `jacobi`.

    Raises:
        ValueError: a block of no values, or a length outside 1..m.
    """
    if block < 1:
        raise ValueError(f"a block of {block} values; it needs one at least")
    columns = start.shape[1]
    rows = [_Row(own, length, block) for own, length in zip(start, _lengths(start, lengths), strict=True)]
    for _ in range(columns if max_rounds is None else max_rounds):
        live = np.array([number for number, row in enumerate(rows) if not row.solved], dtype=np.int64)
        if not len(live):
            break
        tokens = np.array(start[live], dtype=np.int64)
        for place, number in enumerate(live):
            tokens[place, : rows[number].length] = rows[number].history[-1]
        for number, asked in zip(live, sweep(live, tokens), strict=True):
            rows[number].update(asked)
    return [row.solution() for row in rows]


def _lengths(start: np.ndarray, lengths: Sequence[int] | None) -> list[int]:
    count, columns = start.shape
    found = [columns] * count if lengths is None else [int(length) for length in lengths]
    if columns and not all(1 <= length <= columns for length in found):
        raise ValueError(f"lengths between {min(found)} and {max(found)}; rows hold 1 to {columns} values")
    return found


class _Row:
    """One row on its way: values before `begin` are solved, those before `known` too."""

    def __init__(self, start: np.ndarray, length: int, block: int) -> None:
        self.length, self.block = length, block
        self.history = [np.array(start[:length], dtype=np.int64)]
        self.residuals: list[np.ndarray] = []
        self.begin = self.known = self.num_evaluations = 0

    @property
    def solved(self) -> bool:
        """Whether all values are known to be right."""
        return self.known >= self.length

    def update(self, asked: np.ndarray) -> None:
        """Take over what the equations ask for inside the block, and see how far that is right."""
        begin, end = self.begin, min(self.begin + self.block, self.length)
        values = self.history[-1].copy()
        changed = values[begin:end] != asked[begin:end]
        residual = np.full(self.length, np.nan)
        residual[begin:end] = changed
        values[begin:end] = asked[begin:end]
        self.history.append(values)
        self.residuals.append(residual)
        self.num_evaluations += end - begin
        self.known = begin + int(np.argmax(changed)) + 1 if changed.any() else end
        if self.known >= end:
            self.begin = end

    def solution(self) -> DiscreteSolution:
        """What has become of it."""
        history = np.array(self.history)
        wrong = np.flatnonzero((history != history[-1]).any(axis=1))
        return DiscreteSolution(
            values=history[-1],
            solved=self.solved,
            rounds=len(self.residuals),
            history=history,
            residuals=np.array(self.residuals).reshape(len(self.residuals), self.length),
            first_passage=int(wrong[-1]) + 1 if len(wrong) else 0,
            num_evaluations=self.num_evaluations,
        )
