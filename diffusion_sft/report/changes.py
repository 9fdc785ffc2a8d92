"""A reading before and after fine-tuning, and the sentence that its sign and its interval allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..records import CATEGORIES, HELDOUT, TRAINED, UNKNOWN
from .mix_run import MixRun
from .run import Run
from .wording import BASE, Estimate, difference, reading, share, share_reading

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
    subject = mix.nouns.subject(role, category)
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
        return f"Paired change of {inside(stem)}"
    if metric.startswith("fd_pca_"):
        return f"FD-PCA-{metric.removeprefix('fd_pca_')}"
    return METRIC_NAMES.get(metric, metric.replace("_", " ").capitalize())


def mix_changes(run: Run, mix: MixRun) -> list[Change]:
    """What a mix gained and cost, most direct reading first; readings that were not taken are left out."""
    roles = [(role, category) for role in (TRAINED, HELDOUT) for category in CATEGORIES]
    roles += [(role, category) for role in mix.nouns.costs for category in CATEGORIES if category != UNKNOWN]
    read = [learning_change(mix, role, category) for role, category in roles]
    images = [(bucket, metric) for metric in ("accuracy_change", "fid_change") for bucket in ("unknown", "known")]
    return [c for c in (*read, *(image_change(run, mix.name, *image) for image in images)) if c is not None]


def inside(subject: str) -> str:
    """A sentence's subject as it stands inside another sentence; abbreviations stay as they are."""
    return subject[:1].lower() + subject[1:] if subject[1:2].islower() else subject
