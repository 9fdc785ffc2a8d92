"""The answer in sentences, every one made from the tables: its verb follows the sign and the interval of its number.

An interval that contains 0 is reported as no change beyond the interval, whatever the point estimate says; a reading
that was not taken is named as not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ..records import CATEGORIES, RULES, UNKNOWN
from .run import MixRun, Run, auroc, rank_correlation, seen_at_least
from .wording import BASE, Estimate, difference, listing, plural, reading, share, share_reading

METRIC_NAMES = {
    "fid": "FID",
    "fid_half": "FID at n/2",
    "fid_floor": "floor at n/2",
    "fid_excess": "excess at n/2",
    "fid_matched": "FID at one n for all",
    "fid_infinity": "FID as n → ∞",
    "fd_pca": "FD-PCA",
    "kid": "KID",
    "vendi_real": "Vendi of real images",
    "nearest_train_share": "nearest to a training image",
    "nearest_train_share_real": "the same of real images",
}

Outcome = Literal["better", "worse", "same", "unclear"]

LOWER_IS_BETTER = ("fid", "kid", "fd_pca", "nearest_train_share")
"""Metrics (by the beginning of their names) of which less is better; of all others more is."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A reading before and after fine-tuning; `before` and `after` are None where only the change was measured."""

    what: str
    change: Estimate
    before: Estimate | None = None
    after: Estimate | None = None
    lower_is_better: bool = False
    is_share: bool = True

    @property
    def outcome(self) -> Outcome:
        """better or worse where the interval excludes 0, same where it does not, unclear without an interval."""
        sign = self.change.sign
        if sign is None:
            return "unclear"
        return "same" if sign == "flat" else "better" if (sign == "down") == self.lower_is_better else "worse"

    @property
    def reading(self) -> tuple[str, str]:
        """The change and its interval as text: `+92 points` and `[+84, +97]`."""
        return share_reading(self.change, signed=True) if self.is_share else reading(self.change, signed=True)

    @property
    def numbers(self) -> str:
        """From what to what, and by how much: `from 4 % to 96 %, +92 points [+84, +97]`."""
        amount = " ".join(filter(None, self.reading))
        if self.before is None or self.after is None:
            return amount
        ends = [share(e.value) if self.is_share else reading(e)[0] for e in (self.before, self.after)]
        return f"from {ends[0]} to {ends[1]}, {amount}"

    @property
    def sentence(self) -> str:
        """What happened, with its numbers; the verb follows the interval."""
        sign = self.change.sign
        if sign is None:
            return f"{self.what} is given without an interval, so there is no verdict ({self.numbers})."
        if sign == "flat":
            return f"{self.what} did not change beyond its interval ({self.numbers})."
        verb = "rose" if sign == "up" else "fell"
        judgement = f", which is {self.outcome}" if self.lower_is_better else ""
        return f"{self.what} {verb} ({self.numbers}){judgement}."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A heading and its sentences; `mix` marks a heading that is a mix's own name."""

    heading: str
    sentences: tuple[str, ...]
    mix: bool = False


def measure(run: Run, model: str, bucket: str, metric: str) -> Estimate | None:
    """A number of the evaluation with its interval; None where it was not measured."""
    return run.estimates.get((model, bucket, metric))


def learning_change(mix: MixRun, role: str, category: str) -> Change | None:
    """Answers of a role and category at the first and the last evaluation of a mix; None without two of them."""
    if mix.evaluations is None:
        return None
    table = mix.evaluations
    rows = table[(table["role"] == role) & (table["category"] == category)].sort_values("update")
    if len(rows) < 2:
        return None
    before, after = (
        Estimate(value=float(row["accuracy"]), low=float(row["accuracy_low"]), high=float(row["accuracy_high"]))
        for _, row in rows.iloc[[0, -1]].iterrows()
    )
    subject = {
        "trained": f"The fitted share of trained {category} pictures",
        "heldout": f"Accuracy on held-out pictures of trained {category} concepts",
        "untouched": f"Accuracy on {category} concepts outside the mix",
    }[role]
    return Change(what=subject, before=before, after=after, change=difference(before, after))


def image_change(run: Run, model: str, bucket: str, metric: str) -> Change | None:
    """The paired change of a metric of generated images (`fid_change`, `accuracy_change`, ...) in a bucket."""
    change = measure(run, model, bucket, metric)
    if change is None:
        return None
    stem = metric.removesuffix("_change")
    is_share = stem == "accuracy"
    subject = "The share of images read correctly" if is_share else f"{metric_name(stem)} of images"
    where = "all concepts" if bucket == "all" else f"{bucket} concepts"
    ends = {"before": measure(run, BASE, bucket, stem), "after": measure(run, model, bucket, stem)}
    if None in ends.values():
        ends = {}
    return Change(
        what=f"{subject} of {where}",
        change=change,
        lower_is_better=stem.startswith(LOWER_IS_BETTER),
        is_share=is_share,
        **ends,
    )


def metric_name(metric: str) -> str:
    """A metric's name as people write it."""
    if metric.endswith("_change"):
        stem = metric_name(metric.removesuffix("_change"))
        return f"Paired change of {_inside(stem)}"
    if metric.startswith("fd_pca_"):
        return f"FD-PCA-{metric.removeprefix('fd_pca_')}"
    return METRIC_NAMES.get(metric, metric.replace("_", " ").capitalize())


