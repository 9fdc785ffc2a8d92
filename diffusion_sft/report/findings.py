"""The answer in sentences, every one made from the tables: its verb follows the sign and the interval of its number.

An interval that contains 0 is reported as no change beyond the interval, whatever the point estimate says; a reading
that was not taken is named as not taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..records import CATEGORIES, HELDOUT, RULES, TRAINED, UNKNOWN
from .agreement import auroc, rank_correlation, seen_at_least
from .changes import Change, image_change, inside, learning_change, mix_changes
from .mix_run import MixRun
from .nouns import Nouns
from .run import Run
from .wording import listing, plural, reading, share


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A heading and its sentences; `mix` marks a heading that is a mix's own name."""

    heading: str
    sentences: tuple[str, ...]
    mix: bool = False


def findings(run: Run) -> list[Finding]:
    """The answer: the headline, what the base knows, how far to trust the split, and what each mix did."""
    found = [Finding(heading="In one paragraph", sentences=tuple(headline(run)))]
    if run.concepts is not None:
        found.append(Finding(heading="What the base knows", sentences=tuple(_base_sentences(run, run.concepts))))
    if trust := _trust_sentences(run):
        found.append(Finding(heading="How far the split can be trusted", sentences=tuple(trust)))
    for mix in run.first_runs:
        found.append(Finding(heading=mix.name, sentences=tuple(_mix_sentences(run, mix)), mix=True))
    return found


def headline(run: Run) -> list[str]:
    """Where the base knows nothing, was fine-tuning effective, and what did it cost?

    The first sentence is the verdict. Read from the mix of the largest recorded share of Unknown.
    """
    nouns = run.nouns
    with_unknown = [mix for mix in run.mixes if mix.unknown_share > 0]
    if not with_unknown:
        return [
            "Whether fine-tuning is effective where the base knows nothing stays open: no mix of this run is recorded"
            f" as trained on Unknown {nouns.concept}s."
        ]
    mix = max(with_unknown, key=lambda mix: mix.unknown_share)
    fitted, held_out = (learning_change(mix, role, UNKNOWN) for role in (TRAINED, HELDOUT))
    drawn = image_change(run, mix.name, UNKNOWN, "accuracy_change")
    known = [category for category in CATEGORIES if category != UNKNOWN]
    read = [learning_change(mix, role, category) for role in nouns.costs for category in known]
    read += [image_change(run, mix.name, "known", metric) for metric in ("accuracy_change", "fid_change")]
    costs = [change for change in read if change is not None]
    worse = [change for change in costs if change.outcome == "worse"]
    return [
        f"{_gain_verdict(fitted, held_out, nouns)}; {_cost_verdict(len(costs), len(worse))}.",
        f"This is said of the mix with the most Unknown in it ({share(mix.unknown_share)} of its {nouns.concept}s)"
        f"{_which_seed(run, mix)}.",
        *(change.sentence for change in (fitted, held_out, drawn, *worse) if change is not None),
    ]


def _which_seed(run: Run, mix: MixRun) -> str:
    """Which of a mix's runs a sentence is about, where there are several."""
    seeds = sum(other.mix == mix.mix for other in run.mixes)
    return f", seed {mix.seed}, the first of {seeds}" if seeds > 1 else ""


def _gain_verdict(fitted: Change | None, held_out: Change | None, nouns: Nouns) -> str:
    concepts, examples = f"{nouns.concept}s", f"{nouns.example}s"
    if held_out is None or held_out.outcome == "unclear":
        return f"Whether fine-tuning taught the model {concepts} it did not know stays open"
    if held_out.outcome == "better":
        return f"Fine-tuning taught the model {concepts} it did not know, beyond the {examples} it was trained on"
    if fitted is not None and fitted.outcome == "better":
        return (
            f"Fine-tuning fitted {examples} {nouns.of} {concepts} that were not known, but no others {nouns.of} the"
            f" same {concepts}"
        )
    return f"Fine-tuning did not teach the model {concepts} it did not know, beyond the intervals"


def _cost_verdict(num_readings: int, num_worse: int) -> str:
    if not num_readings:
        return "what that cost was not measured"
    if not num_worse:
        return f"of {plural(num_readings, 'reading')} of what it knew before, none became worse beyond its interval"
    return f"of {plural(num_readings, 'reading')} of what it knew before, {num_worse} became worse"


def _mix_sentences(run: Run, mix: MixRun) -> list[str]:
    changes = mix_changes(run, mix)
    sentences = [composition_sentence(mix), *(change.sentence for change in changes if change.outcome != "same")]
    if same := [
        f"{inside(change.what)} ({' '.join(change.reading)})" for change in changes if change.outcome == "same"
    ]:
        sentences.append(f"No change beyond the interval: {'; '.join(same)}.")
    return [sentence for sentence in sentences if sentence]


def composition_sentence(mix: MixRun) -> str:
    """What a mix was trained on and when it stopped, as far as its summary says."""
    parts = [f"{len(names)} {label}" for label, names in mix.composition.items() if names]
    total = sum(len(names) for names in mix.composition.values())
    trained = f"Trained on {plural(total, mix.nouns.concept)} ({listing(parts)})" if parts else ""
    updates, reason = mix.summary.get("updates"), mix.summary.get("stopping_reason")
    stopped = f"stopped after {plural(updates, 'update')}" if isinstance(updates, int) else ""
    if stopped and isinstance(reason, str):
        stopped += f" ({reason})"
    sentence = ", ".join(filter(None, (trained, stopped)))
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _base_sentences(run: Run, concepts: pd.DataFrame) -> list[str]:
    known = int((concepts["bucket"] == "known").sum())
    rule = f" by the rule `{run.buckets['rule']}`" if "rule" in run.buckets else ""
    counts = concepts["category"].value_counts()
    parts = [f"{counts.get(category, 0)} {category}" for category in CATEGORIES]
    sentences = [
        f"The base knows {known} of {plural(len(concepts), run.nouns.concept)}{rule}.",
        f"By its answers, {listing(parts)}.",
    ]
    wrong = int(concepts["misknown"].sum())
    if wrong:
        sentences.append(
            f"Of {plural(wrong, run.nouns.concept)} it is confident and wrong: the words change its prediction much, but not"
            " towards the pictures."
        )
    return sentences


def _trust_sentences(run: Run) -> list[str]:
    sentences = []
    if run.concepts is not None:
        confidence = run.concepts["category_confidence"].mean()
        sentences.append(
            f"On average a {run.nouns.concept} keeps its category in {share(confidence)} of the bootstrap repeats."
        )
    areas = {rule: area for rule in RULES if (area := auroc(run.buckets, rule)) is not None}
    rule = run.buckets.get("rule")
    if rule in areas:
        best = max(areas, key=lambda name: areas[name].value)
        beaten = reading(areas[best])[0] != reading(areas[rule])[0]
        sentences.append(
            f"The rule `{rule}` tells {run.nouns.concept}s seen at least {seen_at_least(run.buckets)} times from unseen ones with"
            f" an AUROC of {' '.join(reading(areas[rule]))}".rstrip()
            + (f"; the largest here is that of `{best}` ({reading(areas[best])[0]})." if beaten else ".")
        )
    if (follows := rank_correlation(run.buckets, str(rule))) is not None:
        sentences.append(
            f"Among seen {run.nouns.concept}s its score follows the logarithm of exposure with a rank correlation of"
            f" {' '.join(reading(follows))}".rstrip()
            + "."
        )
    warnings = run.buckets.get("warnings")
    sentences += [f"Take care: {warning}." for warning in warnings] if isinstance(warnings, list) else []
    return sentences
