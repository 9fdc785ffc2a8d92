"""Rows of tokens with blanks that free vectors fill: what a language model then says of the answer behind them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedTokenizerBase

from ..errors import UserError

SCALE_TOKENS = 4096
"""At most so many of the vocabulary's embeddings, evenly spread, decide their scale."""


@dataclass(frozen=True, kw_only=True)
class Blanks:
    """One row: tokens, blanks, and the answer that its last places shall predict."""

    ids: tuple[int, ...]
    """What is read, without the answer's last token; anything at a blank."""
    slots: tuple[int, ...]
    """Of each place, which free vector stands there; −1 for a token."""
    gold: tuple[int, ...]
    """The answer's tokens; the i-th last place predicts the i-th last of them."""
    named: tuple[int, ...]
    """The tokens in whose place the vectors stand."""
    num_vectors: int
    """k, of this row."""


def named_spans(tokenizer: PreTrainedTokenizerBase, prompt: str, question: str, name: str) -> list[range]:
    """Where a prompt's tokens spell a name as a whole word inside the question, which is the last of its like.

    Raises:
        UserError: a tokenizer that does not know which letters its tokens stand for.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__}: it does not say where its tokens stand; use its fast variant")
    begin = prompt.rfind(question)
    matches = re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", question, flags=re.IGNORECASE)
    letters = [(begin + found.start(), begin + found.end()) for found in matches] if begin >= 0 else []
    offsets = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    spans = []
    for first, last in letters:
        inside = [place for place, (start, end) in enumerate(offsets) if start < last and end > first]
        spans += [range(inside[0], inside[-1] + 1)] if inside else []
    return spans


@dataclass(frozen=True)
class BlankReading:
    """What a model says of some rows' answers."""

    residuals: torch.Tensor
    """Mean nats per token of the answer, (rows,)."""
    says_gold: torch.Tensor
    """bool (rows,): at every place of the answer the most likely token is its own, so that greedy decoding says it."""
    log_odds: torch.Tensor
    """log p/(1 − p) of each token of the answer, (rows, tokens); anything beyond a row's own."""


