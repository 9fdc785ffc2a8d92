"""Many prompts that begin alike: the beginning is read once, and its keys and values serve all that follow.

Prompts of a group are cut at the longest beginning that all of them share; the rest is padded on the left, so that
all rows end together. Works for every causal language model of transformers through its own cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import DynamicCache


@dataclass(kw_only=True)
class Rows:
    """Rows of tokens in progress: what the model remembers of them, and where they stand."""

    cache: DynamicCache
    attention_mask: torch.Tensor
    """(rows, tokens so far), 0 where a row is padded."""
    lengths: torch.Tensor
    """(rows,) tokens of each row without padding: the position of its next one."""

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order, some of them perhaps several times."""
        self.cache.batch_select_indices(rows)
        self.attention_mask, self.lengths = self.attention_mask[rows], self.lengths[rows]


@dataclass(frozen=True)
class Batch:
    """Places in the list of all prompts, and the beginning that they share with their whole group."""

    places: Sequence[int]
    prefix: Sequence[int]


def batches(groups: Sequence[str], prompts: Sequence[Sequence[int]], batch_size: int) -> list[Batch]:
    """Cut the prompts (token ids) into batches of one group each, prompts of like lengths together."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    found = []
    for members in places.values():
        prefix = common_prefix([prompts[place] for place in members])
        members.sort(key=lambda place: (len(prompts[place]), place))
        found += [Batch(members[i : i + batch_size], prefix) for i in range(0, len(members), batch_size)]
    return found


def common_prefix(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest beginning that all share and that leaves at least one token of each."""
    # Of sorted sequences, the first and the last differ the soonest.
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    most = min(len(prompt) for prompt in prompts) - 1
    count = 0
    while count < most and first[count] == last[count]:
        count += 1
    return prompts[0][:count]


class PrefixReader:
    """Reads batches one after another, and remembers the last shared beginning."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        # transformers 5.24 gives the argument its second name.
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"
        layers = DynamicCache(config=model.config).layers
        self._has_windows = any(getattr(layer, "is_sliding", False) for layer in layers)
        self._prefix: tuple[int, ...] = ()
        self._cache: DynamicCache | None = None

    def read(self, batch: Batch, rows: Sequence[Sequence[int]], keep: int) -> tuple[torch.Tensor, Rows]:
        """Read whole rows of token ids, which begin with the batch's prefix.

        Returns:
            The logits of the last `keep` tokens, float32 (rows, keep, vocabulary), and the rows.
        """
        if self._has_windows and len({len(row) for row in rows}) > 1:
            # Windows count padding, which must then stand before everything.
            batch = replace(batch, prefix=[])
        count, start = len(rows), len(batch.prefix)
        longest = max(len(row) for row in rows) - start
        input_ids = torch.zeros((count, longest), dtype=torch.long)
        attention_mask = torch.zeros((count, start + longest), dtype=torch.long)
        attention_mask[:, :start] = 1
        for number, row in enumerate(rows):
            own = torch.tensor(row[start:])
            input_ids[number, longest - len(own) :] = own
            attention_mask[number, start + longest - len(own) :] = 1
        lengths = attention_mask.sum(dim=1)
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
        state = Rows(
            cache=self._shared(tuple(batch.prefix), count),
            attention_mask=attention_mask.to(self.device),
            lengths=lengths.to(self.device),
        )
        logits = self._forward(input_ids.to(self.device), positions.to(self.device), state, keep)
        return logits, state

    def advance(self, tokens: torch.Tensor, state: Rows) -> torch.Tensor:
        """Append one token (rows,) to each row; returns the next ones' logits, float32 (rows, vocabulary)."""
        one = torch.ones_like(tokens).unsqueeze(1)
        state.attention_mask = torch.cat([state.attention_mask, one], dim=1)
        positions = state.lengths.unsqueeze(1)
        state.lengths = state.lengths + 1
        return self._forward(tokens.unsqueeze(1), positions, state, 1)[:, -1]

    def _shared(self, prefix: tuple[int, ...], count: int) -> DynamicCache:
        """A cache that holds the prefix for so many rows."""
        if not prefix:
            return DynamicCache(config=self.model.config)
        if self._cache is None or prefix != self._prefix:
            cache = DynamicCache(config=self.model.config)
            ids = torch.tensor([prefix], device=self.device)
            positions = torch.arange(len(prefix), device=self.device).unsqueeze(0)
            state = Rows(cache=cache, attention_mask=torch.ones_like(ids), lengths=positions[:, -1] + 1)
            self._forward(ids, positions, state, 1)
            self._prefix, self._cache = prefix, cache
        shared = copy.deepcopy(self._cache)
        shared.batch_repeat_interleave(count)
        return shared

    def _forward(self, input_ids: torch.Tensor, positions: torch.Tensor, state: Rows, keep: int) -> torch.Tensor:
        options: dict[str, object] = {self._cache_argument: state.cache}
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        if self._takes_positions:
            options["position_ids"] = positions
        output = self.model(
            input_ids=input_ids,
            attention_mask=state.attention_mask,
            use_cache=True,
            **options,
        )
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits.float()
