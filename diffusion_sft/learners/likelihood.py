"""How surprised a language model is by given answers: −log p(answer | prompt), token by token, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..errors import NotFinite
from .prefixes import PrefixReader, batches


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A prompt and the answer whose likelihood is asked for, as token ids."""

    prompt: Sequence[int]
    group: str
    answer: Sequence[int]


def finite(rows: list[list[np.ndarray]], where: str) -> list[list[np.ndarray]]:
    """The same rows; UserError naming the example where a likelihood under one of the cues is not finite."""
    if not all(np.isfinite(nats).all() for own in rows for nats in own):
        raise NotFinite(f"{where}: its answer's likelihood is not finite")
    return rows


@torch.no_grad()
def answer_nats(model: nn.Module, pairs: Sequence[Continued], batch_size: int) -> list[np.ndarray]:
    """The negative log-likelihood of each answer's tokens given all before them, float64 (num_tokens,); order as
    given. Their sum is transformers' own loss, labels on the answer alone, times the number of tokens."""
    found: list[np.ndarray] = [np.zeros(0)] * len(pairs)
    reader = PrefixReader(model)
    for batch in batches([pair.group for pair in pairs], [pair.prompt for pair in pairs], batch_size):
        chunk = [pairs[place] for place in batch.places]
        keep = max(len(pair.answer) for pair in chunk) + 1
        rows = [[*pair.prompt, *pair.answer] for pair in chunk]
        logits, _ = reader.read(batch, rows, keep)
        for place, pair, own in zip(batch.places, chunk, logits, strict=True):
            count = len(pair.answer)
            before = own[keep - 1 - count : keep - 1].log_softmax(dim=1)  # (count, vocabulary)
            answer = torch.tensor(pair.answer, device=before.device)
            nats = -before[torch.arange(count, device=before.device), answer]
            found[place] = nats.double().cpu().numpy()
    return found
