"""Parareal's sweeps over the blocks of one chain; the solver is `fixed_point.Parareal`.

    x_{b+1} ← F(x_b) + G(new x_b) − G(x_b)   (Lions et al., 2001; for diffusion models Selvam et al., 2024)

F takes a block's own steps one after the other, all blocks side by side; G are the block's equations with f frozen at
its start, whose value F's first step needs anyway.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .triangular import Chain, Course, Request


@dataclass(kw_only=True, eq=False)
class _Block:
    """Equations first … last − 1, f at the block's start, and where G leads from there."""

    first: int
    last: int
    value: torch.Tensor
    jump: torch.Tensor


def sweep_blocks(
    chain: Chain, initial: torch.Tensor | None, length: int | None, tolerance: float, max_rounds: int | None
) -> Generator[Request, torch.Tensor, Course]:
    """Sweep until the gaps between blocks are closed; F leaves no defect anywhere else.

    Args:
        initial: states (N + 1, d) to start from; None to start from jumps in turn.
        length: of a block; None for √N.
    """
    course, total = Course.begin(chain, initial), chain.num_steps
    states = course.states
    starts = range(0, total, length or max(1, round(total**0.5)))
    blocks = yield from _cut(chain, states, starts, guessed=initial is not None)
    while blocks and len(course.frontiers) < (max_rounds or total):
        first = blocks[0].first
        ends, values = yield from _fine(chain, states, blocks)
        gaps = np.concatenate(
            [chain.relative(b.last - 1, (end - states[b.last])[None]) for b, end in zip(blocks, ends, strict=True)]
        )
        residuals = np.zeros(total - first)
        residuals[[block.last - 1 - first for block in blocks]] = gaps
        accepted = first + chain.accepts(first, residuals, tolerance)
        count = min(sum(block.last <= accepted for block in blocks) + 1, len(blocks))
        solved = blocks[count - 1].last
        # The blocks that are accepted are joined by one sweep over all their equations, whose f is known.
        states[first + 1 : solved + 1] = chain.settle(
            first, states[first : first + 1], chain.drive(first, values[: solved - first])
        )
        blocks, ends = blocks[count:], ends[count:]
        for block, end in zip(blocks, ends, strict=True):
            before = block.jump
            yield from _jump(chain, states, block)
            states[block.last] = end + block.jump - before
        course.record(first, residuals, solved, states[total])
    return course


def _cut(
    chain: Chain, states: torch.Tensor, starts: range, guessed: bool
) -> Generator[Request, torch.Tensor, list[_Block]]:
    """The blocks; their ends are where jumps in turn lead, unless they are guessed already."""
    nothing = states[0]
    ends = [*starts[1:], chain.num_steps]
    blocks = [_Block(first=a, last=b, value=nothing, jump=nothing) for a, b in zip(starts, ends, strict=True)]
    if not guessed:
        for block in blocks:
            yield from _jump(chain, states, block)
            states[block.last] = block.jump
        return blocks
    begun = torch.tensor(list(starts), device=states.device)
    values = yield begun, states[begun]
    for block, value in zip(blocks, values, strict=True):
        _take(chain, states, block, value)
    return blocks


def _jump(chain: Chain, states: torch.Tensor, block: _Block) -> Generator[Request, torch.Tensor, None]:
    """Ask for f at the block's start, and note where G leads."""
    here = slice(block.first, block.first + 1)
    values = yield torch.tensor([block.first], device=states.device), states[here]
    _take(chain, states, block, values[0])


def _take(chain: Chain, states: torch.Tensor, block: _Block, value: torch.Tensor) -> None:
    drive = chain.drive(block.first, value.expand(block.last - block.first, -1))
    block.value = value
    block.jump = chain.sweep(block.first, states[block.first : block.first + 1], drive)[-1]


def _fine(
    chain: Chain, states: torch.Tensor, blocks: Sequence[_Block]
) -> Generator[Request, torch.Tensor, tuple[list[torch.Tensor], torch.Tensor]]:
    """F of all blocks side by side, which leaves its states inside them; its ends, and f of all equations, (m, d)."""
    first, last = blocks[0].first, blocks[-1].last
    begun = torch.tensor([block.first for block in blocks], device=states.device)
    fine, value = states[begun], torch.stack([block.value for block in blocks])
    ends, values = list(fine), states.new_zeros(last - first, states.shape[1])
    for k in range(blocks[0].last - first):
        # The last block may be shorter than the others.
        count = len(blocks) if blocks[-1].first + k < last else len(blocks) - 1
        now = begun[:count] + k
        if k:
            value = yield now, fine[:count]
        value = value[:count]
        values[now - first] = value
        driven = chain.gain[now] * value
        fine = chain.decay[now] * fine[:count] + (driven if chain.offsets is None else driven + chain.offsets[now])
        ends[:count] = fine
        for number, block in enumerate(blocks[:count]):
            if block.first + k + 1 < block.last:
                states[block.first + k + 1] = fine[number]
    return ends, values
