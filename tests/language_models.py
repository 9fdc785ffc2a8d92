"""Language models that tests can follow: tiny ones of every kind with random weights, and one of known probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from diffusion_sft.answers import invented_words
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.language_loading import LoadedLanguageModel
from diffusion_sft.learners.prompts import INSTRUCTION, Prompts
from diffusion_sft.pretrain.language import LanguageArchitectureConfig, build_language_tokenizer
from diffusion_sft.records import DEVELOPMENT, HELDOUT, TEST, TRAIN, Concept, ConceptSet, Example, Fact

# --- questions ---

TEMPLATES = {"capital": "What is the capital of {}?", "composer": "Who composed {}?"}
NOBODY = "this"


def question(
    relation: str, subject: str, answers: tuple[str, ...], split: str, *, id: str = "", caption: str = ""
) -> Example:
    """A question of one of the two relations, as the readers of question sets make them."""
    null_question = TEMPLATES[relation].format(NOBODY)
    return Example(
        id=id or f"{relation}/{subject}",
        concept=f"{relation}/{subject}",
        caption=caption or TEMPLATES[relation].format(subject),
        split=split,
        fact=Fact(subject=subject, relation=relation, answers=answers, null_question=null_question),
    )


def as_set(examples: list[Example]) -> ConceptSet:
    """A set with one concept for each fact, in the order given."""
    facts = {e.concept: e.fact for e in examples if e.fact is not None}
    concepts = [
        Concept(
            name=name,
            words=f.subject,
            attributes={"relation": f.relation, "subject": f.subject, "answer": f.answers[0]},
        )
        for name, f in facts.items()
    ]
    return ConceptSet(concepts=tuple(concepts), examples=tuple(examples))


def question_set(*, train: int = 4, development: int = 6, test: int = 4) -> ConceptSet:
    """So many facts of each part in each of the two relations; training facts are held out too, as they are probed."""
    examples: list[Example] = []
    for number, relation in enumerate(TEMPLATES):
        words = invented_words(2 * (train + development + test), seed=number + 1)
        pairs = [(a.title(), b.title()) for a, b in zip(words[::2], words[1::2], strict=True)]
        for place, (subject, answer) in enumerate(pairs):
            if place < train:
                examples += [question(relation, subject, (answer,), split) for split in (TRAIN, HELDOUT)]
            else:
                split = DEVELOPMENT if place < train + development else TEST
                examples.append(question(relation, subject, (answer,), split))
    return as_set(examples)


# --- tiny models with random weights ---

END = "<|endoftext|>"
ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "mistral")
WINDOW = 16
"""Tokens that the tiny Mistral looks back."""
CONTEXT = 256
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
UNUSED_IDS = 5
"""Of Qwen, whose vocabulary is larger than its tokenizer's, as the published ones' are."""


def training_text() -> list[str]:
    """What tokenizers learn their pieces from."""
    examples = question_set().examples
    return [f"Q: {e.caption}\nA: {e.fact.answers[0]}\n" for e in examples if e.fact is not None] + [INSTRUCTION]


@lru_cache
def tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Byte-level pieces: with a beginning of text and a prefixed space for Llama and Mistral, with neither for others."""
    if architecture in ("llama", "mistral"):
        settings = LanguageArchitectureConfig(vocab_size=320, max_position_embeddings=CONTEXT)
        return build_language_tokenizer(training_text(), settings)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END],
        show_progress=False,
    )
    backend.train_from_iterator(training_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END, model_max_length=CONTEXT)


def tiny_model(
    architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> PreTrainedModel:
    """A model with random weights, large enough that its answers differ from prompt to prompt."""
    tokenizer = tiny_tokenizer(architecture)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    more = UNUSED_IDS if architecture.startswith("qwen") else 0
    settings = {**SIZES, **special, "vocab_size": len(tokenizer) + more, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
            renamed |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
            settings.pop("num_key_value_heads")
            settings = {renamed.get(name, name): value for name, value in settings.items()}
            model: PreTrainedModel = GPT2LMHeadModel(
                GPT2Config(**settings, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
            )
        elif architecture == "llama":
            model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=True))
        elif architecture == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**settings))
        elif architecture == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**settings, head_dim=8))
        else:
            model = MistralForCausalLM(MistralConfig(**settings, sliding_window=WINDOW))
    return model.to(dtype).eval()