class BlankReader:
    """Reads a model from token embeddings; its weights are never asked for gradients.

    Attributes:
        width: d.
        scale: the root mean square of the embeddings.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._embed: Any = model.get_input_embeddings()  # type: ignore[operator]
        self._weights = {name: p.detach() for name, p in model.named_parameters()}
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.device = self._embed.weight.device
        size = self._embed.weight.shape[0]
        spread = torch.linspace(0, size - 1, min(size, SCALE_TOKENS), device=self.device).long()
        rows = self.embeddings(spread)
        self.width, self.scale = rows.shape[1], float(rows.float().square().mean().sqrt())

    def embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """The input vectors of these tokens, (..., d)."""
        with torch.no_grad():
            vectors: torch.Tensor = self._embed(ids)
        return vectors

    def named(self, blanks: Blanks) -> np.ndarray:
        """The embeddings of the tokens in whose place a row's vectors stand, float32 (k·d,); their mean in each of the
        places where their number is not k."""
        rows = self.embeddings(torch.tensor(blanks.named, dtype=torch.long, device=self.device)).float()
        if len(rows) != blanks.num_vectors:
            rows = rows.mean(dim=0, keepdim=True).expand(blanks.num_vectors, -1)
        return rows.reshape(-1).cpu().numpy()

    def batch(self, rows: Sequence[Blanks]) -> BlankBatch:
        """Rows that are read together."""
        return BlankBatch(self, rows)

    def logits(self, embeddings: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> torch.Tensor:
        """The logits of the last `keep` places, at least float32."""
        options: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": attention_mask, "use_cache": False}
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        logits: torch.Tensor = functional_call(self.model, self._weights, (), options).logits[:, -keep:]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class BlankBatch:
    """Rows padded on the right, where a causal model does not see it.

    Attributes:
        num_free: of the row with the most vectors, k·d.
        dtype: of free vectors, at least float32.
    """

    def __init__(self, reader: BlankReader, rows: Sequence[Blanks]) -> None:
        self._reader, self._rows = reader, rows
        lengths = np.array([len(row.ids) for row in rows])
        longest, most = int(lengths.max()), max(len(row.gold) for row in rows)
        ids, slots = np.zeros((2, len(rows), longest), dtype=np.int64)
        slots -= 1
        gold, self._places = np.zeros((2, len(rows), most), dtype=np.int64)
        asked = np.zeros((len(rows), most), dtype=bool)
        first = int(min(length - len(row.gold) for length, row in zip(lengths, rows, strict=True)))
        self._keep = longest - first
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], slots[number, : len(row.ids)] = row.ids, row.slots
            gold[number, : len(row.gold)], asked[number, : len(row.gold)] = row.gold, True
            self._places[number, : len(row.gold)] = np.arange(len(row.ids) - len(row.gold), len(row.ids)) - first
        device = reader.device
        self._mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).long().to(device)
        self._slots, self._gold, self._asked, self._where = (
            torch.from_numpy(array).to(device) for array in (slots, gold, asked, self._places)
        )
        self._tokens = reader.embeddings(torch.from_numpy(ids).to(device))
        self.dtype = torch.promote_types(self._tokens.dtype, torch.float32)
        self.num_free = max(1, *(row.num_vectors for row in rows)) * reader.width

    def read(self, points: torch.Tensor, rows: torch.Tensor) -> BlankReading:
        """Fill the blanks of these rows.

        Args:
            points: (n, num_free) vectors in units of the embeddings' root mean square.
            rows: (n,) the row that each is for.
        """
        vectors = (points * self._reader.scale).reshape(len(points), -1, self._reader.width)
        slots, gold, asked = self._slots[rows], self._gold[rows], self._asked[rows]
        places = slots.clamp(min=0).unsqueeze(2).expand(-1, -1, self._reader.width)
        tokens = self._tokens[rows]
        filled = torch.where((slots >= 0).unsqueeze(2), vectors.gather(1, places).to(tokens.dtype), tokens)
        logits = self._reader.logits(filled, self._mask[rows], self._keep)
        where = self._where[rows].unsqueeze(2).expand(-1, -1, logits.shape[2])
        logits = logits.gather(1, where)  # (n, tokens of the answer, vocabulary)
        own = logits.gather(2, gold.unsqueeze(2)).squeeze(2)
        nats = (logits.logsumexp(dim=2) - own) * asked
        others = logits.scatter(2, gold.unsqueeze(2), -torch.inf).logsumexp(dim=2)
        return BlankReading(
            residuals=nats.sum(dim=1) / asked.sum(dim=1),
            says_gold=((logits.argmax(dim=2) == gold) | ~asked).all(dim=1),
            log_odds=own - others,
        )

    def jacobians(self, points: torch.Tensor) -> list[np.ndarray]:
        """Of each row at its point the derivatives of its answer's log-odds, float64 (its tokens, its k·d).

        Log-odds stay sensitive where probabilities are near 1. A row's log-odds depend on its own point alone, so that
        one backward pass serves one token of every row.
        """
        points = points.detach().requires_grad_()
        log_odds = self.read(points, torch.arange(len(points), device=points.device)).log_odds
        columns = []
        for token in range(log_odds.shape[1]):
            total = torch.where(self._asked[:, token], log_odds[:, token], torch.zeros_like(log_odds[:, token])).sum()
            found = torch.autograd.grad(total, points, retain_graph=True, allow_unused=True)[0]
            columns.append(torch.zeros_like(points) if found is None else found)
        every = torch.stack(columns, dim=1).double().cpu().numpy()
        widths = [row.num_vectors * self._reader.width for row in self._rows]
        return [own[: len(row.gold), :width] for own, row, width in zip(every, self._rows, widths, strict=True)]
