"""Batches that are made beforehand, steps that are not waited for: the same runs, bit for bit, as without either."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import EXACT, UNKNOWN_MIX, run_exact, spoil
from torch import nn

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import Exam
from diffusion_sft.finetune.feeding import Feed, MicroBatch
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.optimizer_state import packed, restore
from diffusion_sft.finetune.optimizers import make_optimizer
from diffusion_sft.finetune.stepping import Steps
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.records import ConceptSet

CONFIG = replace(EXACT, max_train_steps=12, use_ema=True, checkpointing_steps=12, gradient_accumulation_steps=2)


def files_of(run: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "evaluations.csv")
    checkpoint = {file.name: file.read_bytes() for file in (run / "checkpoint-12").glob("*.safetensors")}
    return {name: (run / name).read_bytes() for name in names} | checkpoint


def micro(number: int) -> list[MicroBatch]:
    return [MicroBatch(batch=number, weights=torch.ones(1))]


@pytest.mark.parametrize("ahead", [False, True])
def test_each_update_gets_its_own_batches_from_any_start(ahead: bool) -> None:
    made: list[tuple[int, bool]] = []

    def make(update: int) -> list[MicroBatch]:
        made.append((update, threading.current_thread() is threading.main_thread()))
        return micro(update)

    with Feed(make, last=9, ahead=ahead) as feed:
        assert [feed.take(update)[0].batch for update in (4, 5, 6, 2, 3, 9)] == [4, 5, 6, 2, 3, 9]
    # Those that could be foreseen were made by the thread (4 may have been given up), and nothing after the last update.
    in_thread = {update for update, in_main in made if not in_main}
    assert in_thread - {4} == ({5, 6, 7, 3} if ahead else set())
    assert max(update for update, _ in made) == 9


def test_what_goes_wrong_beforehand_is_told_when_its_turn_comes() -> None:
    def make(update: int) -> list[MicroBatch]:
        if update == 3:
            raise UserError("3.png: cannot be read")
        return micro(update)

    with Feed(make, last=9, ahead=True) as feed:
        assert [feed.take(update)[0].batch for update in (1, 2)] == [1, 2]
        with pytest.raises(UserError, match=r"3\.png: cannot be read"):
            feed.take(3)


def test_a_run_is_the_same_when_its_batches_are_made_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_exact(CONFIG, tmp_path / "plain", UNKNOWN_MIX)
    threads: set[bool] = set()
    plain = ExactLearner.batch

    def watched(self: ExactLearner, items: list, **rest: object) -> object:
        threads.add(threading.current_thread() is threading.main_thread())
        return plain(self, items, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ExactLearner, "batch", watched)
    monkeypatch.setattr(
        "diffusion_sft.finetune.run.Feed", lambda make, *, last, ahead: Feed(make, last=last, ahead=True)
    )
    run_exact(CONFIG, tmp_path / "ahead", UNKNOWN_MIX)
    assert threads == {True, False}  # the first batch is waited for
    assert files_of(tmp_path / "ahead") == files_of(tmp_path / "plain")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_step_left_out_by_the_optimiser_is_one_left_out_here(
    value: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        spoil(monkeypatch, lambda item: item.example.id == "dax/train-2" and item.visit == 3, value)
    run_exact(CONFIG, tmp_path / "device", UNKNOWN_MIX)
    monkeypatch.setattr(Steps, "leaves_out_steps", False)
    run_exact(CONFIG, tmp_path / "here", UNKNOWN_MIX)
    assert files_of(tmp_path / "device") == files_of(tmp_path / "here")
    lines = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(1, 13))
    assert sum("skipped" in line for line in lines) == (0 if value is None else 1)


def test_nobody_waits_for_an_update_before_the_next_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of an update are read after the backward pass of the next one was made."""
    order: list[str] = []
    plain_loss, plain_log = ExactLearner.loss, Steps._log

    def loss(self: ExactLearner, batch: object) -> torch.Tensor:
        order.append("loss")
        return plain_loss(self, batch)  # type: ignore[arg-type]

    def log(self: Steps, report: object, values: object) -> None:
        order.append("read")
        plain_log(self, report, values)  # type: ignore[arg-type]

    monkeypatch.setattr(ExactLearner, "loss", loss)
    monkeypatch.setattr(Steps, "_log", log)
    run_exact(replace(EXACT, max_train_steps=5, validation_steps=0), tmp_path / "run", UNKNOWN_MIX)
    assert order == ["loss", "loss", "read", "loss", "read", "loss", "read", "loss", "read", "read"]


