"""What a run leaves behind: weights that other tools load, a model card, a summary, and a push where one is wanted."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import partial_path, replaced, replaced_folder, write_text
from ..learner import Learner
from ..manifests import files_below, listed, read_record, table_files, write_record
from ..settings import settings_dict
from .answer_files import ANSWERS
from .average import lent
from .card import model_card, own_settings
from .card_words import base_name
from .checkpoints import evaluated_weights
from .config import FinetuneConfig
from .evaluations import early_stop_update
from .hub import push
from .journal import DYNAMICS, EVALUATIONS, METRICS
from .resuming import FREE
from .run import Run
from .sharding import is_sharded, whole_on_main
from .summary import SUMMARY, run_environment

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What weights are called: the settings that decide which files are written, the mix, and the files' headers."""

    config: FinetuneConfig
    name: str
    metadata: Mapping[str, str]


def finish(run: Run, update: int) -> dict[str, Any]:
    """Export the last and the best weights, and write the model card and, at the very end, the summary; then push.

    Raises:
        UserError: the push failed; everything else is written by then.
    """
    if run.accelerator.is_main_process or is_sharded(run.trained.parameters.values()):
        exports = _exports(run, update, early_stop_update(run.journal.evaluations))
    if run.accelerator.is_main_process:
        run.journal.answers.join()
        summary = _summary(run, update) | {"exports": exports}
        write_text(
            run.folder / CARD, model_card(run.mix, run.config, summary, run.journal.evaluations, run.learner.layout)
        )
        write_record(run.folder / SUMMARY, summary, listed(run.folder, _left(run, exports)))
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        push(run.folder, run.config)
    return read_record(run.folder / SUMMARY)


def export_weights(learner: Learner, export: Export, folder: Path) -> Path:
    """Write the learner's present weights into `folder`; returns the model's folder or the adapters' file, under the
    names of the learner's layout. Of a sharded learner, inside `whole_on_main`.

    Beside diffusers' adapters stand kohya's, or one checkpoint file named after the mix where `save_single_file` asks.
    """
    layout = learner.layout
    folder.mkdir(parents=True, exist_ok=True)
    if export.config.method == "lora":
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=f"{partial_path(folder / layout.adapters).name}."
        ) as saved:
            learner.save(Path(saved), export.metadata)
            for file in sorted(Path(saved).iterdir()):
                with replaced(folder / file.name) as target:
                    os.replace(file, target)
        return folder / layout.adapters
    with replaced_folder(folder / layout.folder) as target:
        learner.save(target, export.metadata)
    if export.config.save_single_file:
        learner.save_single_file(folder / f"{export.name}.safetensors", export.metadata)
    return folder / layout.folder


def _left(run: Run, exports: Mapping[str, str]) -> list[str]:
    """The names of all files by which a finished run is told from an altered one."""
    tables = table_files([Path(name).stem for name in (ANSWERS, EVALUATIONS, DYNAMICS)])
    found = [run.folder / name for name in (CARD, METRICS, *tables)]
    for path in (run.folder / name for name in exports.values()):
        found += [path, *path.parent.glob("*.safetensors"), *path.parent.glob("adapter_config.json")]
    names = [name for path in found if path.exists() for name in files_below(run.folder, path)]
    return list(dict.fromkeys(names))


def weight_metadata(run: Run, update: int) -> dict[str, str]:
    """What the headers of weight files say of where the weights come from; nothing of time or machine."""
    identity = dict(run.identity)
    settings = {key: value for key, value in settings_dict(own_settings(run.config)).items() if key not in FREE}
    found = {
        "base_model": base_name(str(identity.get("source", ""))),
        "base_sha256": _digest(identity["sha256"]) if "sha256" in identity else "",
        "mix": run.mix.name,
        "concepts": json.dumps({category: len(names) for category, names in run.mix.concepts.items()}),
        "method": run.config.method,
        "update": str(update),
        "seed": str(run.config.seed),
        "config_sha256": _digest(settings),
    }
    return {name: value for name, value in found.items() if value}


def _exports(run: Run, update: int, early: int | None) -> dict[str, str]:
    """Paths of the exported weights in the run's folder: of the last update, and of the early stop where known.

    Where weights are sharded, every process comes here and gives its parts; the main one writes, and knows the paths.
    """
    with run.exported_weights():
        last = _written(run, update, run.folder)
    exports = {"last": last.relative_to(run.folder).as_posix()}
    if early == update:
        return exports | {"early": exports["last"]}
    if early is not None:
        with lent(run.trained.parameters, evaluated_weights(run.folder, early, run.trained)):
            best = _written(run, early, run.folder / "early")
        exports["early"] = best.relative_to(run.folder).as_posix()
    return exports


def _written(run: Run, update: int, folder: Path) -> Path:
    """The present weights on disk; the folder itself on processes that do not write."""
    with whole_on_main(run.network):
        if not run.accelerator.is_main_process:
            return folder
        return export_weights(run.learner, _export(run, update), folder)


def _export(run: Run, update: int) -> Export:
    return Export(config=run.config, name=run.mix.name, metadata=weight_metadata(run, update))


def _summary(run: Run, update: int) -> dict[str, Any]:
    converged = run.converged()
    fitted = run.config.stopping == "convergence" and converged is not None
    return {
        "mix": run.mix.name,
        "method": run.config.method,
        "stopping_reason": "convergence" if fitted else "budget",
        "updates": update,
        "converged_update": converged,
        "early_stop_update": early_stop_update(run.journal.evaluations),
        "skipped_updates": run.steps.nonfinite.total,
        "examples_per_update": run.sampler.own_per_update,
        "num_examples": len(run.mix.examples),
        "concepts": {category: list(names) for category, names in run.mix.concepts.items()},
        "guard": run.mix.guard,
        "guarding_concepts": sorted(run.mix.taught - set(run.mix.categories)),
        "seconds": round(run.elapsed_seconds(), 2),
        "identity": dict(run.identity) | {"source": base_name(str(run.identity.get("source", "")))},
        "environment": run_environment(run.accelerator.device),
        "record": dict(run.record),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
