"""Pushing to the Hub: what goes up and what stays, and what happens when it cannot, with a stand-in for the Hub."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from diffusion_sft.errors import UserError
from diffusion_sft.finetune.card import KOHYA_FILE, LORA_FILE
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import COLUMNS
from diffusion_sft.finetune.export import finish
from diffusion_sft.finetune.hub import check_hub, push
from diffusion_sft.finetune.mix import Mix
from diffusion_sft.learner import PIPELINE_LAYOUT

LEFT_HERE = (
    "checkpoint-10/weights.safetensors",
    "checkpoint-10/README.md",
    "logs/events.out.tfevents.1",
    "samples/update-000010.png",
    "class_images/0.png",
    "early/pipeline/unet/config.json",
    "early/README.md",
    "config.yaml",
    "metrics.jsonl",
    "evaluations.csv",
    "dynamics.parquet",
    "other.safetensors",
    ".token",
)
DOCUMENTS = {"README.md", "finetune.json", "evaluations.parquet"}
PIPELINE = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "tokenizer/merges.txt",
)


class Hub:
    """A Hub in memory; it picks files as the true one does."""

    def __init__(self, private: bool | None = None, error: Exception | None = None) -> None:
        self.repos: dict[str, bool] = {} if private is None else {"me/mine": private}
        self.files: dict[str, str] = {}
        self.error = error

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("model", True)
        self.repos.setdefault(repo_id, private)

    def repo_info(self, repo_id: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.repos[repo_id])

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> None:
        if self.error is not None:
            raise self.error
        root = Path(folder_path)
        names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            self.files[name] = (root / name).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")


def finished(folder: Path, weights: Sequence[str]) -> Path:
    for name in (*LEFT_HERE, *DOCUMENTS, *weights):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "finetune.json").write_text(json.dumps({"mix": "half", "exports": {"last": weights[0].split("/")[0]}}))
    return folder


def config(**settings: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"push_to_hub": True, "hub_model_id": "me/mine", **settings})


def test_a_pipeline_goes_to_the_top_and_nothing_of_the_run_with_it(tmp_path: Path) -> None:
    folder, hub = finished(tmp_path, [f"pipeline/{name}" for name in PIPELINE]), Hub()
    push(folder, config(), hub)
    assert set(hub.files) == {*PIPELINE, *DOCUMENTS}
    assert hub.files["unet/config.json"] == "pipeline/unet/config.json"
    assert hub.files["README.md"] == "README.md"
    assert hub.repos == {"me/mine": True}


def test_adapters_go_up_in_both_formats(tmp_path: Path) -> None:
    folder, hub = finished(tmp_path, [LORA_FILE, KOHYA_FILE]), Hub()
    push(folder, config(method="lora", hub_private=False), hub)
    assert set(hub.files) == {LORA_FILE, KOHYA_FILE, *DOCUMENTS}
    assert hub.repos == {"me/mine": False}


def test_a_single_file_goes_up_beside_the_pipeline(tmp_path: Path) -> None:
    folder, hub = finished(tmp_path, ["pipeline/model_index.json", "half.safetensors"]), Hub()
    push(folder, config(save_single_file=True), hub)
    assert set(hub.files) == {"model_index.json", "half.safetensors", *DOCUMENTS}


def test_nothing_is_pushed_unless_asked_for(tmp_path: Path) -> None:
    hub = Hub()
    push(finished(tmp_path, ["pipeline/model_index.json"]), FinetuneConfig(), hub)
    assert (hub.repos, hub.files) == ({}, {})


def test_a_private_push_never_lands_in_a_public_repository(tmp_path: Path) -> None:
    folder, hub = finished(tmp_path, ["pipeline/model_index.json"]), Hub(private=False)
    with pytest.raises(UserError, match="me/mine is public.*hub_private=false"):
        push(folder, config(), hub)
    assert hub.files == {}
    push(folder, config(hub_private=False), hub)
    assert "model_index.json" in hub.files


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), OSError("401 \x1b[2JUnauthorized"), ValueError()]
)
def test_a_failed_push_is_one_line_and_can_be_repeated(error: Exception, tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", ["pipeline/model_index.json"])
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="could not be pushed.*run again") as raised:
        push(folder, config(), Hub(error=error))
    assert str(raised.value).isprintable()
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    hub = Hub(private=True)
    push(folder, config(), hub)
    push(folder, config(), hub)
    assert set(hub.files) == {"model_index.json", *DOCUMENTS}


class Saver:
    """Stands for a learner."""

    layout = PIPELINE_LAYOUT

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        (folder / "model_index.json").write_text(json.dumps(metadata))


def small_run(folder: Path, settings: FinetuneConfig) -> Any:
    """A run that has come to its end, as far as exporting looks at it."""
    folder.mkdir()
    accelerator = SimpleNamespace(
        is_main_process=True, wait_for_everyone=lambda: None, device=torch.device("cpu"), print=print
    )
    return SimpleNamespace(
        accelerator=accelerator,
        folder=folder,
        config=settings,
        learner=Saver(),
        network=torch.nn.Identity(),
        mix=Mix(name="half", concepts={"Unknown": ("wug",)}, examples=()),
        journal=SimpleNamespace(
            evaluations=pd.DataFrame(columns=list(COLUMNS)), answers=SimpleNamespace(join=lambda: None)
        ),
        sampler=SimpleNamespace(own_per_update=4),
        steps=SimpleNamespace(nonfinite=SimpleNamespace(total=0)),
        converged=lambda: None,
        elapsed_seconds=lambda: 1.0,
        exported_weights=nullcontext,
        identity={"source": "someone/some-base", "sha256": {"unet/x.safetensors": "f00d"}},
        record={"seed": 0},
    )


def test_a_run_whose_push_fails_is_finished_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path / "run", config(report_to=None))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(error=ConnectionError("no route")))
    with pytest.raises(UserError, match="me/mine: could not be pushed"):
        finish(run, 20)
    summary = json.loads((run.folder / "finetune.json").read_text())
    assert (summary["updates"], summary["exports"]) == (20, {"last": "pipeline"})
    assert "from_pretrained('me/mine'" in (run.folder / "README.md").read_text()
    header = json.loads((run.folder / "pipeline" / "model_index.json").read_text())
    assert (header["update"], header["mix"], header["base_model"]) == ("20", "half", "someone/some-base")
    assert header["concepts"] == '{"Unknown": 1}'
    assert len(header["base_sha256"]) == len(header["config_sha256"]) == 64
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    push(run.folder, run.config)
    assert set(hub.files) == {"model_index.json", "README.md", "finetune.json"}
    assert finish(small_run(tmp_path / "again", config()), 20)["updates"] == 20


@pytest.mark.parametrize("name", ["a b/c", "me/mine/more", "me//mine", "../mine", "me/--mine--", "x" * 200])
def test_names_that_are_none_are_refused_before_training(name: str) -> None:
    with pytest.raises(UserError, match="hub_model_id"):
        check_hub(config(hub_model_id=name))


def test_a_missing_token_is_noticed_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_hub(config())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token.*HF_TOKEN"):
        check_hub(config())
    check_hub(FinetuneConfig())


def test_the_true_api_takes_what_is_passed() -> None:
    """The stand-in's arguments are those of huggingface_hub."""
    for name in ("create_repo", "repo_info", "upload_folder"):
        ours = set(inspect.signature(getattr(Hub, name)).parameters)
        assert ours <= set(inspect.signature(getattr(HfApi, name)).parameters), name
