"""Greedy and sampled continuations of many prompts, each token sequence computed once.

Samples of one prompt that have begun alike are one row until they part: with a sharp distribution, one greedy answer
and sixteen samples cost little more than one answer, and every sample still is an independent draw. A sample's
randomness is a row of uniform numbers of its own, so that it depends on nothing but the model and that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..errors import NotFinite
from .prefixes import Batch, PrefixReader, batches


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and what is wanted of it: a greedy answer, and one sample for each row of uniform numbers."""

    prompt: Sequence[int]
    group: str
    uniforms: np.ndarray
    """(num_samples, at least max_new_tokens) in [0, 1)."""
    greedy: bool = True
    name: str = ""
    """Of the example that is asked about, for errors."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How long answers are, and how samples are drawn."""

    max_new_tokens: int
    temperature: float = 0.5
    top_k: int | None = 40
    batch_size: int = 64
    """Prompts at a time; while their samples differ there are more rows."""


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Token ids without the one that ended them. `greedy` is None where none was asked for."""

    greedy: list[int] | None
    samples: list[list[int]]


@torch.no_grad()
def decode(
    model: nn.Module, requests: Sequence[Request], stops: np.ndarray, config: DecodingConfig
) -> list[Continuations]:
    """Continue every prompt until a stop token or `max_new_tokens`; order as given.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        requests: what to continue.
        stops: bool (vocabulary,): the tokens that end an answer.
        config: lengths, temperature and batches; the greedy answer is `generate(do_sample=False)`'s.

    Raises:
        NotFinite: logits among which no token is the likeliest; the first prompt is named.
    """
    found: list[Continuations | None] = [None] * len(requests)
    reader = PrefixReader(model)
    groups, prompts = [request.group for request in requests], [request.prompt for request in requests]
    for batch in batches(groups, prompts, config.batch_size):
        chunk = [requests[place] for place in batch.places]
        for place, continuations in zip(
            batch.places, _decode_batch(reader, batch, chunk, stops, config), strict=True
        ):
            found[place] = continuations
    return [continuations for continuations in found if continuations is not None]


def _decode_batch(
    reader: PrefixReader, batch: Batch, requests: Sequence[Request], stops: np.ndarray, config: DecodingConfig
) -> list[Continuations]:
    """`row` is the row that each strand (a greedy answer or a sample) stands on; strands on one row are alike so far."""
    strands = _Strands(requests, config.max_new_tokens)
    logits, state = reader.read(batch, [request.prompt for request in requests], 1)
    logits = logits[:, -1]
    row = strands.request.copy()
    for step in range(config.max_new_tokens):
        tokens = strands.choose(logits, row, step, config)
        ended = stops[tokens]
        strands.extend(tokens, ~ended)
        row, tokens = row[~ended], tokens[~ended]
        if not len(row) or step == config.max_new_tokens - 1:
            break
        pairs, row = np.unique(np.stack([row, tokens], axis=1), axis=0, return_inverse=True)
        row = row.reshape(-1)
        parents = torch.from_numpy(pairs[:, 0]).to(reader.device)
        if len(pairs) != len(logits) or (pairs[:, 0] != np.arange(len(pairs))).any():
            state.select(parents)
        logits = reader.advance(torch.from_numpy(pairs[:, 1]).to(reader.device), state)
    return strands.continuations()


class _Strands:
    """All answers of a batch in progress: the live ones' places, and the tokens of each."""

    def __init__(self, requests: Sequence[Request], length: int) -> None:
        counts = [int(request.greedy) + len(request.uniforms) for request in requests]
        self.requests = requests
        self.request = np.repeat(np.arange(len(requests)), counts)
        """Of each live strand, as the arrays below."""
        self.is_greedy = np.concatenate(
            [np.arange(count) < int(request.greedy) for request, count in zip(requests, counts, strict=True)]
        )
        rows = [np.zeros((0, length))]
        for request in requests:
            if request.greedy:
                rows.append(np.zeros((1, length)))
            if len(request.uniforms):
                rows.append(request.uniforms[:, :length])
        self.uniforms = np.concatenate(rows)
        self.tokens: list[list[int]] = [[] for _ in self.request]
        self._live = np.arange(len(self.request))
        self._all = self.request.copy(), self.is_greedy.copy()

    def choose(self, logits: torch.Tensor, row: np.ndarray, step: int, config: DecodingConfig) -> np.ndarray:
        """The next token of each live strand, from the logits of the row that it stands on."""
        highest, likeliest = logits.max(dim=1)
        # NaN is the highest of all, so that one number of each row tells of all of its own.
        finite = torch.isfinite(highest).cpu().numpy()[row]
        if not finite.all():
            request = self.requests[int(self.request[self._live[~finite][0]])]
            raise NotFinite(f"{request.name or 'a prompt'}: the likelihoods of its next token are not finite")
        tokens = likeliest.cpu().numpy()[row]
        sampled = ~self.is_greedy[self._live]
        if sampled.any():
            ids, cumulative = _sharpened(logits, config)
            uniform = self.uniforms[self._live[sampled], step][:, None]
            place = (uniform >= cumulative[row[sampled]]).sum(axis=1)
            tokens[sampled] = ids[row[sampled], np.minimum(place, ids.shape[1] - 1)]
        return tokens

    def extend(self, tokens: np.ndarray, goes_on: np.ndarray) -> None:
        """Append the tokens of those that go on; the others are at their end."""
        for strand, token in zip(self._live[goes_on], tokens[goes_on], strict=True):
            self.tokens[strand].append(int(token))
        self._live = self._live[goes_on]

    def continuations(self) -> list[Continuations]:
        """What each request got."""
        request_of, is_greedy = self._all
        found = []
        for number, request in enumerate(self.requests):
            own = np.flatnonzero(request_of == number)
            greedy = [self.tokens[strand] for strand in own if is_greedy[strand]]
            samples = [self.tokens[strand] for strand in own if not is_greedy[strand]]
            found.append(Continuations(greedy=greedy[0] if request.greedy else None, samples=samples))
        return found


def _sharpened(logits: torch.Tensor, config: DecodingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The k most likely tokens of each row by their ids, and the cumulative distribution at this temperature.

    By ids, not by likelihood: two tokens of nearly the same likelihood then keep their order whatever the rounding.
    """
    k = min(config.top_k or logits.shape[1], logits.shape[1])
    values, ids = logits.topk(k, dim=1)
    ids, order = ids.sort(dim=1)
    probabilities = (values.gather(1, order).double() / config.temperature).softmax(dim=1)
    return ids.cpu().numpy(), probabilities.cumsum(dim=1).cpu().numpy()
