"""The settings of `diffusion-sft finetune` (and `scripts/finetune.py`) and of `diffusion-sft sft`: a base, a set, a mix,
and a run of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..answers import AnswerConfig
from ..concepts import ConceptsConfig
from ..questions import QuestionsConfig
from ..ranges import MOST_PIXELS, check_range
from .config import FinetuneConfig, LanguageFinetuneConfig
from .mix import MixConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneCommandConfig(FinetuneConfig):
    """Flat, so that the names that diffusers users type are keys of their own: `max_train_steps=500`."""

    pretrained_model_name_or_path: str = ""
    """A pipeline folder, a Hub id, or a single .safetensors checkpoint."""
    revision: str | None = None
    variant: str | None = None
    """Of the weight files, for example fp16; training itself is in float32."""
    resolution: int | None = None
    """Pixels of a side; None means the base's own."""
    single_file_config: str | None = None
    """For a single .safetensors file as base: a pipeline folder with its configurations and tokenizer."""
    cache_dir: str | None = None
    """Where encoded images and captions are kept from run to run, by content; null keeps them in memory
    alone, up to 4 GiB; what does not fit is encoded again."""
    output_dir: str = "runs/finetune"
    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)
    concepts_table: str | None = None
    """`concepts.parquet` of the bucket stage; without it every concept is of the category `all`."""
    mix: MixConfig = field(default_factory=MixConfig)
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    """Which candidates an evaluation's questions have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "resolution", least=1, most=MOST_PIXELS)


@dataclass(frozen=True, kw_only=True)
class SftCommandConfig(LanguageFinetuneConfig):
    """Flat as well, for a language model: closed-book questions, the loss on the answer alone."""

    pretrained_model_name_or_path: str = ""
    """A folder in transformers' layout, or a Hub id."""
    revision: str | None = None
    output_dir: str = "runs/sft"
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    concepts_table: str | None = None
    """`concepts.parquet` of the bucket stage; without it every fact is of the category `all`."""
    mix: MixConfig = field(default_factory=MixConfig)
    max_answer_tokens: int = 32
    """Where an answer is cut off at evaluations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_answer_tokens", least=1)
