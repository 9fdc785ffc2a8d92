"""What a run writes while it goes: a line per update, a row per evaluation, and both with pictures to the trackers."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from PIL import Image

from ..errors import UserError
from ..files import replaced, write_table
from .answer_files import ANSWERS, AnswerFiles, read_of_run, table_text
from .dynamics import dynamics_points
from .evaluations import COLUMNS

METRICS, EVALUATIONS, DYNAMICS = "metrics.jsonl", "evaluations.parquet", "dynamics.parquet"


class Journal:
    """`metrics.jsonl`, `evaluations.parquet` and the trackers; only the main process writes.

    Nothing in the files depends on time or machine, so that a resumed run leaves the same ones.
    """

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder = folder
        self.accelerator = accelerator
        self.evaluations = pd.DataFrame(columns=list(COLUMNS))
        self.answers = AnswerFiles(folder)
        self._digest = hashlib.sha256()
        """Of the lines of `metrics.jsonl`."""

    def rewind(self, update: int, stamp: Mapping[str, Any] | None) -> None:
        """Forget everything after this update: what a killed process wrote past its last checkpoint.

        Args:
            stamp: what the checkpoint of this update says of the files (`stamp`); None for a new run.

        Raises:
            UserError: a file lacks what was there at the checkpoint, or was altered.
        """
        if stamp is not None and stamp.get(EVALUATIONS) is not None:
            self.evaluations = _until(
                read_of_run(self.folder / EVALUATIONS, self.folder, "what the run was asked"), update
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.answers.rewind(-1 if stamp is None else update)  # A new run asks at update 0 again.
            with replaced(self.folder / METRICS) as temporary:
                self._digest = _copy_until(self.folder / METRICS, temporary, update)
                self._check(stamp, update)
            if not self.evaluations.empty:
                self._write_evaluations()
            else:
                self._remove_evaluations()

    def stamp(self) -> dict[str, Any]:
        """Hashes of what the files hold by now, by file; None for tables without rows."""
        return {
            METRICS: self._digest.hexdigest(),
            EVALUATIONS: _digest(self.evaluations),
            ANSWERS: self.answers.stamp(),
        }

    def _check(self, stamp: Mapping[str, Any] | None, update: int) -> None:
        for name, found in self.stamp().items():
            if stamp is not None and stamp.get(name) != found:
                raise UserError(
                    f"{self.folder / name}: is not what it was at checkpoint-{update}; go back to an earlier one with "
                    f"resume_from_checkpoint=checkpoint-<N>, or remove {self.folder} to begin anew"
                )

    def settle(self) -> None:
        """Have the lines of metrics on disk, as a checkpoint that counts on them will be."""
        if self.accelerator.is_main_process and (self.folder / METRICS).is_file():
            with (self.folder / METRICS).open("rb") as stream:
                os.fsync(stream.fileno())

    def log(self, values: dict[str, Any]) -> None:
        """Append one line for the update `values["update"]`; a number that is not finite becomes null.

        Numbers go to the trackers too, lists and texts do not.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        if self.accelerator.is_main_process:
            line = json.dumps(finite, allow_nan=False) + "\n"
            with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(line)
            self._digest.update(line.encode())
        numbers = {name: value for name, value in finite.items() if isinstance(value, (int, float))}
        shown = {f"train/{name}": value for name, value in numbers.items() if name != "update"}
        self.accelerator.log(shown, step=values["update"])

    def add_evaluation(self, rows: pd.DataFrame, answers: pd.DataFrame) -> None:
        """Append the rows of one evaluation point, and the answers that they count."""
        if rows.empty:
            return
        before = self.evaluations
        self.evaluations = rows if before.empty else pd.concat([before, rows], ignore_index=True)
        if self.accelerator.is_main_process:
            # The answers first: where they are, the counts may be missing, never the other way round.
            self.answers.add(int(rows["update"].iloc[0]), answers)
            self._write_evaluations()
        shown = {
            f"{row.role}/{row.category}/{name}": float(getattr(row, name))
            for row in rows.itertuples()
            for name in ("accuracy", "gain_nats", "error_nats")
        }
        self.accelerator.log(shown, step=int(rows["update"].iloc[0]))

    def add_images(self, update: int, file: Path) -> None:
        """Show a picture of validation images in the trackers that take any; the main process alone."""
        if not file.is_file():  # No device memory to draw any; `draw_grid` said so.
            return
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))[None]  # (1, height, width, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"validation": pixels}, step=update, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({"validation": list(pixels)}, step=update)

    def _write_evaluations(self) -> None:
        write_table(self.folder / EVALUATIONS, self.evaluations)
        write_table(self.folder / DYNAMICS, dynamics_points(self.evaluations))

    def _remove_evaluations(self) -> None:
        """Those of a run that is begun anew are not this one's."""
        for name in (EVALUATIONS, DYNAMICS):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / name).with_suffix(".csv").unlink(missing_ok=True)


def _until(table: pd.DataFrame, update: int) -> pd.DataFrame:
    if "update" not in table.columns:
        return table  # Altered, as its hash will tell.
    return table[table["update"] <= update].reset_index(drop=True)


def _digest(table: pd.DataFrame) -> str | None:
    """The hash of a table as text, which is the same for one that was written and read back."""
    return None if table.empty else hashlib.sha256(table_text(table).encode()).hexdigest()


def _copy_until(metrics: Path, copy: Path, update: int) -> Any:
    """Write the lines up to an update, one at a time (a million are 130 MB); returns their hash in progress."""
    digest = hashlib.sha256()
    with copy.open("wb") as kept, metrics.open("rb") if metrics.is_file() else nullcontext(()) as lines:
        for line in lines:
            if line.endswith(b"\n") and _update_of(line) <= update:
                kept.write(line)
                digest.update(line)
    return digest


def _update_of(line: bytes) -> float:
    """The update of a line; infinite for one that was cut short or is not ours."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
