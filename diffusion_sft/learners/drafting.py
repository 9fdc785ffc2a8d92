"""Greedy decoding with drafts: one pass reads guessed tokens along with the true ones and keeps what the model says itself.

    accepted … accepted | drafted …  ->  a_1 = choice after the last accepted token, a_2 = choice after a_1 if a_1 was
                                         drafted, and so on to the first choice that no draft foresaw

Every accepted token is the model's own choice after the true tokens before it, so that the result is that of greedy
decoding whatever the drafts were; they decide only how many passes it takes. A pass goes through the model's ordinary
forward, key-value cache and attention masks; afterwards the cache is cut back to the true tokens at its beginning.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .attention_masks import Layout, draft_mask


@dataclass(frozen=True, kw_only=True)
class DecodingRecord:
    """What one row's answer cost."""

    rounds: int
    """Passes of the network."""
    num_tokens: int
    """Of the answer, with the one that ended it."""
    num_evaluations: int
    """Positions that the network was evaluated at, without the prompt's but for its last: the number of tokens where they
    are decoded one by one."""
    accepted: tuple[int, ...]
    """Tokens that each pass added, (rounds,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """Guesses that are to be read behind the accepted tokens."""

    tokens: Sequence[int] = ()
    offsets: Sequence[int] = ()
    """Of each token's position from the last accepted one's; 1 is the next."""
    branches: Sequence[range] = ()
    """Places in `tokens` of the continuations that may be accepted; each begins at offset 1."""
    layout: Layout | None = None
    """Which token sees which; None where each sees all those before it, as in one branch."""


class Drafter(Protocol):
    """Makes guesses, and learns from what the model said to them."""

    def draft(self, last: int, room: int) -> Draft:
        """Guesses after the accepted tokens, the last of which is `last`; no branch is longer than `room`."""
        ...

    def learn(self, accepted: Sequence[int], choices: Sequence[int]) -> None:
        """What was accepted, and the most likely token after the last accepted one and after each drafted one."""
        ...


def check_cache(model: PreTrainedModel, longest: int) -> None:
    """Raise ValueError where the model's cache cannot take back what it has read within so many tokens."""
    for layer in DynamicCache(config=model.config.get_text_config(decoder=True)).layers:
        if type(layer) is DynamicLayer:
            continue
        if type(layer) is not DynamicSlidingWindowLayer:
            raise ValueError(
                f"{type(model).__name__}: its cache ({type(layer).__name__}) cannot take tokens back; decode without drafts"
            )
        if longest >= layer.sliding_window:
            raise ValueError(
                f"{type(model).__name__}: its attention window of {layer.sliding_window} tokens cannot take tokens back, "
                f"and up to {longest} are read; decode without drafts, or shorten prompt and answer"
            )


class DraftedRow:
    """One row of a batch in progress."""

    def __init__(
        self,
        model: PreTrainedModel,
        padded: torch.Tensor,
        number: int,
        prompt: Sequence[int],
        first_position: int,
        config: GenerationConfig,
    ) -> None:
        """Row `number` of the batch `padded` (num_rows, length), which processors and criteria see; `prompt` is the same
        without padding."""
        self.model, self.max_length = model, int(config.max_length)
        self._number, self._num_rows = number, len(padded)
        self.ids = padded[number : number + 1]
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        # transformers 5.24 gives the argument its second name.
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._cached, self._position = 0, first_position
        self._pending = list(prompt)
        self._context = context_length(model)

    @torch.no_grad()
    def decode(
        self, drafter: Drafter, processors: LogitsProcessorList, criteria: StoppingCriteriaList
    ) -> tuple[torch.Tensor, DecodingRecord]:
        """Decode until the criteria end it; returns the row with its answer, (1, length), and what it cost."""
        accepted: list[int] = []
        evaluations, ended = 1 - len(self._pending), False
        while not ended:
            draft = drafter.draft(self._pending[-1], self._room())
            evaluations += len(self._pending) + len(draft.tokens)
            logits = self._read(draft)
            choices: list[int] = logits.argmax(dim=-1).tolist()
            found, ended = self._accept(draft, logits, choices, processors, criteria)
            self._keep(draft, found)
            drafter.learn(found, choices)
            accepted.append(len(found))
        record = DecodingRecord(
            rounds=len(accepted), num_tokens=sum(accepted), num_evaluations=evaluations, accepted=tuple(accepted)
        )
        return self.ids, record

    def _room(self) -> int:
        """How many drafted tokens could be accepted before the answer or the context is full."""
        last = self._position + len(self._pending) - 1
        return max(min(self.max_length - self.ids.shape[1], self._context - last) - 1, 0)

    def _read(self, draft: Draft) -> torch.Tensor:
        """The logits after the last accepted token and after each drafted one, float32 (1 + num_drafted, vocabulary)."""
        count, extra = len(self._pending), len(draft.tokens)
        last = self._position + count - 1
        # A window may reach beyond the context, a branch never does; there all that counts is that nothing breaks.
        drafted = [min(last + offset, max(self._context - 1, last)) for offset in draft.offsets]
        options: dict[str, Any] = {self._cache_argument: self._cache}
        if self._keeps_logits:
            options["logits_to_keep"] = 1 + extra
        tokens = [*self._pending, *draft.tokens]
        positions = [*range(self._position, self._position + count), *drafted]
        both = torch.tensor([tokens, positions], device=self.model.device)
        if self._takes_positions:
            options["position_ids"] = both[1:]
        if draft.layout is not None:
            options["attention_mask"] = draft_mask(
                draft.layout,
                num_cached=self._cached,
                num_pending=count,
                dtype=self.model.dtype,
                device=self.model.device,
            )
        logits: torch.Tensor = self.model(input_ids=both[:1], use_cache=True, return_dict=True, **options).logits
        return logits[0, -1 - extra :].float()

    def _accept(
        self,
        draft: Draft,
        logits: torch.Tensor,
        choices: Sequence[int],
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
    ) -> tuple[list[int], bool]:
        """The model's tokens as far as the draft foresaw them and one more, and whether that is all.

        Processors and criteria see the true tokens before each token, once and in their order, as in `generate`.
        """
        found: list[int] = []
        branches, row = list(draft.branches), 0
        while True:
            # Rules may know the batch by its rows: they see this row in the place of every one, and its own is read.
            token = choices[row]
            if len(processors):
                scores = logits[row].to(self.ids.device).repeat(self._num_rows, 1)
                token = int(processors(self.ids.repeat(self._num_rows, 1), scores)[self._number].argmax())
            found.append(token)
            self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
            ended = bool(criteria(self.ids.repeat(self._num_rows, 1), None)[self._number])
            depth = len(found) - 1
            foreseen = [b for b in branches if len(b) > depth and draft.tokens[b[depth]] == token]
            if ended or not foreseen:
                return found, ended
            branches, row = foreseen, foreseen[0][depth] + 1

    def _keep(self, draft: Draft, found: Sequence[int]) -> None:
        """Cut the cache back to the true tokens at its beginning; true tokens that it loses are read again."""
        first = draft.branches[0] if draft.branches and draft.branches[0].start == 0 else range(0)
        kept = 0
        while kept < min(len(first), len(found) - 1) and draft.tokens[kept] == found[kept]:
            kept += 1
        if len(draft.tokens) > kept:
            self._cache.crop(kept - len(draft.tokens))
        self._cached += len(self._pending) + kept
        self._position += len(self._pending) + kept
        self._pending = list(found[kept:])


def context_length(model: PreTrainedModel) -> int:
    """How many tokens the model reads at most."""
    config = model.config.get_text_config(decoder=True)
    longest: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(longest or 1 << 30)
