"""The sampled reading of SliCK: does the base give the right answer at least sometimes?

In pictures: it draws, and a reader names what it drew. In words: it is asked at T > 0 (Gekhman et al., 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from ..learner import Cue, Learner, Question, ReadLabels, fill
from ..records import identity_seed
from .config import LanguageProbeConfig, ProbeConfig

SAMPLE_COLUMNS = ("concept", "rendering", "sample", "seed", "answer", "correct")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How concepts that were missed by every greedy reading are read once more."""

    draw: Callable[[Sequence[Question]], pd.DataFrame]
    """Takes the questions of some concepts; returns one row for each sample (`SAMPLE_COLUMNS`)."""
    num_evaluations: Callable[[Sequence[Question]], int]
    """What that costs, in the unit of the progress bar."""


class Speaker(Protocol):
    """A learner that answers in words at T > 0; returns the texts of each question, and whether each is right."""

    def sample(
        self,
        questions: Sequence[Question],
        *,
        seed: int,
        num_samples: int,
        temperature: float,
        top_k: int,
        batch_size: int,
    ) -> list[list[tuple[str, bool]]]: ...


def picture_samples(learner: Learner, config: ProbeConfig, read_labels: ReadLabels) -> Sampling:
    """Pictures, drawn by the learner and read by `read_labels`."""
    return Sampling(
        draw=lambda questions: draw_and_read(learner, questions, config, read_labels),
        num_evaluations=lambda questions: num_sample_evaluations(questions, config),
    )


def text_samples(speaker: Speaker, config: LanguageProbeConfig) -> Sampling:
    """Texts: the concept's `num_samples` in equal shares over its renderings."""
    return Sampling(
        draw=lambda questions: speak(speaker, questions, config),
        num_evaluations=lambda questions: len(questions) * config.samples_per_rendering,
    )


def draw_and_read(
    learner: Learner,
    questions: Sequence[Question],
    config: ProbeConfig,
    read_labels: ReadLabels,
) -> pd.DataFrame:
    """Draw `num_samples` pictures of each concept asked about and have them read; one row each (`SAMPLE_COLUMNS`).

    With `adaptive` on they are drawn a quarter at a time, and a concept's last ones are those among which a right one is.

    Args:
        learner: draws the pictures.
        questions: whose templates and words make the prompts; sample s takes the concept's rendering s, in turn.
        config: seed and sampling settings.
        read_labels: names what each picture shows.
    """
    count = config.samples.num_samples
    at_a_time = -(-count // 4) if config.adaptive.enabled else count
    tables: list[pd.DataFrame] = []
    for start in range(0, count, at_a_time):
        found = {concept for table in tables for concept in table.loc[table["correct"], "concept"]}
        if left := [question for question in questions if question.concept not in found]:
            samples = range(start, min(start + at_a_time, count))
            tables.append(_draw_and_read(learner, left, samples, config, read_labels))
    return pd.concat(tables, ignore_index=True)


def _draw_and_read(
    learner: Learner,
    questions: Sequence[Question],
    samples: Sequence[int],
    config: ProbeConfig,
    read_labels: ReadLabels,
) -> pd.DataFrame:
    """These samples of each concept."""
    rows = []
    for concept in dict.fromkeys(question.concept for question in questions):
        own = [question for question in questions if question.concept == concept]
        for sample in samples:
            question = own[sample % len(own)]
            seed = identity_seed(config.seed, "sample", concept, sample)
            prompt = fill(question.template, question.words)
            rows.append((concept, question.rendering, sample, seed, prompt))
    images = learner.generate(
        [Cue(prompt=prompt, seed=seed) for *_, seed, prompt in rows],
        num_inference_steps=config.samples.num_inference_steps,
        guidance_scale=config.samples.guidance_scale,
        batch_size=config.samples.batch_size,
    )
    labels = read_labels(images, [row[0] for row in rows])
    read = [(*row[:4], label, label == row[0]) for row, label in zip(rows, labels, strict=True)]
    return pd.DataFrame(read, columns=list(SAMPLE_COLUMNS))


def num_sample_evaluations(questions: Sequence[Question], config: ProbeConfig) -> int:
    """Network evaluations of the pictures: two a step under guidance."""
    guided = 2 if config.samples.guidance_scale > 1 else 1
    concepts = {question.concept for question in questions}
    return len(concepts) * config.samples.num_samples * config.samples.num_inference_steps * guided


def speak(speaker: Speaker, questions: Sequence[Question], config: LanguageProbeConfig) -> pd.DataFrame:
    """One row for each sampled text; `sample` counts through a concept's renderings.

    With `adaptive` on these are asked one after another, and a concept's last one is that in which a right sample is.
    """
    if not config.adaptive.enabled:
        return _speak(speaker, questions, config)
    tables: list[pd.DataFrame] = []
    for rendering in sorted({question.rendering for question in questions}):
        found = {concept for table in tables for concept in table.loc[table["correct"], "concept"]}
        left = [
            question for question in questions if question.rendering == rendering and question.concept not in found
        ]
        if left:
            tables.append(_speak(speaker, left, config))
    return pd.concat(tables, ignore_index=True)


def _speak(speaker: Speaker, questions: Sequence[Question], config: LanguageProbeConfig) -> pd.DataFrame:
    each = config.samples_per_rendering
    texts = speaker.sample(
        questions,
        seed=config.seed,
        num_samples=each,
        temperature=config.samples.temperature,
        top_k=config.samples.top_k,
        batch_size=config.samples.batch_size,
    )
    rows = [
        (question.concept, question.rendering, question.rendering * each + number, config.seed, text, right)
        for question, found in zip(questions, texts, strict=True)
        for number, (text, right) in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
