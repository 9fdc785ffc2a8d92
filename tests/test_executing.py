"""Runs handed out to other processes: the same results, a death on the way or not, and mistakes told as they are."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_language_story import QUICK as QUICK_WORDS
from test_language_story import base, questions  # noqa: F401
from test_story import QUICK, readout  # noqa: F401

from diffusion_sft import executing
from diffusion_sft.cli import main
from diffusion_sft.errors import UserError
from diffusion_sft.executing import Piece, on_ray, ray_joined
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.plan import MethodConfig, RayConfig, StudyConfig, planned_runs

SLURM = sorted((Path(__file__).parents[1] / "scripts" / "slurm").iterdir())
KEPT = {".parquet", ".csv", ".png", ".safetensors"}
"""Files without times or places in them."""
SWEEP = [
    *("learners=[llm, diffusion]", "figures=false"),
    *("mixes=[{name: natural, num_concepts: 2}]", "seeds=[0, 1]"),
    "methods=[{method: full}, {method: lora, rank: 2, learning_rate: 1.0e-3}]",
    *("llm.mixes=[{name: natural}]", "llm.methods=[{method: full}]"),
    *("finetune.max_train_steps=40", "finetune.checkpointing_steps=4", "finetune.validation_steps=20"),
]


@dataclass(frozen=True)
class Says:
    """Says what it finds in its process, or fails."""

    folder: Path

    def perform(self, stage: str, name: str) -> None:
        """Die once, fail, or write down what this process is."""
        if name == "dies":
            first = not (self.folder / "died").exists()
            (self.folder / "died").touch()
            if first:
                os.kill(os.getpid(), signal.SIGKILL)
        if name == "stopped":
            first = not (self.folder / "stopped").exists()
            (self.folder / "stopped").touch()
            if first:
                raise SystemExit(143)
        if name == "dies-always":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "wrong":
            tries = self.folder / "tries"
            tries.write_text((tries.read_text() if tries.exists() else "") + "x", encoding="utf-8")
            raise UserError("bse: did you mean base?")
        if name == "broken":
            raise ZeroDivisionError("of our own making")
        print(stage, name, torch.get_num_threads(), os.environ.get("WORLD_SIZE"), os.getcwd())


def pieces(folder: Path, *names: str) -> list[Piece]:
    logs = folder / "logs"
    return [
        Piece(learner="x", stage="work", name=name, performer=partial(Says, folder), log=logs / f"work-{name}.log")
        for name in names
    ]


# --- what is planned ---


def test_runs_are_every_mix_with_every_method_and_seed() -> None:
    mixes, methods = [MixConfig(name="a"), MixConfig(name="b")], [MethodConfig(), MethodConfig(method="lora", rank=4)]
    assert [run.name for run in planned_runs(mixes, [], 7)] == ["a", "b"]
    assert [run.name for run in planned_runs(mixes, [0, 1], 7)] == ["a-seed0", "a-seed1", "b-seed0", "b-seed1"]
    assert [run.name for run in planned_runs(mixes, [], 7, methods)] == [
        "a-full",
        "a-lora-rank4",
        "b-full",
        "b-lora-rank4",
    ]
    varied = planned_runs(mixes[:1], [0, 1], 7, methods)
    assert [run.name for run in varied] == [
        "a-full-seed0",
        "a-full-seed1",
        "a-lora-rank4-seed0",
        "a-lora-rank4-seed1",
    ]
    config = FinetuneConfig(learning_rate=0.5, rank=3)
    assert varied[3].settings(config) == replace(config, method="lora", rank=4, seed=1)
    assert (varied[3].method_name(config), planned_runs(mixes, [], 7)[0].method_name(config)) == (
        "lora-rank4",
        "full",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods=[{method: lora}, {method: lora}]"], "each may be there once"),
        (["methods=[{method: full, rank: 4}]"], "rank=4 is for lora"),
        (
            ["methods=[{method: full}]", "finetune.method=lora", "finetune.use_dora=true"],
            "use_dora needs method=lora",
        ),
        (["llm.methods=[{method: cross_attention}]"], "a language model has none"),
        (
            [
                "mixes=[{name: a}]",
                "methods=[{}, {method: lora}]",
                "finetune.push_to_hub=true",
                "finetune.hub_model_id=a/b",
            ],
            "several runs would overwrite",
        ),
        (
            [
                "llm.mixes=[{name: a}]",
                "seeds=[0, 1]",
                "llm.finetune.push_to_hub=true",
                "llm.finetune.hub_model_id=a/b",
            ],
            "llm.finetune.push_to_hub",
        ),
        (["executor=ray", "device=cuda:1"], "each run is given its GPU"),
        (["ray.address=ray://head:10001"], "auto, or host:port"),
        (["ray.gpus_per_run=1.5"], "a fraction of one GPU"),
        (["ray.max_retries=-1"], "max_retries must be at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_end_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--dry-run", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- one piece, without Ray ---


def test_a_piece_is_a_process_by_itself_with_the_study_s_folder_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    here = {"folder": str(tmp_path / "study"), "threads": 1, "gpus": 0.0}
    log = tmp_path / "logs" / "one.log"
    assert executing._perform(partial(Says, tmp_path), "work", "fine", str(log), here) is None
    assert executing._perform(partial(Says, tmp_path), "work", "wrong", str(log), here) == "bse: did you mean base?"
    first, told, second, mistake = log.read_text().splitlines()
    assert first.startswith(f"work fine: process {os.getpid()} on ")
    assert told == f"work fine 1 None {tmp_path / 'study'}"
    assert second.startswith("work wrong: process ")
    assert mistake == "diffusion-sft: bse: did you mean base?"
    assert not {"WORLD_SIZE", "PMI_SIZE"} & set(os.environ)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    elsewhere = here | {"folder": str(tmp_path / "absent")}
    said = executing._perform(partial(Says, tmp_path), "work", "fine", str(log), elsewhere)
    assert "does not see the folders of the study" in str(said)


def test_without_ray_and_among_several_processes_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "process_count", lambda: 2)
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="start the study once, not as 2"), ray_joined(RayConfig()):
        pass
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'diffusion_sft\[ray\]'"), ray_joined(RayConfig()):
        pass


def test_an_address_where_nothing_is_ends_at_once() -> None:
    pytest.importorskip("ray")
    started = time.monotonic()
    told = r"ray\.address=127\.0\.0\.1:9: no Ray there"
    with pytest.raises(UserError, match=told), ray_joined(RayConfig(address="127.0.0.1:9")):
        pass
    assert time.monotonic() - started < 20


def test_a_run_that_no_machine_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(
        nodes=lambda: [
            {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
            {"Alive": False, "Resources": {"GPU": 8.0}},
        ],
        cluster_resources=lambda: {"CPU": 4.0, "GPU": 1.0},
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    executing._check_room(RayConfig())
    executing._check_room(RayConfig(gpus_per_run=0.25, cpus_per_run=4))
    for config in (RayConfig(gpus_per_run=2), RayConfig(cpus_per_run=8)):
        with pytest.raises(UserError, match="no machine has room for a run"):
            executing._check_room(config)


# --- with Ray ---


@pytest.mark.slow
def test_a_death_is_tried_again_and_a_mistake_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Workers do not have the tests' folder.
    with ray_joined(RayConfig(max_retries=1)):
        on_ray(pieces(tmp_path, "fine", "dies", "stopped"), RayConfig(max_retries=1))
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ray: x, work")]
        assert [line.rpartition("; ")[2] for line in told] == ["2 of 3 left", "1 of 3 left", "0 of 3 left"]
        for name in ("stopped", "dies"):
            log = (tmp_path / "logs" / f"work-{name}.log").read_text()
            assert len(set(re.findall(r"process (\d+) on", log))) == 2
        assert f"work dies 1 None {os.getcwd()}" in log
        with pytest.raises(UserError) as caught:
            on_ray(pieces(tmp_path, "wrong", "fine"), RayConfig(max_retries=1))
        assert str(caught.value) == "bse: did you mean base?"
        assert (tmp_path / "tries").read_text() == "x"
        printed = capsys.readouterr().out
        assert f"ray: x, work wrong FAILED, see {tmp_path / 'logs' / 'work-wrong.log'}" in printed
        assert "ray: x, work fine done" in printed
        with pytest.raises(
            UserError, match=r"work dies-always: its process died 2 times .*run the same command again"
        ):
            on_ray(pieces(tmp_path, "dies-always"), RayConfig(max_retries=1))
        with pytest.raises(ZeroDivisionError, match="of our own making"):
            on_ray(pieces(tmp_path, "broken"), RayConfig(max_retries=1))


OURS = """
import os, subprocess, sys
from diffusion_sft.executing import ray_joined
from diffusion_sft.plan import RayConfig

