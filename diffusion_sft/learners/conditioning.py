"""From captions and image sizes to what a UNet is conditioned on: token ids, embeddings, and SDXL's time ids.

The empty caption ∅ is encoded like any other caption in scores and for caption dropout, as in diffusers' training
scripts and kohya's; Stability AI's own SDXL training put zeros in its place. Guidance at generation uses what the
pipeline uses: zeros where an SDXL says `force_zeros_for_empty_prompt`, else the encoded ∅.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from ..errors import UserError
from ..learner import NULL_CUE
from ..parsing import first_line
from .cache import TensorCache, content_key
from .network import ROWS, ConditionedUNet, id_names, to_device

EMBEDDINGS_VERSION = 1
"""Part of every key of cached embeddings; one more when the same captions come to be encoded otherwise."""

REMEMBERED_CAPTIONS = 8192
"""Captions whose token ids are kept, 1 KB each; others are tokenized again."""
CHECKED_CAPTIONS = 1024
"""Captions that are tokenized at a time to see their lengths; each takes some 5 KB while it is looked at."""

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How an image came to its size; what SDXL is told of it (Podell et al., 2023, section 2.2)."""

    original_size: Size
    """Of the image as it was, upright."""
    crop: Size
    """Pixels cut off at the top and at the left of the resized image."""
    target_size: Size

    @classmethod
    def whole(cls, size: Size) -> Framing:
        """An image that always had this size, which is what is asked for in scores and at generation."""
        return cls(original_size=size, crop=(0, 0), target_size=size)


def time_ids(framings: Sequence[Framing]) -> torch.Tensor:
    """(n, 6) float32: original height and width, crop top and left, target height and width."""
    rows = [framing.original_size + framing.crop + framing.target_size for framing in framings]
    return torch.tensor(rows, dtype=torch.float32)


