"""The settings of a study, and how much work they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from .buckets import BucketConfig
from .concepts import ConceptsConfig
from .evaluate import EvaluateConfig
from .finetune.config import FinetuneConfig, LanguageFinetuneConfig
from .finetune.mixes import MixConfig
from .probe import LanguageProbeConfig, ProbeConfig
from .questions import QuestionsConfig
from .records import CATEGORIES, DIFFUSION, HELDOUT, LEARNERS, ConceptSet
from .solve.config import PictureSolveConfig, TextSolveConfig
from .world.population import WorldConfig


@dataclass(frozen=True, kw_only=True)
class LanguageStudyConfig:
    """The language model's half of a study; every word means what it means in the diffusion half."""

    base: str = "data/world-lm"
    """A causal language model: a folder in transformers' layout, or a Hub id."""
    revision: str | None = None
    device_map: str | None = None
    """auto spreads a base that one GPU cannot hold while it is probed; fine-tuning takes one device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the base while it is probed; auto is bfloat16 on a GPU and float32 on a CPU."""
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    """The facts; without a path those of the embedded world are written into the output folder."""
    probe: LanguageProbeConfig = field(default_factory=LanguageProbeConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    mixes: list[MixConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """As the study's own."""
    finetune: LanguageFinetuneConfig = field(default_factory=LanguageFinetuneConfig)
    solve: TextSolveConfig = field(default_factory=TextSolveConfig)

    def __post_init__(self) -> None:
        _check_mixes(self.mixes, self.seeds)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: a base, a concept set, and what is done with them. `base` and `concepts.path` are all it needs."""

    title: str = "What does the base know, and what does teaching it the rest cost?"
    output_dir: str = "runs/study"
    learners: list[str] = field(default_factory=lambda: [DIFFUSION])
    """diffusion, llm or both: whose half of the study is run. The language model's settings are under `llm`, its files
    in the output folder's `llm`."""
    base: str = "data/world-base"
    """A Stable Diffusion pipeline: a folder in the diffusers layout, a Hub id, or a single .safetensors file."""
    single_file_config: str | None = None
    """For a single .safetensors file as base: a pipeline folder with its configurations and tokenizer."""
    revision: str | None = None
    variant: str | None = None
    """Of the weight files, for example fp16."""
    resolution: int | None = None
    """Pixels of a side; unset means the base's own."""
    cache_dir: str | None = None
    """Where encoded images and captions are kept from run to run, by content; null keeps them in memory alone."""
    device: str = "auto"
    """auto takes CUDA where there is any; else as torch names devices."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the networks outside training; auto is bfloat16 on a GPU and float32 on a CPU."""
    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)
    """The concept set; without a path the embedded world of `world` is written into the output folder."""
    world: WorldConfig = field(default_factory=WorldConfig)
    readout: str | None = None
    """A classifier of the concepts' attributes, which then judges pictures; unset means the nearest concept among
    real pictures, by the extractor's features."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    mixes: list[MixConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """Each mix is drawn and taught once with each of these; empty: once, with finetune.seed."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    solve: PictureSolveConfig = field(default_factory=PictureSolveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    figures: bool = True
    """Write every drawing of the report as PNG and PDF too, into `figures/`; about 0.2 seconds each."""
    llm: LanguageStudyConfig = field(default_factory=LanguageStudyConfig)

    def __post_init__(self) -> None:
        _check_mixes(self.mixes, self.seeds)
        check_learners(self.learners)
        if self.finetune.push_to_hub and len(planned_runs(self.mixes, self.seeds, 0)) > 1:
            raise ValueError(
                "finetune.push_to_hub: several mixes would overwrite one repository; push one mix at a time"
            )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One fine-tuning run of a study: a mix with a seed, and the name of both."""

    name: str
    mix: MixConfig
    seed: int


def planned_runs(mixes: Sequence[MixConfig], seeds: Sequence[int], seed: int) -> list[PlannedRun]:
    """Every mix with every seed, mix by mix; with `seed` alone, and under the mix's own name, where there are none."""
    if not seeds:
        return [PlannedRun(name=mix.name, mix=mix, seed=seed) for mix in mixes]
    return [PlannedRun(name=f"{mix.name}-seed{each}", mix=mix, seed=each) for mix in mixes for each in seeds]


def check_learners(learners: Sequence[str]) -> None:
    """Raise ValueError unless these are some of `LEARNERS`, each once."""
    if not learners or not set(learners) <= set(LEARNERS) or len(set(learners)) < len(learners):
        raise ValueError(f"learners: some of {', '.join(LEARNERS)}, each once, not {list(learners)}")


def _check_mixes(mixes: Sequence[MixConfig], seeds: Sequence[int]) -> None:
    names = [mix.name for mix in mixes]
    if "base" in names or len(set(names)) < len(names):
        raise ValueError(f"mixes need names that differ from each other and from 'base', not {names}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {list(seeds)} holds one twice")


def network_evaluations(config: StudyConfig, concept_set: ConceptSet) -> dict[str, int]:
    """How many times the network is evaluated in each stage, at most; a training example counts as three. Of solving, S1
    alone is counted, by what it took on the shipped base."""
    probe_config, tuning, drawing = config.probe, config.finetune, config.evaluate
    runs = planned_runs(config.mixes, config.seeds, tuning.seed)
    num_concepts, num_models = len(concept_set.concepts), 1 + len(runs)
    per_concept = probe_config.max_examples_per_concept
    heldout = pd.Series([example.concept for example in concept_set.split(HELDOUT)]).value_counts()
    num_scored = int(heldout.clip(upper=per_concept).sum())
    answers, samples = probe_config.answers, probe_config.samples
    questions = num_concepts * answers.num_renderings * answers.num_candidates * answers.num_draws
    guided = 2 if samples.guidance_scale > 1 else 1
    drawn = num_concepts * samples.num_samples * samples.num_inference_steps * guided
    per_update = tuning.train_batch_size * tuning.gradient_accumulation_steps * 3
    exams = tuning.max_train_steps // tuning.validation_steps + 1 if tuning.validation_steps else 0
    asked = 0
    for run in runs:
        concepts = run.mix.num_concepts or num_concepts
        asked += (2 * concepts * (tuning.validation_examples_per_concept or 8) + 32) * exams
    guided = 2 if drawing.guidance_scale > 1 else 1
    pictures = num_models * num_concepts * drawing.num_images_per_concept
    s1, most = config.solve.generation, config.solve.concepts_per_category
    solved = num_concepts if most is None else min(num_concepts, len(CATEGORIES) * most)
    solved *= s1.num_renderings * s1.num_starts * s1.num_inference_steps
    return {
        "probe": num_scored * 2 * probe_config.evaluations_per_caption + questions + drawn // 2,
        "finetune": len(runs) * tuning.max_train_steps * per_update
        + asked * answers.num_candidates * tuning.validation_draws,
        "generate": pictures * drawing.num_inference_steps * guided,
        # Under its caption and under ∅ about 12 sweeps' worth of steps each, and as many as 6 for the rest of S1.
        "solve": solved * (24 * (2 if s1.guidance_scale > 1 else 1) + 6),
    }
