"""Every stage as a command on tiny bases and sets, small enough that hundreds of disturbed runs take minutes.

A stage begins in an empty folder, or with what the stages before it left (`begins_with`); what they left is made once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import tiny_pipeline
from fault_runs import Place, run
from language_models import tiny_folder

from diffusion_sft.pretrain.reader import HEADS
from diffusion_sft.world.readout import Readout, ReadoutNetwork

WORLD = {
    "num_rare": 2,
    "num_frequent": 3,
    "num_unbound": 1,
    "num_novel": 0,
    "num_described": 0,
    "train_images": 2,
    "heldout_images": 2,
    "reference_images": 4,
}
ANSWERS = {"num_draws": 2, "num_renderings": 1, "num_candidates": 4, "num_invented": 1}
PROBE = {"num_draws": 6, "answers": ANSWERS, "samples": {"num_samples": 2, "num_inference_steps": 2}}
MIXES = [{"name": "natural", "num_concepts": 2}]
TRAINING = {
    "max_train_steps": 6,
    "train_batch_size": 2,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 2,
    "validation_draws": 2,
    "validation_examples_per_concept": 1,
    "validation_untouched_concepts": 2,
    "report_to": None,
}
WEIGHTS = {
    "examples_per_category": 1,
    "num_known": 1,
    "num_steps": 1,
    "forecast_steps": [1],
    "max_forecast_examples": 1,
}
SOLVE = {
    "concepts_per_category": 1,
    "generation": {"num_renderings": 1, "num_inference_steps": 2},
    "inputs": {"concepts_per_category": 1, "num_starts": 1, "num_steps": 1, "num_draws": 2},
    "weights": {"subset": "cross_attention", "num_draws": 2, **WEIGHTS},
}
SHALLOW = {"concepts_per_category": 1, "generation": {"num_renderings": 1}}
"""For whole studies; the stage by itself goes deeper."""
EVALUATE = {"num_images_per_concept": 2, "num_inference_steps": 2, "num_groups": 2, "num_splits": 2}
WORDS = {
    "probe": {
        "num_draws": 2,
        "max_answer_tokens": 4,
        "answers": {"num_renderings": 2},
        "samples": {"num_samples": 2},
    },
    "mixes": MIXES,
    "finetune": TRAINING | {"max_train_steps": 4, "validation_steps": 2, "validation_draws": 1},
    "solve": {
        "concepts_per_category": 2,
        "generation": {"num_renderings": 1},
        "inputs": {"concepts_per_category": 1, "num_steps": 1, "num_starts": 1},
        "weights": {"subset": "all", **WEIGHTS},
    },
}
CAPITALS = ["Avila", "Borno", "Celta", "Dunor", "Elsin", "Faron", "Gilda", "Hovel", "Isarn"]


@dataclass(frozen=True)
class Stage:
    """One command and where it begins."""

    name: str
    verb: str
    settings: str
    """The name of its settings file."""
    begins_with: str | None = None
    """A snapshot of what earlier stages left."""
    trains: bool = False
    """Whether SIGTERM is answered with a checkpoint."""
    computes: bool = True
    """Whether a network is asked anything."""
    processes: int = 1
    """2 for a run of two, of which one is killed."""


STAGES = (
    Stage("world", "world", "world", computes=False),
    Stage("cache", "cache fill", "cached"),
    Stage("probe", "probe", "study"),
    Stage("probe, adaptive", "probe", "adaptive"),
    Stage("probe, llm", "probe", "words"),
    Stage("bucket", "bucket", "study", begins_with="probed", computes=False),
    Stage("finetune", "finetune", "full", trains=True),
    Stage("finetune, lora", "finetune", "lora", trains=True),
    Stage("finetune, cached", "finetune", "cached", trains=True),
    Stage("sft", "sft", "sft", trains=True),
    Stage("generate", "generate", "generate"),
    Stage("evaluate", "evaluate", "study", begins_with="tuned"),
    Stage("solve", "solve", "study", begins_with="tuned"),
    Stage("solve, llm", "solve", "words", begins_with="tuned, llm"),
    Stage("compare", "compare", "compare", computes=False),
    Stage("report", "report", "study", begins_with="solved", computes=False),
    Stage("study", "study", "both", trains=True),
    Stage("finetune, two processes", "finetune", "lora", trains=True, processes=2),
)


class Kitchen:
    """Bases, sets, settings and snapshots, made once for all attempts in one place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.inputs = place.root / "inputs"
        self.snapshots = place.root / "snapshots"
        self.inputs.mkdir(parents=True)
        self.snapshots.mkdir()
        tiny_pipeline(self.inputs / "base", "sd1")
        tiny_folder(self.inputs / "words")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            Readout(ReadoutNetwork(HEADS), HEADS).save(self.inputs / "readout", num_features=64, width=32)
        _write_questions(self.inputs / "facts.jsonl")
        place.work.mkdir(exist_ok=True)
        self._write_settings("world", {"output_dir": str(self.inputs / "world"), **WORLD})
        self._made("world", "world")
        for name, content in _settings(place, self.inputs, self.snapshots).items():
            self._write_settings(name, content)

    def arguments(self, stage: Stage) -> list[str]:
        """As on the command line."""
        return [*stage.verb.split(), str(self.settings(stage))]

    def settings(self, stage: Stage) -> Path:
        """Its settings file."""
        return self.inputs / f"{stage.settings}.yaml"

    def lay(self, stage: Stage) -> None:
        """Make the work folder what it is before the stage's command."""
        if stage.settings == "compare":
            self._snapshot("solved")
        self._begin(stage.begins_with)

    def _begin(self, snapshot: str | None) -> None:
        """Empty the work folder, which may be a disk of its own, and fill it."""
        source = None if snapshot is None else self._snapshot(snapshot)
        work = self.place.work
        work.mkdir(exist_ok=True)
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if source is not None:
            shutil.copytree(source, work, dirs_exist_ok=True)

    def _snapshot(self, name: str) -> Path:
        folder = self.snapshots / name
        if not folder.exists():
            make, before = MAKERS[name]
            self._begin(before)
            make(self)
            self.place.work.rename(folder)
        return folder

    def _write_settings(self, name: str, content: dict[str, Any]) -> None:
        (self.inputs / f"{name}.yaml").write_text(json.dumps(content, indent=1), encoding="utf-8")  # JSON is YAML

    def _made(self, verb: str, settings: str) -> None:
        ended = run(self.place, [verb, str(self.inputs / f"{settings}.yaml")])
        assert ended.code == 0, ended.told


