"""The plan in words: columns that are aligned, lines of at most 100 characters, every figure with how it was come by."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ..finetune.estimate import size
from ..machine import PUBLISHED_PEAKS, hardware
from ..records import DIFFUSION
from .advice import Advice
from .needs import CARDS, RESERVED, Need, total
from .study_plan import Pictures, StudyPlan, Texts
from .work import Kind, Work, seconds_of

WIDTH = 100
SHARES = (0.3, 0.5)
"""Of a published peak, at which hours on other GPUs are derived."""
MOST_ADVICE = 10
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SMALL_NETWORK = 10**10
"""Operations of one evaluation below which a GPU waits for its own start-up more than it computes."""


def plan_text(plan: StudyPlan) -> str:
    """The whole plan."""
    lines = [*_head(plan)]
    for half, work in plan.work.items():
        lines += ["", *_half(plan, half, work)]
    lines += ["", *_disk(plan)]
    if plan.reading:
        lines += ["", *_memory(plan)]
    lines += ["", *_advice(plan)]
    if plan.warnings:
        lines += ["", "WARNINGS", *_bullets(plan.warnings)]
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, with three digits at most."""
    if math.isnan(seconds):
        return "unknown"
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _head(plan: StudyPlan) -> Iterator[str]:
    config, machine = plan.config, hardware(plan.device)
    yield from _wrapped(f"PLAN of {config.output_dir}: {config.title}")
    yield from _wrapped(
        f"on {machine['device']} ({machine['threads']} threads), one process, one run after another"
        if plan.device.type == "cpu"
        else f"on {machine['device']}, {size(plan.memory)}; one process, one run after another"
    )
    needed = total(plan.disk)
    memory = f", up to {size(plan.memory_needed + RESERVED)} of a GPU's memory" if plan.reading else ""
    yield from _wrapped(f"In all {duration(plan.seconds)} here, {size(needed)} of disk{memory}; details below.")


def _half(plan: StudyPlan, half: str, work: Sequence[Work]) -> Iterator[str]:
    known: Pictures | Texts | None = plan.pictures if half == DIFFUSION else plan.texts
    assert known is not None
    speed = known.speed
    yield from _describe(plan, known)
    counted = known.flops if isinstance(known, Pictures) else known.base.flops()
    unit = "evaluations" if half == DIFFUSION else "prompts"
    yield f"  {'stage':<10}{'what':<20}{unit:>16}{'FLOP':>10}{'time':>12}   "
    stages = list(dict.fromkeys(line.stage for line in work))
    for stage in stages:
        own = [line for line in work if line.stage == stage and line.count]
        for number, line in enumerate(own):
            yield _row(stage if not number else "", line.what, [line], counted, speed.seconds, line.sure)
        if len(own) > 1:
            yield _row("", "together", own, counted, speed.seconds, "")
    yield _row("all", "", work, counted, speed.seconds, "")
    for note in speed.notes:
        yield from _wrapped(f"Time is {note}.", "  ")
    if half == DIFFUSION:
        yield from _wrapped(
            "An example trained counts as 3 evaluations. Solving is derived from the speed of reading. Not counted: the "
            "extractor's passes over pictures, reading and checking files, text encoders.",
            "  ",
        )
        if counted["reading"] >= SMALL_NETWORK:
            yield from _elsewhere(work, counted)
    else:
        yield from _wrapped(
            "FLOP are estimated as 2 · parameters · tokens, shared exemplars counted each time.", "  "
        )


def _describe(plan: StudyPlan, known: Pictures | Texts) -> Iterator[str]:
    names, config = known.concept_set, plan.config
    if isinstance(known, Texts):
        millions = known.base.num_parameters / 1e6
        yield "LANGUAGE MODEL"
        yield from _wrapped(
            f"{config.llm.base}: {millions:,.1f} million parameters; {len(names.concepts):,} facts, few-shot prompts of "
            f"about {known.base.tokens:.0f} tokens",
            "  ",
        )
        return
    base, flops, speed = known.base, known.flops, known.speed
    pictures = len({example.id for example in names.examples})
    yield "DIFFUSION MODEL"
    yield from _wrapped(
        f"{config.base} at {base.resolution}x{base.resolution} pixels, latents {base.latent_side}x{base.latent_side}; "
        f"{len(names.concepts):,} concepts, {pictures:,} pictures",
        "  ",
    )
    yield from _wrapped(
        f"TFLOP, counted: an evaluation {_tera(flops['reading'])}, a training example {_tera(flops['training'])}, "
        f"encoding an image {_tera(flops['encoding'])}, decoding one {_tera(flops['decoding'])}; matrices here run at "
        f"{speed.matrix_rate / 1e12:.3g} TFLOP/s, measured",
        "  ",
    )


def _row(
    stage: str,
    what: str,
    work: Sequence[Work],
    flops: Mapping[Kind, int],
    seconds: Mapping[Kind, float],
    sure: str,
) -> str:
    evaluations = sum(line.evaluations for line in work)
    shown = f"{evaluations:,}" if evaluations else f"({sum(line.count for line in work):,} images)"
    operations = _operations(sum(line.count * flops[line.kind] for line in work))
    time, sure = duration(seconds_of(work, seconds)), "" if sure == "exact" else sure
    return f"  {stage:<10}{what:<20}{shown:>16}{operations:>10}{time:>12}   {sure}"


