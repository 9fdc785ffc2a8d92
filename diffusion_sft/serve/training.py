"""One training run as its files tell it: how far it is, how its loss went, what it got right, when it may end.

The same record for a fine-tuning run (`metrics.jsonl`, `evaluations.parquet`, `finetune.json`) and for one network of a
pretraining (`work/<name>/state.json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .place import Place, Remembered, latest
from .shares import Curves, read_shares
from .values import mapping, real, rows, text, whole

BINS = 160
"""A loss curve is drawn with so many points at most: means over equal stretches of updates."""
LAST_LINES = 1 << 14
"""Bytes of a log in which its last line is looked for."""


@dataclass(frozen=True)
class Stretch:
    """The loss over a few updates: the last of them, mean, lowest and highest."""

    update: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run at the moment that its files were read."""

    place: Place
    update: int = 0
    last_update: int | None = None
    """The budget of updates; None where it is not told."""
    loss: tuple[Stretch, ...] = ()
    shares: Mapping[str, Curves] = field(default_factory=dict)
    """By role."""
    finished: bool = False
    changed: float = 0.0
    started: float = 0.0
    """When its settings were written: at the start, and again when it was resumed."""
    seconds_per_update: float | None = None
    """Evaluations and checkpoints included."""
    facts: tuple[tuple[str, str], ...] = ()
    """What its summary says at the end."""
    problems: tuple[str, ...] = ()
    stopped: bool = False
    """Whether it recorded an end before its time."""

    @property
    def progress(self) -> float | None:
        """The share of the budget that is spent; 1 for what is finished, None where there is no telling."""
        if self.finished:
            return 1.0
        return min(1.0, self.update / self.last_update) if self.last_update else None

    @property
    def seconds_left(self) -> float | None:
        """At the pace up to now, if all of the budget is used."""
        if self.finished or not self.last_update or self.seconds_per_update is None:
            return None
        return max(0, self.last_update - self.update) * self.seconds_per_update


def is_finetune(place: Place) -> bool:
    """Whether the folder is one fine-tuning run's."""
    return (place / "metrics.jsonl").is_file or (place / "finetune.json").is_file


def is_finished(place: Place) -> bool:
    """Whether a fine-tuning run has written its summary, and made no update since: whatever the clock was."""
    summary = (place / "finetune.json").record()
    if summary is None:
        return False
    last, told = whole(last_line(place).get("update")), whole(summary.get("updates"))
    return last is None or told is None or last <= told


def last_line(place: Place) -> Mapping[str, Any]:
    """The last finished line of a run's metrics that can be read; empty where there is none."""
    for line in reversed((place / "metrics.jsonl").end(LAST_LINES).split("\n")[:-1]):
        try:
            if found := mapping(json.loads(line)):
                return found
        except (ValueError, RecursionError):
            continue
    return {}


def finetune_progress(place: Place) -> Training:
    """A fine-tuning run without its curves: what the overview shows."""
    finished, update, pace = is_finished(place), whole(last_line(place).get("update")) or 0, _pace(place)
    budget = whole(mapping(_summary(place).get("record")).get("max_train_steps")) if finished else None
    return Training(
        place=place,
        update=update,
        last_update=budget or _budget(place),
        finished=finished,
        changed=latest(_changes(place)),
        started=(place / "config.yaml").changed,
        seconds_per_update=pace if pace is not None else _first_pace(place, update),
        facts=_facts(place) if finished else (),
        problems=_problems(place),
        stopped=_stopped(place),
    )


def read_finetune(place: Place) -> Training:
    """A fine-tuning run with its curves."""
    metrics, table = place / "metrics.jsonl", place / "evaluations.parquet"
    loss, skipped, complete = _LOSSES.of(metrics, lambda: _losses(metrics))
    told = finetune_progress(place)
    problems = list(told.problems)
    if skipped:
        where = "" if complete else " of the updates looked at"
        problems.append(f"{skipped}{where} skipped: loss or gradient not finite")
    shares = read_shares(table)
    if table.is_file and shares is None:
        problems.append("evaluations.parquet cannot be read")
    given = {name: getattr(told, name) for name in told.__dataclass_fields__}
    curves: dict[str, Any] = {"loss": loss, "shares": shares or {}, "problems": tuple(problems)}
    return Training(**given | curves)


def _losses(metrics: Place) -> tuple[tuple[Stretch, ...], int, bool]:
    """The curve of a log, how many updates were skipped, and whether all lines were looked at."""
    lines, complete = metrics.log_lines()
    losses, skipped = parsed(lines)
    return stretches(losses), skipped, complete


_LOSSES: Remembered[tuple[tuple[Stretch, ...], int, bool]] = Remembered(512)


