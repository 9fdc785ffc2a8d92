"""From a study's output folder to what is published of it: the tables that everything else is made of.

Published are what was measured (the probe's readings, what each run was asked, the distances of generated pictures, what
was solved) and the records that say how. Weights and pictures are not: the page shows those that it needs.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_table, replaced, replaced_folder, write_text
from diffusion_sft.plan import StudyConfig
from diffusion_sft.questions import read_questions
from diffusion_sft.records import DIFFUSION, LEARNERS, LLM
from diffusion_sft.report.page import REPORT
from diffusion_sft.settings import load_settings
from diffusion_sft.solve.run import SOLVED

CONCEPTS = "concepts.parquet"
RECORDS = ("study.json", "config.yaml", "probe/probe.json", "evaluate/measures.json", "solve/solve.json")
TABLES = (
    *(f"probe/{name}" for name in ("scores", "answers", "samples")),
    *(f"evaluate/{name}" for name in ("measures", "concept_accuracy")),
    *(f"solve/{name}" for name in SOLVED),
)
RUN_RECORD, RUN_TABLES = "finetune.json", ("evaluations", "answers")
LEFT_OUT = {"answers": ["answer", "answered", "gain_nats", "error_nats"]}
"""Columns that nothing is made of; their means are among the evaluations."""


def half_folder(study: Path, learner: str) -> Path:
    """Where a learner's half lies in a study's folder."""
    return study if learner == DIFFUSION else study / LLM


def halves_of(study: Path) -> list[str]:
    """The learners whose half is in a study's folder."""
    return [learner for learner in LEARNERS if (half_folder(study, learner) / "study.json").is_file()]


def publish(study: Path, published: Path) -> None:
    """Copy what is published of a study, in the place of what was.

    Raises:
        UserError: there is no study.
    """
    learners = halves_of(study)
    if not learners:
        raise UserError(f"{study}: no study.json of either learner; run the study first")
    with replaced_folder(published) as folder:
        for learner in learners:
            _copy_half(half_folder(study, learner), half_folder(folder, learner))
            _write(_concepts(study, learner), half_folder(folder, learner) / CONCEPTS)
        if (study / REPORT).is_file():
            shutil.copyfile(study / REPORT, folder / REPORT)


def _copy_half(source: Path, target: Path) -> None:
    for name in (name for name in RECORDS if (source / name).is_file()):
        write_text(target / name, (source / name).read_text(encoding="utf-8"))
    for name in (name for name in TABLES if (source / f"{name}.parquet").is_file()):
        _copy_table(source / f"{name}.parquet", target / f"{name}.parquet")
    for record in sorted(source.glob(f"finetune/*/{RUN_RECORD}")):
        folder = target / "finetune" / record.parent.name
        write_text(folder / RUN_RECORD, record.read_text(encoding="utf-8"))
        for name in RUN_TABLES:
            _copy_table(record.parent / f"{name}.parquet", folder / f"{name}.parquet", LEFT_OUT.get(name, []))


def _concepts(study: Path, learner: str) -> pd.DataFrame:
    """One row for each concept of the set, as the rules see it."""
    world = study / "concepts"
    if learner == DIFFUSION:
        return read_concept_set(ConceptsConfig(path=str(world))).concept_set.table()
    config = load_settings(StudyConfig, study / LLM / "config.yaml")
    return read_questions(replace(config.llm.questions, path=str(world / "questions.jsonl"))).concept_set.table()


def _copy_table(source: Path, target: Path, left_out: list[str] | None = None) -> None:
    _write(read_table(source).drop(columns=left_out or []), target)


def _write(table: pd.DataFrame, path: Path) -> None:
    """As small as it goes, since it lies in the repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", compression_level=19, write_page_checksum=True)
