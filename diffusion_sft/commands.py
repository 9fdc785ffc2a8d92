"""The verbs that are not stages of a study: world, pretrain, finetune, sft, doctor and those on data and caches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .answers import AnswerConfig
from .concepts import read_concept_set
from .concepts.data_check import DataCheckConfig, check_data
from .errors import UserError
from .files import read_table
from .finetune.begin import dry_plan
from .finetune.command import FinetuneCommandConfig, SftCommandConfig
from .finetune.encodings import to_encode
from .finetune.estimate import size
from .finetune.evaluations import make_exam
from .finetune.loop import finetune
from .finetune.mix import Mix
from .finetune.mixes import compose
from .generating import GenerateConfig, run_generate
from .learner import Cue
from .learners.cache import CacheReport, cache_encodings, clear_cache, verify_cache
from .learners.diffusion import DiffusionLearner
from .learners.language import LanguageLearner
from .learners.tokens import token_counter
from .locks import locked
from .machine import hardware, pick_device, versions
from .plan import check_learners
from .pretrain.language import LanguagePretrainConfig, pretrain_language
from .pretrain.run import PretrainConfig, pretrain
from .processes import process_device
from .questions import read_questions
from .records import DIFFUSION, LLM, ConceptSet
from .world.population import WorldConfig
from .world.write import write_world


@dataclass(frozen=True, kw_only=True)
class WorldCommandConfig(WorldConfig):
    """Where the world is written, besides what it is."""

    output_dir: str = "runs/world"


@dataclass(frozen=True, kw_only=True)
class PretrainCommandConfig(PretrainConfig):
    """Where the bases are trained, besides how."""

    output_dir: str = "runs/pretrain"
    learners: list[str] = field(default_factory=lambda: [DIFFUSION])
    """diffusion, llm or both: which bases are trained. The language model's recipe is under `llm`."""
    llm: LanguagePretrainConfig = field(default_factory=LanguagePretrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learners(self.learners)


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to try."""

    pretrained_model_name_or_path: str = "data/world-base"
    device: str = "auto"


def run_world(config: WorldCommandConfig) -> int:
    """Write the world."""
    folder = Path(config.output_dir)
    with locked(folder):
        write_world(folder, config)
    print(f"world: {folder} (an ImageFolder with metadata.jsonl, and questions.jsonl about the same names)")
    return 0


def run_pretrain(config: PretrainCommandConfig) -> int:
    """Train the bases, or go on with them."""
    folder = Path(config.output_dir)
    with locked(folder):
        if LLM in config.learners:
            print(f"language model: {pretrain_language(config.llm, folder) / 'model'}")
        if DIFFUSION in config.learners:
            done = pretrain(config, folder)
            print(f"base: {done / 'pipeline'}; readout: {done / 'readout'}")
    return 0


def run_finetune(config: FinetuneCommandConfig) -> int:
    """Fine-tune on a folder of captioned images, or on a mix of its buckets."""
    learner = _base_of(config)
    concept_set, labels, mix = _mix_of(config)
    exam = make_exam(mix, labels, concept_set, config, config.answers)
    folder = Path(config.output_dir)
    summary = finetune(learner, mix, exam, config, folder)
    print(f"{folder}: {summary['updates']} updates on {len(mix.examples)} images of {len(mix.categories)} concepts")
    return 0


def run_sft(config: SftCommandConfig) -> int:
    """Fine-tune a language model on questions and answers, or on a mix of their categories."""
    if not config.pretrained_model_name_or_path:
        raise UserError("pretrained_model_name_or_path is empty: give a folder in transformers' layout or a Hub id")
    if not config.questions.given:
        raise UserError("questions.path is empty: give a set of questions and answers")
    learner = LanguageLearner.load(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        device=process_device(),
        max_answer_tokens=config.max_answer_tokens,
    )
    questions = read_questions(config.questions)
    for note in (*questions.notes, *(str(problem) for problem in questions.problems)):
        print(f"note: {note}")
    labels = read_table(Path(config.concepts_table)) if config.concepts_table else None
    mix = compose(config.mix, labels, questions.concept_set, config.seed)
    exam = make_exam(mix, labels, questions.concept_set, config, AnswerConfig())
    folder = Path(config.output_dir)
    summary = finetune(learner, mix, exam, config, folder)
    print(f"{folder}: {summary['updates']} updates on {len(mix.examples)} questions")
    return 0


def plan_finetune(config: FinetuneCommandConfig) -> str:
    """What the run will need of memory, disk and updates, without starting it."""
    return dry_plan(_base_of(config), _mix_of(config)[2], config, int(os.environ.get("WORLD_SIZE", "1")))


def run_data_check(config: DataCheckConfig) -> int:
    """Show what a concept set is read as."""
    return check_data(config, token_counter(config.base, config.revision) if config.base else None)


def run_cache_fill(config: FinetuneCommandConfig) -> int:
    """Encode what a run with these settings will need."""
    folder = _cache_folder(config)
    learner = _base_of(config)
    _, _, mix = _mix_of(config)
    items, captions = to_encode(mix, config, learner.resolution)
    return _told(folder, cache_encodings(learner, items, captions, folder))


def run_cache_verify(config: FinetuneCommandConfig) -> int:
    """Check a cache; 1 where something is wrong with it."""
    folder = _cache_folder(config)
    return _told(folder, verify_cache(folder))


def run_cache_clear(config: FinetuneCommandConfig) -> int:
    """Empty a cache."""
    folder = _cache_folder(config)
    print(f"{folder}: {clear_cache(folder)} entries removed")
    return 0


def _base_of(config: FinetuneCommandConfig) -> DiffusionLearner:
    if not config.pretrained_model_name_or_path:
        raise UserError("pretrained_model_name_or_path is empty: give a pipeline folder or a Hub id")
    return DiffusionLearner.load(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        single_file_config=config.single_file_config,
        device=process_device(),
        resolution=config.resolution,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
    )


def _mix_of(config: FinetuneCommandConfig) -> tuple[ConceptSet, pd.DataFrame | None, Mix]:
    result = read_concept_set(config.concepts)
    for note in (*result.notes, *(str(problem) for problem in result.problems)):
        print(f"note: {note}")
    labels = read_table(Path(config.concepts_table)) if config.concepts_table else None
    return result.concept_set, labels, compose(config.mix, labels, result.concept_set, config.seed)


def _cache_folder(config: FinetuneCommandConfig) -> Path:
    if not config.cache_dir:
        raise UserError("cache_dir is empty: give the folder of the cache")
    return Path(config.cache_dir)


def _told(folder: Path, report: CacheReport) -> int:
    print(f"{folder}: {report.num_entries} entries, {size(report.num_bytes)}")
    for what, names in (("damaged", report.damaged), ("missing", report.missing)):
        for name in names:
            print(f"{what}: {name} (made anew when a run asks for it)")
    return int(bool(report.damaged or report.missing))


def run_doctor(config: DoctorConfig) -> int:
    """Print what this installation is, and draw one picture."""
    device = pick_device(config.device)
    for name, text in (versions() | hardware(device)).items():
        print(f"{name:14} {text}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"{'free disk':14} {free:.0f} GiB{'' if free > 10 else '  (low: checkpoints of SD 1.5 take 10 GiB each)'}")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        print(f"{'GPU memory':14} {memory:.0f} GiB")
    learner = DiffusionLearner.load(config.pretrained_model_name_or_path, device=device)
    cue = Cue(prompt="", seed=0)
    image = learner.generate([cue], num_inference_steps=2, guidance_scale=1.0, batch_size=1)[0]
    print(f"{'base':14} {config.pretrained_model_name_or_path}: loads and draws {image.shape[1]}x{image.shape[0]}")
    return 0


SCHEMAS: dict[str, type] = {
    "world": WorldCommandConfig,
    "pretrain": PretrainCommandConfig,
    "finetune": FinetuneCommandConfig,
    "sft": SftCommandConfig,
    "data check": DataCheckConfig,
    "cache fill": FinetuneCommandConfig,
    "cache verify": FinetuneCommandConfig,
    "cache clear": FinetuneCommandConfig,
    "generate": GenerateConfig,
    "doctor": DoctorConfig,
}
VERBS: dict[str, Callable[[Any], int]] = {
    "world": run_world,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "sft": run_sft,
    "data check": run_data_check,
    "cache fill": run_cache_fill,
    "cache verify": run_cache_verify,
    "cache clear": run_cache_clear,
    "generate": run_generate,
    "doctor": run_doctor,
}
