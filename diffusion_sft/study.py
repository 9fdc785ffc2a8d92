"""The whole story in the order in which it happens; with `language_study`, the only place that names concrete learners.

concepts -> probe -> buckets -> fine-tune on mixes -> generate and evaluate -> solve -> compare and report
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from .concepts import ConceptsConfig, read_concept_set
from .errors import UserError
from .evaluate import (
    Extractor,
    Instruments,
    LabelReader,
    Looking,
    build_extractor,
    distance_table,
    evaluate,
    generate_images,
    nearest_concept_reader,
    read_generated,
    readout_reader,
)
from .evaluate.cache import FeatureCache
from .executing import on_ray, ray_joined
from .files import user_path
from .language_study import LanguageStudy
from .learner import PIPELINE_LAYOUT
from .learners.diffusion import DiffusionLearner
from .learners.loading import inspect_pipeline
from .locks import locked
from .machine import evaluations_per_second
from .plan import RAY, PlannedRun, StudyConfig, planned_runs
from .planning.counting import network_evaluations
from .probe import ProbeResult, picture_samples, probe
from .processes import is_main, main_first
from .records import DIFFUSION, HELDOUT, LLM, REFERENCE, TRAIN, ConceptSet
from .report.page import write_report
from .solve.run import Task
from .solving import picture_systems
from .story import Story, chosen_dtype, stages_until, tell
from .world.readout import Readout
from .world.write import write_world_once


class DiffusionStudy(Story):
    """One Stable Diffusion, one concept set."""

    learner = DIFFUSION

    def __init__(self, config: StudyConfig, concept_set: ConceptSet | None = None) -> None:
        super().__init__(config, Path(config.output_dir), concept_set)

    def stages(self) -> Mapping[str, Callable[[], Any]]:
        """All of them."""
        config = self.config
        return {
            "probe": self.probe,
            "bucket": lambda: self.sort_into_buckets(config.buckets),
            "finetune": lambda: self.share_out("finetune", [run.name for run in self.runs()]),
            "generate": lambda: self.share_out("generate", self.models()),
            "evaluate": self.evaluate,
            "solve": self.solve_systems,
            "report": self.report,
        }

    def probe(self) -> ProbeResult:
        """What does the base know? Prior errors and gains, greedy and sampled answers."""
        base, settings = self.base(), self.config.probe
        sampling = picture_samples(base, settings, self.read_labels())
        return probe(base, self.concept_set, settings, self.folder / "probe", sampling)

    def solve_systems(self) -> None:
        """Generation, inputs and weights as systems of equations; forecasts of the runs."""
        config, answers = self.config.solve, self.config.probe.answers
        runs = self.tuned_runs(self.config.finetune, answers, lambda run: self._tuned(run.name, torch.float32))
        systems = picture_systems(
            self.base(),
            lambda: self._load(dtype=torch.float32),
            self.read_labels(),
            config,
            self.config.probe.estimator,
        )
        task = Task(learner=DIFFUSION, concept_set=self.concept_set, labels=self.labels(), answers=answers, runs=runs)
        with torch.compiler.set_stance("force_eager"):  # Derivatives do not go through compiled networks.
            self.solve(systems, task, config, per_part=4)

    def runs(self) -> list[PlannedRun]:
        """Every mix with every method and every seed."""
        config = self.config
        return planned_runs(config.mixes, config.seeds, config.finetune.seed, config.methods)

    def perform(self, stage: str, name: str) -> None:
        """Fine-tune one run, or draw every concept with one model."""
        if stage == "finetune":
            load = partial(self._load, dtype=torch.float32)
            self.teach(name, load, self.config.finetune, self.config.probe.answers)
        else:
            assert stage == "generate", stage
            self.draw(name)

    def draw(self, model: str) -> None:
        """Draw every concept with the base or with a fine-tuned model, all of them from the same noise."""
        probed = {example.concept for example in self.concept_set.split(HELDOUT)}
        names = [concept.name for concept in self.concept_set.concepts if concept.name in probed]
        learner = self.base() if model == "base" else self._tuned(model)
        folder = self.folder / "evaluate" / model
        generate_images(learner, self.concept_set, names, self.config.evaluate, folder, self.looking)

    def evaluate(self) -> None:
        """FID per bucket and what it misses, before and after."""
        found = evaluate(
            {model: read_generated(self.folder / "evaluate" / model) for model in self.models()},
            self.concept_set,
            self.labels(),
            self.instruments,
            self.config.evaluate,
            self.folder / "evaluate",
        )
        print(distance_table(found.measures))
        self.summarise_dynamics(DIFFUSION, self.config.finetune)

    def report(self) -> Path:
        """One page that shows it all, the language model's half too where that was run."""
        self.record()
        self.compare()
        return write_report(self.folder, self.concept_set, self.config.title, figures=self.config.figures)

    def models(self) -> list[str]:
        """The base and the mixes, in the order in which they appear everywhere."""
        return ["base", *(run.name for run in self.runs())]

    def base(self) -> DiffusionLearner:
        """The untouched base, loaded once."""
        if self._base is None:
            dtype, mode = chosen_dtype(self.config.dtype, self.device), self.config.compile_mode
            self._base = self._load(dtype=dtype, compile_mode=mode)
        learner: DiffusionLearner = self._base
        return learner

    def extractor(self) -> Extractor:
        """What looks at pictures for FID."""
        return build_extractor(self.config.evaluate, self.device)

    @cached_property
    def instruments(self) -> Instruments:
        """What looks at generated pictures, loaded once."""
        return Instruments(extractor=self.extractor(), read_labels=self.read_labels())

    @cached_property
    def looking(self) -> Looking:
        """The same, with the place of what they see."""
        config = self.config.evaluate
        return Looking(self.instruments, self.folder / "evaluate" / "features", config.batch_size)

    def read_labels(self) -> LabelReader:
        """What says which concept a generated picture shows."""
        if self.config.readout is not None:
            readout = Readout.load(Path(self.config.readout), self.device)
            return readout_reader(readout, self.concept_set.concepts)
        files: dict[str, list[Path]] = {concept.name: [] for concept in self.concept_set.concepts}
        for example in self.concept_set.split(TRAIN, HELDOUT, REFERENCE):
            files[example.concept].append(example.path)
        size, batch_size = (self.base().resolution, self.base().resolution), self.config.evaluate.batch_size
        cache = FeatureCache(self.folder / "evaluate" / "features", self.extractor(), size, batch_size)
        return nearest_concept_reader(cache, files)

    def check_base(self) -> None:
        """Of a folder or a Hub id; a single file is looked at when it is loaded."""
        if not user_path(self.config.base).is_file():
            inspect_pipeline(self.config.base, revision=self.config.revision, variant=self.config.variant)

    def read_concepts(self) -> ConceptSet:
        """Read the pictures, or those of the embedded world."""
        config = self.config.concepts
        if not config.given:
            folder = self.folder / "concepts"
            with main_first():
                write_world_once(folder, self.config.world)
            config = ConceptsConfig(path=str(folder))
        result = read_concept_set(config)
        if not result.concept_set.split(HELDOUT):
            raise UserError("no held-out image in the concept sets, so nothing to probe; give one set role=heldout")
        tell(result.notes, result.problems_table(), self.folder)
        return result.concept_set

    def _load(
        self,
        *,
        dtype: torch.dtype,
        lora: Path | None = None,
        path: str | None = None,
        compile_mode: str | None = None,
    ) -> DiffusionLearner:
        return DiffusionLearner.load(
            path or self.config.base,
            revision=self.config.revision if path is None else None,
            variant=self.config.variant if path is None else None,
            single_file_config=self.config.single_file_config if path is None else None,
            device=self.device,
            dtype=dtype,
            lora=lora,
            resolution=self.config.resolution,
            cache_dir=Path(self.config.cache_dir) if self.config.cache_dir else None,
            compile_mode=compile_mode,
        )

    def _tuned(self, model: str, dtype: torch.dtype | None = None) -> DiffusionLearner:
        folder = self.folder / "finetune" / model
        adapters = folder / PIPELINE_LAYOUT.adapters
        mode = self.config.compile_mode if dtype is None else None
        dtype = dtype or chosen_dtype(self.config.dtype, self.device)
        if adapters.exists():
            return self._load(dtype=dtype, lora=adapters, compile_mode=mode)
        return self._load(dtype=dtype, path=str(folder / PIPELINE_LAYOUT.folder), compile_mode=mode)

    def announce(self, until: str) -> None:
        """Say how many network evaluations there are, and how long they take here."""
        config, base = self.config, self.base()
        print(f"{config.title}\n{len(self.concept_set.concepts)} concepts, base {config.base}, on {self.device}")
        wanted = stages_until(until)
        counts = {stage: n for stage, n in network_evaluations(config, self.concept_set).items() if stage in wanted}
        if counts:
            rate = evaluations_per_second(base, self.concept_set.split(HELDOUT)[0], config.probe.batch_size)
            parts = ", ".join(f"{stage} {_minutes(count / rate)}" for stage, count in counts.items())
            print(
                f"{sum(counts.values()):,} network evaluations at {rate:,.0f} a second: about "
                f"{_minutes(sum(counts.values()) / rate)} at most ({parts}); what is finished already is kept"
            )


