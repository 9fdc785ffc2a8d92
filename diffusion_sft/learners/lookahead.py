"""Lookahead's guesses: a window of Jacobi trajectories beyond the answer, and a pool of the n-grams that they left.

    level l, column w    at position last + 1 + w + l, after the first level's columns 0..w and its own column's levels < l
    n-gram of column w   its first level's token, and the N − 1 that followed it: levels 1..N − 2 and the newest choice

Fu et al. (2024), "Break the sequential dependency of LLM inference using lookahead decoding", sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .attention_masks import Layout
from .drafting import Draft


class NgramPool:
    """Continuations by the token that they follow, `capacity` for each; what was not seen for longest goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._found: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, key: int, continuation: tuple[int, ...]) -> None:
        """Put it in, or note that it was seen again."""
        known = self._found.setdefault(key, {})
        known.pop(continuation, None)
        known[continuation] = None
        if len(known) > self.capacity:
            del known[next(iter(known))]

    def after(self, key: int) -> list[tuple[int, ...]]:
        """The continuations of a token, the last seen first."""
        return list(reversed(self._found.get(key, {})))


class LookaheadDrafter:
    """The window and the pool of one row."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        window: int,
        ngram: int,
        guesses: int,
        pool_from_prompt: bool,
        generator: np.random.Generator,
    ) -> None:
        """W columns, N tokens in an n-gram, at most G guesses at a time; the first level copies tokens of the prompt."""
        self.ngram = ngram
        self.pool = NgramPool(guesses)
        if pool_from_prompt:
            for place in range(len(prompt) - ngram + 1):
                self.pool.add(prompt[place], tuple(prompt[place + 1 : place + ngram]))
        # A column is dropped in each pass of the warm-up, which ends with W columns of N − 1 levels.
        self.levels: list[list[int]] = [generator.choice(np.asarray(prompt), window + ngram - 2).tolist()]
        self._window_begin: int | None = None

    def draft(self, last: int, room: int) -> Draft:
        """All of the pool's continuations of the last token, and the window; nothing where one token is left."""
        self._window_begin = None
        if not room:
            return Draft()
        cut = dict.fromkeys(continuation[:room] for continuation in self.pool.after(last))
        tokens = [token for continuation in cut for token in continuation]
        lengths = tuple(len(continuation) for continuation in cut)
        ends = np.cumsum((0, *lengths)).tolist()
        columns, levels = len(self.levels[0]), len(self.levels)
        self._window_begin = len(tokens)
        return Draft(
            tokens=[*tokens, *(token for level in self.levels for token in level)],
            offsets=[
                *(1 + place for length in lengths for place in range(length)),
                *(1 + column + level for level in range(levels) for column in range(columns)),
            ],
            branches=[range(begin, end) for begin, end in pairwise(ends)],
            layout=Layout(lengths, columns, levels),
        )

    def learn(self, accepted: Sequence[int], choices: Sequence[int]) -> None:
        """Take the window one position on: what the last level was followed by is a new level."""
        if self._window_begin is None:
            return
        columns, levels = len(self.levels[0]), len(self.levels)
        begin = 1 + self._window_begin + (levels - 1) * columns
        newest = list(choices[begin : begin + columns])
        if levels < self.ngram - 1:
            self.levels = [level[1:] for level in (*self.levels, newest)]
            return
        for column in range(columns):
            ngram = tuple(level[column] for level in (*self.levels, newest))
            self.pool.add(ngram[0], ngram[1:])
        self.levels = [*self.levels[1:], newest]
