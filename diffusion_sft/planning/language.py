"""The language model's half: how many prompts, texts and lessons, what they cost, and how fast they are here.

Operations are an estimate, 2 · parameters · tokens for each prompt; what prompts share (their exemplars are read once
for many) is not taken off, so that they are an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ..answers import make_questions
from ..errors import UserError
from ..finetune.estimate import Plan, make_plan
from ..finetune.optimizers import make_optimizer
from ..finetune.parts import trainable_parameters
from ..learner import Query, Question, TrainingItem
from ..learners.language import LANGUAGE_LAYOUT, LanguageLearner
from ..learners.prompts import ClosedBook, FewShot
from ..machine import matrix_rate, synchronise
from ..parsing import first_line
from ..plan import LanguageStudyConfig, StudyConfig
from ..records import CATEGORIES, PROBED, TRAIN, ConceptSet, Draws, Example
from ..story import chosen_dtype
from .counting import chosen_concepts, forecast_rows, mix_size, num_exams, study_runs, weight_rows
from .measuring import BURST_SECONDS, UTILISATION, Speed
from .work import TRAINING_EVALUATIONS, Kind, Sure, Work

CHARACTERS_PER_TOKEN = 4
"""Of English text under usual tokenizers, where the model's own is not at hand."""
SAMPLED_TOKENS = 8
"""Tokens of an answer, for the estimate of operations."""
SOFT_PROMPTS = 2
"""An input is solved for in the place of the name and in the place of the answer."""


def text_work(config: LanguageStudyConfig, concept_set: ConceptSet) -> list[Work]:
    """The half's work; `evaluations` are prompts read."""
    probe, own = config.probe, config.finetune
    asked = probed_facts(concept_set, probe.max_examples_per_concept)
    questions = len(asked) * probe.answers.num_renderings
    runs = study_runs(config)
    lessons = len(runs) * own.max_train_steps * own.train_batch_size * own.gradient_accumulation_steps
    exams = num_exams(own) * sum(mix_size(run.mix, own, concept_set).num_asked for run in runs)
    most: Sure = "exact" if own.stopping == "budget" else "at most"
    solved = chosen_concepts(len(asked), config.solve.concepts_per_category) * config.solve.generation.num_renderings
    s2, s3 = config.solve.inputs, config.solve.weights
    inputs = min(len(asked), len(CATEGORIES) * s2.concepts_per_category) * SOFT_PROMPTS
    exam = sum(mix_size(run.mix, own, concept_set).num_asked for run in runs)
    weights = weight_rows(s3, 1, len(CATEGORIES)) + forecast_rows(s3, 1, len(runs), exam)
    return [
        _line("probe", "scores", "prompt", sum(asked.values()) * 2 * probe.num_draws),
        _line("probe", "answers", "text", questions, evaluations=2 * questions),
        _line("probe", "samples", "sample", len(asked) * probe.samples.num_samples, "at most"),
        _line("finetune", "training", "lesson", lessons, most, evaluations=TRAINING_EVALUATIONS * lessons),
        _line("finetune", "evaluations", "text", exams, "at most", evaluations=2 * exams),
        _line("solve", "generation", "text", 2 * solved * config.solve.generation.num_starts, "about"),
        _line("solve", "inputs", "prompt", inputs * s2.num_starts * (s2.num_steps + 1) * 3, "about"),
        _line("solve", "weights", "prompt", weights, "at most"),
    ]


def probed_facts(concept_set: ConceptSet, most: int | None) -> dict[str, int]:
    """How many questions about each probed fact are scored."""
    found: dict[str, int] = {}
    for example in concept_set.split(*PROBED):
        found[example.concept] = found.get(example.concept, 0) + 1
    return {name: count if most is None else min(count, most) for name, count in found.items()}


@dataclass(frozen=True, kw_only=True)
class TextBase:
    """A language model's size, and what a prompt of this set costs."""

    num_parameters: int
    tokens: float
    """Of a few-shot prompt, about."""
    closed_book_tokens: float

    def flops(self) -> dict[Kind, int]:
        """Operations of one unit of each kind, estimated."""
        each = 2 * self.num_parameters
        prompt, lesson = round(each * self.tokens), round(each * self.closed_book_tokens)
        written = each * SAMPLED_TOKENS
        return {"prompt": prompt, "text": 3 * prompt + written, "sample": written, "lesson": 3 * lesson}


def text_base(config: StudyConfig, concept_set: ConceptSet) -> TextBase:
    """Read a language model's configuration, and the lengths of some prompts.

    Raises:
        UserError: no such model.
    """
    own, model = config.llm, _model(config)
    examples = _examples(concept_set)
    shots = FewShot.of(concept_set, shots=own.probe.shots, seed=own.probe.seed)
    few = [len(shots.prompt(e, e.caption, 0).text) / CHARACTERS_PER_TOKEN for e in examples]
    closed = [len(ClosedBook().prompt(e, e.caption, 0).text) / CHARACTERS_PER_TOKEN for e in examples]
    return TextBase(
        num_parameters=sum(p.numel() for p in model.parameters()),
        tokens=sum(few) / len(few) + SAMPLED_TOKENS,
        closed_book_tokens=sum(closed) / len(closed) + SAMPLED_TOKENS,
    )


