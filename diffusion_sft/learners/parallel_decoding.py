"""Greedy decoding in parallel, as loops for transformers' own `generate`:

    model.generate(**inputs, do_sample=False, custom_generate=Jacobi())
    model.generate(**inputs, do_sample=False, custom_generate=Lookahead(window=15, ngram=5, guesses=15))

The answer as a triangular system, y_i = argmax p(· | prompt, y_<i), solved for all unknowns at once (Jacobi; Song et al.,
2021; Santilli et al., 2023), block after block, or from the n-grams that such iterations leave behind (Lookahead; Fu et
al., 2024). The tokens are those of `generate(do_sample=False)` with the same processors and criteria, as far as rounding
lets two equally likely tokens keep their order: a pass over several tokens rounds otherwise than one over a single token.

For causal models with a key-value cache, and full attention (or windows that nothing falls out of). Rows of a batch are
decoded one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from ..records import identity_seed
from .drafting import DecodingRecord, Draft, DraftedRow, Drafter, check_cache
from .lookahead import LookaheadDrafter

Record = Callable[[DecodingRecord], None]
UNDERSTOOD = {"attention_mask", "position_ids", "past_key_values", "cache", "use_cache", "logits_to_keep"}
"""What `generate` prepares and these loops use or replace."""
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
MASKED_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Jacobi:
    """All tokens of the answer, or of a block of it, updated at once from random ones until they stand."""

    block_size: int | None = None
    """Tokens that are solved for together, Gauss–Seidel between the blocks; None: all that may still be generated. 1 is
    plain greedy decoding."""
    seed: int = 0
    """Of the random tokens that a block begins with; a row's depend on its number in the batch too."""
    record: Record | None = None
    """Is told what each row cost."""

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: a block has one token at least")

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """The decoding loop that `generate` calls; (num_rows, length) token ids, prompts first."""
        size = int(model.config.get_text_config(decoder=True).vocab_size)

        def drafter(row: int, prompt: Sequence[int]) -> Drafter:
            return JacobiDrafter(
                self.block_size, size, np.random.default_rng(identity_seed(self.seed, "jacobi", row))
            )

        rules = logits_processor, stopping_criteria, generation_config
        return _decode_rows(model, input_ids, rules, model_kwargs, drafter, num_beyond=0, record=self.record)


@dataclass(frozen=True)
class Lookahead:
    """Lookahead decoding: a window of Jacobi iterations ahead of the answer, whose n-grams are tried as continuations."""

    window: int = 7
    """W: positions ahead that are iterated."""
    ngram: int = 5
    """N: tokens in an n-gram; the window remembers N − 1 iterations."""
    guesses: int = 7
    """G: n-grams kept for each first token, all of which are tried at once."""
    pool_from_prompt: bool = False
    """Whether the prompt's own n-grams are in the pool from the beginning."""
    seed: int = 0
    """Of the tokens that the window begins with; a row's depend on its number in the batch too."""
    record: Record | None = None
    """Is told what each row cost."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.ngram < 2 or self.guesses < 1:
            raise ValueError(
                f"window={self.window}, ngram={self.ngram}, guesses={self.guesses}: at least 1, 2 and 1 are needed"
            )

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """The decoding loop that `generate` calls; (num_rows, length) token ids, prompts first."""
        attention = model.config.get_text_config(decoder=True)._attn_implementation
        if attention not in MASKED_ATTENTION:
            raise ValueError(f"attention {attention!r} takes no mask of lookahead's kind; load the model with 'sdpa'")

        def drafter(row: int, prompt: Sequence[int]) -> Drafter:
            return LookaheadDrafter(
                prompt,
                window=self.window,
                ngram=self.ngram,
                guesses=self.guesses,
                pool_from_prompt=self.pool_from_prompt,
                generator=np.random.default_rng(identity_seed(self.seed, "lookahead", row)),
            )

        widest = (self.ngram - 1) * (self.window + self.ngram - 2 + self.guesses)
        rules = logits_processor, stopping_criteria, generation_config
        return _decode_rows(model, input_ids, rules, model_kwargs, drafter, num_beyond=widest, record=self.record)


class JacobiDrafter:
    """The guesses of one row's block: after each pass the model's choices, which the next pass reads."""

    def __init__(self, block_size: int | None, vocab_size: int, generator: np.random.Generator) -> None:
        self.block_size, self.vocab_size, self.generator = block_size, vocab_size, generator
        self.guesses: list[int] = []

    def draft(self, last: int, room: int) -> Draft:
        """The block's unknowns but for the last one, which nothing is asked after."""
        if not self.guesses:
            count = room + 1 if self.block_size is None else min(self.block_size, room + 1)
            self.guesses = self.generator.integers(0, self.vocab_size, count).tolist()
        count = len(self.guesses) - 1
        return Draft(tokens=self.guesses[:-1], offsets=range(1, count + 1), branches=[range(count)])

    def learn(self, accepted: Sequence[int], choices: Sequence[int]) -> None:
        """Every unknown is what the model said in its place; those that are accepted are none any more."""
        self.guesses = list(choices[len(accepted) :])