def mix_changes(run: Run, mix: MixRun) -> list[Change]:
    """What a mix gained and cost, most direct reading first; readings that were not taken are left out."""
    roles = [("trained", c) for c in CATEGORIES] + [("heldout", c) for c in CATEGORIES]
    roles += [("untouched", c) for c in CATEGORIES if c != UNKNOWN]
    read = [learning_change(mix, role, category) for role, category in roles]
    images = [(bucket, metric) for metric in ("accuracy_change", "fid_change") for bucket in ("unknown", "known")]
    return [c for c in (*read, *(image_change(run, mix.name, *image) for image in images)) if c is not None]


def findings(run: Run) -> list[Finding]:
    """The answer: the headline, what the base knows, how far to trust the split, and what each mix did."""
    found = [Finding(heading="In one paragraph", sentences=tuple(headline(run)))]
    if run.concepts is not None:
        found.append(Finding(heading="What the base knows", sentences=tuple(_base_sentences(run, run.concepts))))
    if trust := _trust_sentences(run):
        found.append(Finding(heading="How far the split can be trusted", sentences=tuple(trust)))
    for mix in run.mixes:
        found.append(Finding(heading=mix.name, sentences=tuple(_mix_sentences(run, mix)), mix=True))
    return found


def headline(run: Run) -> list[str]:
    """Where the base knows nothing, was fine-tuning effective, and what did it cost?

    The first sentence is the verdict. Read from the mix of the largest recorded share of Unknown.
    """
    with_unknown = [mix for mix in run.mixes if mix.unknown_share > 0]
    if not with_unknown:
        return [
            "Whether fine-tuning is effective where the base knows nothing stays open: no mix of this run is recorded"
            " as trained on Unknown concepts."
        ]
    mix = max(with_unknown, key=lambda mix: mix.unknown_share)
    gained = [learning_change(mix, role, UNKNOWN) for role in ("trained", "heldout")]
    drawn = image_change(run, mix.name, UNKNOWN, "accuracy_change")
    read = [learning_change(mix, "untouched", category) for category in CATEGORIES if category != UNKNOWN]
    read += [image_change(run, mix.name, "known", metric) for metric in ("accuracy_change", "fid_change")]
    costs = [change for change in read if change is not None]
    worse = [change for change in costs if change.outcome == "worse"]
    return [
        f"{_gain_verdict(*gained)}; {_cost_verdict(len(costs), len(worse))}.",
        f"This is said of the mix with the most Unknown in it ({share(mix.unknown_share)} of its concepts).",
        *(change.sentence for change in (*gained, drawn, *worse) if change is not None),
    ]


def _gain_verdict(fitted: Change | None, held_out: Change | None) -> str:
    if held_out is None or held_out.outcome == "unclear":
        return "Whether fine-tuning taught the model concepts it did not know stays open"
    if held_out.outcome == "better":
        return "Fine-tuning taught the model concepts it did not know, beyond the pictures it was trained on"
    if fitted is not None and fitted.outcome == "better":
        return "Fine-tuning fitted pictures of concepts that were not known, but no others of the same concepts"
    return "Fine-tuning did not teach the model concepts it did not know, beyond the intervals"


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
        f"{_inside(change.what)} ({' '.join(change.reading)})" for change in changes if change.outcome == "same"
    ]:
        sentences.append(f"No change beyond the interval: {'; '.join(same)}.")
    return [sentence for sentence in sentences if sentence]


def _inside(subject: str) -> str:
    """A sentence's subject as it stands inside another sentence; abbreviations stay as they are."""
    return subject[:1].lower() + subject[1:] if subject[1:2].islower() else subject


def composition_sentence(mix: MixRun) -> str:
    """What a mix was trained on and when it stopped, as far as its summary says."""
    parts = [f"{len(names)} {label}" for label, names in mix.composition.items() if names]
    total = sum(len(names) for names in mix.composition.values())
    trained = f"Trained on {plural(total, 'concept')} ({listing(parts)})" if parts else ""
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
        f"The base knows {known} of {plural(len(concepts), 'concept')}{rule}.",
        f"By its answers, {listing(parts)}.",
    ]
    wrong = int(concepts["misknown"].sum())
    if wrong:
        sentences.append(
            f"Of {plural(wrong, 'concept')} it is confident and wrong: the words change its prediction much, but not"
            " towards the pictures."
        )
    return sentences


def _trust_sentences(run: Run) -> list[str]:
    sentences = []
    if run.concepts is not None:
        confidence = run.concepts["category_confidence"].mean()
        sentences.append(f"On average a concept keeps its category in {share(confidence)} of the bootstrap repeats.")
    areas = {rule: area for rule in RULES if (area := auroc(run.buckets, rule)) is not None}
    rule = run.buckets.get("rule")
    if rule in areas:
        best = max(areas, key=lambda name: areas[name].value)
        beaten = reading(areas[best])[0] != reading(areas[rule])[0]
        sentences.append(
            f"The rule `{rule}` tells concepts seen at least {seen_at_least(run.buckets)} times from unseen ones with"
            f" an AUROC of {' '.join(reading(areas[rule]))}".rstrip()
            + (f"; the largest here is that of `{best}` ({reading(areas[best])[0]})." if beaten else ".")
        )
    if (follows := rank_correlation(run.buckets, str(rule))) is not None:
        sentences.append(
            f"Among seen concepts its score follows the logarithm of exposure with a rank correlation of"
            f" {' '.join(reading(follows))}".rstrip()
            + "."
        )
    warnings = run.buckets.get("warnings")
    sentences += [f"Take care: {warning}." for warning in warnings] if isinstance(warnings, list) else []
    return sentences
