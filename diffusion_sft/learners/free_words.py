"""Captions in which free vectors stand in the text encoders' embedding layers where a concept's words would stand.

A placeholder token whose row of the embedding table is exchanged for the vector: the weights themselves stay as they
are, and every text encoder of transformers reads such a caption as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..learner import SLOT, fill
from .cache import TensorCache
from .conditioning import Framing, TextConditioning, time_ids
from .diffusion import DiffusionLearner
from .network import ROWS, ConditionedUNet, id_names


def math_attention() -> AbstractContextManager[None]:
    """Attention of plain operations, since the fused kernels have no forward derivative."""
    manager: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return manager


class FreeWords:
    """One concept's captions with k free vectors each, for several starts at once.

    Of an SDXL a vector is the row of the first encoder's table and that of the second, side by side.

    Attributes:
        num_vectors: k.
        num_free: k·d.
        named: the embeddings of the words' own tokens, float32 (num_free,); their mean in each of the k places where
            their number is another.
    """

    def __init__(
        self,
        learner: DiffusionLearner,
        *,
        templates: Sequence[str],
        words: str,
        num_vectors: int | None,
        num_starts: int,
    ) -> None:
        """Take the captions' templates, the words that are to be replaced, and how many vectors replace them (None: as
        many as their tokens are).

        Raises:
            UserError: a template without a place for the words, or a caption that a tokenizer would cut.
        """
        self._learner, self._network = learner, ConditionedUNet(**learner.parts())
        # Detached, so that nothing is kept for gradients that nobody asks for.
        self._weights = {name: p.detach() for name, p in self._network.named_parameters()}
        encoders, pipeline = self._network.text_encoders, learner.pipeline
        self._names = [_table_name(self._network, encoder) for encoder in encoders]
        tables = [self._weights[name] for name in self._names]
        tokenizers = [getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2")[: len(encoders)]]
        own = [_pieces(tokenizer, words) for tokenizer in tokenizers]
        self.num_vectors = num_vectors or len(own[0])
        self._widths = [table.shape[1] for table in tables]
        self.num_free = self.num_vectors * sum(self._widths)
        self.named = self._embeddings(tables, own)
        scales = [table.float().square().mean().sqrt().expand(table.shape[1]) for table in tables]
        self._scale = torch.cat(scales).repeat(self.num_vectors)
        text = TextConditioning(pipeline, self._network, TensorCache(None), dict)
        captions = [fill(template, words) for template in templates]
        text.check(captions)
        self._num_captions = len(captions)
        named_ids = zip(*(text.token_ids(caption) for caption in captions), strict=True)
        self._named_ids = [torch.stack(rows).to(learner.device) for rows in named_ids]
        nulls = [ids.tolist() for ids in text.token_ids("")]
        found = [
            self._with_placeholders(tokenizer, null, templates, num_starts, len(table))
            for tokenizer, null, table in zip(tokenizers, nulls, tables, strict=True)
        ]
        self._placeholders = [torch.tensor(placeholders, device=learner.device) for placeholders, _ in found]
        self._free_ids = [ids.to(learner.device) for _, ids in found]

    def in_table_units(self, points: torch.Tensor) -> torch.Tensor:
        """Vectors as the tables hold them, from vectors in units of the tables' root mean square (..., num_free)."""
        return points * self._scale

    def forward(
        self, points: torch.Tensor | None, noisy: torch.Tensor, timesteps: np.ndarray, captions: np.ndarray
    ) -> torch.Tensor:
        """The network's output under each start's vectors, or under the words themselves (None).

        Args:
            points: (starts, num_free) in units of the tables' root mean square, at most as many as there are starts.
            noisy: (starts · n, channels, height, width): n rows for each start.
            timesteps: (starts · n,).
            captions: (n,) the number of each row's template.
        """
        count = 1 if points is None else len(points)
        overrides = self._overrides(points)
        every = torch.arange(count).unsqueeze(1) * self._num_captions + torch.from_numpy(captions)
        ids = self._named_ids if points is None else self._free_ids
        text = {name: rows[: count * self._num_captions] for name, rows in zip(id_names(len(ids)), ids, strict=True)}
        text[ROWS] = every.reshape(-1).to(noisy.device)
        factor = self._learner.pipeline.vae_scale_factor
        size = (noisy.shape[-2] * factor, noisy.shape[-1] * factor)
        sizes = time_ids([Framing.whole(size)] * len(noisy)).to(noisy.device) if len(ids) > 1 else None
        at = torch.from_numpy(timesteps).to(noisy.device)
        output: torch.Tensor = functional_call(
            self._network, {**self._weights, **overrides}, (noisy, at, text, sizes)
        )
        return output

    def _overrides(self, points: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The embedding tables with the vectors in their placeholders' rows."""
        if points is None:
            return {}
        vectors = self.in_table_units(points).reshape(-1, sum(self._widths))  # (starts · k, width)
        tables = {}
        for name, places, own in zip(
            self._names, self._placeholders, vectors.split(self._widths, dim=1), strict=True
        ):
            table = self._weights[name]
            tables[name] = table.index_copy(0, places[: len(own)], own.to(table.dtype))
        return tables

    def _with_placeholders(
        self, tokenizer: Any, null: list[int], templates: Sequence[str], num_starts: int, size: int
    ) -> tuple[list[int], torch.Tensor]:
        """The placeholders of every start's vectors, of a table of so many rows, and the captions' ids, (starts ·
        captions, tokens)."""
        pieces = [[_pieces(tokenizer, piece) for piece in template.split(SLOT)] for template in templates]
        for template, parts in zip(templates, pieces, strict=True):
            length = sum(map(len, parts)) + (len(parts) - 1) * self.num_vectors + 2
            if len(parts) < 2:
                raise UserError(
                    f"{template!r}: no {SLOT} for the concept's words, in whose place vectors could stand"
                )
            if length > len(null):
                raise UserError(f"{template!r}: {length} tokens with {self.num_vectors} vectors, of {len(null)}")
        used = {*null, *(token for parts in pieces for part in parts for token in part)}
        # From the beginning, since some encoders find the end of text as the highest id.
        free = [token for token in range(min(size, min(null[0], null[1]))) if token not in used]
        needed = num_starts * self.num_vectors
        if len(free) < needed:
            raise UserError(f"a vocabulary with {len(free)} unused tokens has no room for {needed} free vectors")
        placeholders = free[:needed]
        rows = []
        for start in range(num_starts):
            own = placeholders[start * self.num_vectors : (start + 1) * self.num_vectors]
            rows += [with_vectors(null, parts, own) for parts in pieces]
        return placeholders, torch.tensor(rows)

    def _embeddings(self, tables: Sequence[torch.Tensor], own: Sequence[Sequence[int]]) -> torch.Tensor:
        """The words' own, side by side, or their mean in every place."""
        columns = []
        for table, tokens in zip(tables, own, strict=True):
            rows = table[torch.tensor(tokens, device=table.device)].float()
            if len(rows) != self.num_vectors:
                rows = rows.mean(dim=0, keepdim=True).expand(self.num_vectors, -1)
            columns.append(rows)
        return torch.cat(columns, dim=1).reshape(-1)


def with_vectors(null: Sequence[int], pieces: Sequence[Sequence[int]], placeholders: Sequence[int]) -> list[int]:
    """A caption's ids, from those of the empty caption (start, end, padding) and of the pieces between its slots."""
    inner = list(pieces[0])
    for piece in pieces[1:]:
        inner += [*placeholders, *piece]
    return [null[0], *inner, *null[1:]][: len(null)]


def _pieces(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _table_name(network: nn.Module, encoder: Any) -> str:
    """What the encoder's token embeddings are called among the network's parameters."""
    table = encoder.get_input_embeddings().weight
    return next(name for name, parameter in network.named_parameters() if parameter is table)
