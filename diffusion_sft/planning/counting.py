"""How much a study's diffusion half asks of the networks, stage by stage, before anything is loaded.

Every count is made from the settings by the rule of the stage that does the work. *at most* where results decide how
much is done (which concepts need samples, when a run has converged), *about* where even the most is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..finetune.config import FinetuneConfig
from ..finetune.mix import MixConfig
from ..finetune.prior import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from ..learner import NULL_CUE
from ..plan import LanguageStudyConfig, PlannedRun, StudyConfig, planned_runs
from ..records import (
    CATEGORIES,
    DEVELOPMENT,
    HELDOUT,
    OTHER_RELATIONS,
    REFERENCE,
    REGULARISATION,
    TEST,
    TRAIN,
    ConceptSet,
)
from ..solve.config import PictureWeightsConfig, TextWeightsConfig
from ..solve.run import RENDERINGS_OF_AN_INPUT
from .work import TRAINING_EVALUATIONS, Kind, Sure, Work, evaluations_by_stage

SWEEPS = 12
"""Picard sweeps' worth of steps that a picture's equations took on the shipped base, under its caption and under ∅."""
RECOVERY_LEVELS, RECOVERY_SHARE = 8, 0.5
"""Noise levels that a picture is brought back from, and the share of the sampler's steps that one takes on average."""
FORWARD_MODE, BACKWARD = 2, 3
"""What a product with J and one with its transpose cost, in evaluations of the network."""
SINGULAR_PROBES = 56
"""Columns that the spectrum of an input's Jacobian is read with."""
OUTSIDE = (DEVELOPMENT, TEST, OTHER_RELATIONS)


def network_evaluations(config: StudyConfig, concept_set: ConceptSet) -> dict[str, int]:
    """How many times the UNet is evaluated in each stage, at most; a training example counts as three."""
    return evaluations_by_stage(picture_work(config, concept_set))


def picture_work(config: StudyConfig, concept_set: ConceptSet) -> list[Work]:
    """The diffusion half's work."""
    return [
        *_probe(config, concept_set),
        *_finetune(config, concept_set),
        *_generate(config, concept_set),
        *_solve(config, concept_set),
    ]


def study_runs(config: StudyConfig | LanguageStudyConfig) -> list[PlannedRun]:
    """The fine-tuning runs of a half."""
    return planned_runs(config.mixes, config.seeds, config.finetune.seed, config.methods)


def _probe(config: StudyConfig, concept_set: ConceptSet) -> list[Work]:
    own = config.probe
    captions = probed_captions(concept_set, own.max_examples_per_concept)
    num_concepts = len(captions)
    scored = [caption for examples in captions.values() for caption in examples]
    sure: Sure = "at most" if own.adaptive.enabled else "exact"
    read = sum(1 if caption == NULL_CUE else 2 for caption in scored) * own.evaluations_per_caption
    asked = num_concepts * own.answers.num_renderings * own.answers.num_candidates * own.answers.num_draws
    pictures = num_concepts * own.samples.num_samples
    drawn = pictures * own.samples.num_inference_steps * guided(own.samples.guidance_scale)
    return [
        _plain("probe", "scores", "reading", read, sure),
        _plain("probe", "answers", "reading", asked, sure),
        _plain("probe", "samples", "drawing", drawn, "at most"),
        _other("probe", "samples decoded", "decoding", pictures, "at most"),
        _other("probe", "images encoded", "encoding", len(scored), "exact"),
    ]


def _finetune(config: StudyConfig, concept_set: ConceptSet) -> list[Work]:
    own, answers = config.finetune, config.probe.answers
    runs = study_runs(config)
    trained = len(runs) * own.max_train_steps * own.train_batch_size * own.gradient_accumulation_steps
    each = answers.num_candidates * own.validation_draws
    sizes = [mix_size(run.mix, own, concept_set) for run in runs]
    exams = sum(size.num_asked for size in sizes) * num_exams(own)
    grids = len(runs) * num_exams(own) * len(own.validation_prompts) * own.num_validation_images
    steps = own.validation_inference_steps * guided(own.validation_guidance_scale)
    already = len(concept_set.split(REGULARISATION))
    prior = len(runs) * max(own.num_class_images - already, 0) if own.class_prompt is not None else 0
    encoded = [size.num_examples * (2 if own.random_flip else 1) + size.num_heldout + already for size in sizes]
    # Each run loads the base anew, and what is not on disk is encoded once more.
    images = sum(encoded) if config.cache_dir is None else min(sum(encoded), len(concept_set.examples) * 2)
    # The last batches of an early end by convergence are not drawn.
    most: Sure = "exact" if own.stopping == "budget" else "at most"
    drawn = grids * steps + prior * NUM_INFERENCE_STEPS * guided(GUIDANCE_SCALE)
    return [
        Work(
            stage="finetune",
            what="training",
            kind="training",
            count=trained,
            evaluations=TRAINING_EVALUATIONS * trained,
            sure=most,
        ),
        _plain("finetune", "evaluations", "reading", exams * each, "at most"),
        _plain("finetune", "pictures", "drawing", drawn, most),
        _other("finetune", "pictures decoded", "decoding", grids + prior, most),
        _other("finetune", "images encoded", "encoding", images, "at most"),
    ]


