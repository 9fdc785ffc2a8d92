"""The whole story in the order in which it happens; the only place that names concrete learners.

    concepts -> probe -> buckets -> fine-tune on mixes -> generate and evaluate -> report

Each stage reads the tables of the stages before it and keeps what it has finished, so a study that was stopped, or
run again with a setting changed, only does what is missing. Launched as several processes (torchrun, accelerate
launch), all of them probe, fine-tune and generate; the rest is the main one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .buckets import bucket, summary_table, write_buckets
from .concepts import ConceptsConfig, read_concept_set
from .errors import UserError
from .evaluate import (
    Extractor,
    Instruments,
    build_extractor,
    distance_table,
    evaluate,
    generate_images,
    nearest_concept_reader,
    read_generated,
    readout_reader,
)
from .evaluate.cache import fitted_image
from .files import file_hash, read_json, read_table, write_json, write_table
from .finetune.evaluations import make_exam
from .finetune.loop import finetune
from .finetune.mixes import Mix, MixConfig, compose
from .learner import ReadLabels
from .learners.diffusion import DiffusionLearner
from .machine import evaluations_per_second, hardware, pick_device, versions
from .plan import StudyConfig, network_evaluations
from .probe import ProbeResult, probe
from .processes import is_main, main_first, process_count, process_device, wait_for_everyone
from .records import HELDOUT, REFERENCE, TRAIN, ConceptSet
from .report.page import write_report
from .settings import settings_dict, settings_yaml
from .world.population import WorldConfig
from .world.readout import Readout
from .world.write import write_world

STAGES = ("concepts", "probe", "bucket", "finetune", "generate", "evaluate", "report")
SHARED = ("probe", "finetune", "generate")
"""Stages whose work is divided among the processes; the others are done by the main one."""
LORA_FILE = "pytorch_lora_weights.safetensors"


class Study:
    """One study in progress: settings, folder, and what the finished stages left."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.folder = Path(config.output_dir)
        self.device = _device(config.device)
        self.seconds: dict[str, float] = {}
        self.concept_set = self._read_concepts()
        self._base: DiffusionLearner | None = None

    def run(self, until: str = "report") -> Path | None:
        """Run every stage up to `until`; returns the report's path when there is one, to the main process."""
        if is_main():
            self._announce(until)
        stages: dict[str, Callable[[], Any]] = {
            "concepts": lambda: None,
            "probe": self.probe,
            "bucket": self.bucket,
            "finetune": self.finetune_all,
            "generate": self.generate_all,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        outcome = None
        wanted = STAGES[: STAGES.index(until) + 1]
        for place, name in enumerate(wanted):
            if is_main() or name in SHARED:
                with self._timed(name):
                    outcome = stages[name]()
            if set(wanted[place + 1 :]) & set(SHARED):  # else there is nothing left to wait for
                wait_for_everyone()
        return outcome if until == "report" else None

    def probe(self) -> ProbeResult:
        """What does the base know? Prior errors and gains, greedy and sampled answers."""
        return probe(
            self.base(), self.concept_set, self.config.probe, self.folder / "probe", read_labels=self.read_labels()
        )

    def bucket(self) -> pd.DataFrame:
        """Which concepts are known, by four rules side by side."""
        folder = self.folder / "probe"
        scores, answers, samples = (
            read_table(folder / f"{name}.parquet") for name in ("scores", "answers", "samples")
        )
        result = bucket(scores, answers, samples, self.concept_set.table(), self.config.buckets)
        write_buckets(result, self.folder / "buckets")
        print(summary_table(result.summary))
        return result.concepts

    def finetune_all(self) -> None:
        """Teach the base each mix, always starting from the base."""
        for mix_config in self.config.mixes:
            mix, exam = self.compose(mix_config)
            learner = self._load(dtype=torch.float32)
            finetune(learner, mix, exam, self.config.finetune, self.folder / "finetune" / mix.name)

    def compose(self, mix_config: MixConfig) -> tuple[Mix, Any]:
        """A mix's examples and the questions asked while it is trained on."""
        labels = read_table(self.folder / "buckets" / "concepts.parquet")
        mix = compose(mix_config, labels, self.concept_set, self.config.finetune.seed)
        exam = make_exam(mix, labels, self.concept_set, self.config.finetune, self.config.probe.answers)
        return mix, exam

    def generate_all(self) -> None:
        """Draw every concept with the base and with each fine-tuned model, from the same noise."""
        probed = {example.concept for example in self.concept_set.split(HELDOUT)}
        names = [concept.name for concept in self.concept_set.concepts if concept.name in probed]
        for model in self.models():
            learner = self.base() if model == "base" else self._tuned(model)
            generate_images(learner, self.concept_set, names, self.config.evaluate, self.folder / "evaluate" / model)

    def evaluate(self) -> None:
        """FID per bucket and what it misses, before and after."""
        found = evaluate(
            {model: read_generated(self.folder / "evaluate" / model) for model in self.models()},
            self.concept_set,
            read_table(self.folder / "buckets" / "concepts.parquet"),
            Instruments(extractor=self.extractor(), read_labels=self.read_labels()),
            self.config.evaluate,
            self.folder / "evaluate",
        )
        print(distance_table(found.measures))

    def report(self) -> Path:
        """One page that shows it all."""
        self._record()
        return write_report(self.folder, self.concept_set, self.config.title)

    def models(self) -> list[str]:
        """The base and the mixes, in the order in which they appear everywhere."""
        return ["base", *(mix.name for mix in self.config.mixes)]

    def base(self) -> DiffusionLearner:
        """The untouched base, loaded once."""
        if self._base is None:
            self._base = self._load(dtype=self._dtype())
        return self._base

    def extractor(self) -> Extractor:
        """What looks at pictures for FID."""
        return build_extractor(self.config.evaluate, self.device)

    def read_labels(self) -> ReadLabels:
        """What says which concept a generated picture shows."""
        if self.config.readout is not None:
            readout = Readout.load(Path(self.config.readout), self.device)
            return readout_reader(readout, self.concept_set.concepts)
        size = (self.base().resolution, self.base().resolution)
        images: dict[str, list[Any]] = {concept.name: [] for concept in self.concept_set.concepts}
        for example in self.concept_set.split(TRAIN, HELDOUT, REFERENCE):
            images[example.concept].append(fitted_image(example.path, size))
        return nearest_concept_reader(self.extractor(), images)

    def _read_concepts(self) -> ConceptSet:
        config = self.config.concepts
        if not config.given:
            folder = self.folder / "concepts"
            with main_first():
                _write_world_once(folder, self.config.world)
            config = ConceptsConfig(path=str(folder))
        result = read_concept_set(config)
        if not result.concept_set.split(HELDOUT):
            raise UserError("no held-out image in the concept sets, so nothing to probe; give one set role=heldout")
        if not is_main():
            return result.concept_set
        for note in result.notes:
            print(f"note: {note}")
        if result.problems:
            write_table(self.folder / "skipped.parquet", result.problems_table())
            print(f"note: {len(result.problems)} bad rows skipped, listed in {self.folder / 'skipped.csv'}")
        return result.concept_set

    def _load(self, *, dtype: torch.dtype, lora: Path | None = None, path: str | None = None) -> DiffusionLearner:
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
        )

    def _tuned(self, model: str) -> DiffusionLearner:
        folder = self.folder / "finetune" / model
        if (folder / LORA_FILE).exists():
            return self._load(dtype=self._dtype(), lora=folder / LORA_FILE)
        return self._load(dtype=self._dtype(), path=str(folder / "pipeline"))

    def _dtype(self) -> torch.dtype:
        if self.config.dtype == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    def _announce(self, until: str) -> None:
        config, base = self.config, self.base()
        print(f"{config.title}\n{len(self.concept_set.concepts)} concepts, base {config.base}, on {self.device}")
        wanted = STAGES[: STAGES.index(until) + 1]
        counts = {stage: n for stage, n in network_evaluations(config, self.concept_set).items() if stage in wanted}
        if counts:
            rate = evaluations_per_second(base, self.concept_set.split(HELDOUT)[0], config.probe.batch_size)
            parts = ", ".join(f"{stage} {_minutes(count / rate)}" for stage, count in counts.items())
            print(
                f"{sum(counts.values()):,} network evaluations at {rate:,.0f} a second: about "
                f"{_minutes(sum(counts.values()) / rate)} at most ({parts}); what is finished already is kept"
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 1)
        if is_main():
            self._record()

    def _record(self) -> None:
        path = self.folder / "study.json"
        earlier = read_json(path).get("seconds", {}) if path.exists() else {}
        # A stage that only found its work done took no time worth telling; keep what the work itself took.
        seconds = earlier | {s: t for s, t in self.seconds.items() if t > earlier.get(s, 0.0)}
        write_json(
            path,
            {
                "title": self.config.title,
                "base": self.base().identity(),
                "settings": settings_dict(self.config),
                "seconds": seconds,
                "versions": versions(),
                "hardware": hardware(self.device),
            },
        )
        (self.folder / "config.yaml").write_text(settings_yaml(self.config), encoding="utf-8")


def run_study(config: StudyConfig, until: str = "report") -> Path | None:
    """Run a study up to a stage; returns the report's path when that is the last stage."""
    return Study(config).run(until)


def _device(name: str) -> torch.device:
    """The device named in the settings; of several processes, each has its own from the launcher."""
    if process_count() == 1:
        return pick_device(name)
    device = process_device()
    if name not in ("auto", device.type):
        raise UserError(f"device={name}: {process_count()} processes get their devices from the launcher; set auto")
    return device


def _write_world_once(folder: Path, config: WorldConfig) -> None:
    """Write the embedded world unless the folder holds it already with the same settings."""
    stamp = folder.with_name(f"{folder.name}.json")
    wanted = {"world": settings_dict(config)}
    metadata = folder / "metadata.jsonl"
    if stamp.exists() and metadata.exists() and read_json(stamp) == wanted | {"sha256": file_hash(metadata)}:
        return
    write_world(folder, config)
    write_json(stamp, wanted | {"sha256": file_hash(metadata)})


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
