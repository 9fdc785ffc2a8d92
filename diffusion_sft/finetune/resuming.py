"""Which checkpoint a run goes on from, and whether it is the same run at all."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .checkpoints import checkpoint_damage, checkpoint_updates

FREE = (
    "resume_from_checkpoint",
    "report_to",
    "tracker_project_name",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "max_nonfinite_steps",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
    "save_single_file",
)
"""Settings that change nothing about the numbers of a run, and may be others when it goes on."""
logger = logging.getLogger(__name__)


def chosen_update(run: Path, resume_from_checkpoint: str) -> int:
    """The update to go on after, by the setting of that name; 0 for a new run.

    Raises:
        UserError: no such checkpoint, none that is as it was written, or a new run is asked for in a folder that is
            not empty.
    """
    updates = checkpoint_updates(run)
    if resume_from_checkpoint == "latest":
        return _last_undamaged(run, updates)
    if resume_from_checkpoint == "none":
        if run.is_dir() and any(run.iterdir()):
            raise UserError(
                f"{run}: is not empty, and resume_from_checkpoint=none begins a new run; set "
                f"output_dir={_free_name(run)}, or resume_from_checkpoint=latest to go on"
            )
        return 0
    number = re.fullmatch(r"(?:checkpoint-)?(\d+)", Path(resume_from_checkpoint).name)
    if number is None or int(number[1]) not in updates or not _inside(resume_from_checkpoint, run):
        there = ", ".join(f"checkpoint-{update}" for update in updates) or "no checkpoint"
        raise UserError(
            f"resume_from_checkpoint={resume_from_checkpoint}: not in {run}, which has {there}; or say latest or none"
        )
    if (damage := checkpoint_damage(run, int(number[1]))) is not None:
        raise UserError(f"{damage}; go back to an earlier checkpoint, or choose another output_dir")
    return int(number[1])


def _last_undamaged(run: Path, updates: Sequence[int]) -> int:
    damages: list[str] = []
    for update in reversed(updates):
        damage = checkpoint_damage(run, update)
        if damage is None:
            for told in damages:
                logger.warning("%s; going on from checkpoint-%d instead", told, update)
            return update
        damages.append(damage)
    if damages:
        raise UserError(
            f"{damages[0]}; no other checkpoint is whole: choose another output_dir, or remove {run} to begin anew"
        )
    return 0


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """Raise UserError naming what changed since the checkpoints in `run` were begun.

    Only `max_train_steps` may grow, and only under a schedule that does not depend on it: otherwise the updates
    already made would not be those of the run that is asked for.
    """
    for key, value in current.items():
        before = stored.get(key)
        if before == value or key in FREE:
            continue
        grows = key == "max_train_steps" and isinstance(before, int) and before < value
        if grows and str(current["lr_scheduler"]).startswith("constant"):
            continue
        reason = f" (the {current['lr_scheduler']} schedule depends on it)" if grows else ""
        raise UserError(
            f"{run}: begun with {key}={before}, now {key}={value}{reason}; put it back, or choose another folder"
        )


def _free_name(run: Path) -> Path:
    """The first of run-2, run-3, ... that is not there."""
    number = 2
    while (found := run.with_name(f"{run.name}-{number}")).exists():
        number += 1
    return found


def _inside(name: str, run: Path) -> bool:
    """Whether a name without folders, or a path of a folder in `run`."""
    path = Path(name)
    return path.name == name or path.resolve().parent == run.resolve()
