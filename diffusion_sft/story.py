"""What the two halves of a study have in common: stages in their order, timed, recorded, shared among processes.

    concepts -> probe -> buckets -> fine-tune on mixes -> (generate) -> evaluate -> solve -> compare and report

Each stage reads the tables of the stages before it and keeps what it has finished, so a study that was stopped, or
run again with a setting changed, only does what is missing. Launched as several processes (torchrun, accelerate
launch), all of them probe, fine-tune, generate and solve; the rest is the main one's. With executor=ray the runs and
the models' pictures are handed out instead, each to a process of its own (`executing`).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .answers import AnswerConfig
from .buckets import BucketConfig, bucket, summary_table, write_buckets
from .compare import CompareConfig, compare
from .dynamics import TunedRun, dynamics_text, summarise_runs
from .errors import UserError
from .executing import Piece, on_ray
from .files import read_table, write_table, write_text
from .finetune.config import FinetuneConfig
from .finetune.evaluations import Exam, early_stop_update, make_exam
from .finetune.loop import finetune
from .finetune.mix import Mix
from .finetune.mixes import compose
from .learner import Learner
from .machine import hardware, pick_device, versions
from .manifests import read_record, write_record
from .plan import RAY, PlannedRun, StudyConfig
from .processes import is_main, main_first, process_count, process_device, wait_for_everyone
from .records import ConceptSet, Draws
from .reference import load_reference
from .settings import settings_dict, settings_yaml
from .solve.config import PictureSolveConfig, TextSolveConfig
from .solve.run import Task, solve
from .systems import ForecastRun, Systems

logger = logging.getLogger(__name__)
STAGES = ("concepts", "probe", "bucket", "finetune", "generate", "evaluate", "solve", "report")
BESIDE = {"solve": ("generate", "evaluate")}
"""Stages that come before another one and are not needed for it."""
SHARED = ("probe", "finetune", "generate", "solve")
"""Stages whose work is divided among the processes; the others are done by the main one."""


def stages_until(last: str) -> list[str]:
    """The stages that are run for this one to be done, in their order."""
    return [name for name in STAGES[: STAGES.index(last) + 1] if name not in BESIDE.get(last, ())]


class Story(ABC):
    """One half in progress: the study's settings, this half's folder, and what the finished stages left."""

    learner: str
    """Whose half."""

    def __init__(self, config: StudyConfig, folder: Path, concept_set: ConceptSet | None) -> None:
        """Args:
        concept_set: what another process has read already, for one that does a piece of its work.
        """
        self.config = config
        self.folder = folder
        self.device = study_device(config.device)
        self.seconds: dict[str, float] = {}
        self._base: Any = None
        if concept_set is None:
            with main_first():  # It may come from the Hub.
                self.check_base()
            concept_set = self.read_concepts()
        self.concept_set = concept_set

    def run(self, until: str) -> Any:
        """Run every stage up to `until` that was not run yet; returns what that one gives."""
        if is_main() and not self.seconds:
            self.announce(until)
        stages, outcome = self.stages(), None
        wanted = [name for name in stages_until(until) if name in stages and name not in self.seconds]
        for place, name in enumerate(wanted):
            if is_main() or name in SHARED:
                with self.timed(name):
                    outcome = stages[name]()
            if set(wanted[place + 1 :]) & set(SHARED):  # else there is nothing left to wait for
                wait_for_everyone()
        return outcome

    @abstractmethod
    def stages(self) -> Mapping[str, Callable[[], Any]]:
        """What this half does in each of `STAGES`; those that it does not have are left out."""

    @abstractmethod
    def check_base(self) -> None:
        """Look at the base's files before anything is made for it; UserError where it could not be loaded."""

    @abstractmethod
    def read_concepts(self) -> ConceptSet:
        """Read what is probed and taught, and say what is remarkable about it."""

    @abstractmethod
    def base(self) -> Learner:
        """The untouched base, loaded once."""

    @abstractmethod
    def announce(self, until: str) -> None:
        """Say what is about to happen, and what it will take."""

    @abstractmethod
    def runs(self) -> list[PlannedRun]:
        """The fine-tuning runs."""

    @abstractmethod
    def perform(self, stage: str, name: str) -> None:
        """Do one piece of a stage whose pieces do not need each other: a run's fine-tuning, or a model's pictures."""

    def share_out(self, stage: str, names: Sequence[str]) -> None:
        """Do all pieces of such a stage, here or where `executor` says."""
        self._base = None  # The pieces may need the memory that it is in.
        if self.config.executor == RAY:
            on_ray(self.pieces(stage, names), self.config.ray)
            return
        for name in names:
            self.perform(stage, name)

    def pieces(self, stage: str, names: Sequence[str]) -> list[Piece]:
        """The same as pieces for other processes."""
        half: Any = type(self)
        performer, logs = partial(half, self.config, self.concept_set), self.folder / "logs"
        return [
            Piece(learner=self.learner, stage=stage, name=name, performer=performer, log=logs / f"{stage}-{name}.log")
            for name in names
        ]

    def sort_into_buckets(self, config: BucketConfig) -> pd.DataFrame:
        """Which concepts are known, by four rules side by side."""
        folder = self.folder / "probe"
        scores, answers, samples = (
            read_table(folder / f"{name}.parquet") for name in ("scores", "answers", "samples")
        )
        result = bucket(scores, answers, samples, self.concept_set.table(), config)
        write_buckets(result, self.folder / "buckets")
        print(summary_table(result.summary))
        return result.concepts

    def teach(self, name: str, load: Callable[[], Learner], config: FinetuneConfig, answers: AnswerConfig) -> None:
        """Teach the base what the run of this name is about; `load` loads the base anew."""
        (run,) = (run for run in self.runs() if run.name == name)
        mix, exam = self.composed(run, config, answers)
        finetune(load(), mix, exam, run.settings(config), self.folder / "finetune" / run.name)

    def composed(self, run: PlannedRun, config: FinetuneConfig, answers: AnswerConfig) -> tuple[Mix, Exam]:
        """What a run is taught, and what it is asked."""
        labels = self.labels()
        mix = replace(compose(run.mix, labels, self.concept_set, run.seed), name=run.name)
        return mix, make_exam(mix, labels, self.concept_set, run.settings(config), answers)

    def solve(
        self, systems: Systems, task: Task, config: PictureSolveConfig | TextSolveConfig, per_part: int
    ) -> None:
        """Read the base's systems, and forecast the runs that there are."""
        tables = solve(systems, task, config, self.folder / "solve", per_part)
        if is_main() and tables:
            print((self.folder / "solve" / "summary.txt").read_text(encoding="utf-8"))

    def tuned_runs(
        self, config: FinetuneConfig, answers: AnswerConfig, load: Callable[[PlannedRun], Learner]
    ) -> list[ForecastRun]:
        """The finished runs of this half, with what they were taught and asked; `load` loads what a run left.

        Of the first method alone, and of mixes that nothing guards: a forecast knows nothing of methods and guards, and
        its correlation is over like runs.
        """
        found: list[ForecastRun] = []
        runs = self.runs()
        for run in runs:
            if run.method != runs[0].method or run.mix.is_guarded:
                continue
            evaluations = self.folder / "finetune" / run.name / "evaluations.parquet"
            if not evaluations.is_file():
                continue
            mix, exam = self.composed(run, config, answers)
            table = read_table(evaluations)
            found.append(
                ForecastRun(
                    concept=run.name,
                    examples=mix.examples,
                    questions=exam.questions,
                    categories=exam.categories,
                    draws=Draws(seed=run.seed, count=config.validation_draws),
                    evaluations=table,
                    early_update=early_stop_update(table),
                    real_step=partial(_real_step, partial(load, run)),
                )
            )
        return found

    def labels(self) -> pd.DataFrame:
        """One row per concept, as it was sorted."""
        return read_table(self.folder / "buckets" / "concepts.parquet")

    def summarise_dynamics(self, learner: str, config: FinetuneConfig) -> None:
        """How fast each category was fitted and what that did, beside the published figures."""
        if tuned := runs_to_summarise(self.runs(), config, self.folder / "finetune"):
            text = dynamics_text(summarise_runs(tuned, learner, self.folder / "dynamics"), load_reference())
            write_text(self.folder / "dynamics" / "summary.txt", text)
            print(text)

    def compare(self) -> None:
        """Both learners' halves of this study, as far as they are there, beside the published figures."""
        folder = Path(self.config.output_dir)
        found = compare(CompareConfig(runs=[str(folder)], output_dir=str(folder / "compare")))
        print("\n".join(found.verdict["sentences"]))

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        """Of the untouched base, which may be gone when it is asked for again."""
        return self.base().identity()

    def record(self) -> None:
        """Write `study.json` and `config.yaml`: what was asked for, of which base, on what, and how long it took."""
        path = self.folder / "study.json"
        earlier = _seconds(path)
        # A stage that only found its work done took no time worth telling; keep what the work itself took.
        seconds = earlier | {s: t for s, t in self.seconds.items() if t > earlier.get(s, -1.0)}
        write_record(
            path,
            {
                "title": self.config.title,
                "base": self._identity,
                "settings": settings_dict(self.config),
                "seconds": seconds,
                "versions": versions(),
                "hardware": hardware(self.device),
            },
            {},
        )
        write_text(self.folder / "config.yaml", settings_yaml(self.config))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record how long a stage takes."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 1)
        if is_main():
            self.record()