def text_plan(config: StudyConfig, concept_set: ConceptSet) -> Plan | None:
    """The plan of a fine-tuning run of this half; None where there is none."""
    runs = study_runs(config.llm)
    if not runs:
        return None
    tuning = runs[0].settings(config.llm.finetune)
    parts: dict[str, nn.Module] = {"language_model": _model(config)}
    parameters = trainable_parameters(parts, tuning, LANGUAGE_LAYOUT.default_targets)
    batch = tuning.train_batch_size * tuning.gradient_accumulation_steps
    most = max(mix_size(run.mix, tuning, concept_set).items_per_pass for run in runs)
    return make_plan(parts, parameters, tuning, batch, most / batch)


def _model(config: StudyConfig) -> nn.Module:
    """The network without weights, on `meta`."""
    own = config.llm
    try:
        settings = AutoConfig.from_pretrained(own.base, revision=own.revision, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{own.base}: no such folder, nor could the Hub give it: {first_line(error)}") from error
    return model


def text_speed(config: StudyConfig, base: TextBase, concept_set: ConceptSet, device: torch.device) -> Speed:
    """The speed of the language model's half on a device."""
    own, flops = config.llm, base.flops()
    dtype = chosen_dtype(own.dtype, device)
    rate = matrix_rate(device, dtype)
    derived: dict[Kind, float] = {kind: count / (rate * UTILISATION) for kind, count in flops.items()}
    how = f"derived from operations at {UTILISATION:.0%} of the matrix rate"
    if 16 * derived["text"] > BURST_SECONDS:
        return Speed(seconds=derived, notes=(f"{how}: too slow here to be measured",), matrix_rate=rate)
    try:
        shots = FewShot.of(concept_set, shots=own.probe.shots, seed=own.probe.seed)
        learner = LanguageLearner.load(
            own.base, revision=own.revision, device=device, dtype=dtype, device_map=own.device_map, prompts=shots
        )
    except UserError as error:
        note = f"{how}, because the model cannot be loaded: {error}"
        return Speed(seconds=derived, notes=(note,), matrix_rate=rate)
    seconds = _bursts(learner, own, concept_set)
    note = "measured: prompts, texts and samples under few-shot prompts, lessons closed-book, in short bursts"
    return Speed(seconds=seconds, notes=(note,), matrix_rate=rate, measured=frozenset(seconds))


def _bursts(learner: LanguageLearner, config: LanguageStudyConfig, concept_set: ConceptSet) -> dict[Kind, float]:
    probe, examples = config.probe, _examples(concept_set)
    questions = make_questions(concept_set, examples, probe.answers, probe.seed)[:64]
    queries = [Query(example=example, cues=(example.caption,)) for example in examples]
    draws = Draws(seed=0, count=4, estimator=probe.estimator)
    prompt = _timed(learner, lambda: learner.surprise(queries, draws, batch_size=probe.batch_size))
    prompt /= 2 * draws.count * len(queries)
    one = Draws(seed=0, count=1, estimator=probe.estimator)
    text = _timed(learner, lambda: learner.answer(questions, one, batch_size=probe.batch_size)) / len(questions)
    own = probe.samples
    count = min(16, max(own.num_samples, 1))
    sampled = _timed(
        learner,
        lambda: learner.sample(
            questions[:8],
            seed=0,
            num_samples=count,
            temperature=own.temperature,
            top_k=own.top_k,
            batch_size=own.batch_size,
        ),
    )
    sample = sampled / (count * len(questions[:8]))
    return {"prompt": prompt, "text": text, "sample": sample, "lesson": _lesson(learner, config, questions)}


def _lesson(learner: LanguageLearner, config: LanguageStudyConfig, questions: Sequence[Question]) -> float:
    """Seconds of one lesson, the optimiser's share included. The learner is used up."""
    own = config.finetune
    learner.prompts = ClosedBook()
    parameters = trainable_parameters(learner.parts(), own, learner.layout.default_targets)
    optimizer = make_optimizer(parameters, own)
    taught = [questions[number % len(questions)].example for number in range(own.train_batch_size)]
    items = [
        TrainingItem(example=example, caption=example.caption, visit=visit) for visit, example in enumerate(taught)
    ]

    def update() -> None:
        learner.loss(learner.batch(items, seed=0)).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(learner, update) / len(items)


def _examples(concept_set: ConceptSet) -> list[Example]:
    found = [example for example in concept_set.split(TRAIN, *PROBED) if example.fact is not None]
    return found[:: max(1, len(found) // 16)][:16]


def _timed(learner: LanguageLearner, function: Callable[[], object]) -> float:
    """Seconds of the second call."""
    function()
    synchronise(learner.device)
    started = time.monotonic()
    function()
    synchronise(learner.device)
    return time.monotonic() - started


def _line(
    stage: str, what: str, kind: Kind, count: int, sure: Sure = "exact", evaluations: int | None = None
) -> Work:
    return Work(
        stage=stage,
        what=what,
        kind=kind,
        count=count,
        evaluations=count if evaluations is None else evaluations,
        sure=sure,
    )
