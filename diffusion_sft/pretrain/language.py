"""Pretrain a small causal language model on the world's text: tokenizer, documents, Llama, in that order.

Everything is transformers' own classes, so that what comes out is an ordinary folder for `AutoModelForCausalLM`, and
nothing later can tell it from a downloaded one but by its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import UserError
from ..files import replaced_folder, write_json
from ..machine import pick_device
from ..ranges import check_range
from ..records import identity_seed
from ..world.population import WorldConfig, populate
from .loop import FitConfig, fit
from .passages import PassagesConfig, build_documents, tokenizer_text

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True, kw_only=True)
class LanguageArchitectureConfig:
    """Sizes of the model; the defaults are the shipped base's."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    max_position_embeddings: int = 512

    def __post_init__(self) -> None:
        check_range(
            self, "vocab_size", least=259, most=65_536
        )  # Bytes and three special tokens; ids are kept in 16 bits.
        check_range(self, "hidden_size", "intermediate_size", "num_attention_heads", least=1, most=65_536)
        check_range(self, "num_hidden_layers", least=1, most=1024)
        check_range(self, "max_position_embeddings", least=2, most=1 << 20)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


@dataclass(frozen=True, kw_only=True)
class LanguagePretrainConfig:
    """The recipe of a language model; with the same seed it gives the same one on the same machine.

    The text is read once from front to back, so that an exposure is one reading; how many updates that takes follows
    from its length.
    """

    seed: int = 0
    device: str = "cpu"
    world: WorldConfig = field(default_factory=WorldConfig)
    architecture: LanguageArchitectureConfig = field(default_factory=LanguageArchitectureConfig)
    passages: PassagesConfig = field(default_factory=PassagesConfig)
    sequence_length: int = 128
    batch_size: int = 16
    """Sequences of an update."""
    learning_rate: float = 2e-3
    warmup_updates: int = 100
    weight_decay: float = 0.1
    ema_decay: float = 0.99
    checkpointing_updates: int = 500

    def __post_init__(self) -> None:
        check_range(self, "sequence_length", least=2, most=self.architecture.max_position_embeddings)
        check_range(self, "batch_size", "checkpointing_updates", least=1)
        check_range(self, "learning_rate", above=0)
        check_range(self, "seed", "warmup_updates", "weight_decay", least=0)
        check_range(self, "ema_decay", least=0, below=1)


def pretrain_language(config: LanguagePretrainConfig, folder: Path) -> Path:
    """Run or continue the recipe; `folder` then holds `model/`, `training.json`, and `work/` to resume from."""
    config = replace(config, device=str(pick_device(config.device)))
    people = populate(config.world)
    tokenizer = build_language_tokenizer(tokenizer_text(people, config.seed), config.architecture)
    sequences = pack(build_documents(people, config.passages, config.seed), tokenizer, config.sequence_length)
    num_updates = len(sequences) // config.batch_size
    if not num_updates:
        raise UserError(
            f"llm.batch_size={config.batch_size}: the world's text gives {len(sequences)} sequences, fewer than one update"
        )
    order = np.random.default_rng(identity_seed(config.seed, "language order")).permutation(len(sequences))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed(config.seed, "language weights"))
        model = build_language_model(tokenizer, config.architecture).to(config.device)

    def loss_at(update: int) -> torch.Tensor:
        rows = order[update * config.batch_size : (update + 1) * config.batch_size]
        input_ids = torch.from_numpy(sequences[rows].astype(np.int64)).to(config.device)
        loss: torch.Tensor = model(input_ids=input_ids, labels=input_ids).loss
        return loss

    settings = FitConfig(
        num_updates=num_updates,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_updates=config.warmup_updates,
        weight_decay=config.weight_decay,
        ema_decay=config.ema_decay,
        checkpointing_updates=config.checkpointing_updates,
    )
    log = fit(model, loss_at, settings, folder / "work" / "language")
    with replaced_folder(folder / "model") as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    text = {"num_tokens": int(sequences.size), "num_updates": num_updates}
    write_json(folder / "training.json", {"language_log": log, **text})
    return folder


def build_language_tokenizer(text: Iterable[str], config: LanguageArchitectureConfig) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `text`; every text that is encoded begins with a space, as Llama's first tokenizer did,
    so that an answer is the same tokens after a line's end and after a word."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[BOS, EOS, PAD],
        show_progress=False,
    )
    backend.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=config.max_position_embeddings,
    )


def build_language_model(tokenizer: PreTrainedTokenizerFast, config: LanguageArchitectureConfig) -> LlamaForCausalLM:
    """A Llama with random weights that reads this tokenizer's ids."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int) -> np.ndarray:
    """Documents one after another, each between <s> and </s>, cut into rows of `length` ids, uint16 (rows, length);
    what is left at the end is dropped."""
    encoded = tokenizer(list(documents), add_special_tokens=True)["input_ids"]
    stream = np.concatenate([np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded])
    rows = len(stream) // length
    return stream[: rows * length].reshape(rows, length)
