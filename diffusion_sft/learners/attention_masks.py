"""Which drafted tokens see which, when one pass reads several guesses at once.

    columns            cached … cached   pending … pending   drafted … drafted
    pending rows       all               those up to it      none
    drafted rows       all               all                 as the draft's layout says

Models of transformers take such a mask in four dimensions as it is, with positions given beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

FEW_PENDING = 16
"""Masks of passes over more true tokens than that (a prompt's) are made anew each time."""


@dataclass(frozen=True)
class Layout:
    """What drafted tokens are: branches one after the other, then a lookahead window, level after level."""

    branches: tuple[int, ...]
    """Lengths: each branch sees itself from left to right, and no other."""
    num_columns: int
    num_levels: int
    """Level l of the window's column w sees the first level's columns 0..w and its own column's levels up to l, which is
    the trajectory that its column has been on (Fu et al., 2024, section 3)."""

    @property
    def num_tokens(self) -> int:
        """Of all branches and the window."""
        return sum(self.branches) + self.num_columns * self.num_levels


def visibility(layout: Layout) -> torch.Tensor:
    """Which drafted token (row) sees which, bool (num_tokens, num_tokens)."""
    branches = [torch.ones(length, length, dtype=torch.bool).tril() for length in layout.branches]
    level = torch.arange(layout.num_levels).repeat_interleave(layout.num_columns)
    column = torch.arange(layout.num_columns).repeat(layout.num_levels)
    first = (level == 0)[None] & (column[None] <= column[:, None])
    own = (column[None] == column[:, None]) & (level[None] <= level[:, None])
    return torch.block_diag(*branches, first | own).bool()


def draft_mask(
    layout: Layout, *, num_cached: int, num_pending: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The additive mask of one pass over pending and drafted tokens: 0 where seen, else the type's lowest number.

    Args:
        layout: of the drafted tokens.
        num_cached: true tokens whose keys are in the cache.
        num_pending: true tokens that are read in this pass, before the drafted ones.

    Returns:
        (1, 1, num_pending + num_drafted, num_cached + num_pending + num_drafted).
    """
    square = _square if num_pending <= FEW_PENDING else _square.__wrapped__
    return F.pad(square(layout, num_pending, dtype, device), (num_cached, 0))[None, None]


@lru_cache(maxsize=256)
def _square(layout: Layout, num_pending: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The mask's columns of the pass itself."""
    count = num_pending + layout.num_tokens
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    seen[num_pending:, num_pending:] = visibility(layout)
    return torch.zeros(count, count, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min).to(device)
