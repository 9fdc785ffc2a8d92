"""From text to token ids and back, for any tokenizer of transformers: where prompts end, and what ends an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """A tokenizer with the few questions that are put to it.

    Attributes:
        size: the number of the model's logits.
        stops: bool (size,): the tokens that end an answer, which are the end of text and whatever contains a line's
            end; and ids beyond the tokenizer's, which mean nothing.
        end: the end of text as training appends it; empty where the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        eos: Any = tokenizer.eos_token_id
        self.end = [] if eos is None else [int(eos)]
        known = min(len(tokenizer), size)
        texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
        self.stops = np.ones(size, dtype=bool)
        self.stops[:known] = ["\n" in text for text in texts]
        self.stops[self.end] = True

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that is to be continued: with the tokenizer's own beginning, without its end."""
        ids: list[int] = list(self.tokenizer(text, verbose=False)["input_ids"])
        while ids and ids[-1:] == self.end:
            ids.pop()
        return ids

    def pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of the answer after it; where the two would melt into one token at their border,
        the answer is encoded by itself."""
        before, whole = self.prompt(prompt), self.prompt(prompt + answer)
        if whole[: len(before)] == before and len(whole) > len(before):
            return before, whole[len(before) :]
        return before, list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def text(self, tokens: list[int]) -> str:
        """What an answer says, in one line."""
        decoded = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded).split("\n", 1)[0].strip()