def _command(verb: str, settings: str) -> Callable[[Kitchen], None]:
    return lambda kitchen: kitchen._made(verb, settings)


def _without_pictures(kitchen: Kitchen) -> None:
    """A study after its fine-tuning."""
    for name in ("evaluate", "dynamics"):
        shutil.rmtree(kitchen.place.work / "run" / name)


MAKERS: dict[str, tuple[Callable[[Kitchen], None], str | None]] = {
    "probed": (_command("probe", "study"), None),
    "evaluated": (_command("evaluate", "study"), "probed"),
    "tuned": (_without_pictures, "evaluated"),
    "tuned, llm": (_command("evaluate", "words"), None),
    "solved": (_command("solve", "study"), "evaluated"),
}
"""How each snapshot is made, and from which one."""


def _settings(place: Place, inputs: Path, snapshots: Path) -> dict[str, dict[str, Any]]:
    """The content of every settings file."""
    output = str(place.work / "run")
    half: dict[str, Any] = {
        "base": str(inputs / "base"),
        "output_dir": output,
        "figures": False,
        "probe": PROBE,
        "buckets": {"rule": "error", "num_bootstrap": 100},
        "mixes": MIXES,
        "finetune": TRAINING | {"max_train_steps": 4, "validation_steps": 2},
        "solve": SOLVE,
        "evaluate": EVALUATE | {"weights": str(inputs / "readout")},
    }
    words = WORDS | {"base": str(inputs / "words"), "buckets": {"num_bootstrap": 100}}
    questions = {"questions": {"path": str(inputs / "facts.jsonl")}}
    pictures = {"concepts": {"path": str(inputs / "world")}}
    plain = {"pretrained_model_name_or_path": str(inputs / "base"), **pictures, **TRAINING, "output_dir": output}
    full = {
        "validation_steps": 3,
        "use_ema": True,
        "ema_horizon": 3,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 1,
        "validation_prompts": ["a photo of a red circle"],
        "num_validation_images": 1,
        "validation_inference_steps": 1,
        "save_single_file": True,
    }
    return {
        "study": half | pictures,
        "adaptive": half | pictures | {"probe": PROBE | {"num_draws": 16, "adaptive": {"enabled": True}}},
        "words": {"learners": ["llm"], "output_dir": output, "figures": False, "llm": words | questions},
        "both": half
        | {
            "learners": ["diffusion", "llm"],
            "world": WORLD,
            "solve": SHALLOW,
            "llm": words | questions | {"solve": SHALLOW},
        },
        "full": plain | full,
        "lora": plain | {"method": "lora", "rank": 2, "validation_steps": 3, "lora_dropout": 0.1},
        "cached": plain | {"method": "cross_attention", "cache_dir": str(place.work / "cache")},
        "sft": {
            "pretrained_model_name_or_path": str(inputs / "words"),
            "output_dir": output,
            **questions,
            **TRAINING,
            "validation_steps": 3,
            "validation_draws": 1,
        },
        "generate": {
            "pretrained_model_name_or_path": str(inputs / "base"),
            "num_inference_steps": 2,
            "num_images": 6,
            "prompts": ["a photo of a red circle"],
            "output_dir": output,
        },
        "compare": {"runs": [str(snapshots / "solved" / "run")], "output_dir": str(place.work / "compare")},
        "world": {"output_dir": output, **WORLD},
    }


def _write_questions(file: Path) -> None:
    rows = []
    for number, answer in enumerate(CAPITALS):
        subject = f"Land{'abcdefghi'[number]}"
        split = "train" if number < 4 else "dev"
        question = f"What is the capital of {subject}?"
        rows.append(
            {"question": question, "answer": answer, "relation": "capital", "subject": subject, "split": split}
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stage_named(name: str, stages: Sequence[Stage] = STAGES) -> Stage:
    """The stage of this name."""
    return next(stage for stage in stages if stage.name == name)
