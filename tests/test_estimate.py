"""What is said before a run against what the run then takes: bytes of states, files and weights, to the byte."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from taught import TABLE, taught

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.errors import UserError
from diffusion_sft.finetune import estimate
from diffusion_sft.finetune.average import AveragedWeights
from diffusion_sft.finetune.begin import dry_plan
from diffusion_sft.finetune.checkpoints import Trained, save_checkpoint
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.estimate import (
    Pace,
    Plan,
    check_disk,
    make_plan,
    optimizer_layout,
    plan_text,
    size,
    time_text,
)
from diffusion_sft.finetune.evaluations import Exam, make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.optimizer_state import state_bytes
from diffusion_sft.finetune.optimizers import make_optimizer
from diffusion_sft.finetune.parts import trainable_parameters
from diffusion_sft.finetune.sharding import ASKED
from diffusion_sft.tensor_files import file_bytes

NEEDS = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}


@pytest.fixture
def parts(tiny_pipeline: Path) -> dict[str, torch.nn.Module]:
    return {"unet": UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")}


@pytest.mark.parametrize("method", ["full", "cross_attention", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_states_and_checkpoints_are_as_large_as_was_said(
    optimizer: str, method: str, parts: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    pytest.importorskip(NEEDS.get(optimizer, "torch"))
    config = FinetuneConfig(optimizer=optimizer, method=method, rank=3, learning_rate=1.0, use_ema=True)
    parameters = trainable_parameters(parts, config)
    plan = make_plan(parts, parameters, config, 4, 2.5)
    made = make_optimizer(parameters, config)
    layout = optimizer_layout(parameters, config)
    for number in range(2):
        for index, parameter in enumerate(parameters.values()):
            generator = torch.Generator().manual_seed(1000 * number + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        made.step()
    assert plan.optimizer == state_bytes(made)
    assert plan.gradients == sum(p.grad.nbytes for p in parameters.values() if p.grad is not None)
    assert plan.weights == sum(p.nbytes for p in parts["unet"].parameters())
    assert plan.num_trained == sum(p.numel() for p in parameters.values())
    average = AveragedWeights(parameters, horizon=3)
    assert plan.average == sum(t.nbytes for t in average.tensors.values())
    trained = Trained(parameters=parameters, optimizer=made, average=average, scaler=None)
    save_checkpoint(tmp_path, 1, trained, {})
    files = {file.name: file.stat().st_size for file in (tmp_path / "checkpoint-1").iterdir()}
    assert files["optimizer.safetensors"] == file_bytes(layout)
    assert plan.checkpoint == sum(size for name, size in files.items() if name != "state.json")
    if optimizer == "adamw8bit" and method == "full":
        assert {kind for kind, _ in layout.values()} == {"U8", "F32"}


def test_the_plan_needs_no_memory_for_weights(parts: dict[str, torch.nn.Module]) -> None:
    config = FinetuneConfig(use_ema=True)
    parameters = trainable_parameters(parts, config)
    with torch.device("meta"):
        empty = {"unet": UNet2DConditionModel.from_config(parts["unet"].config)}
    assert make_plan(empty, trainable_parameters(empty, config), config, 4, 2.5) == make_plan(
        parts, parameters, config, 4, 2.5
    )


def test_the_size_of_a_safetensors_file_is_known_without_writing_it(tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(3, 5),
        "a": torch.zeros(7, dtype=torch.uint8),
        "é/long name": torch.zeros(()),
        "z": torch.zeros(0),
        **{f"n{number}": torch.zeros(number) for number in range(40)},
    }
    save_file(tensors, tmp_path / "x.safetensors")
    kinds = {torch.float32: "F32", torch.uint8: "U8"}
    layout = {name: (kinds[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert file_bytes(layout) == (tmp_path / "x.safetensors").stat().st_size


PLAN = Plan(
    num_parameters=1000,
    num_trained=100,
    num_shards=1,
    weights=4000,
    at_evaluations=0,
    gradients=400,
    optimizer=800,
    average=400,
    average_on_cpu=False,
    checkpoint=2000,
    num_checkpoints=3,
    exports=4000,
    updates=100,
    examples_per_update=8,
    updates_per_pass=12.5,
)


def test_the_plan_says_what_is_computed_and_what_is_measured() -> None:
    text = plan_text(PLAN, FinetuneConfig(use_ema=True))
    assert "100 updates of 8 examples = 800 examples, 8 passes" in text
    assert "gradients 400 B, adamw 800 B, average 400 B; 5.60 kB on the device" in text
    assert "not computed: activations" in text
    assert "a checkpoint 2.00 kB, at most 3 at a time" in text
    assert "10.00 kB in all" in text
    on_cpu = plan_text(replace(PLAN, average_on_cpu=True), FinetuneConfig(use_ema=True, ema_device="cpu"))
    assert "average 400 B in the CPU's memory; 5.20 kB on the device" in on_cpu
    divided = plan_text(replace(PLAN, num_shards=4, at_evaluations=4000), FinetuneConfig())
    assert (
        "divided over 4 processes; at evaluations the network is whole on each device, which takes up to 4.00 kB"
        in divided
    )
    assert "divided" not in text


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"max_train_steps": 1000, "checkpointing_steps": 100}, 3),
        ({"max_train_steps": 1000, "checkpointing_steps": 100, "validation_steps": 50}, 4),
        ({"max_train_steps": 1000, "checkpointing_steps": 400, "checkpoints_total_limit": None}, 3),
        ({"max_train_steps": 100, "checkpointing_steps": 400, "checkpoints_total_limit": 5}, 1),
    ],
)
def test_no_run_has_more_checkpoints_than_was_said(
    settings: dict, count: int, parts: dict[str, torch.nn.Module]
) -> None:
    config = FinetuneConfig(**settings)
    assert make_plan(parts, trainable_parameters(parts, config), config, 1, 1.0).num_checkpoints == count


def test_a_disk_that_is_too_small_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 0, 9_999))
    with pytest.raises(UserError, match=r"needs 10\.00 kB of disk .* 10\.00 kB are free; lower checkpoints_total"):
        check_disk(PLAN, tmp_path)
    there = tmp_path / "checkpoint-5"
    there.mkdir()
    for name in ("weights.safetensors", "state.json"):
        (there / name).write_bytes(b"x")
    check_disk(PLAN, tmp_path)  # What is there already is not needed again.
    learner, concept_set = taught()
    mix = compose(MixConfig(name="m", num_concepts=2, unknown_share=0.5), TABLE, concept_set, 0)
    config = FinetuneConfig(max_train_steps=4, report_to=None)
    exam = make_exam(mix, TABLE, concept_set, config, AnswerConfig())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 0, 10))
    with pytest.raises(UserError, match="10 B are free"):
        finetune(learner, mix, exam, config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_dry_plan_is_the_plan_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, concept_set = taught()
    mix = compose(MixConfig(name="m", num_concepts=2, unknown_share=0.5), TABLE, concept_set, 0)
    config = FinetuneConfig(max_train_steps=3, train_batch_size=2, report_to=None)
    text = dry_plan(learner, mix, config)
    assert "3 updates of 2 examples = 6 examples, 0.75 passes" in text
    finetune(taught()[0], mix, Exam(questions={}, categories={}), config, tmp_path / "run")
    assert text in capsys.readouterr().out
    # With as many class images among them, an update sees half as many of the set's own.
    with_class = dry_plan(taught()[0], mix, replace(config, class_prompt="a photo of a blorp"), num_processes=2)
    assert "3 updates of 4 examples = 12 examples, 0.75 passes" in with_class
    monkeypatch.setenv(ASKED, "true")
    assert "divided over 2 processes" in dry_plan(taught()[0], mix, config, num_processes=2)
    assert "divided" not in dry_plan(taught()[0], mix, config)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (3_438_000_000, "3.44 GB"), (10**16, "10000.00 TB")],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size(count) == words


def test_the_time_left_is_the_mean_of_measured_updates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert time_text(0.75, 4900) == (
        "measured: 0.75 s an update; 4900 to go take 1:01:15 (h:mm:ss) besides evaluations and checkpoints"
    )
    durations = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 70.0]

    def clock() -> Iterator[float]:
        now = 0.0
        for duration in durations:
            yield now
            now += duration
            yield now

    ticks = clock()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    pace = Pace(Accelerator(cpu=True), 1006)
    for update in range(1, 7):
        with pace.timed(update):
            pass
    # The first update, of 9 seconds, is not counted.
    assert re.findall("measured: .*", capsys.readouterr().out) == [time_text(3.0, 1000)]
