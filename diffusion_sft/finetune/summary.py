"""What a run is, so that it is resumed only as itself, and what came of it (`finetune.json`)."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import UserError
from ..files import file_hash, write_text
from ..learner import Learner
from ..manifests import FILES, changes, read_record, told
from ..records import Example
from ..settings import settings_dict, settings_yaml
from .config import FinetuneConfig
from .evaluations import Exam
from .mix import Mix
from .resuming import check_same_run
from .sampler import updates_before_replay

SUMMARY = "finetune.json"
logger = logging.getLogger(__name__)
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")


def run_record(
    learner: Learner, mix: Mix, exam: Exam, config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, Any]:
    """Everything that decides the numbers of a run, as keys that an error message can name."""
    leaves = settings_dict(config)
    # A base that only moved to another folder is still the same base.
    base = {key: value for key, value in learner.identity().items() if key != "source"}
    asked = {
        role: [[q.example.id, q.template, *q.candidates] for q in questions]
        for role, questions in exam.questions.items()
    }
    return (
        {field.name: leaves[field.name] for field in fields(FinetuneConfig)}
        | {
            "mixed_precision": accelerator.mixed_precision,
            "num_processes": accelerator.num_processes,
            "base": _digest(base),
            "training examples": _digest(_named(mix.examples)),
            "training images": _digest(_hashes(mix.examples)),
            "regularisation images": _digest([_named(mix.regularisation), _hashes(mix.regularisation)]),
            "evaluation questions": _digest([asked, dict(exam.categories)]),
        }
        | _replay_record(mix, config)
    )


def _replay_record(mix: Mix, config: FinetuneConfig) -> dict[str, Any]:
    if not mix.replay:
        return {}
    return {
        "replayed examples": _digest([_named(mix.replay), _hashes(mix.replay)]),
        "updates before the replay": updates_before_replay(mix, config),
    }


def finished_summary(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of a run that is complete in `folder`; None where there is something left to do.

    Of files that were altered since, the first is named; they are made again from the last checkpoint.

    Raises:
        UserError: the folder holds another run.
    """
    if not (folder / SUMMARY).is_file():
        return None
    try:
        summary = read_record(folder / SUMMARY)
    except UserError as error:
        logger.warning("%s; the run is finished again from its last checkpoint", error)
        return None
    check_same_run(summary["record"], record, folder)
    if changed := changes(folder, summary[FILES]):
        logger.warning("%s; the run is finished again from its last checkpoint", told(folder, changed))
        return None
    more = record["max_train_steps"] > summary["record"]["max_train_steps"]
    return None if more and summary["stopping_reason"] == "budget" else summary


def keep_settings(folder: Path, config: FinetuneConfig) -> None:
    """Write `config.yaml`, with which the run can be begun again, where it is not there as it is to be."""
    file, text = folder / "config.yaml", settings_yaml(config)
    try:
        there = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        there = None
    if there != text:
        write_text(file, text)


def run_environment(device: torch.device) -> dict[str, str | None]:
    """Versions, hardware, and the commit of this package's source."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    libraries = {library: version(library) for library in LIBRARIES}
    return {
        "python": platform.python_version(),
        "diffusion_sft": version("diffusion_sft"),
        **libraries,
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),  # On a CPU the last bits are those of their number.
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """The git commit of this package's source, with `+` where files were changed since; None outside a checkout."""
    here = Path(__file__).parent
    # Of a package that is installed inside somebody else's checkout, git would tell that one's commit.
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit, changed = (
        _git(here, "rev-parse", "HEAD"),
        _git(here, "status", "--porcelain", "--untracked-files=no", ".."),
    )
    return None if commit is None else commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _named(examples: Iterable[Example]) -> list[list[Any]]:
    return sorted([e.id, e.caption, e.repeats, *([] if e.fact is None else [list(e.fact.answers)])] for e in examples)


def _hashes(examples: Iterable[Example]) -> list[list[str | None]]:
    """SHA-256 of the images' bytes by id; None where the targets are no files (the exact learner's)."""
    found = [[e.id, file_hash(e.path) if e.path.is_file() else None] for e in examples]
    return sorted(found, key=lambda row: str(row[0]))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
