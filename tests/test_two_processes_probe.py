"""Several processes do the work of one: the same tables and pictures to the last bit, each part done once."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from patches import PatchLearner, make_set
from test_answers import NAMES, concept_set, exact_learner

from diffusion_sft import processes
from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import EvaluateConfig, GeneratedImage, generate_images, read_generated
from diffusion_sft.learner import Query
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.pretrain.reader import HEADS
from diffusion_sft.probe import ProbeConfig, ProbeResult, SampleConfig, picture_samples, probe
from diffusion_sft.probe.config import ReconstructionConfig
from diffusion_sft.records import ConceptSet
from diffusion_sft.world.readout import Readout, ReadoutNetwork

T = TypeVar("T")
ASKED = AnswerConfig(num_renderings=2, num_candidates=4, num_invented=1, num_draws=4, templates=["a {}", "{} there"])
CONFIG = ProbeConfig(
    num_draws=6,
    batch_size=5,
    error_kind="sdedit",
    reconstruction=ReconstructionConfig(num_inference_steps=4, num_draws=2),
    answers=ASKED,
    samples=SampleConfig(num_samples=2, num_inference_steps=2, batch_size=3),
)
PICTURES = EvaluateConfig(num_images_per_concept=3, num_inference_steps=2, batch_size=2)
TABLES = ("scores", "answers", "samples")


def first_pixel(images: list[np.ndarray], asked: list[str]) -> list[str]:
    """A reader of pictures for which some are of the concept asked for and some are not."""
    return [name if image[0, 0, 0] % 2 else "" for image, name in zip(images, asked, strict=True)]


def go(base: str, concepts: ConceptSet, folder: Path) -> None:
    learner = DiffusionLearner.load(base)
    probe(learner, concepts, CONFIG, folder / "probe", picture_samples(learner, CONFIG, first_pixel))
    generate_images(learner, concepts, [c.name for c in concepts.concepts], PICTURES, folder / "images")


def assert_same(first: Path, second: Path) -> None:
    for name in TABLES:
        tables = [pd.read_parquet(folder / "probe" / f"{name}.parquet") for folder in (first, second)]
        assert len(tables[0]) > 0
        pd.testing.assert_frame_equal(*tables, check_exact=True)
        assert (first / "probe" / f"{name}.csv").read_bytes() == (second / "probe" / f"{name}.csv").read_bytes()
    pictures = [[(i.concept, i.index, i.sha256) for i in read_generated(f / "images")] for f in (first, second)]
    assert pictures[0] == pictures[1]
    counts = [
        json.loads((folder / "probe" / "probe.json").read_text())["num_evaluations"] for folder in (first, second)
    ]
    assert counts[0] == counts[1]


class Ranks:
    """As many threads that take themselves for processes, in one interpreter and without a launcher."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_processes = count
        self._own = threading.local()
        self._barrier = threading.Barrier(count, timeout=60)
        self._sent: list[Any] = []
        monkeypatch.setattr(processes, "_state", lambda: self)
        monkeypatch.setattr(processes, "broadcast_object_list", self.broadcast)

    @property
    def process_index(self) -> int:
        return int(self._own.index)

    def wait_for_everyone(self) -> None:
        self._barrier.wait()

    def broadcast(self, found: list[Any]) -> None:
        if self.process_index == 0:
            self._sent = list(found)
        self._barrier.wait()
        found[:] = self._sent
        self._barrier.wait()

    def run(self, work: Callable[[], T]) -> list[T]:
        def start(index: int) -> T:
            self._own.index = index
            try:
                return work()
            except BaseException:
                self._barrier.abort()  # as a launcher ends the other processes
                raise

        with ThreadPoolExecutor(self.num_processes) as pool:
            return list(pool.map(start, range(self.num_processes)))


# --- without a launcher ---


