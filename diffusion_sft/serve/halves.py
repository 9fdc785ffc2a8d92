"""One learner's half of a study as its folder tells it: which stages are done, which is under way, and how far it is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import CATEGORIES, DIFFUSION, LLM, SHOWN_IMAGES
from ..report.wording import plural
from .place import Place, latest
from .training import Training, finetune_progress, is_finetune, is_finished
from .values import counts, mapping, real, text, texts, whole

DONE, NOW, OPEN = "done", "now", "open"
SUMMARY_LINES, SUMMARY_BYTES = 24, 1 << 14
"""Of a `summary.txt` the page shows so many lines, from its end."""
TABLES = (
    *("scores", "answers", "samples", "generations", "recoveries", "inputs", "blocks", "inversions"),
    *("sets", "examples", "forecasts"),
)
"""What is worked on part by part, in the order in which it is begun."""
PICTURES = 20_000
"""More pictures of a model are not counted."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a half: its name, whether it is done, and how much of it."""

    name: str
    state: str
    detail: str = ""
    progress: float | None = None
    seconds: float | None = None
    """What it took, where the study says."""
    training: Training | None = None
    """The run that is being fine-tuned."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half at the moment that its files were read."""

    learner: str
    place: Place
    base: str = ""
    stages: tuple[Stage, ...] = ()
    tunings: tuple[Place, ...] = ()
    """The folders of its fine-tuning runs, the one that was written last first."""
    changed: float = 0.0
    categories: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, int] = field(default_factory=dict)
    rule: str = ""
    notes: tuple[str, ...] = ()
    """What the buckets' stage says is to be borne in mind."""
    problems: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage | None:
        """The stage under way, else the last one that is done."""
        under_way = [stage for stage in self.stages if stage.state == NOW]
        done = [stage for stage in self.stages if stage.state == DONE]
        return (under_way or done[::-1] or [None])[0]  # type: ignore[list-item]


def is_half(place: Place) -> bool:
    """Whether the folder holds what a stage of a study leaves."""
    files = ("study.json", "probe/probe.json", "buckets/buckets.json", "solve/solve.json")
    folders = ("probe/parts", "solve/parts")
    return any((place / name).is_file for name in files) or any((place / name).is_folder for name in folders)


def read_half(learner: str, place: Place, study: Mapping[str, Any]) -> Half:
    """Read one half.

    Args:
        learner: whose.
        place: the folder that its stages write to.
        study: what `study.json` says; empty during the first stage.
    """
    settings = mapping(study.get("settings"))
    own = settings if learner == DIFFUSION else mapping(settings.get(LLM))
    tunings = [entry for entry in (place / "finetune").entries() if is_finetune(entry)]
    tunings.sort(key=lambda entry: (entry / "metrics.jsonl").changed, reverse=True)
    buckets = (place / "buckets/buckets.json").record() or {}
    seconds = {name: real(value) for name, value in mapping(study.get("seconds")).items()}
    drawn = _drawings(place, own, whole(buckets.get("num_concepts"))) if learner == DIFFUSION else []
    stages = [
        _in_parts(place / "probe", "probe", seconds.get("probe")),
        _written("buckets", place / "buckets/buckets.json", seconds.get("bucket")),
        _tuning(tunings, _num_runs(own, settings), seconds.get("finetune")),
        *drawn,
        _written("evaluation", _evaluated(learner, place), seconds.get("evaluate")),
        _in_parts(place / "solve", "systems", seconds.get("solve")),
    ]
    labels = counts(buckets.get("categories"))
    return Half(
        learner=learner,
        place=place,
        base=text(own.get("base")) or text(mapping(study.get("base")).get("source")),
        stages=tuple(stages),
        tunings=tuple(tunings),
        changed=latest(_changes(place, tunings)),
        categories={name: labels[name] for name in CATEGORIES if name in labels},
        buckets={name: n for name, n in counts(buckets.get("buckets")).items() if name in ("known", "unknown")},
        rule=text(buckets.get("rule")),
        notes=tuple(texts(buckets.get("warnings"))[:5]),
        problems=tuple(_broken(place)),
    )


def summaries(half: Half) -> list[tuple[str, str]]:
    """The last lines of what stages wrote in words, by file."""
    found = []
    for name in ("dynamics/summary.txt", "solve/summary.txt"):
        lines = (half.place / name).end(SUMMARY_BYTES).splitlines()
        if lines:
            found.append((f"{half.place.name}/{name}", "\n".join(line[:240] for line in lines[-SUMMARY_LINES:])))
    return found


def samples(training: Place, most: int = 6) -> list[Place]:
    """The pictures of a run's validation prompts: the first, and the latest ones, in their order."""
    found = [entry for entry in (training / "samples").entries() if entry.name.endswith(".png")]
    return found if len(found) <= most else [found[0], *found[1 - most :]]


def drawn_models(half: Half, most_models: int = 6, most_concepts: int = 8) -> list[tuple[str, list[Place]]]:
    """For each model that pictures were drawn with, the first picture of the same concepts."""
    folders = [entry for entry in (half.place / "evaluate").entries() if (entry / "images").is_folder]
    folders.sort(key=lambda entry: (entry.name != "base", -entry.changed))
    concepts = [entry.name for entry in (folders[0] / "images").entries()[:most_concepts]] if folders else []
    return [
        (folder.name, [folder / f"images/{concept}/0000.png" for concept in concepts])
        for folder in folders[:most_models]
    ]