HALVES: Mapping[str, Callable[[StudyConfig], Story]] = {LLM: LanguageStudy, DIFFUSION: DiffusionStudy}


def run_study(config: StudyConfig, until: str = "report") -> Path | None:
    """Run a study's halves up to a stage, the language model's first; returns the report's path when that is the last
    stage, to the main process."""
    with locked(Path(config.output_dir)) if is_main() else nullcontext():
        return _run_study(config, until)


def _run_study(config: StudyConfig, until: str) -> Path | None:
    kinds = [kind for learner, kind in HALVES.items() if learner in config.learners]
    if config.executor == RAY and "finetune" in stages_until(until):
        with ray_joined(config.ray):
            outcome = _run_at_once([kind(config) for kind in kinds], config, until)
    else:
        for kind in kinds:
            outcome = kind(config).run(until)
    return outcome if until == "report" else None


def _run_at_once(halves: Sequence[Story], config: StudyConfig, until: str) -> Any:
    """The same with the fine-tuning runs of both learners in one heap, so that none waits for the other learner's."""
    for half in halves:
        half.run("bucket")
    with ExitStack() as stack:
        for half in halves:
            stack.enter_context(half.timed("finetune"))
        on_ray([p for half in halves for p in half.pieces("finetune", [r.name for r in half.runs()])], config.ray)
    for half in halves:
        outcome = half.run(until)
    return outcome


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
