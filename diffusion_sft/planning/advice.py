"""Which setting to change: each candidate is tried on the settings and counted anew, and only what saves is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plan import LanguageStudyConfig, StudyConfig
from ..records import HELDOUT, TRAIN, ConceptSet
from .counting import mix_size, study_runs
from .needs import picture_plan, total, training_memory, tuned
from .networks import Base

LEAST_SHARE = 0.01
"""Of the whole time, that a change must save to be told."""
_DISK_CANDIDATES = (
    ("finetune.checkpoints_total_limit", 1, "fewer updates to go back to"),
    ("evaluate.keep_images", False, "most drawn pictures are looked at and not kept"),
    ("finetune.save_single_file", False, "no single checkpoint file"),
    ("finetune.optimizer", "adamw8bit", "moments are kept in 8 bits; needs bitsandbytes"),
    ("finetune.method", "lora", "low-rank adapters are taught, not all weights"),
)
NOISIER = "their standard errors grow by 1.4"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Settings by their dotted names, and what is lost by them in a few words."""

    settings: tuple[tuple[str, Any], ...]
    loses: str

    def __str__(self) -> str:
        return " ".join(f"{name}={_word(value)}" for name, value in self.settings)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change and what it saves: seconds of the whole, or the bytes of memory that are needed with it."""

    change: Change
    before: float
    after: float


def time_advice(
    config: StudyConfig, concept_set: ConceptSet | None, cost: Callable[[StudyConfig], float]
) -> list[Advice]:
    """The changes that save time, most first; `cost` is the seconds of a whole study."""
    before, found = cost(config), []
    for change in _candidates(config, concept_set):
        try:
            after = cost(changed(config, change))
        except ValueError:
            continue  # The settings do not go together.
        if before - after > LEAST_SHARE * before:
            found.append(Advice(change=change, before=before, after=after))
    return sorted(found, key=lambda advice: advice.after)


def memory_advice(config: StudyConfig, base: Base, concept_set: ConceptSet) -> list[Advice]:
    """The changes under which a training update needs less memory, in the order in which one would try them."""
    before, found = _training_bytes(config, base, concept_set), []
    for change in _memory_candidates(config):
        try:
            after = _training_bytes(changed(config, change), base, concept_set)
        except ValueError:
            continue
        if after < (1 - LEAST_SHARE) * before:
            found.append(Advice(change=change, before=before, after=after))
    return found


def disk_advice(config: StudyConfig, cost: Callable[[StudyConfig], int]) -> list[Advice]:
    """The changes under which less disk is needed, in the order in which one would try them; `cost` is its bytes."""
    before, found = cost(config), []
    for half in ("", "llm."):
        for name, value, loses in _DISK_CANDIDATES:
            if half and name == "evaluate.keep_images":
                continue
            change = _single(half + name, value, loses)
            try:
                after = cost(changed(config, change))
            except ValueError:
                continue
            if after < (1 - LEAST_SHARE) * before:
                found.append(Advice(change=change, before=before, after=after))
    return found


def warnings_about(config: StudyConfig | LanguageStudyConfig, concept_set: ConceptSet, where: str = "") -> list[str]:
    """Settings that are most likely not what was meant; `where` stands before their names.

    Args:
        config: a study, or its `llm`.
    """
    found = []
    own = config.finetune
    batch = own.train_batch_size * own.gradient_accumulation_steps
    for run in study_runs(config):
        size = mix_size(run.mix, own, concept_set)
        if 0 < own.max_train_steps * batch < size.items_per_pass:
            share = own.max_train_steps * batch / size.items_per_pass
            found.append(
                f"mix {run.mix.name}: {where}finetune.max_train_steps={own.max_train_steps} updates of {batch} see "
                f"{share:.0%} of its {size.items_per_pass:,} training examples once; one pass takes "
                f"{-(-size.items_per_pass // batch):,}"
            )
    available = len({example.concept for example in concept_set.split(TRAIN)})
    for mix in config.mixes:
        if mix.num_concepts is not None and mix.num_concepts > available:
            found.append(f"mix {mix.name}: {mix.num_concepts} concepts, and {available} have training examples")
    return list(dict.fromkeys(found))


def changed(config: Any, change: Change) -> Any:
    """The settings with a change, checked as they are when they are read."""
    for name, value in change.settings:
        config = _replaced(config, name.split("."), value)
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return replace(config, **{first: _replaced(getattr(config, first), rest, value) if rest else value})


def _candidates(config: StudyConfig, concept_set: ConceptSet | None) -> list[Change]:
    found: list[Change | None] = _language_candidates(config)
    if concept_set is None:
        return [change for change in found if change is not None]
    probe, tuning, drawing, solve = config.probe, config.finetune, config.evaluate, config.solve
    counts: dict[str, int] = {}
    for example in concept_set.split(HELDOUT):
        counts[example.concept] = counts.get(example.concept, 0) + 1
    pictures = min(probe.max_examples_per_concept or max(counts.values()), max(counts.values()))
    found += [
        _halved("probe.num_draws", probe.num_draws, f"scores are noisier: {NOISIER}", even=True),
        _halved("probe.answers.num_draws", probe.answers.num_draws, "greedy answers err more often", even=True),
        _halved(
            "probe.answers.num_renderings", probe.answers.num_renderings, "categories rest on half the questions"
        ),
        _halved("probe.answers.num_candidates", probe.answers.num_candidates, "a guess is right twice as often"),
        _halved("probe.max_examples_per_concept", pictures, "a concept's error rests on half the pictures"),
        _halved("probe.samples.num_samples", probe.samples.num_samples, "WeaklyKnown is missed more often"),
        _halved("evaluate.num_images_per_concept", drawing.num_images_per_concept, "FID rests on half the pictures"),
        _halved("evaluate.num_inference_steps", drawing.num_inference_steps, "pictures are rougher", least=12),
        _halved("finetune.max_train_steps", tuning.max_train_steps, "half the training"),
        _halved("solve.concepts_per_category", solve.concepts_per_category or 0, "half the concepts are solved"),
        _halved(
            "solve.inputs.concepts_per_category", solve.inputs.concepts_per_category, "half the inputs are solved"
        ),
        _halved("solve.weights.num_steps", solve.weights.num_steps, "less of each residual is solved"),
        _single("solve.weights.forecast_steps", [], "runs are not forecast"),
        _single("solve.generation.num_renderings", 0, "S1 is left out: no rounds, no solution classes"),
        _single("finetune.validation_steps", 2 * tuning.validation_steps, "curves over updates are half as dense"),
    ]
    if tuning.validation_steps and tuning.validation_examples_per_concept is None:
        found.append(_single("finetune.validation_examples_per_concept", 2, "accuracies during training are coarser"))
    if config.cache_dir is None:
        found.append(_single("cache_dir", "runs/cache", "disk instead: images are encoded once, not by every run"))
    return [change for change in found if change is not None]


def _language_candidates(config: StudyConfig) -> list[Change | None]:
    own = config.llm
    return [
        _halved("llm.probe.samples.num_samples", own.probe.samples.num_samples, "WeaklyKnown is missed more often"),
        _halved("llm.probe.num_draws", own.probe.num_draws, f"scores are noisier: {NOISIER}"),
        _halved("llm.finetune.max_train_steps", own.finetune.max_train_steps, "half the training"),
        _single("llm.finetune.validation_steps", 2 * own.finetune.validation_steps, "curves are half as dense"),
        _halved("llm.solve.concepts_per_category", own.solve.concepts_per_category or 0, "half the facts are solved"),
        _halved("llm.solve.weights.num_steps", own.solve.weights.num_steps, "less of each residual is solved"),
        _single("llm.solve.weights.forecast_steps", [], "runs are not forecast"),
    ]


def _memory_candidates(config: StudyConfig) -> list[Change]:
    own = tuned(config)
    found: list[Change | None] = []
    if own.mixed_precision is None or own.mixed_precision == "no":
        found.append(_single("finetune.mixed_precision", "bf16", "activations are rounded to 8 bits of mantissa"))
    if not own.gradient_checkpointing:
        found.append(_single("finetune.gradient_checkpointing", True, "an update takes about a third longer"))
    if own.train_batch_size > 1:
        batch, times = own.train_batch_size // 2, own.gradient_accumulation_steps * 2
        settings = (("finetune.train_batch_size", batch), ("finetune.gradient_accumulation_steps", times))
        found.append(Change(settings=settings, loses="nothing but some speed"))
    if own.use_ema and own.ema_device != "cpu":
        found.append(_single("finetune.ema_device", "cpu", "each update waits for a copy to the CPU"))
    if own.optimizer == "adamw" and own.method != "lora":
        found.append(_single("finetune.optimizer", "adamw8bit", "moments are kept in 8 bits; needs bitsandbytes"))
    if own.method != "lora":
        found.append(_single("finetune.method", "lora", "low-rank adapters are taught, not the UNet"))
    return [change for change in found if change is not None]


def _training_bytes(config: StudyConfig, base: Base, concept_set: ConceptSet) -> int:
    plan = picture_plan(config, base, concept_set)
    assert plan is not None
    return total(training_memory(config, base, plan))


def _halved(name: str, value: int, loses: str, *, even: bool = False, least: int = 1) -> Change | None:
    half = -(-value // 2)
    half += half % 2 if even else 0
    return Change(settings=((name, half),), loses=loses) if least <= half < value else None


def _single(name: str, value: Any, loses: str) -> Change:
    return Change(settings=((name, value),), loses=loses)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