def _generate(config: StudyConfig, concept_set: ConceptSet) -> list[Work]:
    own = config.evaluate
    pictures = num_pictures(config, concept_set)
    drawn = pictures * own.num_inference_steps * guided(own.guidance_scale)
    return [
        _plain("generate", "pictures", "drawing", drawn, "exact"),
        _other("generate", "pictures decoded", "decoding", pictures, "exact"),
    ]


def num_pictures(config: StudyConfig, concept_set: ConceptSet) -> int:
    """How many the base and all fine-tuned models draw for the evaluation."""
    models = 1 + len(study_runs(config))
    return models * len(probed_captions(concept_set, None)) * config.evaluate.num_images_per_concept


def _solve(config: StudyConfig, concept_set: ConceptSet) -> list[Work]:
    own, s1, s2 = config.solve, config.solve.generation, config.solve.inputs
    num_concepts = len(probed_captions(concept_set, None))
    questions = chosen_concepts(num_concepts, own.concepts_per_category) * s1.num_renderings
    generations = questions * s1.num_starts
    # Under its caption and under ∅ so many sweeps' worth of steps each, and the trajectory with its neighbour once.
    rows = generations * s1.num_inference_steps * (2 * SWEEPS + 2) * guided(s1.guidance_scale)
    recovered = questions * RECOVERY_LEVELS if s1.recover else 0
    brought_back = round(recovered * s1.num_inference_steps * RECOVERY_SHARE)
    inverted = min(num_concepts, len(CATEGORIES) * s2.concepts_per_category)
    paths = s2.num_draws * (
        # The named input at both sets of draws, every start's steps forward and back, each once more at fresh draws.
        2 + 2 * s2.num_starts * (s2.num_steps + 1) + s2.num_starts + SINGULAR_PROBES * (FORWARD_MODE + 2)
    )
    ways = inverted * RENDERINGS_OF_AN_INPUT * 2 * s1.num_inference_steps
    weights = weight_rows(own.weights, own.weights.num_draws, len(CATEGORIES))
    runs = study_runs(config)
    asked = config.probe.answers.num_candidates * config.finetune.validation_draws
    runs = [run for run in runs if run.method == runs[0].method]  # Others are not forecast.
    exams = sum(mix_size(run.mix, config.finetune, concept_set).num_asked for run in runs) * asked
    forecasts = forecast_rows(own.weights, own.weights.num_draws, len(runs), exams)
    return [
        _plain("solve", "generation", "reading", rows + brought_back, "about"),
        _other("solve", "rounds decoded", "decoding", generations * SWEEPS + recovered, "about"),
        _plain("solve", "inputs", "reading", inverted * paths + ways, "about"),
        _plain("solve", "weights", "reading", weights, "at most"),
        _plain("solve", "forecasts", "reading", forecasts, "at most"),
    ]


@dataclass(frozen=True, kw_only=True)
class MixSize:
    """How large a mix is, at most where categories decide which concepts it holds."""

    num_examples: int
    """Training examples, repeats not counted."""
    items_per_pass: int
    """With repeats and regularisation images."""
    num_heldout: int
    """Other examples of its concepts and of untouched ones that are asked at each evaluation."""
    num_asked: int
    """Questions of one evaluation."""