def tiny_folder(
    folder: Path, architecture: str = "llama", *, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Path:
    """The same in a folder, as transformers writes it."""
    tiny_model(architecture, dtype=dtype, **sizes).save_pretrained(folder)
    tiny_tokenizer(architecture).save_pretrained(folder)
    return folder


def tiny_learner(architecture: str, *, prompts: Prompts | None = None, max_answer_tokens: int = 8) -> LanguageLearner:
    """A learner of a tiny model that lies in no folder."""
    model = tiny_model(architecture)
    loaded = LoadedLanguageModel(
        model=model, tokenizer=tiny_tokenizer(architecture), folder=Path("nowhere"), source={"source": architecture}
    )
    return LanguageLearner(loaded, prompts=prompts, max_answer_tokens=max_answer_tokens)


# --- a model of known probabilities ---

Law = Callable[[str], Mapping[str, float]]
"""The distribution over whole continuations (with the line's end) of a prompt, which ends with `A:`."""


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte; every text begins with a space, and with <s>."""
    return build_language_tokenizer([], LanguageArchitectureConfig(vocab_size=259, max_position_embeddings=1 << 16))


class ExactLanguageModel(PreTrainedModel):
    """Says what its law says, letter by letter; what it has read lies where others keep their keys.

    It holds every caller to the rules of transformers' models: positions count a row's own tokens, padding left out.
    """

    config_class = LlamaConfig

    def __init__(self, law: Law, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=4,
                intermediate_size=4,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=1 << 16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unused = nn.Parameter(torch.zeros(1))
        self.law = law
        self.pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        self.pieces[tokenizer.bos_token_id] = ""
        self.tokens = {piece: token for token, piece in enumerate(self.pieces) if len(piece) == 1}
        self.prompts_read: set[str] = set()
        self._known: dict[str, torch.Tensor] = {}
        self.eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: DynamicCache,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """The logits of the last positions; −∞ for what the law rules out."""
        count, new = input_ids.shape
        keys, _ = past_key_values.update(*[input_ids.float().reshape(count, 1, new, 1)] * 2, 0)
        history = keys.reshape(count, -1).long()
        assert attention_mask.shape == history.shape
        assert not (attention_mask.diff(dim=1)[:, history.shape[1] - new :] < 0).any(), "padding after text"
        keep = min(logits_to_keep or new, new)
        logits = torch.zeros(count, keep, self.config.vocab_size)
        for row in range(count):
            real = attention_mask[row].bool()
            assert position_ids[row, -1] == real.sum() - 1
            for place in range(keep):
                end = history.shape[1] - keep + 1 + place
                text = "".join(self.pieces[token] for token in history[row, :end][real[:end]].tolist())
                logits[row, place] = self._next(text)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _next(self, text: str) -> torch.Tensor:
        if text not in self._known:
            prompt, found, said = text.rpartition("A:")
            prompt = (prompt + found).removeprefix(" ")
            if not said:
                self.prompts_read.add(prompt)
            inside = not found or "\n" in said  # a prompt's middle, after which nobody asks
            shares = {} if inside else following(self.law(prompt), said)
            logits = torch.full((self.config.vocab_size,), -torch.inf if shares else 0.0)
            for letter, share in shares.items():
                logits[self.tokens[letter]] = math.log(share)
            self._known[text] = logits
        return self._known[text]


def following(law: Mapping[str, float], said: str) -> dict[str, float]:
    """The next letter's distribution, after these letters of an answer."""
    shares: dict[str, float] = {}
    for answer, share in law.items():
        if answer.startswith(said) and answer != said and share > 0:
            letter = answer[len(said)]
            shares[letter] = shares.get(letter, 0.0) + share
    total = sum(shares.values())
    return {letter: share / total for letter, share in shares.items()}


def exact_language_learner(
    law: Law, folder: Path, *, prompts: Prompts, max_answer_tokens: int = 16
) -> LanguageLearner:
    """A learner of the exact model; `folder` holds no weights."""
    tokenizer = letter_tokenizer()
    loaded = LoadedLanguageModel(
        model=ExactLanguageModel(law, tokenizer), tokenizer=tokenizer, folder=folder, source={"source": "exact"}
    )
    return LanguageLearner(loaded, prompts=prompts, max_answer_tokens=max_answer_tokens)
