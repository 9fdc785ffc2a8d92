"""Everything that is made of the published tables, by the same functions that a study's stages call."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

from diffusion_sft.buckets import bucket, write_buckets
from diffusion_sft.compare import CompareConfig, compare
from diffusion_sft.dynamics import dynamics_text, summarise_runs
from diffusion_sft.files import read_json, read_table, write_csv, write_table, write_text
from diffusion_sft.plan import StudyConfig, planned_runs
from diffusion_sft.records import DIFFUSION
from diffusion_sft.reference import load_reference
from diffusion_sft.settings import load_settings
from diffusion_sft.solve.run import SOLVED, summarised
from diffusion_sft.solve.text import solve_text
from diffusion_sft.story import runs_to_summarise

from .publishing import CONCEPTS, half_folder, halves_of

COMPARED = "compare"
DERIVED = ("buckets", "dynamics", COMPARED)
"""Folders of which everything is made anew."""
WITH_CSV = ("evaluate/measures", "evaluate/concept_accuracy")
"""Published tables that are read by people too."""


def derive(results: Path) -> None:
    """Make all that is made of the published tables of every world, in the place of what was."""
    worlds = published_worlds(results)
    for world in worlds:
        for learner in halves_of(world):
            derive_half(world, learner)
        _compare(results, [world.name], f"{world.name}/{COMPARED}")
    _compare(results, [world.name for world in worlds], COMPARED)


def published_worlds(results: Path) -> list[Path]:
    """The folders of studies, in their order."""
    return sorted(folder for folder in results.glob("*/") if halves_of(folder))


def derive_half(world: Path, learner: str) -> None:
    """A learner's buckets, dynamics, means of what was solved, and the CSV files."""
    folder = half_folder(world, learner)
    config = load_settings(StudyConfig, folder / "config.yaml")
    own: Any = config if learner == DIFFUSION else config.llm
    for name in DERIVED:
        shutil.rmtree(folder / name, ignore_errors=True)
    scores, answers, samples = (
        read_table(folder / "probe" / f"{name}.parquet") for name in ("scores", "answers", "samples")
    )
    found = bucket(scores, answers, samples, read_table(folder / CONCEPTS), own.buckets)
    write_buckets(found, folder / "buckets")
    runs = planned_runs(own.mixes, own.seeds or config.seeds, own.finetune.seed, own.methods)
    dynamics = summarise_runs(
        runs_to_summarise(runs, own.finetune, folder / "finetune"), learner, folder / "dynamics"
    )
    write_text(folder / "dynamics" / "summary.txt", dynamics_text(dynamics, load_reference()))
    if (folder / "solve").is_dir():
        _derive_solved(folder, learner, dict(zip(found.concepts["concept"], found.concepts["category"], strict=True)))
    for name in WITH_CSV:
        if (folder / f"{name}.parquet").is_file():
            write_csv(folder / f"{name}.parquet", read_table(folder / f"{name}.parquet"))


def _derive_solved(folder: Path, learner: str, categories: dict[str, str]) -> None:
    place = folder / "solve"
    solved = {path.stem: read_table(path) for path in sorted(place.glob("*.parquet")) if path.stem in SOLVED}
    config = read_json(place / "solve.json")["config"]
    made = summarised(learner, solved, categories, config["seed"])
    for name, table in made.items():
        write_table(place / f"{name}.parquet", table)
    asked = {str(name): categories[name] for name in solved["generations"]["concept"].unique()}
    text = solve_text(learner, solved | made, asked, config["num_permutations"], config["seed"])
    write_text(place / "summary.txt", text)


def _compare(results: Path, worlds: list[str], folder: str) -> None:
    """From within `results`, so that no record says where that lies."""
    shutil.rmtree(results / folder, ignore_errors=True)
    with chdir(results):
        compare(CompareConfig(runs=worlds, output_dir=folder))
