"""One published fine-tuning run made again, and held against what was published of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from diffusion_sft.errors import UserError
from diffusion_sft.files import read_table
from diffusion_sft.plan import StudyConfig
from diffusion_sft.settings import load_settings
from diffusion_sft.study import HALVES

from .publishing import half_folder

ROW = ["update", "role", "category"]


def rerun(world: Path, learner: str, name: str, folder: Path) -> pd.DataFrame:
    """Teach the run anew in `folder` and return its evaluations beside the published ones, a row for each of ROW.

    The categories are the published ones, so that the base need not be probed again.

    Raises:
        UserError: no such run was published.
    """
    config = replace(load_settings(StudyConfig, world / "config.yaml"), output_dir=str(folder))
    published = half_folder(world, learner)
    record = published / "finetune" / name / "evaluations.parquet"
    if not record.is_file():
        there = ", ".join(sorted(path.name for path in (published / "finetune").iterdir()))
        raise UserError(f"{name}: not among the published runs of {world} ({there})")
    shutil.copytree(published / "buckets", half_folder(folder, learner) / "buckets", dirs_exist_ok=True)
    HALVES[learner](config).perform("finetune", name)
    fresh = read_table(half_folder(folder, learner) / "finetune" / name / "evaluations.parquet")
    columns = [*ROW, "num_examples", "accuracy", "accuracy_low", "accuracy_high"]
    both = read_table(record)[columns].merge(fresh[[*ROW, "accuracy"]], on=ROW, how="outer", suffixes=("", "_fresh"))
    inside = both["accuracy_fresh"].between(both["accuracy_low"], both["accuracy_high"])
    return both.assign(agrees=inside, identical=both["accuracy_fresh"] == both["accuracy"])