def read_pretraining(place: Place) -> list[Training]:
    """The networks of a pretraining, in the order in which they were begun."""
    found = []
    for work in (place / "work").entries():
        state = (work / "state.json").record()
        if state is None:
            continue
        told = [(whole(row.get("update")), real(row.get("loss"))) for row in rows(state.get("log"))]
        losses = sorted((number, loss) for number, loss in told if number is not None and loss is not None)
        changed = (work / "state.json").changed
        update = whole(state.get("update")) or 0
        found.append(Training(place=work, update=update, loss=stretches(losses), changed=changed))
    return sorted(found, key=lambda training: training.changed)


def parsed(lines: Sequence[bytes]) -> tuple[list[tuple[int, float]], int]:
    """Update and loss of the lines that hold both, in the order of updates, and how many updates were skipped."""
    losses, skipped = {}, 0
    for line in lines:
        try:
            row = mapping(json.loads(line))
        except (ValueError, RecursionError):
            continue
        update, loss = whole(row.get("update")), real(row.get("loss"))
        skipped += "skipped" in row
        if update is not None and loss is not None:
            losses[update] = loss
    return sorted(losses.items()), skipped


def stretches(losses: Sequence[tuple[int, float]], most: int = BINS) -> tuple[Stretch, ...]:
    """The losses over at most so many equal stretches of updates."""
    if not losses:
        return ()
    first, last = losses[0][0], losses[-1][0]
    width = max(1, -(-(last - first + 1) // most))
    bins: dict[int, list[tuple[int, float]]] = {}
    for update, loss in losses:
        bins.setdefault((update - first) // width, []).append((update, loss))
    found = []
    for inside in bins.values():
        values = [loss for _, loss in inside]
        found.append(Stretch(inside[-1][0], sum(values) / len(values), min(values), max(values)))
    return tuple(found)


def _changes(place: Place) -> list[float]:
    names = ("metrics.jsonl", "finetune.json", "evaluations.parquet", "config.yaml", "samples")
    return [place.changed, *((place / name).changed for name in names)]


def _summary(place: Place) -> Mapping[str, Any]:
    return (place / "finetune.json").record() or {}


def _budget(place: Place) -> int | None:
    found = re.search(r"^max_train_steps: (\d{1,15})\s*$", (place / "config.yaml").end(1 << 16), re.MULTILINE)
    return int(found[1]) if found else None


def _pace(place: Place) -> float | None:
    """Seconds per update, from the latest checkpoint: it knows what earlier processes spent too."""
    numbers = [
        int(entry.name[11:]) for entry in place.entries() if re.fullmatch(r"checkpoint-[1-9]\d{0,14}", entry.name)
    ]
    if not numbers:
        return None
    seconds = real(((place / f"checkpoint-{max(numbers)}" / "state.json").record() or {}).get("seconds"))
    return seconds / max(numbers) if seconds is not None and seconds > 0 else None


def _first_pace(place: Place, update: int) -> float | None:
    """Before the first checkpoint: from the start, which is when the settings were written."""
    seconds = (place / "metrics.jsonl").changed - (place / "config.yaml").changed
    return seconds / update if update > 0 and seconds > 0 and (place / "config.yaml").is_file else None


def _facts(place: Place) -> tuple[tuple[str, str], ...]:
    summary = _summary(place)
    found = [("method", text(summary.get("method"))), ("ended", text(summary.get("stopping_reason")))]
    numbers = {"early stop at": "early_stop_update", "all fitted at": "converged_update", "examples": "num_examples"}
    told = {name: whole(summary.get(key)) for name, key in numbers.items()}
    found += [(name, f"{number:,}") for name, number in told.items() if number is not None]
    return tuple((name, value) for name, value in found if value)


def _problems(place: Place) -> tuple[str, ...]:
    """What was recorded of an end before its time, and of a summary that cannot be read."""
    found = []
    if _stopped(place):
        dumped = (place / "nonfinite.json").record() or {}
        update, what = whole(dumped.get("update")), text(dumped.get("not_finite")) or "loss or gradient"
        when = "" if update is None else f" at update {update}"
        found.append(f"ended{when}: {what} not finite; see nonfinite.json")
    if (place / "finetune.json").is_file and not _summary(place):
        found.append("finetune.json cannot be read")
    return tuple(found)


def _stopped(place: Place) -> bool:
    """Whether the dump of an end before its time is there, and the update that it is of is the last that was made."""
    dumped = (place / "nonfinite.json").record() or {}
    last = last_line(place)
    return "skipped" in last and whole(last.get("update")) == whole(dumped.get("update"))
