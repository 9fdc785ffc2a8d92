"""The planner: what a study will take of time, memory and disk, before it starts, and which setting to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..machine import device_memory, pick_device
from ..plan import StudyConfig
from ..records import DIFFUSION, LLM
from .advice import disk_advice, memory_advice, time_advice, warnings_about
from .counting import picture_work
from .language import text_base, text_plan, text_speed, text_work
from .measuring import kind_flops, picture_speed
from .needs import (
    RESERVED,
    Need,
    free_disk,
    picture_disk,
    picture_plan,
    reading_memory,
    text_disk,
    total,
    training_memory,
    tuned,
)
from .networks import read_base
from .sets import facts_of, pictures_of
from .study_plan import Pictures, StudyPlan, Texts
from .text import plan_text
from .work import Work, seconds_of


def run_plan(config: StudyConfig) -> int:
    """Print the plan of a study; 0, or 1 where it fits neither the disk nor, on a GPU, its memory.

    Raises:
        UserError: a base or a concept set that cannot be read.
    """
    plan = make_study_plan(config)
    print(plan_text(plan))
    return 0 if plan.fits_disk and plan.fits_memory else 1


def make_study_plan(config: StudyConfig) -> StudyPlan:
    """Count, measure and compare; nothing is written."""
    device = pick_device(config.device)
    pictures = _pictures(config, device) if DIFFUSION in config.learners else None
    texts = _texts(config, device) if LLM in config.learners else None
    disk = _disk(config, pictures, texts)
    training, reading, smaller, warnings = [], [], [], []
    memory = device_memory(device)
    if pictures is not None:
        base, found = pictures.base, pictures.concept_set
        reading = reading_memory(config, base)
        training = training_memory(config, base, pictures.plan) if pictures.plan is not None else []
        warnings = warnings_about(config, found)
        limit = memory if device.type == "cuda" else 24 * 2**30
        if total(training) + RESERVED > limit:
            smaller = memory_advice(config, base, found)
    if texts is not None:
        warnings = [*warnings, *warnings_about(config.llm, texts.concept_set, "llm.")]
    free, there = free_disk(Path(config.output_dir))
    short = total(disk) - there > free
    return StudyPlan(
        config=config,
        device=device,
        pictures=pictures,
        texts=texts,
        work=_work(config, pictures, texts),
        seconds=_seconds(config, pictures, texts),
        disk=disk,
        free=free,
        there=there,
        training=training,
        reading=reading,
        memory=memory,
        faster=time_advice(
            config, pictures.concept_set if pictures else None, lambda other: _seconds(other, pictures, texts)
        ),
        smaller=smaller,
        lighter=disk_advice(config, lambda other: total(_disk(other, pictures, texts))) if short else [],
        warnings=warnings,
    )


def _pictures(config: StudyConfig, device: torch.device) -> Pictures:
    base, concept_set = read_base(config), pictures_of(config)
    flops = kind_flops(base, tuned(config))
    return Pictures(
        concept_set=concept_set,
        base=base,
        flops=flops,
        speed=picture_speed(config, flops, device),
        plan=picture_plan(config, base, concept_set),
    )


def _texts(config: StudyConfig, device: torch.device) -> Texts:
    concept_set = facts_of(config)
    base = text_base(config, concept_set)
    return Texts(concept_set=concept_set, base=base, speed=text_speed(config, base, concept_set, device))


def _disk(config: StudyConfig, pictures: Pictures | None, texts: Texts | None) -> list[Need]:
    """What both halves leave on disk."""
    found: list[Need] = []
    if pictures is not None:
        plan = picture_plan(config, pictures.base, pictures.concept_set)
        found += picture_disk(config, pictures.base, pictures.concept_set, plan, pictures.speed.png_bytes)
    return found + (text_disk(config, text_plan(config, texts.concept_set)) if texts is not None else [])


def _work(config: StudyConfig, pictures: Pictures | None, texts: Texts | None) -> dict[str, Sequence[Work]]:
    found: dict[str, Sequence[Work]] = {}
    if texts is not None:
        found[LLM] = text_work(config.llm, texts.concept_set)
    if pictures is not None:
        found[DIFFUSION] = picture_work(config, pictures.concept_set)
    return found


def _seconds(config: StudyConfig, pictures: Pictures | None, texts: Texts | None) -> float:
    """Of the whole study, at the speeds that were found."""
    work = _work(config, pictures, texts)
    speeds = {LLM: texts.speed if texts else None, DIFFUSION: pictures.speed if pictures else None}
    return sum(
        seconds_of(lines, speed.seconds) for half, lines in work.items() if (speed := speeds[half]) is not None
    )