with ray_joined(RayConfig()):
    import ray

    script = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, logging_level='ERROR')"
    strangers = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    for known in (token, {}, token | {"RAY_AUTH_TOKEN": "0" * 64}):
        done = subprocess.run([sys.executable, "-c", script], env=strangers | known, capture_output=True)
        print(done.returncode)
"""


@pytest.mark.slow
def test_a_cluster_of_our_own_works_for_nobody_else() -> None:
    pytest.importorskip("ray")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", OURS], env=clean, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1", "1"], done.stderr


def kill_in_the_middle(run: Path, log: Path, killed: list[int]) -> None:
    """Kill the process that works on a run once the run has a checkpoint."""
    until = time.monotonic() + 500
    while time.monotonic() < until and not killed:
        if any(run.glob("checkpoint-*")):
            killed.append(int(re.findall(r"process (\d+) on", log.read_text())[-1]))
            os.kill(killed[0], signal.SIGKILL)
            assert not (run / "finetune.json").exists(), "the run was over already: make it longer"
        time.sleep(0.01)


def kept_files(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in KEPT}
    return {name: path for name, path in found.items() if not name.startswith("events")}


@pytest.mark.slow
def test_ray_gives_the_local_results_with_a_worker_killed(
    tiny_pipeline: Path,
    tiny_set: Path,
    base: Path,  # noqa: F811
    questions: Path,  # noqa: F811
    readout: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray")
    command = ["study", *QUICK, *QUICK_WORDS, *SWEEP, f"base={tiny_pipeline}", f"concepts.path={tiny_set}"]
    command += [f"llm.base={base}", f"llm.questions.path={questions}", f"evaluate.weights={readout}"]
    local, spread = tmp_path / "local" / "study", tmp_path / "ray" / "study"  # Tables name a study by its folder.
    assert main([*command, f"output_dir={local}"]) == 0
    name = "natural-lora-rank2-seed0"
    killed: list[int] = []
    log = spread / "logs" / f"finetune-{name}.log"
    killer = threading.Thread(target=kill_in_the_middle, args=(spread / "finetune" / name, log, killed))
    killer.start()
    capsys.readouterr()
    assert main([*command, f"output_dir={spread}", "executor=ray"]) == 0
    killer.join()
    printed = capsys.readouterr().out
    assert "ray: diffusion, finetune natural-full-seed1 done" in printed
    assert "ray: llm, finetune natural-full-seed1 done" in printed
    assert "ray: diffusion, generate base done" in printed
    first, second = re.findall(r"process (\d+) on", log.read_text())
    assert (int(first), first != second) == (killed[0], True)
    assert "going on after update" in log.read_text()
    ours, theirs = kept_files(local), kept_files(spread)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 100
    assert [name for name, path in ours.items() if path.read_bytes() != theirs[name].read_bytes()] == []
    model = pd.read_parquet(spread / "dynamics" / "linear_model.parquet")
    assert set(model.method) == {"full", "lora-rank2"}
    page = (spread / "report.html").read_text(encoding="utf-8")
    assert "method lora-rank2" in page
    assert set(pd.read_parquet(spread / "solve" / "forecasts.parquet").run) == {
        "natural-full-seed0",
        "natural-full-seed1",
    }


# --- templates ---


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.name)
def test_the_slurm_templates_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    assert "set -euo pipefail" in text


def test_the_templates_settings_are_a_study_s() -> None:
    from diffusion_sft.settings import load_settings

    text = next(path for path in SLURM if path.name == "study_ray.sbatch").read_text(encoding="utf-8")
    given = re.findall(r"\b((?:executor|ray\.\w+)=[\w.:]+)", text)
    config = load_settings(StudyConfig, None, given)
    assert config.executor == "ray"
    assert config.ray.address == "auto"
