"""What a run writes while it goes: a line per update, a row per evaluation, and both with pictures to the trackers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from PIL import Image

from ..errors import UserError
from ..files import read_table, write_table, write_text
from .dynamics import dynamics_points
from .evaluations import COLUMNS

METRICS, EVALUATIONS, DYNAMICS = "metrics.jsonl", "evaluations.parquet", "dynamics.parquet"
ANSWERS = "answers.parquet"


class Journal:
    """`metrics.jsonl`, `evaluations.parquet` and the trackers; only the main process writes.

    Nothing in the files depends on time or machine, so that a resumed run leaves the same ones.
    """

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder = folder
        self.accelerator = accelerator
        self.evaluations = pd.DataFrame(columns=list(COLUMNS))
        self.answers = pd.DataFrame()
        """Every question of every evaluation, with what was said."""

    def rewind(self, update: int) -> None:
        """Forget everything after this update: what a killed process wrote past its last checkpoint."""
        if update > 0 and (self.folder / EVALUATIONS).is_file():
            self.evaluations, self.answers = (
                _until(read_table(self.folder / name), update) for name in (EVALUATIONS, ANSWERS)
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            metrics = self.folder / METRICS
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else []
            kept = [line for line in lines if _update_of(line) <= update]
            if len(kept) != update:
                raise UserError(
                    f"{metrics}: has {len(kept)} of the {update} updates before the checkpoint; go back to an earlier one "
                    "with resume_from_checkpoint=checkpoint-<N>, or choose another output_dir"
                )
            write_text(metrics, "".join(f"{line}\n" for line in kept))
            if not self.evaluations.empty:
                self._write_evaluations()
            else:
                self._remove_evaluations()

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
            with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(finite, allow_nan=False) + "\n")
        numbers = {name: value for name, value in finite.items() if isinstance(value, (int, float))}
        shown = {f"train/{name}": value for name, value in numbers.items() if name != "update"}
        self.accelerator.log(shown, step=values["update"])

    def add_evaluation(self, rows: pd.DataFrame, answers: pd.DataFrame) -> None:
        """Append the rows of one evaluation point, and the answers that they count."""
        if rows.empty:
            return
        self.evaluations, self.answers = (
            more if before.empty else pd.concat([before, more], ignore_index=True)
            for before, more in ((self.evaluations, rows), (self.answers, answers))
        )
        if self.accelerator.is_main_process:
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
        # The answers first: where their table is, the counts may be missing, never the other way round.
        write_table(self.folder / ANSWERS, self.answers)
        write_table(self.folder / EVALUATIONS, self.evaluations)
        write_table(self.folder / DYNAMICS, dynamics_points(self.evaluations))

    def _remove_evaluations(self) -> None:
        """Those of a run that is begun anew are not this one's."""
        for name in (ANSWERS, EVALUATIONS, DYNAMICS):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / name).with_suffix(".csv").unlink(missing_ok=True)


def _until(table: pd.DataFrame, update: int) -> pd.DataFrame:
    return table[table["update"] <= update].reset_index(drop=True)


def _update_of(line: str) -> float:
    """The update of a line; infinite for one that was cut short."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