def runs_to_summarise(runs: Sequence[PlannedRun], config: FinetuneConfig, folder: Path) -> list[TunedRun]:
    """Those of a study's runs that are there in its folder of runs and were evaluated."""
    tuned = [
        TunedRun(
            mix=run.mix.name,
            seed=run.seed,
            folder=folder / run.name,
            in_linear_model=run.mix.unknown != "relabel" and not run.mix.is_guarded,
            method=run.method_name(config),
        )
        for run in runs
    ]
    return [run for run in tuned if (run.folder / "evaluations.parquet").is_file()]


def _seconds(record: Path) -> dict[str, float]:
    """How long stages took by an earlier record; nothing where there is none, or it was altered."""
    if not record.exists():
        return {}
    try:
        return dict(read_record(record)["seconds"])
    except UserError as error:
        logger.warning("%s; the times of earlier stages are lost", error)
        return {}


def _real_step(load: Callable[[], Learner], parameters: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """θ of what a run left less θ0, flat in the parameters' order; None where it lacks any of these weights."""
    parts = load().parts()
    found = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    if set(parameters) - set(found):
        return None
    return torch.cat([(found[name].detach().to(own) - own.detach()).flatten() for name, own in parameters.items()])


def tell(notes: Sequence[str], problems: pd.DataFrame, folder: Path) -> None:
    """Print what a reader found remarkable, and keep the rows that it left out."""
    if not is_main():
        return
    for note in notes:
        print(f"note: {note}")
    if len(problems):
        write_table(folder / "skipped.parquet", problems)
        print(f"note: {len(problems)} bad rows skipped, listed in {folder / 'skipped.csv'}")


def study_device(name: str) -> torch.device:
    """The device named in the settings; of several processes, each has its own from the launcher."""
    if process_count() == 1:
        return pick_device(name)
    device = process_device()
    if name not in ("auto", device.type):
        raise UserError(f"device={name}: {process_count()} processes get their devices from the launcher; set auto")
    return device


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of a base's weights outside training; auto is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