def _decode_rows(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    rules: tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig],
    model_kwargs: dict[str, Any],
    drafter: Callable[[int, Sequence[int]], Drafter],
    *,
    num_beyond: int,
    record: Record | None,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Decode row by row, without the padding before it, and pad behind as `generate` does."""
    processors, criteria, config = rules
    _check_request(model, input_ids, config)
    check_cache(model, int(config.max_length) + num_beyond)
    _check_arguments(model_kwargs)
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    found = []
    for number in range(len(input_ids)):
        real = torch.ones_like(input_ids[number], dtype=torch.bool) if mask is None else mask[number].bool()
        prompt = input_ids[number][real.to(input_ids.device)].tolist()
        first = 0 if positions is None else int(positions[number % len(positions)][real.to(positions.device)][0])
        row = DraftedRow(model, input_ids, number, prompt, first, config)
        ids, cost = row.decode(drafter(number, prompt), processors, criteria)
        found.append(ids)
        if record is not None:
            record(cost)
    sequences = _padded(found, config)
    return GenerateDecoderOnlyOutput(sequences=sequences) if config.return_dict_in_generate else sequences


def _check_request(model: PreTrainedModel, input_ids: torch.Tensor, config: GenerationConfig) -> None:
    """Raise ValueError, in one line, for what these loops do not do."""
    if config.do_sample:
        raise ValueError("do_sample=True: parallel decoding is greedy; pass do_sample=False")
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"num_beams={config.num_beams}: parallel decoding follows one continuation; pass num_beams=1"
        )
    if model.config.is_encoder_decoder or not input_ids.shape[1]:
        raise ValueError("parallel decoding continues token ids of decoder-only models; pass input_ids alone")
    if config.return_dict_in_generate and any(getattr(config, name, False) for name in OUTPUTS):
        raise ValueError(f"parallel decoding returns sequences alone; leave out {', '.join(OUTPUTS)}")


def _check_arguments(model_kwargs: dict[str, Any]) -> None:
    """Raise ValueError, in one line, for inputs that would be lost."""
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise ValueError("past_key_values: parallel decoding reads the prompt itself; pass no filled cache")
    given = {name for name, value in model_kwargs.items() if value is not None and value is not False}
    if others := sorted(given - UNDERSTOOD):
        raise ValueError(f"{', '.join(others)}: parallel decoding passes on token ids and their padding alone")


def _padded(rows: Sequence[torch.Tensor], config: GenerationConfig) -> torch.Tensor:
    longest = max(row.shape[1] for row in rows)
    if all(row.shape[1] == longest for row in rows):
        return torch.cat(list(rows))
    if config._pad_token_tensor is None:
        raise ValueError("rows end at different lengths and there is no pad_token_id; pass one")
    pad = int(config._pad_token_tensor)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=pad) for row in rows])
