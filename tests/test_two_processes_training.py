"""Two processes train what one trains: copies of a network (DDP) and one network divided among them (FSDP), on CPUs.

Tolerances: losses to 1e-5 of their size, weights to 2e-5 after updates of 1e-3 each (Adam turns rounding of gradients
near zero into steps). Where one number of processes goes on from its own checkpoint, every bit is the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import tiny_pipeline
from diffusers import StableDiffusionPipeline
from language_models import question_set, tiny_folder
from PIL import Image
from safetensors.torch import load_file
from test_two_processes_probe import concepts_at, written_set

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.errors import UserError
from diffusion_sft.finetune import sharding
from diffusion_sft.finetune.acceleration import accelerated
from diffusion_sft.finetune.average import AveragedWeights
from diffusion_sft.finetune.config import FinetuneConfig, LanguageFinetuneConfig
from diffusion_sft.finetune.estimate import make_plan
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.optimizers import make_optimizer
from diffusion_sft.finetune.parts import trainable_parameters
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.processes import process_count, process_device, process_index

CONFIG = FinetuneConfig(
    train_batch_size=4,
    max_train_steps=12,
    learning_rate=1e-3,
    use_ema=True,
    ema_horizon=3,
    report_to=None,
    checkpointing_steps=6,
    checkpoints_total_limit=None,
    validation_steps=6,
    validation_draws=2,
    validation_examples_per_concept=1,
    validation_prompts=["a photo of a wug"],
    num_validation_images=1,
    validation_inference_steps=2,
)
CROSS = replace(
    CONFIG,
    method="cross_attention",
    gradient_checkpointing=True,
    gradient_accumulation_steps=2,
    ema_device="cpu",
    max_train_steps=4,
    train_batch_size=2,
    checkpointing_steps=4,
    validation_steps=0,
    save_single_file=True,
)
WORDS = LanguageFinetuneConfig(
    train_batch_size=4, max_train_steps=4, learning_rate=1e-3, validation_steps=4, report_to=None
)
HALFWAY = replace(CONFIG, max_train_steps=6)
PRECISE = replace(CONFIG, mixed_precision="bf16", max_train_steps=4, validation_steps=4, checkpointing_steps=4)
ANSWERS = AnswerConfig(num_candidates=5, num_invented=1)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def teach(bases: Path, folder: Path, config: FinetuneConfig, base: str = "sd1") -> dict[str, Any]:
    """One run; over several processes with as much smaller batches, so that every update sees the same examples."""
    count = process_count()
    config = replace(config, train_batch_size=config.train_batch_size // count)
    if isinstance(config, LanguageFinetuneConfig):
        concepts = question_set(train=4, development=3)
        words = LanguageLearner.load(bases / "words", device=process_device())
        mix = compose(MixConfig(name="all"), None, concepts, 0)
        return finetune(words, mix, make_exam(mix, None, concepts, config, AnswerConfig()), config, folder)
    concepts = concepts_at(str(bases / "set"))
    learner = DiffusionLearner.load(bases / base, device=process_device())
    mix = compose(MixConfig(name="all"), None, concepts, 0)
    return finetune(learner, mix, make_exam(mix, None, concepts, config, ANSWERS), config, folder)


def together(bases: Path, root: Path) -> None:
    """What each of two processes does."""
    teach(bases, root / "plain", CONFIG)
    teach(bases, root / "cross", CROSS, "sdxl")
    teach(bases, root / "precise", PRECISE)
    teach(bases, root / "words", WORDS)
    if sharding.sharding_asked():
        teach(bases, root / "resumed", HALFWAY)
        teach(bases, root / "resumed", CONFIG)
        teach(bases, root / "taken-over", CONFIG)  # from the other way's checkpoint
        measure(bases, root / f"sizes-{process_index()}.json")
        divide_one_row()


def measure(bases: Path, file: Path) -> None:
    """Plan and measure what a process keeps of a divided network; its weights need not be laid out as files are."""
    learner = DiffusionLearner.load(bases / "sd1")
    learner.pipeline.unet.to(memory_format=torch.channels_last)
    parts, config = learner.parts(), replace(CONFIG, method="cross_attention")
    parameters = trainable_parameters(parts, config)
    plan = make_plan(parts, parameters, config, 4, 4.0, num_shards=process_count())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    parameters = sharding.shard(parts, parameters, "no")
    assert all(torch.equal(sharding.whole(p), before[name]) for name, p in parameters.items())
    optimizer = make_optimizer(parameters, config)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [*learner.network.parameters(), *learner.network.buffers()]
    found = {
        "weights": sum(sharding.own_part(tensor).nbytes for tensor in held),
        "gradients": sum(sharding.own_part(p).nbytes for p in parameters.values()),
        "optimizer": sum(
            sharding.own_part(value).nbytes for state in optimizer.state.values() for value in state.values()
        ),
    }
    file.write_text(json.dumps({"found": found, "planned": {name: getattr(plan, name) for name in found}}))


def divide_one_row() -> None:
    """Of a weight with fewer rows than processes some have nothing, and all can put it together."""
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(layer.weight, 2.0)
    torch.nn.init.constant_(layer.bias, -1.0)
    before = {f"layer.{name}": parameter.detach().clone() for name, parameter in layer.named_parameters()}
    own = {f"layer.{name}": parameter for name, parameter in layer.named_parameters()}
    sharded = sharding.shard({"layer": layer}, own, "no")
    average = AveragedWeights(sharded, horizon=3)
    for name, parameter in sharded.items():
        part = sharding.own_part(parameter)
        assert len(part) == (1 if process_index() == 0 else 0)
        assert torch.equal(sharding.whole(part, parameter), before[name])
        assert torch.equal(sharding.whole(sharding.sharded_as(3 * before[name], parameter)), 3 * before[name])
        part.add_(1.0)
    assert average.distance() == pytest.approx(2 / math.sqrt(27))
    average.update(1)
    assert average.distance() == 0.0


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_two_processes_training as test
test.together(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def launch(kind: str, bases: Path, root: Path) -> None:
    """Two processes, as the shipped configuration of accelerate starts them, on CPUs and in float32."""
    script = root.with_suffix(".py")
    script.write_text(SCRIPT)
    config = Path(__file__).parents[1] / "configs" / "accelerate" / f"{kind}.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--main_process_port", "0", str(script)]
    done = subprocess.run(
        [sys.executable, *launcher, str(Path(__file__).parent), str(bases), str(root)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=900,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert ("divided over 2 processes" in done.stdout) == (kind == "fsdp")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for name in ("sd1", "sdxl"):
        tiny_pipeline(root / name, name)
    tiny_folder(root / "words")
    written_set(root / "set")
    return root


@pytest.fixture(scope="module")
def alone(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    teach(bases, root / "plain", CONFIG)
    teach(bases, root / "cross", CROSS, "sdxl")
    teach(bases, root / "words", WORDS)
    return root


@pytest.fixture(scope="module")
def copies(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ddp")
    launch("ddp", bases, root)
    return root


@pytest.fixture(scope="module")
def divided(bases: Path, copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fsdp")
    shutil.copytree(copies / "plain" / "checkpoint-6", root / "taken-over" / "checkpoint-6")
    for table in ("evaluations", "answers"):
        shutil.copy(copies / "plain" / f"{table}.parquet", root / "taken-over")
    shutil.copy(copies / "plain" / "metrics.jsonl", root / "taken-over")
    launch("fsdp", bases, root)
    return root


def metrics(run: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def gap(first: Path, second: Path) -> float:
    """The greatest difference of any number in two files of tensors."""
    one, other = load_file(first), load_file(second)
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in other.items()}
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def same_run(first: Path, second: Path, loss: float = 1e-5, weight: float = 2e-5) -> None:
    one, other = metrics(first), metrics(second)
    assert len(one) == len(other) > 3
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(one[name], other[name], rtol=loss)
    files = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.safetensors"))
    gaps = {file.as_posix(): gap(first / file, second / file) for file in files}
    assert max(gaps.values()) < weight, gaps


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copies", "divided"])
@pytest.mark.parametrize("run", ["plain", "cross", "words"])
def test_two_processes_train_what_one_does(way: str, run: str, alone: Path, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(way)
    same_run(alone / run, root / run)
    for table in ("answers", "evaluations"):
        if run != "cross":
            one, other = (pd.read_parquet(folder / run / f"{table}.parquet") for folder in (alone, root))
            pd.testing.assert_frame_equal(one, other, rtol=1e-3)
    columns = ["ema_decay", "ema_distance", "relative_update"] if run == "plain" else []
    for name in columns:
        one, other = (metrics(folder / run)[name].dropna() for folder in (alone, root))
        assert len(one) > 0
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copies", "divided"])
def test_they_draw_and_export_what_one_does(way: str, alone: Path, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(way)
    drawn = sorted(path.name for path in (alone / "plain" / "samples").iterdir())
    assert len(drawn) == 3
    for name in drawn:
        one, other = (np.asarray(Image.open(folder / "plain" / "samples" / name)) for folder in (alone, root))
        assert np.abs(one.astype(int) - other).max() <= 1
    for run, folder in (("plain", "pipeline"), ("cross", "pipeline"), ("words", "model")):
        for path in (alone / run / folder).rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                assert (root / path.relative_to(alone)).read_bytes() == path.read_bytes(), path
    pipeline = StableDiffusionPipeline.from_pretrained(root / "plain" / "pipeline", safety_checker=None)
    stored = load_file(root / "plain" / "checkpoint-12" / "average.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, stored[f"unet.{name}"])
    assert (root / "cross" / "all.safetensors").is_file()


@pytest.mark.slow
def test_a_divided_network_goes_on_to_the_last_bit(divided: Path) -> None:
    straight, resumed = divided / "plain", divided / "resumed"
    assert (straight / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    for name in ("checkpoint-6", "checkpoint-12", "pipeline"):
        for file in (straight / name).rglob("*.safetensors"):
            assert file.read_bytes() == (resumed / file.relative_to(straight)).read_bytes(), file


@pytest.mark.slow
def test_a_divided_network_goes_on_from_copies(copies: Path, divided: Path) -> None:
    same_run(copies / "plain", divided / "taken-over")
    before = metrics(copies / "plain")[:6]
    pd.testing.assert_frame_equal(metrics(divided / "taken-over")[:6], before, check_exact=True)


@pytest.mark.slow
def test_in_half_precision_a_divided_network_is_near_copies_and_kept_in_float32(copies: Path, divided: Path) -> None:
    same_run(copies / "precise", divided / "precise", loss=2e-2, weight=5e-3)
    stored = load_file(divided / "precise" / "checkpoint-4" / "weights.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    rounded = [torch.equal(tensor, tensor.bfloat16().float()) for tensor in stored.values()]
    assert np.mean(rounded) < 0.5


@pytest.mark.slow
def test_a_process_keeps_what_the_plan_says(divided: Path) -> None:
    sizes = [json.loads((divided / f"sizes-{number}.json").read_text()) for number in range(2)]
    assert sizes[0]["found"] == sizes[0]["planned"] == sizes[1]["planned"]
    for name, share in sizes[1]["found"].items():
        assert 0.9 * sizes[0]["found"][name] < share <= sizes[0]["found"][name]


# --- without a launcher ---


def test_one_process_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sharding.ASKED, "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not sharding.sharding_asked()
    sharding.check_sharding(replace(CONFIG, method="lora"), "fp16")


@pytest.mark.parametrize(
    ("environment", "changed", "precision", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "no", "fsdp_version: this program shards with version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "no", "fsdp_offload_params: the weights stay on their devices"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "no", "set gradient_checkpointing=true here"),
        ({}, {"method": "lora"}, "no", "method=lora: adapters are small and are not sharded"),
        ({}, {"optimizer": "adafactor"}, "no", "optimizer=adafactor: only adamw's state"),
        ({}, {"compile_mode": "default"}, "no", "compile_mode: a sharded network is not compiled"),
        ({}, {}, "fp16", "mixed_precision=fp16: gradients are not scaled"),
    ],
)
def test_what_is_not_divided_is_refused(
    environment: dict[str, str],
    changed: dict[str, Any],
    precision: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ({sharding.ASKED: "true", "FSDP_VERSION": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sharding, "process_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        sharding.check_sharding(replace(CONFIG, **changed), precision)


def test_a_run_that_cannot_be_divided_ends_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(sharding.ASKED, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(sharding, "process_count", lambda: 2)
    sharding.check_sharding(CONFIG, "bf16")
    config = replace(CONFIG, method="lora")
    with (
        pytest.raises(UserError, match="method=lora: adapters are small"),
        accelerated(torch.device("cpu"), config, tmp_path),
    ):
        pass
    assert os.environ[sharding.ASKED] == "true"
    assert list(tmp_path.iterdir()) == []
