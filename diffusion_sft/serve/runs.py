"""Which runs there are in the watched folder, and how each of them stands.

A run is a study's folder, a single fine-tuning run's, or a pretraining's; runs are looked for two levels deep, and not
inside other runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import DIFFUSION, LLM
from ..report.wording import plural
from .halves import DONE, NOW, Half, is_half, read_half
from .place import Place, latest
from .training import Training, finetune_progress, is_finetune, read_pretraining
from .values import mapping, text, texts

STUDY, FINETUNE, PRETRAINING = "study", "fine-tuning", "pretraining"
LEVELS = 2
MOST = 500
"""More runs than these are not shown."""
LATELY = 120
"""Seconds within which something must have been written for a run to be called running."""
SAME_MOMENT = 60
"""Seconds that the last files of a run are written within."""
RUNNING, QUIET, FINISHED, STOPPED = "running", "quiet", "finished", "stopped"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How one run stands; what its page shows besides is read for that page."""

    place: Place
    kind: str
    title: str
    halves: tuple[Half, ...] = ()
    trainings: tuple[Training, ...] = ()
    """The fine-tuning run itself, or the networks of a pretraining."""
    changed: float = 0.0
    finished: bool = False
    report: Place | None = None
    report_is_old: bool = False
    """Whether tables were written after the report."""
    problems: tuple[str, ...] = ()

    @property
    def now_training(self) -> list[Training]:
        """What is being trained: the run itself, or the current one of each half."""
        current = [half.stage.training for half in self.halves if half.stage is not None]
        return [*self.trainings, *(training for training in current if training is not None)]

    def state(self, now: float) -> str:
        """`finished` where its last file is there and nothing came after it, `stopped` where an end before its time is
        recorded, else `running` where something was written in the last `LATELY` seconds, else `quiet`: killed, done with
        what was asked, or in one long step."""
        if self.finished:
            return FINISHED
        if any(training.stopped for training in self.trainings):
            return STOPPED
        return RUNNING if now - self.changed < LATELY else QUIET


def kind_of(place: Place) -> str | None:
    """What kind of run the folder is; None for any other folder."""
    if is_half(place) or is_half(place / LLM):
        return STUDY
    if is_finetune(place):
        return FINETUNE
    if any((entry / "state.json").is_file for entry in (place / "work").entries()):
        return PRETRAINING
    return None


def run_around(place: Place) -> Place | None:
    """The run that the place lies in, as `find_runs` finds it; None where it lies in none."""
    for depth in range(min(LEVELS, len(place.parts)) + 1):
        outer = Place(place.root, place.parts[:depth])
        if outer.is_folder and kind_of(outer) is not None:
            return outer
    return None


def page_kind(place: Place) -> str | None:
    """The kind of run whose page the place has: a run, or a fine-tuning run of a study; None for all others."""
    around = run_around(place) if place.is_folder else None
    if around == place:
        return kind_of(place)
    return FINETUNE if around is not None and is_finetune(place) else None


def find_runs(root: Place, levels: int = LEVELS) -> Iterator[Place]:
    """The runs of a folder: itself, or those in it."""
    if kind_of(root) is not None:
        yield root
    elif levels:
        for entry in root.entries():
            if entry.is_folder:
                yield from find_runs(entry, levels - 1)


def read_runs(root: Place) -> list[RunState]:
    """How all runs stand, the one that was written last first."""
    found = []
    for place in find_runs(root):
        found.append(read_state(place))
        if len(found) == MOST:
            break
    return sorted(found, key=lambda run: -run.changed)


def read_state(place: Place) -> RunState:
    """How a run stands; of a folder that is none, nothing."""
    kind = kind_of(place)
    if kind == STUDY:
        return _study(place)
    if kind == FINETUNE:
        training = finetune_progress(place)
        return RunState(
            place=place,
            kind=FINETUNE,
            title=place.name,
            trainings=(training,),
            changed=training.changed,
            finished=training.finished,
            problems=training.problems,
        )
    return _pretraining(place)


def _study(place: Place) -> RunState:
    own, llm = (place / "study.json").record() or {}, (place / LLM / "study.json").record() or {}
    # Before a half's first stage is done, only the other one has written the settings.
    settings = {"settings": (own or llm).get("settings")}
    asked = texts(mapping(settings["settings"]).get("learners"))
    halves = []
    if is_half(place) or DIFFUSION in asked:
        halves.append(read_half(DIFFUSION, place, own or settings))
    if is_half(place / LLM) or LLM in asked:
        halves.append(read_half(LLM, place / LLM, llm or settings))
    report = place / "report.html"
    changed = latest([(place / "config.yaml").changed, report.changed, *(half.changed for half in halves)])
    old = report.is_file and changed > report.changed + SAME_MOMENT
    under_way = any(stage.state == NOW for half in halves for stage in half.stages)
    problems = [problem for half in halves for problem in half.problems]
    if (place / "skipped.csv").is_file or (place / LLM / "skipped.csv").is_file:
        problems.append("bad rows were left out of the set; see skipped.csv")
    return RunState(
        place=place,
        kind=STUDY,
        title=text((own or llm).get("title")) or place.name,
        halves=tuple(halves),
        changed=changed,
        finished=report.is_file and not old and not under_way,
        report=report if report.is_file else None,
        report_is_old=old,
        problems=tuple(problems),
    )


def _pretraining(place: Place) -> RunState:
    trainings = read_pretraining(place)
    end = place / "training.json"
    return RunState(
        place=place,
        kind=PRETRAINING,
        title=place.name,
        trainings=tuple(trainings),
        changed=latest([end.changed, *(each.changed for each in trainings)]),
        finished=_is_told(end.record() or {}, place / "work"),
    )


def _is_told(end: Mapping[str, Any], work: Place) -> bool:
    """Whether the record of a pretraining's end has all that the network which it tells of has done since."""
    told = [log for name, log in end.items() if name.endswith("_log")]
    return any(
        (state.record() or {}).get("log") in told for state in (each / "state.json" for each in work.entries())
    )


def reached(run: RunState) -> list[tuple[str, str, float | None]]:
    """For each half or training its name, in words how far it is, and the share of it that is done."""
    rows: list[tuple[str, str, float | None]] = []
    for half in run.halves:
        stage = half.stage
        if stage is None:
            rows.append((half.learner, "not begun", None))
        else:
            told = f"{stage.name} done" if stage.state == DONE else stage.name
            current = f"{stage.training.place.name} at {updates_told(stage.training)}" if stage.training else ""
            rows.append((half.learner, ", ".join(filter(None, (told, stage.detail, current))), stage.progress))
    for training in run.trainings:
        rows.append((training.place.name, updates_told(training), training.progress))
    return rows


def updates_told(training: Training) -> str:
    """`250 of 1,000 updates`."""
    if training.last_update is None or training.finished:
        return plural(training.update, "update")
    return f"{training.update:,} of {plural(training.last_update, 'update')}"
