"""The language model's half of a study: the same stages, tables and words, on questions and answers.

    questions -> probe (SliCK) -> buckets -> fine-tune on mixes -> dynamics beside the published figures

A concept is a fact; its rendering is a few-shot prompt, its answer a text. Fine-tuned models are asked closed-book, at
every evaluation of their run, about test facts of every category and of relations that were never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .answers import AnswerConfig
from .learners.language import LANGUAGE_LAYOUT, LanguageLearner
from .learners.language_loading import inspect_language_model
from .learners.prompts import ClosedBook, FewShot, Prompts
from .plan import LanguageStudyConfig, PlannedRun, StudyConfig, planned_runs
from .probe import ProbeResult, probe, text_samples
from .processes import main_first
from .questions import QuestionsConfig, read_questions
from .records import DIFFUSION, LLM, PROBED, ConceptSet
from .report.page import write_report
from .solve.run import Task
from .solving import text_systems
from .story import Story, chosen_dtype, tell
from .world.write import write_world_once


class LanguageStudy(Story):
    """One language model, one set of questions."""

    learner = LLM

    def __init__(self, config: StudyConfig, concept_set: ConceptSet | None = None) -> None:
        self.own: LanguageStudyConfig = config.llm
        super().__init__(config, Path(config.output_dir) / LLM, concept_set)

    def stages(self) -> Mapping[str, Callable[[], Any]]:
        """There is nothing to generate: answers are read while a run is evaluated. The report is the last half's."""
        stages: dict[str, Callable[[], Any]] = {
            "probe": self.probe,
            "bucket": lambda: self.sort_into_buckets(self.own.buckets),
            "finetune": lambda: self.share_out("finetune", [run.name for run in self.runs()]),
            "evaluate": lambda: self.summarise_dynamics(LLM, self.own.finetune),
            "solve": self.solve_systems,
        }
        return stages if DIFFUSION in self.config.learners else stages | {"report": self.report}

    def perform(self, stage: str, name: str) -> None:
        """Fine-tune one run."""
        assert stage == "finetune", stage
        self.teach(name, self._load_to_train, self.own.finetune, AnswerConfig())

    def probe(self) -> ProbeResult:
        """SliCK: ten few-shot prompts for each fact, greedy and sampled; likelihoods under the same prompts."""
        base, settings = self.base(), self.own.probe
        return probe(base, self.concept_set, settings, self.folder / "probe", text_samples(base, settings))

    def solve_systems(self) -> None:
        """Generation, inputs and weights as systems of equations; forecasts of the runs."""
        config = self.own.solve
        runs = self.tuned_runs(self.own.finetune, AnswerConfig(), self._tuned)
        task = Task(
            learner=LLM, concept_set=self.concept_set, labels=self.labels(), answers=AnswerConfig(), runs=runs
        )
        self.solve(text_systems(self.base(), self._load_to_train, config), task, config, per_part=64)

    def report(self) -> Path:
        """One page that shows it all, where this is the only half."""
        self.record()
        self.compare()
        nothing = ConceptSet(concepts=(), examples=())
        return write_report(Path(self.config.output_dir), nothing, self.config.title, figures=self.config.figures)

    def runs(self) -> list[PlannedRun]:
        """Every mix with every method and every seed."""
        own = self.own
        return planned_runs(own.mixes, own.seeds or self.config.seeds, own.finetune.seed, own.methods)

    def base(self) -> LanguageLearner:
        """The untouched base under few-shot prompts, loaded once."""
        if self._base is None:
            prompts = FewShot.of(self.concept_set, shots=self.own.probe.shots, seed=self.own.probe.seed)
            self._base = self._load(chosen_dtype(self.own.dtype, self.device), prompts, self.own.device_map)
        learner: LanguageLearner = self._base
        return learner

    def check_base(self) -> None:
        """Of a folder or a Hub id."""
        inspect_language_model(self.own.base, self.own.revision)

    def read_concepts(self) -> ConceptSet:
        """Read the questions, or those of the embedded world."""
        given = self.own.questions
        if not given.given:
            folder = Path(self.config.output_dir) / "concepts"
            with main_first():
                write_world_once(folder, self.config.world)
            given = _of_the_world(given, folder)
        result = read_questions(given)
        tell(result.notes, result.problems_table(), self.folder)
        return result.concept_set

    def announce(self, until: str) -> None:
        """Say how many facts are asked and in how many prompts."""
        own = self.own
        asked = len({example.concept for example in self.concept_set.split(*PROBED)})
        each = own.probe.answers.num_renderings + 2 * own.probe.num_draws
        print(
            f"{self.config.title}\n{len(self.concept_set.concepts)} facts, language model {own.base}, on {self.device}: "
            f"{asked} asked in {own.probe.answers.num_renderings} prompts and at most {own.probe.samples.num_samples} "
            f"samples each ({asked * each:,} prompts), {len(self.runs())} fine-tuning runs of at most "
            f"{own.finetune.max_train_steps} updates; what is finished already is kept"
        )

    def _load_to_train(self) -> LanguageLearner:
        return self._load(torch.float32, ClosedBook(), None)

    def _tuned(self, run: PlannedRun) -> LanguageLearner:
        folder = self.folder / "finetune" / run.name
        adapters = folder / LANGUAGE_LAYOUT.adapters
        if adapters.exists():
            return self._load(torch.float32, ClosedBook(), None, adapter=folder)
        return self._load(torch.float32, ClosedBook(), None, path=str(folder / LANGUAGE_LAYOUT.folder))

    def _load(
        self,
        dtype: torch.dtype,
        prompts: Prompts,
        device_map: str | None,
        *,
        path: str | None = None,
        adapter: Path | None = None,
    ) -> LanguageLearner:
        return LanguageLearner.load(
            path or self.own.base,
            revision=self.own.revision if path is None else None,
            adapter=adapter,
            device=self.device,
            dtype=dtype,
            device_map=device_map,
            prompts=prompts,
            max_answer_tokens=self.own.probe.max_answer_tokens,
        )


def _of_the_world(config: QuestionsConfig, folder: Path) -> QuestionsConfig:
    """The same settings for the embedded world's questions."""
    return replace(config, path=str(folder / "questions.jsonl"))
