"""Killed and resumed is the same as never killed: weights, averages, metrics and evaluations, bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from taught import TABLE, taught

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.average import AveragedWeights
from diffusion_sft.finetune.checkpoints import (
    Trained,
    checkpoint_updates,
    load_checkpoint,
    remove_unfinished,
    rotate_checkpoints,
    save_checkpoint,
)
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mixes import MixConfig, compose
from diffusion_sft.learner import Learner
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.records import ConceptSet

FULL = FinetuneConfig(
    method="full",
    train_batch_size=2,
    gradient_accumulation_steps=2,
    max_train_steps=20,
    learning_rate=1e-3,
    lr_scheduler="constant_with_warmup",
    lr_warmup_steps=5,
    proportion_empty_prompts=0.3,
    use_ema=True,
    ema_horizon=6,
    checkpointing_steps=7,
    validation_steps=10,
    validation_examples_per_concept=1,
    validation_draws=2,
    report_to=None,
)
LORA = replace(FULL, method="lora", rank=2, lora_dropout=0.2, lr_scheduler="cosine")
CUDA = torch.cuda.is_available()
Start = Callable[..., dict[str, Any]]


def go(
    learner: Learner,
    concept_set: ConceptSet,
    config: FinetuneConfig,
    folder: Path,
    at: dict[int, Callable[[], None]] | None,
) -> dict:
    """Start, or go on with, a run of the half-known mix; `at` an update something may happen."""
    mix = compose(MixConfig(name="half", num_concepts=2, unknown_share=0.5), TABLE, concept_set, 0)
    exam = make_exam(mix, TABLE, concept_set, config, AnswerConfig(num_candidates=4, num_invented=1))
    plain, begun = learner.loss, max(checkpoint_updates(folder), default=0)
    calls = [begun * config.gradient_accumulation_steps]

    def watched(items: list, *, seed: int) -> torch.Tensor:
        calls[0] += 1
        update = -(-calls[0] // config.gradient_accumulation_steps)
        (at or {}).get(update, lambda: None)()
        return plain(items, seed=seed)

    learner.loss = watched  # type: ignore[method-assign]
    return finetune(learner, mix, exam, config, folder)


def start(config: FinetuneConfig, folder: Path, *, at: dict[int, Callable[[], None]] | None = None) -> dict:
    """A run of the exact learner."""
    return go(*taught(), config, folder, at)


@pytest.fixture
def start_diffusion(tiny_pipeline: Path, tiny_set: Path) -> Start:
    """A run of a freshly loaded pipeline."""

    def start(config: FinetuneConfig, folder: Path, *, at: dict[int, Callable[[], None]] | None = None) -> dict:
        device = "cuda" if config.mixed_precision == "fp16" and CUDA else "cpu"
        concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
        return go(DiffusionLearner.load(tiny_pipeline, device=device), concept_set, config, folder, at)

    return start


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


def files_of(run: Path) -> dict[str, Any]:
    """Everything that must not depend on whether the run was interrupted."""
    tensors = {
        path.relative_to(run).as_posix(): load_file(path)
        for path in sorted(run.rglob("*.safetensors"))
        if path.parent.name in ("checkpoint-20", "early", "unet", run.name)
    }
    evaluations = pd.read_parquet(run / "evaluations.parquet") if (run / "evaluations.parquet").exists() else None
    return {"tensors": tensors, "metrics": (run / "metrics.jsonl").read_bytes(), "evaluations": evaluations}


def assert_identical(one: Path, other: Path) -> None:
    first, second = files_of(one), files_of(other)
    assert first["metrics"] == second["metrics"]
    assert first["tensors"].keys() == second["tensors"].keys()
    for file, tensors in first["tensors"].items():
        assert tensors.keys() == second["tensors"][file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second["tensors"][file][name]), f"{file}: {name}"
    if first["evaluations"] is not None:
        pd.testing.assert_frame_equal(first["evaluations"], second["evaluations"], check_exact=True)


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_twenty_updates_are_seven_a_kill_and_thirteen(
    config: FinetuneConfig, start_diffusion: Start, tmp_path: Path
) -> None:
    straight = start_diffusion(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start_diffusion(config, tmp_path / "resumed", at={10: kill})
    # Killed within update 10: metrics and evaluations are ahead of the checkpoint and must be taken back.
    assert len((tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()) == 9
    assert checkpoint_updates(tmp_path / "resumed")[-1] == 7
    resumed = start_diffusion(config, tmp_path / "resumed")
    assert_identical(tmp_path / "straight", tmp_path / "resumed")
    varying = {"seconds"}
    assert {k: v for k, v in straight.items() if k not in varying} == {
        k: v for k, v in resumed.items() if k not in varying
    }
    files = set(files_of(tmp_path / "straight")["tensors"])
    assert {"checkpoint-20/weights.safetensors", "checkpoint-20/average.safetensors"} < files


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp16", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a GPU")])],
)
def test_mixed_precision_resumes_with_float32_weights(precision: str, start_diffusion: Start, tmp_path: Path) -> None:
    config = replace(LORA, mixed_precision=precision, validation_steps=0, max_train_steps=6, checkpointing_steps=3)
    start_diffusion(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start_diffusion(config, tmp_path / "resumed", at={5: kill})
    start_diffusion(config, tmp_path / "resumed")
    if not CUDA:  # On a GPU kernels may add up in any order.
        assert_identical(tmp_path / "straight", tmp_path / "resumed")
    weights = load_file(tmp_path / "resumed" / "checkpoint-6" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    scaler = json.loads((tmp_path / "resumed" / "checkpoint-6" / "state.json").read_text())["scaler"]
    assert (scaler is not None) == (precision == "fp16")


@pytest.mark.skipif(CUDA, reason="about machines without a GPU")
def test_half_precision_on_a_cpu_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixed_precision=fp16 needs a GPU"):
        start(replace(FULL, mixed_precision="fp16"), tmp_path / "run")


def test_a_kill_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    config = replace(FULL, max_train_steps=5)
    start(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start(config, tmp_path / "resumed", at={3: kill})
    start(config, tmp_path / "resumed")
    assert_identical(tmp_path / "straight", tmp_path / "resumed")


def test_sigterm_writes_a_checkpoint_and_leaves(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=5)
    start(config, tmp_path / "straight")
    with pytest.raises(SystemExit) as left:
        start(config, tmp_path / "resumed", at={3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert left.value.code == 143
    assert checkpoint_updates(tmp_path / "resumed") == [3]
    start(config, tmp_path / "resumed")
    assert_identical(tmp_path / "straight", tmp_path / "resumed")


def test_a_finished_run_says_so_and_leaves_everything_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=3)
    first = start(config, tmp_path / "run")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert start(config, tmp_path / "run", at={1: kill}) == first
    assert "finished already after 3 updates" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == stamps


def test_a_longer_budget_goes_on_as_if_it_had_been_asked_for_at_once(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=10)
    start(config, tmp_path / "straight")
    start(replace(config, max_train_steps=6), tmp_path / "grown")
    start(config, tmp_path / "grown")
    assert_identical(tmp_path / "straight", tmp_path / "grown")
    with pytest.raises(UserError, match="begun with max_train_steps=10, now max_train_steps=9"):
        start(replace(config, max_train_steps=9), tmp_path / "grown")


def test_a_changed_setting_is_named(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=4, checkpointing_steps=2)
    with pytest.raises(Killed):
        start(config, tmp_path / "run", at={3: kill})
    with pytest.raises(UserError, match=r"begun with learning_rate=0\.001, now learning_rate=0\.01; put it back"):
        start(replace(config, learning_rate=1e-2), tmp_path / "run")
    with pytest.raises(UserError, match="begun with method=full, now method=lora"):
        start(replace(config, method="lora"), tmp_path / "run")
    falling = replace(config, lr_scheduler="cosine", lr_warmup_steps=0)
    with pytest.raises(Killed):
        start(falling, tmp_path / "falling", at={3: kill})
    with pytest.raises(UserError, match=r"max_train_steps=9 \(the cosine schedule depends on it\)"):
        start(replace(falling, max_train_steps=9), tmp_path / "falling")


# --- the folders themselves ---


def something_trained(fill: float = 0.0) -> Trained:
    network = torch.nn.Linear(3, 2)
    parameters = dict(network.named_parameters())
    for parameter in parameters.values():
        torch.nn.init.constant_(parameter, fill)
    optimizer = torch.optim.AdamW(list(parameters.values()))
    return Trained(
        parameters=parameters, optimizer=optimizer, average=AveragedWeights(parameters, horizon=3), scaler=None
    )


def test_a_checkpoint_restores_weights_moments_and_average(tmp_path: Path) -> None:
    trained = something_trained(1.0)
    for update in range(1, 4):
        for parameter in trained.parameters.values():
            parameter.grad = torch.full_like(parameter, 0.1 * update)
        trained.optimizer.step()
        trained.average.update(update)
    save_checkpoint(tmp_path, 3, trained, {"record": {}})
    fresh = something_trained(0.0)
    load_checkpoint(tmp_path, 3, fresh)
    for name, parameter in trained.parameters.items():
        assert torch.equal(parameter, fresh.parameters[name])
        assert torch.equal(trained.average.tensors[name], fresh.average.tensors[name])
        before, after = trained.optimizer.state[parameter], fresh.optimizer.state[fresh.parameters[name]]
        assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[kind], after[kind]) for kind in before)
    assert {path.suffix for path in (tmp_path / "checkpoint-3").iterdir()} == {".safetensors", ".json"}


def test_rotation_keeps_the_last_the_best_and_whatever_is_not_ours(tmp_path: Path) -> None:
    trained = something_trained()
    for update in (5, 10, 15, 20, 100):
        save_checkpoint(tmp_path, update, trained, {})
    for foreign in ("checkpoint-best", "checkpoint-7", "checkpoint-1-old", "checkpoints"):
        (tmp_path / foreign).mkdir()
        (tmp_path / foreign / "notes.txt").write_text("mine")
    rotate_checkpoints(tmp_path, 2, best=10)
    assert checkpoint_updates(tmp_path) == [10, 20, 100]
    rotate_checkpoints(tmp_path, 1, best=None)
    assert checkpoint_updates(tmp_path) == [100]
    rotate_checkpoints(tmp_path, None, best=None)
    assert checkpoint_updates(tmp_path) == [100]
    assert all((tmp_path / name).is_dir() for name in ("checkpoint-best", "checkpoint-7", "checkpoint-1-old"))


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = something_trained()
    save_checkpoint(tmp_path, 5, trained, {})
    monkeypatch.setattr("diffusion_sft.finetune.checkpoints.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path, 10, trained, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    # What a process leaves that had no time to clear up is not taken for a checkpoint, and goes at the next start.
    (tmp_path / ".checkpoint-10.ab12cd_x").mkdir()
    (tmp_path / ".checkpoint-notes").mkdir()
    assert checkpoint_updates(tmp_path) == [5]
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checkpoint-notes", "checkpoint-5"]


def test_a_broken_or_foreign_file_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, something_trained(), {})
    weights = tmp_path / "checkpoint-5" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(UserError, match=re.escape(str(weights))):
        load_checkpoint(tmp_path, 5, something_trained())
    save_checkpoint(tmp_path, 5, something_trained(), {})
    other = torch.nn.Linear(4, 2)
    parameters = dict(other.named_parameters())
    trained = Trained(
        parameters=parameters, optimizer=torch.optim.AdamW(other.parameters()), average=None, scaler=None
    )
    with pytest.raises(UserError, match="another network"):
        load_checkpoint(tmp_path, 5, trained)


# --- several processes ---

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_checkpoints import SHORT, ConceptsConfig, DiffusionLearner, go, read_concept_set
from diffusion_sft.finetune.acceleration import process_device
learner = DiffusionLearner.load(sys.argv[2], device=process_device())
concept_set = read_concept_set(ConceptsConfig(path=sys.argv[3])).concept_set
go(learner, concept_set, replace(SHORT, gradient_accumulation_steps=1), Path(sys.argv[4]), None)
"""
SHORT = replace(FULL, max_train_steps=6, checkpointing_steps=3)


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one_with_twice_the_accumulation(
    start_diffusion: Start, tiny_pipeline: Path, tiny_set: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    runs = [tmp_path / "alone", tmp_path / "together"]
    alone = start_diffusion(SHORT, runs[0])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    arguments = [str(Path(__file__).parent), str(tiny_pipeline), str(tiny_set), str(runs[1])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launch, *arguments], check=True, env=environment, timeout=600)
    together = json.loads((runs[1] / "finetune.json").read_text())
    assert (alone["record"]["num_processes"], together["record"]["num_processes"]) == (1, 2)
    assert alone["examples_per_update"] == together["examples_per_update"]
    weights = [load_file(run / "checkpoint-6" / "weights.safetensors") for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, two in zip(*metrics, strict=True):
        assert one["examples_seen"] == two["examples_seen"]
        assert one["learning_rate"] == two["learning_rate"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    tables = [pd.read_parquet(run / "evaluations.parquet") for run in runs]
    pd.testing.assert_frame_equal(*tables, rtol=1e-3)