def _elsewhere(work: Sequence[Work], flops: Mapping[Kind, int]) -> Iterator[str]:
    """Hours on GPUs that are not here, from their data sheets."""
    operations = sum(line.count * flops[line.kind] for line in work)
    yield from _wrapped(
        "Derived, not measured: all of it at a share of the published dense bf16 peak would take", "  "
    )
    for name, peak in PUBLISHED_PEAKS.items():
        times = ", ".join(f"{duration(operations / (peak * share))} at {share:.0%}" for share in SHARES)
        yield f"    {name} ({peak / 1e12:.0f} TFLOP/s): {times}"


def _disk(plan: StudyPlan) -> Iterator[str]:
    needed = total(plan.disk)
    yield "DISK"
    yield from _needs(plan.disk)
    rest = f", of which {size(plan.there)} are there" if plan.there else ""
    verdict = "fits" if plan.fits_disk else "DOES NOT FIT; take another output_dir, or"
    yield from _wrapped(f"{size(needed)} in all{rest}; {size(plan.free)} are free: {verdict}", "  ")
    for advice in plan.lighter:
        yield from _change(advice, f"needs {size(round(advice.after))}")


def _memory(plan: StudyPlan) -> Iterator[str]:
    yield f"MEMORY on a GPU, computed from shapes (fused attention); {size(RESERVED)} for CUDA itself come on top"
    yield from _needs(plan.reading)
    if plan.training:
        yield f"  {'finetune':<26}{size(total(plan.training)):>10}   of which"
        yield from (f"    {need.what:<24}{size(need.size):>10}   {need.how}" for need in plan.training)
    measured = plan.pictures.speed.training_peak if plan.pictures else None
    if measured is not None:
        yield f"  {'finetune, measured':<26}{size(measured):>10}   one update here, without the probed base"
    needed = plan.memory_needed + RESERVED
    if plan.device.type == "cuda":
        yield f"  {size(needed)} of {size(plan.memory)}: {'fits' if plan.fits_memory else 'DOES NOT FIT'}"
    else:
        cards = ", ".join(f"{name}: {'fits' if needed <= room else 'does not fit'}" for name, room in CARDS.items())
        yield f"  {size(needed)} on a card of {cards}"
    for advice in plan.smaller:
        yield from _change(advice, f"finetune needs {size(round(advice.after))}")


def _advice(plan: StudyPlan) -> Iterator[str]:
    yield f"WHICH SETTING TO CHANGE, each by itself, counted anew with it; of {duration(plan.seconds)}"
    for advice in plan.faster[:MOST_ADVICE]:
        saved = advice.before - advice.after
        yield from _change(advice, f"saves {saved / advice.before:.0%}, {duration(saved)}")
    if not plan.faster:
        yield "  nothing that saves more than 1 % of the time"
    untold = list(_untold(plan))
    if untold:
        yield "  Not counted, worth trying:"
        yield from _bullets(untold)
    yield "  What is finished already in the output folder is kept, and takes no time again."


def _untold(plan: StudyPlan) -> Iterator[str]:
    """Settings whose gain only a run can tell."""
    config, pictures = plan.config, plan.pictures
    if pictures is None:
        return
    if not config.probe.adaptive.enabled:
        yield "probe.adaptive.enabled=true reads no more of a concept than its label takes"
    if plan.device.type == "cuda" and config.finetune.mixed_precision in (None, "no") and config.mixes:
        yield "finetune.mixed_precision=bf16 (accelerate's configuration may say so already)"
    spare = plan.memory - RESERVED - total(plan.training)
    moving = next((need.size for need in plan.training if need.what == "gradients and activations"), 0)
    if plan.device.type == "cuda" and plan.training and spare > moving and config.finetune.train_batch_size < 16:
        yield f"finetune.train_batch_size={2 * config.finetune.train_batch_size} has room, and may be faster"


def _change(advice: Advice, gain: str) -> Iterator[str]:
    line = f"  {advice.change!s:<48} {gain}"
    yield line if len(line) <= WIDTH else f"  {advice.change}"
    if len(line) > WIDTH:
        yield f"      {gain}"
    yield f"      {advice.change.loses}"


def _needs(needs: Sequence[Need]) -> Iterator[str]:
    for need in needs:
        yield f"  {need.what:<26}{size(need.size):>10}   {need.how}"


def _bullets(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _wrapped(text: str, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _tera(count: int) -> str:
    return f"{count / 1e12:.3g}"


def _operations(count: float) -> str:
    """Floating-point operations with the usual prefix."""
    power = min(max(int(math.log10(max(count, 1)) // 3), 0), 7)
    value = count / 1000.0**power
    return f"{value:.0f} {PREFIXES[power]}" if value >= 100 else f"{value:.3g} {PREFIXES[power]}"
