"""The systems of each learner for the solve stage: which function of the learner reads what, under which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from .finetune.config import FinetuneConfig, LanguageFinetuneConfig
from .finetune.parts import trainable_parameters
from .learner import Query, Question, ReadLabels
from .learners.diffusion import DiffusionLearner
from .learners.inversion import invert
from .learners.language import LanguageLearner
from .learners.linearised import linearisation_error
from .learners.picture_equations import picture_answers_at, picture_equations
from .learners.picture_generation import picture_generations, picture_recoveries
from .learners.picture_inputs import picture_inputs
from .learners.text_equations import text_answers_at, text_equations
from .learners.text_generation import text_generations, text_recoveries
from .learners.text_inputs import answer_blocks, soft_prompts
from .records import Draws, Example
from .solve.config import PictureSolveConfig, TextSolveConfig
from .systems import Equations, ReadInputs, ReadInversions, Systems, WeightSide


def picture_systems(
    base: DiffusionLearner,
    to_train: Callable[[], DiffusionLearner],
    read_labels: ReadLabels,
    config: PictureSolveConfig,
    estimator: str,
) -> Systems:
    """All systems of a diffusion model that the settings ask for.

    Args:
        base: reads generations and inputs.
        to_train: loads the base in float32, for the weight side.
        read_labels: names what a picture shows.
        config: what is asked for.
        estimator: of the draws behind the weight side's equations, as the probe has it.
    """
    s1, rows = config.generation, config.batch_size
    sampler = {"seed": config.seed, "num_inference_steps": s1.num_inference_steps, "batch_size": rows}
    with_s1 = s1.num_renderings > 0
    return Systems(
        identity=base.identity(),
        generations=picture_generations(
            base,
            read_labels,
            num_starts=s1.num_starts,
            guidance_scale=s1.guidance_scale,
            tolerance=s1.tolerance,
            **sampler,
        )
        if with_s1
        else None,
        recoveries=picture_recoveries(base, read_labels, **sampler) if with_s1 and s1.recover else None,
        inputs=_picture_inputs(base, config) if config.inputs.concepts_per_category else None,
        inversions=_inversions(base, config) if config.inputs.concepts_per_category else None,
        weights=_picture_weights(to_train(), config, estimator) if config.weights.subset != "none" else None,
    )


def text_systems(base: LanguageLearner, to_train: Callable[[], LanguageLearner], config: TextSolveConfig) -> Systems:
    """All systems of a language model that the settings ask for; the weight side and inputs are asked closed-book, as
    fine-tuning is, generations in few-shot prompts."""
    s1 = config.generation
    with_s1 = s1.num_renderings > 0
    with_s2, with_s3 = config.inputs.concepts_per_category > 0, config.weights.subset != "none"
    closed_book = to_train() if with_s2 or with_s3 else None
    prompts, blocks = _text_inputs(closed_book, config) if closed_book is not None and with_s2 else (None, None)
    return Systems(
        identity=base.identity(),
        generations=text_generations(base, seed=config.seed, num_starts=s1.num_starts, batch_size=config.batch_size)
        if with_s1
        else None,
        recoveries=text_recoveries(base, batch_size=config.batch_size) if with_s1 and s1.recover else None,
        inputs=prompts,
        blocks=blocks,
        weights=_text_weights(closed_book, config) if closed_book is not None and with_s3 else None,
    )


METHODS: dict[str, Literal["full", "cross_attention", "lora"]] = {
    "all": "full",
    "cross_attention": "cross_attention",
    "lora": "lora",
}
"""The method of fine-tuning that trains each subset of the weights."""


def _picture_weights(learner: DiffusionLearner, config: PictureSolveConfig, estimator: str) -> WeightSide:
    own = config.weights
    parameters = trainable_parameters(learner.parts(), FinetuneConfig(method=METHODS[own.subset], rank=own.rank))
    draws = Draws(seed=config.seed, count=own.num_draws, estimator=estimator)

    def equations(examples: Sequence[Example]) -> Equations:
        queries = [Query(example=example, cues=(example.caption,)) for example in examples]
        return picture_equations(learner, parameters, queries, draws, batch_size=own.batch_size)

    return WeightSide(
        equations=equations,
        lessons=equations,
        answers_at=lambda step, questions, asked: picture_answers_at(
            learner, parameters, step, questions, asked, batch_size=own.batch_size
        ),
        linearisation_error=linearisation_error,
        parameters=parameters,
    )


def _text_weights(learner: LanguageLearner, config: TextSolveConfig) -> WeightSide:
    own = config.weights
    tuning = LanguageFinetuneConfig(method=METHODS[own.subset], rank=own.rank)
    parameters = trainable_parameters(learner.parts(), tuning, learner.layout.default_targets)

    def equations(examples: Sequence[Example], with_end: bool) -> Equations:
        return text_equations(
            learner, parameters, examples, margin=own.margin, batch_size=own.batch_size, with_end=with_end
        )

    return WeightSide(
        equations=partial(equations, with_end=False),
        lessons=partial(equations, with_end=True),
        answers_at=lambda step, questions, _: text_answers_at(
            learner, parameters, step, questions, batch_size=own.batch_size
        ),
        linearisation_error=linearisation_error,
        parameters=parameters,
    )


def _picture_inputs(base: DiffusionLearner, config: PictureSolveConfig) -> ReadInputs:
    own = config.inputs
    return picture_inputs(
        base,
        seed=config.seed,
        num_vectors=own.num_vectors,
        num_starts=own.num_starts,
        num_steps=own.num_steps,
        num_draws=own.num_draws,
        batch_size=config.batch_size,
    )


def _text_inputs(learner: LanguageLearner, config: TextSolveConfig) -> tuple[ReadInputs, ReadInputs]:
    """In the place of the subject's name, and in the place of the answer."""
    own = config.inputs
    budget: dict[str, Any] = {
        "num_starts": own.num_starts,
        "num_steps": own.num_steps,
        "batch_size": config.batch_size,
    }
    prompts = soft_prompts(learner, seed=config.seed, num_vectors=own.num_vectors, **budget)
    blocks = answer_blocks(learner, seed=config.seed, **budget)
    # A fact's renderings are exemplar sets, and closed-book there is one question.
    return (
        lambda groups: prompts([questions[0] for questions in groups]),
        lambda groups: blocks([questions[0] for questions in groups]),
    )


def _inversions(base: DiffusionLearner, config: PictureSolveConfig) -> ReadInversions:
    def read(questions: Sequence[Question]) -> list[Mapping[str, float]]:
        queries = [Query(example=question.example, cues=(question.example.caption,)) for question in questions]
        found = invert(base, queries, config.generation.num_inference_steps, config.batch_size)
        return [{"inversion_residual": one.residual} | asdict(one.gaussianity) for one in found]

    return read
