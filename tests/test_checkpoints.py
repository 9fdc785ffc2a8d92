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
from safetensors.torch import load_file, save_file
from taught import TABLE, taught

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.average import AveragedWeights
from diffusion_sft.finetune.checkpoints import (
    Trained,
    checkpoint_updates,
    load_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.optimizers import make_optimizer
from diffusion_sft.finetune.resuming import chosen_update
from diffusion_sft.learner import Learner
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.locks import locked
from diffusion_sft.numerics.noise import normal
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
PLAIN = replace(FULL, validation_steps=0, learning_rate=1e-2, ema_device="cpu", ema_update_every=2)
WAYS = {
    "full": FULL,
    "lora": LORA,
    "cross_attention": replace(PLAIN, method="cross_attention", snr_gamma=5.0, random_flip=True),
    "dora": replace(PLAIN, method="lora", rank=2, use_dora=True, noise_offset=0.1),
    "text encoder": replace(PLAIN, method="lora", rank=2, train_text_encoder=True, text_encoder_lr=1e-3),
    "adafactor": replace(PLAIN, optimizer="adafactor"),
    "prodigy": replace(PLAIN, method="lora", rank=2, optimizer="prodigy", learning_rate=1.0),
    "adamw8bit": replace(PLAIN, optimizer="adamw8bit"),
}
OPTIONAL = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}
"""Packages that an optimiser needs."""
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
    plain, begun = learner.loss, chosen_update(folder, config.resume_from_checkpoint)
    calls = [begun * config.gradient_accumulation_steps]

    def watched(batch: Any) -> torch.Tensor:
        calls[0] += 1
        update = -(-calls[0] // config.gradient_accumulation_steps)
        (at or {}).get(update, lambda: None)()
        return plain(batch)

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


RARE = ("cross_attention", "dora", "adafactor", "prodigy")
"""Of the same kind as others; with pytest -m slow."""


@pytest.mark.parametrize("way", [pytest.param(w, marks=[pytest.mark.slow] if w in RARE else []) for w in WAYS])
def test_twenty_updates_are_seven_a_kill_and_thirteen(way: str, start_diffusion: Start, tmp_path: Path) -> None:
    config = WAYS[way]
    if config.optimizer in OPTIONAL:
        pytest.importorskip(OPTIONAL[config.optimizer])
    straight = start_diffusion(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start_diffusion(config, tmp_path / "resumed", at={10: kill})
    # Killed within update 10 (9 may not be read yet): metrics are ahead of the checkpoint and must be taken back.
    assert 7 < len((tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()) <= 9
    assert checkpoint_updates(tmp_path / "resumed")[-1] == 7
    resumed = start_diffusion(config, tmp_path / "resumed")
    assert_identical(tmp_path / "straight", tmp_path / "resumed")
    varying = {"seconds", "files"}
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


def test_settings_that_change_no_number_may_change(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=6, checkpointing_steps=2)
    start(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start(config, tmp_path / "run", at={5: kill})
    other = replace(config, checkpointing_steps=3, checkpoints_total_limit=None, report_to="tensorboard")
    start(replace(other, max_nonfinite_steps=9), tmp_path / "run")
    for name in ("weights", "average", "optimizer"):
        one, two = (load_file(tmp_path / run / "checkpoint-6" / f"{name}.safetensors") for run in ("straight", "run"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert list((tmp_path / "run" / "logs" / "diffusion-sft").iterdir())


def test_an_image_that_was_edited_is_not_gone_on_with(start_diffusion: Start, tiny_set: Path, tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=4, checkpointing_steps=2)
    with pytest.raises(Killed):
        start_diffusion(config, tmp_path / "run", at={3: kill})
    # Another mode changes no pixel that the eye sees, but the bytes.
    files = sorted((tiny_set / "train").glob("*.png"))
    before = [file.read_bytes() for file in files]
    try:
        for file in files:
            file.write_bytes(file.read_bytes() + b"\0")
        with pytest.raises(UserError, match="begun with training images="):
            start_diffusion(config, tmp_path / "run")
    finally:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
    start_diffusion(config, tmp_path / "run")


def test_one_may_go_back_to_a_checkpoint_or_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=8, checkpointing_steps=2, checkpoints_total_limit=None)
    start(config, tmp_path / "straight")
    with pytest.raises(Killed):
        start(config, tmp_path / "run", at={7: kill})
    assert checkpoint_updates(tmp_path / "run") == [2, 4, 6]
    foreign = tmp_path / "run" / "checkpoint-best"
    foreign.mkdir()
    for wrong in ("checkpoint-5", "5", "first", str(tmp_path / "straight" / "checkpoint-4")):
        with pytest.raises(UserError, match="which has checkpoint-2, checkpoint-4, checkpoint-6; or say latest"):
            start(replace(config, resume_from_checkpoint=wrong), tmp_path / "run")
    with pytest.raises(Killed):
        start(replace(config, resume_from_checkpoint="checkpoint-4"), tmp_path / "run", at={6: kill})
    assert "checkpoint-6 is removed" in capsys.readouterr().out
    assert checkpoint_updates(tmp_path / "run") == [2, 4]
    # Killed within update 6, when update 5 was made and not yet read.
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    with pytest.raises(Killed):
        path = str(tmp_path / "run" / "checkpoint-2")
        start(replace(config, resume_from_checkpoint=path), tmp_path / "run", at={4: kill})
    (tmp_path / "run-2").mkdir()
    with pytest.raises(
        UserError, match=r"is not empty, .* set output_dir=\S+/run-3, or resume_from_checkpoint=latest"
    ):
        start(replace(config, resume_from_checkpoint="none"), tmp_path / "run")
    start(config, tmp_path / "run")
    assert foreign.is_dir()
    foreign.rmdir()
    assert_identical(tmp_path / "straight", tmp_path / "run")
    start(replace(config, resume_from_checkpoint="none"), tmp_path / "run-2")
    assert_identical(tmp_path / "straight", tmp_path / "run-2")


def test_checkpoints_that_are_not_ours_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=4, checkpointing_steps=2)
    foreign = tmp_path / "run" / "checkpoint-500"
    foreign.mkdir(parents=True)
    (foreign / "model.safetensors").write_text("somebody's")
    with pytest.raises(UserError, match=r"checkpoint-500: is no whole checkpoint of this program"):
        start(config, tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["model.safetensors"]


def test_a_checkpoint_of_the_old_naming_is_refused_in_one_line(tmp_path: Path) -> None:
    config = replace(FULL, validation_steps=0, max_train_steps=4, checkpointing_steps=2)
    with pytest.raises(Killed):
        start(config, tmp_path / "run", at={3: kill})
    folder = tmp_path / "run" / "checkpoint-2"
    state = json.loads((folder / "state.json").read_text())
    del state["layout"]
    (folder / "state.json").write_text(json.dumps(state))
    old = {name.removeprefix("unet."): tensor for name, tensor in load_file(folder / "weights.safetensors").items()}
    save_file(old, folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"checkpoint-2: written by another version") as refused:
        start(config, tmp_path / "run")
    assert "\n" not in str(refused.value)


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


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_an_optimizer_comes_back_with_all_it_knew(optimizer: str, tmp_path: Path) -> None:
    """Tensors bit for bit in their own types, numbers, and what groups hold; and the next step is the same one."""
    pytest.importorskip(OPTIONAL.get(optimizer, "torch"))

    def trained() -> Trained:
        shapes = {"unet.a": (80, 64), "unet.b": (7,), "text_encoder.c": (64, 72)}
        parameters = {
            name: torch.nn.Parameter(normal(torch.Size(shape), number))
            for number, (name, shape) in enumerate(shapes.items())
        }
        made = make_optimizer(parameters, FinetuneConfig(optimizer=optimizer, learning_rate=1.0))
        return Trained(parameters=parameters, optimizer=made, average=None, scaler=None)

    def step(one: Trained, number: int) -> None:
        for parameter in one.parameters.values():
            parameter.grad = normal(parameter.shape, 100 + number)
        one.optimizer.step()

    one, other = trained(), trained()
    for number in range(3):
        step(one, number)
    save_checkpoint(tmp_path, 3, one, {})
    load_checkpoint(tmp_path, 3, other)
    for name, parameter in one.parameters.items():
        before, after = one.optimizer.state[parameter], other.optimizer.state[other.parameters[name]]
        assert before.keys() == after.keys()
        for kind, value in before.items():
            assert type(after[kind]) is type(value), kind
            if isinstance(value, torch.Tensor):
                assert after[kind].dtype == value.dtype, kind
                assert torch.equal(after[kind], value), kind
            else:
                assert after[kind] == value, kind
    for before, after in zip(one.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        assert {k: v for k, v in before.items() if k != "params"} == {k: v for k, v in after.items() if k != "params"}
    dtypes = {
        v.dtype for state in one.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)
    }
    assert (torch.uint8 in dtypes) == (optimizer == "adamw8bit")
    assert ("d" in one.optimizer.param_groups[0]) == (optimizer == "prodigy")
    for number in (3, 4):
        step(one, number)
        step(other, number)
    assert all(torch.equal(p, other.parameters[name]) for name, p in one.parameters.items())


def test_a_state_of_other_weights_or_groups_is_refused(tmp_path: Path) -> None:
    def trained(names: list[str]) -> Trained:
        parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in names}
        made = make_optimizer(parameters, FinetuneConfig())
        for parameter in parameters.values():
            parameter.grad = torch.ones(2)
        made.step()
        return Trained(parameters=parameters, optimizer=made, average=None, scaler=None)

    save_checkpoint(tmp_path, 1, trained(["unet.a", "unet.b"]), {})
    optimizer = tmp_path / "checkpoint-1" / "optimizer.safetensors"
    tensors = load_file(optimizer)
    save_file({name.replace("unet.b", "unet.c"): tensor for name, tensor in tensors.items()}, optimizer)
    with pytest.raises(UserError, match=r"optimizer\.safetensors: it holds the state of other weights"):
        load_checkpoint(tmp_path, 1, trained(["unet.a", "unet.b"]))


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no checkpoint of this program"):
        save_checkpoint(tmp_path, 5, something_trained(), {})
    assert [path.name for path in (tmp_path / "checkpoint-5").iterdir()] == ["notes.txt"]


def test_rotation_keeps_the_last_the_best_and_whatever_is_not_ours(tmp_path: Path) -> None:
    trained = something_trained()
    for update in (5, 10, 15, 20, 100):
        save_checkpoint(tmp_path, update, trained, {})
    for foreign in ("checkpoint-best", "checkpoint-7", "checkpoint-1-old", "checkpoints"):
        (tmp_path / foreign).mkdir()
        (tmp_path / foreign / "notes.txt").write_text("mine")
    rotate_checkpoints(tmp_path, 2, 5, best=10)
    assert checkpoint_updates(tmp_path) == [10, 20, 100]
    rotate_checkpoints(tmp_path, 1, 5, best=None)
    assert checkpoint_updates(tmp_path) == [100]
    rotate_checkpoints(tmp_path, None, 5, best=None)
    assert checkpoint_updates(tmp_path) == [100]
    for update in (103, 110, 111):
        save_checkpoint(tmp_path, update, trained, {})
    rotate_checkpoints(tmp_path, 3, 5, best=None)  # 103 is one that a stopped process left, 111 the latest
    assert checkpoint_updates(tmp_path) == [100, 110, 111]
    rotate_checkpoints(tmp_path / "no run", 3, 5, best=None)
    assert all((tmp_path / name).is_dir() for name in ("checkpoint-best", "checkpoint-7", "checkpoint-1-old"))


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = something_trained()
    save_checkpoint(tmp_path, 5, trained, {})
    monkeypatch.setattr("diffusion_sft.finetune.checkpoints.write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path, 10, trained, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    # What a process leaves that had no time to clear up is not taken for a checkpoint, and goes at the next start.
    (tmp_path / ".partial-checkpoint-10.000000-1-0123abcd").mkdir()
    (tmp_path / ".checkpoint-notes").mkdir()
    assert checkpoint_updates(tmp_path) == [5]
    with locked(tmp_path):
        pass
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
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_checkpoints import SPOILT, TOGETHER, ConceptsConfig, DiffusionLearner, go, read_concept_set
from diffusion_sft.processes import process_device
learner = DiffusionLearner.load(sys.argv[2], device=process_device())
concept_set = read_concept_set(ConceptsConfig(path=sys.argv[3])).concept_set
if sys.argv[5] == "spoilt" and os.environ["RANK"] == "1":
    plain, loss = learner.batch, learner.loss
    learner.batch = lambda items, **rest: (items[0].visit, plain(items, **rest))
    learner.loss = lambda batch: loss(batch[1]) * (float("nan") if batch[0] == 1 else 1.0)
stop = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if os.environ["RANK"] == "1" else (lambda: None)
at = {int(sys.argv[6]): stop} if len(sys.argv) > 6 else None
config = SPOILT if sys.argv[5] == "spoilt" else TOGETHER[sys.argv[5]][1]
go(learner, concept_set, config, Path(sys.argv[4]), at)
"""
SHORT = replace(FULL, max_train_steps=6, checkpointing_steps=2)
TOGETHER = {
    "full": (SHORT, replace(SHORT, gradient_accumulation_steps=1)),
    "accumulated": (
        replace(SHORT, gradient_accumulation_steps=4, validation_steps=0, train_batch_size=1),
        replace(SHORT, gradient_accumulation_steps=2, validation_steps=0, train_batch_size=1),
    ),
    "text encoder": (
        replace(WAYS["text encoder"], max_train_steps=6, lora_dropout=0.0),
        replace(WAYS["text encoder"], max_train_steps=6, lora_dropout=0.0, gradient_accumulation_steps=1),
    ),
}
"""The settings of one process, and of each of two that make the same updates."""
SPOILT = replace(SHORT, gradient_accumulation_steps=1, validation_steps=0, max_nonfinite_steps=2)


@pytest.fixture
def start_together(tiny_pipeline: Path, tiny_set: Path, tmp_path: Path) -> Callable[..., int]:
    """A run of two processes; the second gets a SIGTERM `at` an update. Returns the launcher's exit code."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(way: str, folder: Path, at: int | None = None) -> int:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        arguments = [str(Path(__file__).parent), str(tiny_pipeline), str(tiny_set), str(folder), way]
        arguments += [] if at is None else [str(at)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *launch, *arguments], env=environment, timeout=600)
        return done.returncode

    return start


@pytest.mark.slow
@pytest.mark.parametrize("way", TOGETHER)
def test_two_processes_make_the_updates_of_one_with_twice_the_accumulation(
    way: str, start_diffusion: Start, start_together: Callable[..., int], tmp_path: Path
) -> None:
    """The same examples, rates and rotation; losses to 1e-4, gradients and weights to 1e-3: sums in another order."""
    runs = [tmp_path / "alone", tmp_path / "together"]
    alone = start_diffusion(TOGETHER[way][0], runs[0])
    assert start_together(way, runs[1]) == 0
    together = json.loads((runs[1] / "finetune.json").read_text())
    assert (alone["record"]["num_processes"], together["record"]["num_processes"]) == (1, 2)
    assert alone["examples_per_update"] == together["examples_per_update"]
    weights = [load_file(run / "checkpoint-6" / "weights.safetensors") for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, two in zip(*metrics, strict=True):
        assert one.keys() == two.keys()
        assert one["examples_seen"] == two["examples_seen"]
        assert one["learning_rate"] == two["learning_rate"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    assert checkpoint_updates(runs[0]) == checkpoint_updates(runs[1])
    if TOGETHER[way][0].validation_steps:
        tables = [pd.read_parquet(run / "evaluations.parquet") for run in runs]
        pd.testing.assert_frame_equal(*tables, rtol=1e-3)


@pytest.mark.slow
def test_a_sigterm_to_one_process_stops_both_and_the_run_goes_on(
    start_together: Callable[..., int], tmp_path: Path
) -> None:
    assert start_together("text encoder", tmp_path / "straight") == 0
    assert start_together("text encoder", tmp_path / "resumed", at=3) != 0
    assert checkpoint_updates(tmp_path / "resumed") == [3]
    assert len((tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()) == 3
    assert start_together("text encoder", tmp_path / "resumed") == 0
    weights = [load_file(tmp_path / run / "checkpoint-6" / "weights.safetensors") for run in ("straight", "resumed")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("straight", "resumed")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_both_processes_skip_an_update_that_one_of_them_spoils(
    start_together: Callable[..., int], tmp_path: Path
) -> None:
    """Six examples at four an update: each one's second visit lies in updates 2 and 3, and is spoilt on the second
    process alone, where it comes first in a batch."""
    code = start_together("spoilt", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [line["update"] for line in lines if "skipped" in line]
    assert skipped in ([2], [3], [2, 3])
    for line in lines:
        assert (line["loss"] is None) == (line["update"] in skipped)
        # Two of four: those of the second process.
        assert len(line.get("examples", [0, 0])) == 2
    assert (code != 0) == (len(skipped) == 2) == (tmp_path / "run" / "nonfinite.json").is_file()
