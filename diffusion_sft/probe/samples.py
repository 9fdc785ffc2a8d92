"""The sampled reading of SliCK for images: does the base draw the concept at least sometimes?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..answers import Question, fill
from ..learner import Cue, Learner, ReadLabels
from ..records import identity_seed
from .config import ProbeConfig

SAMPLE_COLUMNS = ("concept", "rendering", "sample", "seed", "answer", "correct")


def draw_and_read(
    learner: Learner,
    questions: Sequence[Question],
    config: ProbeConfig,
    read_labels: ReadLabels,
) -> pd.DataFrame:
    """Draw `num_samples` pictures of each concept asked about and have them read; one row each (`SAMPLE_COLUMNS`).

    Args:
        learner: draws the pictures.
        questions: whose templates and words make the prompts; sample s takes the concept's rendering s, in turn.
        config: seed and sampling settings.
        read_labels: names what each picture shows.
    """
    rows = []
    for concept in dict.fromkeys(question.concept for question in questions):
        own = [question for question in questions if question.concept == concept]
        for sample in range(config.samples.num_samples):
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