class TextConditioning:
    """One tokenizer and text encoder (SD 1, SD 2) or two (SDXL). A caption's embeddings are kept in the cache while the
    encoders are frozen; from when any of their weights is trained on, nothing is remembered."""

    def __init__(
        self, pipeline: Any, network: ConditionedUNet, cache: TensorCache, identity: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Take the networks' home and the place of embeddings; `identity` names the text encoders' weights in keys
        of the cache, JSON values, and is asked only if there is a folder."""
        self.network = network
        self.is_xl = network.text_encoder_2 is not None
        self.zeros_for_null = self.is_xl and bool(pipeline.config.force_zeros_for_empty_prompt)
        self._tokenizers = [pipeline.tokenizer, *([pipeline.tokenizer_2] if self.is_xl else [])]
        self._cache, self._identity = cache, identity
        limits = [_limit(*both) for both in zip(self._tokenizers, network.text_encoders, strict=True)]
        self._ids_of = lru_cache(REMEMBERED_CAPTIONS)(partial(_tokenized, self._tokenizers, limits))
        self._trained = False

    @property
    def device(self) -> torch.device:
        """Where the text encoders live."""
        return next(self.network.text_encoder.parameters()).device

    @property
    def frozen(self) -> bool:
        """Whether no weight of a text encoder is trained, or was since this was made."""
        self._trained = self._trained or self.network.trains_text
        return not self._trained

    def check(self, captions: Sequence[str]) -> None:
        """Raise UserError naming the captions that a tokenizer would cut."""
        distinct = list(dict.fromkeys(captions))
        for tokenizer, encoder in zip(self._tokenizers, self.network.text_encoders, strict=True):
            limit = _limit(tokenizer, encoder)
            lengths: list[int] = []
            for start in range(0, len(distinct), CHECKED_CAPTIONS):
                some = distinct[start : start + CHECKED_CAPTIONS]
                lengths += [len(ids) for ids in tokenizer(some, truncation=False, verbose=False).input_ids]
            cut = [
                f"{_shortened(text)!r} ({n} tokens)" for text, n in zip(distinct, lengths, strict=True) if n > limit
            ]
            if cut:
                listed = ", ".join(cut[:5]) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
                raise UserError(f"captions longer than the tokenizer's {limit} tokens: {listed}; shorten them")

    def token_ids(self, caption: str) -> list[torch.Tensor]:
        """Each tokenizer's ids, (tokens,) int64 on the CPU, cut and padded to its full length."""
        return self._ids_of(caption)

    def text(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """What `ConditionedUNet.forward` takes, on the device: embeddings, or token ids where encoders are trained."""
        return self.embeddings(captions) if self.frozen else self.tokens(captions)

    def tokens(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids of the distinct captions and the row of each, on the device, so that the encoders are gone through."""
        distinct = list(dict.fromkeys(captions))
        ids = [torch.stack(rows) for rows in zip(*map(self.token_ids, distinct), strict=True)]
        named = dict(zip(id_names(len(ids)), ids, strict=True)) | {ROWS: _rows(captions, distinct)}
        return {name: to_device(tensor, self.device) for name, tensor in named.items()}

    def embeddings(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """`prompt_embeds` (num_captions, tokens, width) and, of an SDXL, `pooled`, on the device, without gradient."""
        encode = self._embedding if self.frozen else self._encoded
        distinct = list(dict.fromkeys(captions))
        found = [encode(caption) for caption in distinct]
        rows = to_device(_rows(captions, distinct), self.device)
        stacked = {name: torch.stack([entry[name] for entry in found]) for name in found[0]}
        return {name: to_device(tensor, self.device)[rows] for name, tensor in stacked.items()}

    def remember(self, captions: Sequence[str]) -> None:
        """Encode these captions now if the encoders are frozen, so that none is encoded in between (as far as the cache
        holds them)."""
        if self.frozen:
            for caption in captions:
                self._embedding(caption)

    def null_embeddings(self, count: int) -> dict[str, torch.Tensor]:
        """The unconditional side of guidance as the pipeline makes it, `count` times."""
        encoded = self.embeddings([NULL_CUE] * count)
        if self.zeros_for_null:
            return {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
        return encoded

    def _embedding(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption's embeddings by frozen encoders, from the cache where it holds them."""
        key = self._key(caption)
        found = self._cache.get(key)
        return self._cache.put(key, self._encoded(caption)) if found is None else found

    def _encoded(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption's embeddings by the encoders as they are, on the CPU, in the encoders' type."""
        # One at a time, because company changes the last bits: a resumed run, which meets captions in another order,
        # would not be the run that was never stopped.
        ids = [row.unsqueeze(0).to(self.device) for row in self.token_ids(caption)]
        # Without autocast, so that an embedding does not depend on who asked for it first.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            embeds = self.network.embed(ids)
        return {name: tensor[0].cpu() for name, tensor in embeds.items()}

    def _key(self, caption: str) -> str:
        parts: dict[str, Any] = {"token_ids": [ids.tolist() for ids in self.token_ids(caption)]}
        parts["dtype"] = [str(encoder.dtype) for encoder in self.network.text_encoders]
        if self._cache.folder is not None:
            parts["text_encoders"] = dict(self._identity())
        return content_key("prompt_embeds", version=EMBEDDINGS_VERSION, **parts)


def _tokenized(tokenizers: Sequence[Any], limits: Sequence[int], caption: str) -> list[torch.Tensor]:
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return [
        tokenizer(caption, max_length=limit, **settings).input_ids[0]
        for tokenizer, limit in zip(tokenizers, limits, strict=True)
    ]


def _rows(captions: Sequence[str], distinct: Sequence[str]) -> torch.Tensor:
    """The place of each caption among the distinct ones."""
    places = {caption: number for number, caption in enumerate(distinct)}
    return torch.tensor([places[caption] for caption in captions])


def _shortened(caption: str) -> str:
    return caption if len(caption) <= 80 else f"{caption[:77]}..."


def check_tokenizers(pipeline: Any, place: object) -> None:
    """Raise UserError where a tokenizer gives ids that its text encoder has no words for, or cannot be used at all.

    Args:
        place: where the pipeline came from, for the message.
    """
    for name in ("", "_2"):
        encoder: Any = getattr(pipeline, f"text_encoder{name}", None)
        if encoder is None:
            continue
        tokenizer = getattr(pipeline, f"tokenizer{name}")
        words, rows = len(tokenizer), encoder.get_input_embeddings().num_embeddings
        # Tables of embeddings are padded, to a multiple of 128 at the most.
        if not rows - 128 < words <= rows:
            raise UserError(
                f"{place}: tokenizer{name} has {words} entries and text_encoder{name} embeddings for {rows}; they are of "
                "different models"
            )
        try:
            limit = _limit(tokenizer, encoder)
            ids = [_tokenized([tokenizer], [limit], caption)[0] for caption in (NULL_CUE, "a photo")]
        except Exception as error:  # tokenizers raises no other kind.
            raise UserError(f"{place}: its tokenizer{name} cannot be used ({first_line(error)})") from error
        if limit < 3 or any(len(row) != limit or not 0 <= int(row.min()) <= int(row.max()) < rows for row in ids):
            raise UserError(
                f"{place}: its tokenizer{name} gives no {limit} ids of the {rows} that text_encoder{name} knows; look at "
                "model_max_length and the special tokens"
            )


def _limit(tokenizer: Any, encoder: Any) -> int:
    """The most tokens, start and end among them, that both take."""
    limit: int = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return limit
