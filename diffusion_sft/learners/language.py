"""A causal language model as a learner: surprises, answers and losses of any model that transformers loads.

    err(x, c) = −log p(answer | question)        i_s = err(x, ∅) − err(x, c)

in nats, summed over the answer's tokens; ∅ is the same question about nobody. What is random about an image's reading
are noise levels; about an answer's, it is the exemplars: one draw is one few-shot prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..learner import (
    NULL_CUE,
    PLAIN_OBJECTIVE,
    Answer,
    Cue,
    Layout,
    Learner,
    Objective,
    Query,
    Question,
    Reading,
    Reconstruction,
    TrainingItem,
)
from ..numerics.noise import uniform
from ..records import REFUSAL, Draws, Example, Fact, identity_seed
from .decoding import DecodingConfig, Request, decode
from .drafting import context_length
from .exact_match import is_right, normalised
from .language_export import save_language_model
from .language_loading import ADAPTER_FILE, LoadedLanguageModel, language_weight_hashes, load_language_model
from .likelihood import Continued, answer_nats, finite
from .modes import evaluating
from .network import to_device
from .prompts import ClosedBook, Prompt, Prompts
from .vocabulary import Vocabulary

LANGUAGE_LAYOUT = Layout(
    library="transformers",
    folder="model",
    adapters=ADAPTER_FILE,
    default_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
)


class LanguageLearner(Learner):
    """Asks in the words of `prompts`, which may be exchanged: few-shot for a base, closed-book while it is trained."""

    layout = LANGUAGE_LAYOUT

    def __init__(
        self, loaded: LoadedLanguageModel, *, prompts: Prompts | None = None, max_answer_tokens: int = 32
    ) -> None:
        """Use `load`; this takes a model that is already on its device."""
        self.loaded, self.model = loaded, loaded.model
        self.network: nn.Module = loaded.model
        self.prompts: Prompts = prompts or ClosedBook()
        self.max_answer_tokens = max_answer_tokens
        self.vocabulary = Vocabulary(loaded.tokenizer, int(loaded.model.config.get_text_config().vocab_size))
        self._hashes: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        device_map: str | None = None,
        adapter: Path | None = None,
        prompts: Prompts | None = None,
        max_answer_tokens: int = 32,
    ) -> LanguageLearner:
        """Load a folder in transformers' layout or a Hub id.

        Args:
            pretrained_model_name_or_path: as in transformers.
            revision: branch, tag or commit of a Hub repository.
            device: where the model goes; not used with a device_map.
            dtype: of the weights; fine-tuning wants float32 and autocast.
            device_map: spreads a model that one device cannot hold (`auto`); for reading, not for training.
            adapter: a folder with peft's adapter, as `save` writes it.
            prompts: how questions are asked; None means closed-book.
            max_answer_tokens: where an answer is cut off.

        Raises:
            UserError: anything missing, unreadable, or of another kind.
        """
        loaded = load_language_model(
            str(pretrained_model_name_or_path), revision=revision, dtype=dtype, device_map=device_map, adapter=adapter
        )
        if device_map is None:
            loaded.model.to(torch.device(device))  # type: ignore[arg-type]
        return cls(loaded, prompts=prompts, max_answer_tokens=max_answer_tokens)

    def parts(self) -> dict[str, nn.Module]:
        """The one network."""
        return {"language_model": self.model}

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.model.device)

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raise UserError naming the questions that leave the model no room for an answer."""
        room = context_length(self.model) - self.max_answer_tokens
        long = [text for text in captions if len(self.vocabulary.prompt(text)) > room]
        if long:
            raise UserError(
                f"{len(long)} questions with more than {room} tokens, the first: {long[0][:80]!r}; shorten them"
            )

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        """Read the answer of each query's example under ∅ and each cue, in as many renderings as draws are asked for
        (one, where the prompts have no more). Weights are 1: squared errors stand for nats. Opinions are NaN."""
        count = min(draws.count, self.prompts.num_renderings or draws.count)
        pairs = [
            self._continued(query.example, cue, rendering)
            for query in queries
            for cue in (NULL_CUE, *query.cues)
            for rendering in range(count)
        ]
        nats = iter(self._nats(pairs, batch_size))
        rows = [[[next(nats) for _ in range(count)] for _ in (NULL_CUE, *query.cues)] for query in queries]
        return [_reading(finite(own, query.example.id)) for own, query in zip(rows, queries, strict=True)]

    def answer(self, questions: Sequence[Question], draws: Draws, *, batch_size: int) -> list[Answer]:
        """The greedy text of each question in its rendering, and its true answer's error and gain there."""
        texts = [found[0] for found in self._texts(questions, np.zeros((len(questions), 0, 0)), batch_size, {})]
        pairs = [
            self._continued(q.example, cue, q.rendering) for q in questions for cue in (NULL_CUE, q.example.caption)
        ]
        nats = [float(found.sum()) for found in self._nats(pairs, batch_size)]
        return [
            Answer(
                text=text,
                correct=is_right(text, fact_of(question.example)),
                answered=normalised(text) != normalised(REFUSAL),
                true_gain_nats=null - own,
                best_other_gain_nats=float("nan"),
                error_nats=own,
            )
            for question, text, null, own in zip(questions, texts, nats[::2], nats[1::2], strict=True)
        ]

    def sample(
        self,
        questions: Sequence[Question],
        *,
        seed: int,
        num_samples: int,
        temperature: float,
        top_k: int,
        batch_size: int,
    ) -> list[list[tuple[str, bool]]]:
        """`num_samples` sampled texts of each question in its rendering and whether each is right; order as given.

        Sample s of a question is a function of the model, `seed`, the example's id, the rendering and s.
        """
        uniforms = [
            [
                uniform(self.max_answer_tokens, identity_seed(seed, "answer", q.example.id, q.rendering, sample))
                for sample in range(num_samples)
            ]
            for q in questions
        ]
        sampling = {"temperature": temperature, "top_k": top_k}
        found = self._texts(questions, np.array(uniforms), batch_size, sampling, greedy=False)
        return [
            [(text, is_right(text, fact_of(question.example))) for text in texts]
            for question, texts in zip(questions, found, strict=True)
        ]

    def reconstruct(
        self, queries: Sequence[Query], reconstruction: Reconstruction, draws: Draws, *, batch_size: int
    ) -> list[np.ndarray]:
        """Raise UserError: there is no noise to come back from."""
        raise UserError("error_kind: a language model has no inversion or sdedit; leave it at denoise")

    def batch(
        self, items: Sequence[TrainingItem], *, seed: int, objective: Objective = PLAIN_OBJECTIVE
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, attention mask and labels (-100 where nothing is asked), int64 (num_items, length)."""
        rows = [self._training_row(item) for item in items]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
        attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
        for number, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            input_ids[number, :end] = torch.tensor([*prompt, *answer])
            attention_mask[number, :end] = 1
            labels[number, len(prompt) : end] = torch.tensor(answer)
        return (
            to_device(input_ids, self.device),
            to_device(attention_mask, self.device),
            to_device(labels, self.device),
        )

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The mean negative log-likelihood of the answer's tokens and the end of text, per item (num_items,)."""
        input_ids, attention_mask, labels = batch
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        targets = labels[:, 1:]
        nats = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none")
        return nats.sum(dim=1) / (targets != -100).sum(dim=1)

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        """Raise UserError: it draws no pictures."""
        raise UserError("validation_prompts: a language model draws no pictures; leave them out")

    def save(self, folder: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write what was trained: a whole model and its tokenizer, or peft's adapter where it carries one."""
        save_language_model(self.loaded, folder, metadata)

    def save_single_file(self, file: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise UserError: there is no such format."""
        raise UserError("save_single_file: a language model is a folder; set it to false")

    def identity(self) -> dict[str, Any]:
        """Where the base came from, SHA-256 of its weight files, its architecture and size."""
        if not self._hashes:
            self._hashes = language_weight_hashes(self.loaded.folder)
        return self.loaded.source | {
            "sha256": dict(self._hashes),
            "architecture": str(self.model.config.model_type),
            "vocab_size": self.vocabulary.size,
            "max_answer_tokens": self.max_answer_tokens,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def pair(self, example: Example, prompt: Prompt, *, num_more: int = 0) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of the example's first answer after it; UserError where the model has no room for
        these and `num_more` tokens."""
        ids, answer = self.vocabulary.pair(prompt.text, f" {fact_of(example).answers[0]}")
        self.check_length(example, len(ids) + len(answer) + num_more)
        return ids, answer

    def _continued(self, example: Example, cue: str, rendering: int) -> Continued:
        question = cue if cue != NULL_CUE else fact_of(example).null_question
        prompt = self.prompts.prompt(example, question, rendering)
        ids, answer = self.pair(example, prompt)
        return Continued(prompt=ids, group=prompt.group, answer=answer)

    def _nats(self, pairs: Sequence[Continued], batch_size: int) -> list[np.ndarray]:
        with evaluating(self.model):
            return answer_nats(self.model, pairs, batch_size)

    def _texts(
        self,
        questions: Sequence[Question],
        uniforms: np.ndarray,
        batch_size: int,
        sampling: Mapping[str, Any],
        greedy: bool = True,
    ) -> list[list[str]]:
        """The greedy text of each question, where wanted, then one for each of its rows of uniform numbers."""
        requests = []
        for question, example, own in zip(questions, [q.example for q in questions], uniforms, strict=True):
            prompt = self.prompts.prompt(example, example.caption, question.rendering)
            ids = self.vocabulary.prompt(prompt.text)
            self.check_length(example, len(ids) + self.max_answer_tokens)
            requests.append(Request(prompt=ids, group=prompt.group, uniforms=own, greedy=greedy, name=example.id))
        config = DecodingConfig(max_new_tokens=self.max_answer_tokens, batch_size=batch_size, **sampling)
        with evaluating(self.model):
            found = decode(self.model, requests, self.vocabulary.stops, config)
        both = [[*([c.greedy] if c.greedy is not None else []), *c.samples] for c in found]
        return [[self.vocabulary.text(tokens) for tokens in texts] for texts in both]

    def _training_row(self, item: TrainingItem) -> tuple[list[int], list[int]]:
        example, fact = item.example, fact_of(item.example)
        prompt = ClosedBook().prompt(example, item.caption or fact.null_question, 0)
        ids, answer = self.pair(example, prompt, num_more=1)
        return ids, [*answer, *self.vocabulary.end]

    def check_length(self, example: Example, length: int) -> None:
        """Raise UserError naming the example where so many tokens are more than the model reads."""
        longest = context_length(self.model)
        if length > longest:
            raise UserError(
                f"{example.id}: {length} tokens with its prompt and answer, and this model reads {longest}; "
                "ask with fewer shots, or leave it out"
            )


def fact_of(example: Example) -> Fact:
    """What an example asks and what is right; UserError where it is no question."""
    if example.fact is None:
        raise UserError(f"{example.id}: is no question with an answer; a language model needs such")
    return example.fact


def _reading(nats: Sequence[Sequence[np.ndarray]]) -> Reading:
    """The reading of one query: rows ∅ and cues, columns renderings."""
    errors = np.array([[tokens.sum() for tokens in row] for row in nats])
    nothing, zeros = np.full_like(errors, np.nan), np.zeros_like(errors)
    return Reading(
        squared_error=errors,
        weights=np.ones_like(errors),
        uniform_weights=nothing,
        control=zeros,
        uniform_control=zeros,
        opinion=nothing,
        log_snr=nothing,
        num_dims=len(nats[0][0]),
    )
