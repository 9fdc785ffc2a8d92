"""What a study needs of memory and disk, from its settings and the base's configurations; nothing is allocated."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..answers import make_questions
from ..finetune.config import FinetuneConfig
from ..finetune.estimate import Plan
from ..finetune.estimate import size as in_bytes
from ..plan import StudyConfig
from ..records import HELDOUT, SHOWN_IMAGES, ConceptSet
from ..story import chosen_dtype
from .counting import guided, mix_size, num_exams, num_pictures, study_runs
from .networks import Base

CARDS = {"24 GB": 24 * 2**30, "40 GB": 40 * 2**30, "80 GB": 80 * 2**30}
"""Memory of usual GPUs."""
RESERVED = 10**9
"""Of a GPU's memory that CUDA itself and its libraries' workspaces are taken to need."""
REPORT_BYTES, ROW_BYTES = 10**7, 300
"""The page with its figures, and a table's row in parquet and csv: about, from the shipped configurations."""
PIXEL_BYTES = 3
"""The most that a PNG takes for a pixel."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """So many bytes for one thing."""

    what: str
    size: int
    how: str


def training_memory(config: StudyConfig, base: Base, plan: Plan) -> list[Need]:
    """What the device holds at most while a run is trained."""
    tuning = tuned(config)
    average = 0 if plan.average_on_cpu else plan.average
    # Activations and gradients rise and fall together, so that their common peak is less than the sum of both.
    moving = base.training_bytes(tuning)
    return [
        Need(what="weights", size=plan.weights, how="UNet and text encoders"),
        Need(what="VAE", size=base.vae_bytes, how="float32"),
        Need(what="optimiser", size=plan.optimizer, how=tuning.optimizer),
        *([Need(what="average", size=average, how="use_ema")] if average else []),
        Need(
            what="gradients and activations",
            size=moving,
            how=f"peak at train_batch_size={tuning.train_batch_size}, gradients alone {in_bytes(plan.gradients)}",
        ),
    ]


def reading_memory(config: StudyConfig, base: Base) -> list[Need]:
    """What the device holds at most while the base is read, and while pictures are drawn."""
    dtype = chosen_dtype(config.dtype, torch.device("cuda"))
    weights = base.weight_bytes(dtype) + base.vae_bytes
    drawn = config.evaluate.batch_size * guided(config.evaluate.guidance_scale)
    return [
        Need(
            what="probe",
            size=weights + base.reading_bytes(config.probe.batch_size, dtype),
            how=f"weights {in_bytes(weights)}, probe.batch_size={config.probe.batch_size}",
        ),
        Need(
            what="generate",
            # The base and one fine-tuned model are there at the same time.
            size=2 * weights + max(base.reading_bytes(drawn, dtype), base.decoding_bytes),
            how=f"two models, evaluate.batch_size={config.evaluate.batch_size}",
        ),
    ]


def picture_disk(
    config: StudyConfig, base: Base, concept_set: ConceptSet, plan: Plan | None, png_bytes: int | None
) -> list[Need]:
    """What the diffusion half leaves on disk at its end."""
    bound = PIXEL_BYTES * base.resolution**2
    each, how = (bound, "at most 3 bytes a pixel") if png_bytes is None else (png_bytes, "as one drawn here")
    needs = []
    if not config.concepts.given:
        pictures = len({example.id for example in concept_set.examples})
        needs.append(Need(what="the embedded world", size=pictures * bound, how=f"{pictures:,} pictures, at most"))
    if config.cache_dir is not None:
        needs.append(_cache(config, base, concept_set))
    runs = study_runs(config)
    if plan is not None:
        # A whole pipeline has its autoencoder too, and is written once more for the early stop.
        copies = (2 if config.finetune.validation_steps else 1) if config.finetune.method != "lora" else 0
        own = plan.disk + copies * base.vae_bytes
        needs.append(Need(what="fine-tuning", size=len(runs) * own, how=_runs(len(runs), plan)))
    kept = num_pictures(config, concept_set)
    if not config.evaluate.keep_images:
        kept = kept * min(SHOWN_IMAGES, drawn := config.evaluate.num_images_per_concept) // drawn
    grids = len(runs) * num_exams(config.finetune) * len(config.finetune.validation_prompts)
    grids *= config.finetune.num_validation_images
    prior = len(runs) * config.finetune.num_class_images if config.finetune.class_prompt is not None else 0
    pictures = kept + grids + prior
    needs.append(Need(what="generated pictures", size=pictures * each, how=f"{pictures:,}, {how}"))
    rows = len(concept_set.split(HELDOUT)) + len(concept_set.concepts) * (
        config.probe.answers.num_renderings + config.probe.samples.num_samples
    )
    asked = sum(mix_size(run.mix, config.finetune, concept_set).num_asked for run in runs) * num_exams(
        config.finetune
    )
    needs.append(Need(what="tables and report", size=(rows + asked) * ROW_BYTES + REPORT_BYTES, how="about"))
    return needs


def text_disk(config: StudyConfig, plan: Plan | None) -> list[Need]:
    """What the language model's half leaves on disk at its end."""
    runs = study_runs(config.llm)
    if plan is None:
        return []
    of = _runs(len(runs), plan)
    return [Need(what="llm: fine-tuning", size=len(runs) * plan.disk, how=of)]


def free_disk(folder: Path) -> tuple[int, int]:
    """Bytes that are free where a folder is or will be, and those that it holds already."""
    place = folder.expanduser().resolve()
    there = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else 0
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, there


def total(needs: Sequence[Need]) -> int:
    """All of them together."""
    return sum(need.size for need in needs)


def tuned(config: StudyConfig) -> FinetuneConfig:
    """The settings of the study's first run, or its own where there is no run."""
    runs = study_runs(config)
    return runs[0].settings(config.finetune) if runs else replace(config.finetune)


def picture_plan(config: StudyConfig, base: Base, concept_set: ConceptSet) -> Plan | None:
    """The plan of the largest run; None without runs."""
    runs = study_runs(config)
    if not runs:
        return None
    plans = []
    for run in {run.method_name(config.finetune): run for run in runs}.values():
        own = run.settings(config.finetune)
        batch = own.train_batch_size * own.gradient_accumulation_steps
        items = max(mix_size(each.mix, own, concept_set).items_per_pass for each in runs)
        plans.append(base.plan(own, batch, items / batch))
    return max(plans, key=lambda plan: plan.on_device)


def _cache(config: StudyConfig, base: Base, concept_set: ConceptSet) -> Need:
    """Of images and captions encoded once; captions are those of the probe, which are nearly all."""
    questions = make_questions(concept_set, concept_set.split(HELDOUT), config.probe.answers, config.probe.seed)
    captions = {cue for question in questions for cue in question.query.cues}
    captions |= {example.caption for example in concept_set.examples}
    images = len({example.id for example in concept_set.examples}) * (2 if config.finetune.random_flip else 1)
    size = images * base.latent_bytes + len(captions) * base.caption_bytes
    return Need(what="cache_dir", size=size, how=f"{images:,} images and {len(captions):,} captions")


def _runs(count: int, plan: Plan) -> str:
    runs = "1 run" if count == 1 else f"{count} runs"
    return f"{runs} with at most {plan.num_checkpoints} checkpoints of {in_bytes(plan.checkpoint)}, and exports"
