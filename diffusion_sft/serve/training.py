"""One training run as its files tell it: how far it is, how its loss went, what it got right, when it may end.

The same record for a fine-tuning run (`metrics.jsonl`, `evaluations.parquet`, `finetune.json`) and for one network of a
pretraining (`work/<name>/state.json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pandas as pd

from ..records import CATEGORIES
from .place import Place
from .values import mapping, real, rows, text, whole

BINS = 160
"""A loss curve is drawn with so many points at most: means over equal stretches of updates."""
LARGEST_TABLE = 32 << 20
ROWS = 20_000
"""A larger table of evaluations is not read, and of this one no more rows."""
ROLES = {
    "trained": "Trained: fitted",
    "heldout": "Held out",
    "development": "Development",
    "test": "Test",
    "other_relations": "Other relations",
    "untouched": "Known, never trained",
}
"""Headings of what is asked at an evaluation, in the order in which it is shown."""
SAME_MOMENT = 60
"""Seconds between the last files of one process at most."""
LABELS = 12
"""More categories than these are none of this project's."""


@dataclass(frozen=True)
class Stretch:
    """The loss over a few updates: the last of them, mean, lowest and highest."""

    update: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """Share of right answers at one evaluation, with its interval."""

    update: int
    share: float
    low: float
    high: float


Curves = Mapping[str, Sequence[Share]]
"""Shares over updates by category."""


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
    """Whether a fine-tuning run has written its summary, and nothing since."""
    summary = (place / "finetune.json").changed
    return summary > 0 and (place / "metrics.jsonl").changed <= summary + 1


def finetune_progress(place: Place) -> Training:
    """A fine-tuning run without its curves: what the overview shows."""
    changed = max(_changes(place))
    finished, metrics = is_finished(place), place / "metrics.jsonl"
    losses, _ = parsed(metrics.end(1 << 14).encode().split(b"\n")[:-1])
    update, pace = losses[-1][0] if losses else 0, _pace(place)
    budget = whole(mapping(_summary(place).get("record")).get("max_train_steps")) if finished else None
    return Training(
        place=place,
        update=update,
        last_update=budget or _budget(place),
        finished=finished,
        changed=changed,
        started=(place / "config.yaml").changed,
        seconds_per_update=pace if pace is not None else _first_pace(place, update),
        facts=_facts(place) if finished else (),
        problems=_problems(place),
        stopped=_stopped(place),
    )


def read_finetune(place: Place) -> Training:
    """A fine-tuning run with its curves."""
    lines, complete = (place / "metrics.jsonl").log_lines()
    losses, skipped = parsed(lines)
    told = finetune_progress(place)
    problems = list(told.problems)
    if skipped:
        where = "" if complete else " of the updates looked at"
        problems.append(f"{skipped}{where} skipped: loss or gradient not finite")
    table = place / "evaluations.parquet"
    shares = read_shares(table)
    if table.is_file and shares is None:
        problems.append("evaluations.parquet cannot be read")
    given = {name: getattr(told, name) for name in told.__dataclass_fields__}
    curves: dict[str, Any] = {"loss": stretches(losses), "shares": shares or {}, "problems": tuple(problems)}
    return Training(**given | curves)


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


def read_shares(table: Place) -> dict[str, Curves] | None:
    """Shares of right answers by role and category; None where there is no table that can be read."""
    status = table.status
    if status is None or not table.is_file or status.st_size > LARGEST_TABLE:
        return None
    return _shares(table, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=512)
def _shares(table: Place, changed: int, size: int) -> dict[str, Curves] | None:
    names = ["update", "role", "category", "accuracy", "accuracy_low", "accuracy_high"]
    stream = table.open()
    if stream is None:
        return None
    with stream:
        try:
            read = pd.read_parquet(stream, columns=names).head(ROWS)
            numbers = read[["update", *names[3:]]].apply(pd.to_numeric, errors="coerce").dropna()
        except Exception:  # a file of anybody's may fail in any way, and the page goes on without it
            return None
    found: dict[str, dict[str, list[Share]]] = {}
    for index, (update, share, low, high) in zip(numbers.index, numbers.to_numpy(float), strict=True):
        role, category = str(read["role"][index]), str(read["category"][index])
        if role in ROLES and 0 <= update < 2**53 and 0 <= low <= share <= high <= 1:
            curve = found.setdefault(role, {}).setdefault(category, [])
            curve.append(Share(int(update), float(share), float(low), float(high)))
    return {role: _ordered(found[role]) for role in ROLES if role in found}


def _ordered(curves: Mapping[str, list[Share]]) -> Curves:
    """Best known first, then what is none of the categories; each by updates."""
    names = [name for name in CATEGORIES if name in curves] + sorted(set(curves) - set(CATEGORIES))
    return {name: sorted(curves[name], key=lambda point: point.update) for name in names[:LABELS]}


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
    """Whether the dump of an end before its time is there, and no metrics of a run that went on since."""
    dumped = (place / "nonfinite.json").changed
    return dumped > 0 and dumped > (place / "metrics.jsonl").changed - SAME_MOMENT