def one_layout(channels_last: bool) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    order = torch.channels_last if channels_last else torch.contiguous_format
    parameters = {"unet.conv.weight": nn.Parameter(weight.contiguous(memory_format=order))}
    return parameters, make_optimizer(parameters, FinetuneConfig(learning_rate=0.1))


def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    for parameter in parameters.values():
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def test_moments_from_a_file_lie_in_memory_as_their_weights_do() -> None:
    """A file knows no strides, and a fused kernel does not look at them."""
    for channels_last in (False, True):
        straight, optimizer = one_layout(channels_last)
        for number in range(1, 4):
            step(straight, optimizer, number)
        tensors, rest = packed(optimizer, straight)
        stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        resumed, other = one_layout(channels_last)
        resumed["unet.conv.weight"].data.copy_(straight["unet.conv.weight"].data)
        restore(other, resumed, stored, rest)
        for number in range(4, 7):
            step(straight, optimizer, number)
            step(resumed, other, number)
        assert torch.equal(straight["unet.conv.weight"], resumed["unet.conv.weight"])


PICTURES = FinetuneConfig(
    train_batch_size=2, max_train_steps=6, checkpointing_steps=3, learning_rate=1e-3, use_ema=True, report_to=None
)


class Killed(BaseException):
    pass


def train(pipeline: Path, concept_set: ConceptSet, folder: Path, config: FinetuneConfig, **how: Any) -> Path:
    """Fine-tune on the set; `how`: channels_last, or killed in an update."""
    learner = DiffusionLearner.load(pipeline)
    if how.get("channels_last"):
        learner.pipeline.unet.to(memory_format=torch.channels_last)
    plain, calls = learner.loss, [0]

    def watched(batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == how.get("killed"):
            raise Killed
        return plain(batch)

    learner.loss = watched  # type: ignore[method-assign]
    mix = compose(MixConfig(name="all"), None, concept_set, 0)
    finetune(learner, mix, Exam(questions={}, categories={}), config, folder)
    return folder / "checkpoint-6"


def assert_close(one: Path, other: Path, relative: float) -> None:
    """All weights of two checkpoints, the average's among them."""
    for name in ("weights", "average"):
        left, right = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert left.keys() == right.keys()
        for key in left:
            assert float((left[key] - right[key]).norm()) <= relative * float(left[key].norm()) + 1e-7, key


def test_channels_last_is_a_matter_of_memory_alone(tiny_pipeline: Path, tiny_set: Path, tmp_path: Path) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    plain = train(tiny_pipeline, concept_set, tmp_path / "plain", PICTURES)
    last = train(tiny_pipeline, concept_set, tmp_path / "last", PICTURES, channels_last=True)
    assert_close(plain, last, 1e-3)
    with pytest.raises(Killed):
        train(tiny_pipeline, concept_set, tmp_path / "again", PICTURES, channels_last=True, killed=5)
    again = train(tiny_pipeline, concept_set, tmp_path / "again", PICTURES, channels_last=True)
    for file in ("weights", "average", "optimizer"):
        stored = [load_file(folder / f"{file}.safetensors") for folder in (last, again)]
        assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0]), file
    # What is exported is what any other tool would have written.
    (exported, other) = (
        load_file(folder.parent / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (last, plain)
    )
    assert {name: t.shape for name, t in exported.items()} == {name: t.shape for name, t in other.items()}


@pytest.mark.slow
def test_a_compiled_run_is_the_run_up_to_rounding(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    compiled: list[str] = []
    plain = nn.Module.compile

    def watched(self: nn.Module, *rest: Any, **named: Any) -> None:
        compiled.append(type(self).__name__)
        plain(self, *rest, **named)

    monkeypatch.setattr(nn.Module, "compile", watched)
    eager = train(tiny_pipeline, concept_set, tmp_path / "eager", PICTURES)
    assert compiled == []
    other = train(tiny_pipeline, concept_set, tmp_path / "compiled", replace(PICTURES, compile_mode="default"))
    assert compiled == ["UNet2DConditionModel"]
    assert_close(eager, other, 1e-3)
    names = load_file(other.parent / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert not any("_orig_mod" in name for name in names)