@pytest.mark.parametrize("count", [2, 3])
def test_the_work_is_dealt_out_and_every_process_gets_all_of_it(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = exact_learner(known=NAMES[:3])
    sampling = picture_samples(learner, CONFIG, first_pixel)
    alone = probe(learner, concept_set(), CONFIG, tmp_path / "alone", sampling)
    capsys.readouterr()
    asked: list[str] = []
    surprise = ExactLearner.surprise

    def counting(self: ExactLearner, queries: list[Query], *args: Any, **kwargs: Any) -> object:
        asked.extend(f"{processes.process_index()} {query.example.id} {query.stream}" for query in queries)
        return surprise(self, queries, *args, **kwargs)

    def read() -> ProbeResult:
        learner = exact_learner(known=NAMES[:3])
        sampling = picture_samples(learner, CONFIG, first_pixel)
        return probe(learner, concept_set(), CONFIG, tmp_path / "shared", sampling)

    monkeypatch.setattr(ExactLearner, "surprise", counting)
    ranks = Ranks(count, monkeypatch)
    for result in ranks.run(read):
        for name in TABLES:
            pd.testing.assert_frame_equal(getattr(result, name), getattr(alone, name), check_exact=True)
    assert {query.split()[0] for query in asked} == {str(number) for number in range(count)}
    assert len({query.split(maxsplit=1)[1] for query in asked}) == len(asked)  # nothing is read twice
    records = [json.loads((tmp_path / name / "probe.json").read_text()) for name in ("alone", "shared")]
    assert records[0]["num_evaluations"] == records[1]["num_evaluations"]
    assert not (tmp_path / "shared" / "parts").exists()
    assert capsys.readouterr().err.count("network evaluations for") == 1
    before = len(asked)
    ranks.run(read)
    assert len(asked) == before  # finished: all of them read it back


def test_a_probe_goes_on_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe(exact_learner(known=NAMES[:3]), concept_set(), CONFIG, tmp_path / "whole")
    surprise, calls = ExactLearner.surprise, itertools.count()

    def failing(self: ExactLearner, *args: Any, **kwargs: Any) -> object:
        if next(calls) == 4:
            raise RuntimeError("stopped")
        return surprise(self, *args, **kwargs)

    def read() -> ProbeResult:
        return probe(exact_learner(known=NAMES[:3]), concept_set(), CONFIG, tmp_path / "cut")

    with monkeypatch.context() as patch:
        patch.setattr(ExactLearner, "surprise", failing)
        with pytest.raises((RuntimeError, threading.BrokenBarrierError)):
            Ranks(3, patch).run(read)
    # Three parts of scores and three of answers, of which the fifth broke off and the sixth may have been finished.
    num_done = len(list((tmp_path / "cut" / "parts").rglob("*.parquet")))
    assert num_done in (4, 5)
    calls = itertools.count(5)
    monkeypatch.setattr(ExactLearner, "surprise", failing)
    resumed, _ = Ranks(2, monkeypatch).run(read)
    assert next(calls) == 5 + 6 - num_done
    for name in ("scores", "answers"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(whole, name), check_exact=True)


def test_pictures_are_dealt_out_and_kept_by_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["wug", "dax", "fep"]
    concepts = make_set(tmp_path / "set", names, {"heldout": 1})
    alone = generate_images(PatchLearner(), concepts, names, PICTURES, tmp_path / "alone")
    learner = PatchLearner()

    def draw() -> list[GeneratedImage]:
        return generate_images(learner, concepts, names, PICTURES, tmp_path / "shared")

    for images in Ranks(3, monkeypatch).run(draw):
        assert [image.sha256 for image in images] == [image.sha256 for image in alone]
    assert len(learner.asked) == 9
    assert sorted(path.name for path in (tmp_path / "shared").glob("*.json")) == ["generated.json"]
    assert read_generated(tmp_path / "shared") == draw_again(monkeypatch, draw)
    assert len(learner.asked) == 9
    # What a process had recorded before all were stopped is kept, whoever goes on.
    record = tmp_path / "shared" / "generated.json"
    content = json.loads(record.read_text())
    parts = [content | {"images": content["images"][k::4]} for k in range(4)]
    for number, part in enumerate(parts[:3]):
        name = f"generated-{number}.json" if number else "generated.json"
        (tmp_path / "shared" / name).write_text(json.dumps(part))
    Ranks(2, monkeypatch).run(draw)
    assert len(learner.asked) == 9 + len(parts[3]["images"])
    assert json.loads(record.read_text()) == content


def draw_again(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], list[GeneratedImage]]) -> list[GeneratedImage]:
    first, second = Ranks(2, monkeypatch).run(draw)
    assert first == second
    return first