def _written(name: str, file: Place, seconds: float | None) -> Stage:
    """A stage that is done when its file is there."""
    return Stage(name=name, state=DONE if file.is_file else OPEN, seconds=seconds)


def _evaluated(learner: str, place: Place) -> Place:
    return place / ("evaluate/measures.parquet" if learner == DIFFUSION else "dynamics/summary.txt")


def _in_parts(folder: Place, name: str, seconds: float | None) -> Stage:
    """A stage that works part by part: its parts go when its tables are written."""
    under_way = [entry for entry in (folder / "parts").entries() if entry.is_folder]
    if not under_way:
        record = folder / ("probe.json" if name == "probe" else "solve.json")
        return _written(name, record, seconds)
    done = parts_done([entry.name for entry in max(under_way, key=lambda entry: entry.changed).entries()])
    told = [f"{table} {count}" + (f" of {all_of}" if all_of else "") for table, (count, all_of) in done.items()]
    known = [(count, all_of) for count, all_of in done.values() if all_of]
    progress = known[-1][0] / known[-1][1] if known and list(done.values())[-1][1] else None
    detail = f"parts done: {', '.join(told)}" if told else "begun"
    return Stage(name=name, state=NOW, detail=detail, progress=progress)


def parts_done(names: Sequence[str]) -> dict[str, tuple[int, int | None]]:
    """How many parts of each table are there, and of how many, where their names tell.

    A table is begun when the one before it is done, and answers are cut into the parts that scores are cut into, as
    recoveries are into those of generations.
    """
    found: dict[str, int] = {}
    for name in names:
        if part := re.fullmatch(r"([a-z]{1,30})-\d{6,12}\.[0-9a-f]{16}\.parquet", name):
            found[part[1]] = found.get(part[1], 0) + 1
    begun = [name for name in TABLES if name in found]
    done: dict[str, tuple[int, int | None]] = {}
    for name in begun:
        same = {"answers": "scores", "recoveries": "generations"}.get(name, "")
        all_of = found[name] if name != begun[-1] else found.get(same)
        done[name] = (found[name], all_of)
    return done


def _tuning(tunings: Sequence[Place], planned: int | None, seconds: float | None) -> Stage:
    unfinished = [place for place in tunings if not is_finished(place)]
    num_done, all_of = len(tunings) - len(unfinished), max(planned or 0, len(tunings))
    name, detail = "fine-tuning", f"{num_done} of {plural(all_of, 'run')}" if all_of else "no mixes"
    if num_done == all_of:
        return Stage(name=name, state=DONE if all_of else OPEN, detail=detail, progress=1.0, seconds=seconds)
    if not unfinished:
        return Stage(name=name, state=OPEN, detail=detail, progress=num_done / all_of)
    current = finetune_progress(unfinished[0])
    progress = (num_done + (current.progress or 0.0)) / all_of
    return Stage(name=name, state=NOW, detail=detail, progress=progress, training=current)


def _num_runs(own: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Every mix with every method and every seed; None where the settings are not known."""
    if not own:
        return None
    mixes, seeds = own.get("mixes"), own.get("seeds") or settings.get("seeds")
    each = [max(1, len(varied)) for varied in (seeds, own.get("methods")) if isinstance(varied, list)]
    return len(mixes) * math.prod(each) if isinstance(mixes, list) else None


def _drawings(place: Place, own: Mapping[str, Any], num_concepts: int | None) -> list[Stage]:
    """Pictures for the evaluation: models that all pictures were drawn with, and how many of the last one."""
    folders = [entry for entry in (place / "evaluate").entries() if (entry / "images").is_folder]
    num_models = 1 + (_num_runs(own, own) or 0)
    settings = mapping(own.get("evaluate"))
    each = whole(settings.get("num_images_per_concept"))
    if each and settings.get("keep_images") is False:
        each = min(each, SHOWN_IMAGES)
    if not folders:
        return [Stage(name="pictures", state=OPEN)]
    last = max(folders, key=lambda entry: max(entry.changed, (entry / "images").changed))
    if (place / "evaluate/measures.parquet").changed >= last.changed:
        return [Stage(name="pictures", state=DONE, detail=f"of {plural(len(folders), 'model')}")]
    count = sum(len(concept.entries()) for concept in (last / "images").entries()[:PICTURES])
    all_of = each * num_concepts if each and num_concepts else None
    detail = (
        f"{last.name}, {count:,}" + (f" of {all_of:,}" if all_of else "") + f", model {len(folders)} of {num_models}"
    )
    done = len(folders) >= num_models and all_of is not None and count >= all_of
    share = min(1.0, count / all_of) if all_of else 0.0
    progress = min(1.0, (len(folders) - 1 + share) / num_models)
    return [Stage(name="pictures", state=DONE if done else NOW, detail=detail, progress=progress)]


def _changes(place: Place, tunings: Sequence[Place]) -> list[float]:
    """When each of the places where stages write was last written to; files are replaced whole, which folders tell."""
    names = ("probe", "buckets", "evaluate", "dynamics", "solve", "finetune", "study.json")
    places = [place / name for name in names] + list(tunings)
    places += [tuning / name for tuning in tunings[:8] for name in ("metrics.jsonl", "samples")]
    for stage in ("probe/parts", "solve/parts", "evaluate"):
        places += [entry for entry in (place / stage).entries() if entry.is_folder]
    return [each.changed for each in places]


def _broken(place: Place) -> list[str]:
    names = ("study.json", "probe/probe.json", "buckets/buckets.json", "solve/solve.json")
    return [f"{name} cannot be read" for name in names if (place / name).is_file and not (place / name).record()]