def mix_size(mix: MixConfig, config: FinetuneConfig, concept_set: ConceptSet) -> MixSize:
    """The size of a mix and of its exam; of concepts that are yet to be chosen the largest are taken."""
    trained: dict[str, list[int]] = {}
    splits = (TRAIN, HELDOUT, REFERENCE) if mix.train_on_all_images else (TRAIN,)
    for example in {example.id: example for example in concept_set.split(*splits)}.values():
        trained.setdefault(example.concept, []).append(example.repeats)
    sizes = sorted((sorted(own)[: mix.examples_per_concept] for own in trained.values()), key=len, reverse=True)
    chosen = sizes[: mix.num_concepts] if mix.num_concepts is not None else sizes
    num_examples = sum(len(own) for own in chosen)
    if mix.num_examples is not None:
        num_examples = min(num_examples, mix.num_examples)
        chosen = _until(chosen, num_examples)
    items = sum(sum(own) for own in chosen)
    per = config.validation_examples_per_concept
    heldout = sorted(_counts(concept_set, (HELDOUT,)).values(), reverse=True)
    clipped = [count if per is None else min(count, per) for count in heldout]
    inside = sum(clipped[: len(chosen)])
    others = max(len(clipped) - len(chosen), 0)
    untouched = config.validation_untouched_concepts
    outside = sum(clipped[: others if untouched is None else min(others, untouched)])
    apart = sum(count if per is None else min(count, per) for count in _counts(concept_set, OUTSIDE).values())
    asked_again = sum(len(own) if per is None else min(len(own), per) for own in chosen)
    held = inside + outside + apart if config.validation_steps else 0
    beside = bool(mix.preserved_concepts or concept_set.split(REGULARISATION))
    prior = config.class_prompt is not None or beside
    return MixSize(
        num_examples=num_examples,
        items_per_pass=items * (2 if prior else 1),
        num_heldout=held,
        num_asked=held + (asked_again if config.validation_steps else 0),
    )


def num_exams(config: FinetuneConfig) -> int:
    """Before the first update, every `validation_steps` of them, and after the last."""
    return 1 + -(-config.max_train_steps // config.validation_steps) if config.validation_steps else 0


def weight_rows(own: PictureWeightsConfig | TextWeightsConfig, num_draws: int, num_sets: int) -> int:
    """S3 in evaluations: each category's set and the control with its constraint, and each example by itself."""
    if own.subset == "none":
        return 0
    each, known = own.examples_per_category * num_draws, own.num_known * num_draws
    solved = FORWARD_MODE * own.num_steps + BACKWARD * (own.num_steps + 1)
    sets = (num_sets + 1) * (each + each * solved + FORWARD_MODE * known + (each + known) * solved)
    examples = num_sets * own.examples_per_category * (num_draws * (1 + solved + BACKWARD) + known * solved)
    return sets + examples + known


def forecast_rows(
    own: PictureWeightsConfig | TextWeightsConfig, num_draws: int, num_runs: int, num_exam_rows: int
) -> int:
    """Of all runs' forecasts, in evaluations; `num_exam_rows` those of one exam of each run together."""
    if own.subset == "none" or not own.forecast_steps:
        return 0
    steps, lessons = max(own.forecast_steps), own.max_forecast_examples * num_draws
    solved = 1 + FORWARD_MODE * steps + BACKWARD * (steps + 1)
    # Either step's residual and linearisation error take four evaluations and two products with J.
    told = len(own.forecast_steps) * (4 + 4 * FORWARD_MODE)
    answers = 1 + FORWARD_MODE * (1 + len(own.forecast_steps))
    return num_runs * lessons * (solved + told) + num_exam_rows * answers


def chosen_concepts(num_concepts: int, per_category: int | None) -> int:
    """How many concepts are solved, at most."""
    return num_concepts if per_category is None else min(num_concepts, len(CATEGORIES) * per_category)


def probed_captions(concept_set: ConceptSet, most: int | None) -> Mapping[str, Sequence[str]]:
    """The captions of each probed concept's held-out pictures, the first ones by id."""
    found: dict[str, list[str]] = {}
    for example in sorted(concept_set.split(HELDOUT), key=lambda example: example.id):
        found.setdefault(example.concept, []).append(example.caption)
    return {name: captions[:most] for name, captions in found.items()}


def guided(guidance_scale: float) -> int:
    """Evaluations of one step of a sampler: both sides of guidance, where there is any."""
    return 2 if guidance_scale > 1 else 1


def _counts(concept_set: ConceptSet, splits: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for example in concept_set.split(*splits):
        found[example.concept] = found.get(example.concept, 0) + 1
    return found


def _until(sizes: Sequence[list[int]], count: int) -> list[list[int]]:
    """Whole concepts, the last one in part, until there are so many examples."""
    kept: list[list[int]] = []
    for own in sizes:
        if count <= 0:
            break
        kept.append(own[:count])
        count -= len(own)
    return kept


def _plain(stage: str, what: str, kind: Kind, count: int, sure: Sure) -> Work:
    return Work(stage=stage, what=what, kind=kind, count=count, evaluations=count, sure=sure)


def _other(stage: str, what: str, kind: Kind, count: int, sure: Sure) -> Work:
    return Work(stage=stage, what=what, kind=kind, count=count, evaluations=0, sure=sure)