def test_a_lone_process_initialises_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in processes.LAUNCHED:
        monkeypatch.delenv(name, raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a lone process needs no state")

    monkeypatch.setattr(processes, "PartialState", refuse)
    assert (processes.process_count(), processes.process_index(), processes.is_main()) == (1, 0, True)
    processes.wait_for_everyone()
    with processes.main_first():
        pass
    assert not torch.distributed.is_initialized()
    with pytest.raises(UserError, match=r"absent\.parquet: what another process wrote"):
        processes.shared_file(tmp_path / "absent.parquet")


# --- with torchrun ---

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_two_processes_probe as test
from diffusion_sft import processes
if sys.argv[5] == "dies" and processes.process_index() == 1:
    test.DiffusionLearner.reconstruct = None
test.go(sys.argv[2], test.concepts_at(sys.argv[3]), Path(sys.argv[4]))
"""
NAMED = ("mip", "toma", "kiru", "zorp", "blorp", "wug", "dax")


def concepts_at(folder: str) -> ConceptSet:
    return read_concept_set(ConceptsConfig(path=folder)).concept_set


def written_set(root: Path) -> Path:
    concepts = make_set(root, NAMED, {"train": 2, "heldout": 2})
    rows = [
        {"file_name": e.path.relative_to(root).as_posix(), "text": e.caption, "concept": e.concept, "split": e.split}
        for e in concepts.examples
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def launch(count: int, folder: Path, base: Path, concepts: Path, mode: str = "") -> subprocess.CompletedProcess[str]:
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(script)]
    arguments = [str(Path(__file__).parent), str(base), str(concepts), str(folder), mode]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *torchrun, *arguments], env=environment, timeout=600, capture_output=True, text=True
    )


@pytest.mark.slow
def test_two_processes_write_the_tables_and_pictures_of_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    concepts = written_set(tmp_path / "set")
    go(str(tiny_pipeline), concepts_at(str(concepts)), tmp_path / "alone")
    together = launch(2, tmp_path / "together", tiny_pipeline, concepts)
    assert together.returncode == 0, together.stderr
    assert together.stderr.count("network evaluations for") == 1
    assert_same(tmp_path / "alone", tmp_path / "together")


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_and_a_lone_one_can_go_on(tiny_pipeline: Path, tmp_path: Path) -> None:
    concepts = written_set(tmp_path / "set")
    broken = launch(2, tmp_path / "run", tiny_pipeline, concepts, "dies")
    assert broken.returncode != 0
    assert "'NoneType' object is not callable" in broken.stderr
    assert not (tmp_path / "run" / "probe" / "probe.json").exists()
    assert list((tmp_path / "run" / "probe" / "parts").rglob("*.parquet"))
    go(str(tiny_pipeline), concepts_at(str(concepts)), tmp_path / "run")
    go(str(tiny_pipeline), concepts_at(str(concepts)), tmp_path / "alone")
    for name in TABLES:
        tables = [pd.read_parquet(tmp_path / run / "probe" / f"{name}.parquet") for run in ("run", "alone")]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_two_processes_tell_a_study_once(tiny_pipeline: Path, tmp_path: Path) -> None:
    concepts = written_set(tmp_path / "set")
    settings = [f"base={tiny_pipeline}", f"concepts.path={concepts}", "buckets.rule=error", "probe.num_draws=6"]
    settings += ["probe.answers.num_draws=2", "probe.answers.num_renderings=2", "probe.answers.num_candidates=5"]
    settings += ["probe.samples.num_samples=0", "probe.error_kind=inversion", "evaluate.extractor=readout"]
    settings += ["probe.reconstruction.num_inference_steps=2", f"evaluate.weights={written_readout(tmp_path)}"]
    settings += ["evaluate.num_images_per_concept=2", "evaluate.num_inference_steps=2", "finetune.report_to=null"]
    settings += [
        "mixes=[{name: natural, num_concepts: 2}]",
        "finetune.max_train_steps=2",
        "finetune.validation_steps=2",
    ]
    settings += ["finetune.train_batch_size=2", "finetune.validation_draws=2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffusion_sft.cli"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    runs = {}
    for name, launcher in {"alone": ["-m", "diffusion_sft.cli"], "together": torchrun}.items():
        command = [sys.executable, *launcher, "study", *settings, f"output_dir={tmp_path / name}"]
        runs[name] = subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True)
        assert runs[name].returncode == 0, runs[name].stderr
        assert runs[name].stdout.count("report: ") == 1
    told = [len(run.stdout.splitlines()) for run in runs.values()]
    assert told[0] == told[1]
    tables = sorted(path.name for path in (tmp_path / "alone" / "solve").glob("*.parquet"))
    assert {"systems.parquet", "classes.parquet"} <= set(tables)
    for table in ("probe/scores", "probe/answers", "buckets/concepts", *(f"solve/{Path(n).stem}" for n in tables)):
        tables = [pd.read_parquet(tmp_path / name / f"{table}.parquet") for name in runs]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    pictures = [[image.sha256 for image in read_generated(tmp_path / name / "evaluate" / "base")] for name in runs]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 14
    tuned = tmp_path / "together" / "evaluate" / "natural"
    assert len(read_generated(tuned)) == 14
    assert not list(tuned.glob("generated-*.json"))


def written_readout(folder: Path) -> Path:
    torch.manual_seed(0)
    Readout(ReadoutNetwork(HEADS), HEADS).save(folder / "readout", num_features=64, width=32)
    return folder / "readout"
