"""The comparison from end to end: folders and files in, tables, verdict, Markdown and LaTeX out.

Nothing here needs a model. What was written is kept as long as settings and files are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import file_hash, read_json, read_table, write_json, write_table, write_text
from ..locks import locked
from ..manifests import finished, listed, write_record
from ..records import LEARNERS
from ..reference import load_reference
from ..settings import settings_dict
from .agreement import agreement_table, trend_table, trends_of
from .config import CompareConfig
from .estimates import Draws
from .external import external_rows
from .half import Half, read_halves
from .measured import measured_rows
from .published import published_rows
from .readings import read_all
from .rendering import latex, markdown, missing_lines
from .rows import make_table
from .verdict import association, image_cost, taught
from .verdict_words import answer, association_sentences, headline, taught_sentences

LAYOUT = 1
"""Part of every key: raised when the tables' meaning changes."""
TABLE, AGREEMENT, TRENDS = "comparison", "agreement", "trends"
VERDICT, RECORD = "verdict", "compare.json"
WRITTEN = (
    *(f"{name}.{ending}" for name in (TABLE, AGREEMENT, TRENDS) for ending in ("parquet", "csv")),
    *(f"{VERDICT}.json", f"{VERDICT}.txt", f"{TABLE}.md", f"{TABLE}.tex"),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was written."""

    table: pd.DataFrame
    """The long table (`rows.COLUMNS`)."""
    agreement: pd.DataFrame
    """`agreement.AGREEMENT_COLUMNS`."""
    trends: pd.DataFrame
    """`agreement.trend_table`."""
    verdict: Mapping[str, Any]
    """The content of verdict.json; `sentences` is that of verdict.txt."""
    folder: Path


def compare(config: CompareConfig) -> Comparison:
    """Compare the learners of these runs and files, and write it all to `output_dir`.

    Raises:
        UserError: nothing to compare, a folder without a finished stage, an external file that is not in order.
    """
    if not config.runs and not config.external:
        raise UserError("runs is empty: give the output folders of studies, for example runs=[runs/quickstart]")
    with locked(Path(config.output_dir)):
        return _compare_and_write(config)


def _compare_and_write(config: CompareConfig) -> Comparison:
    halves = read_halves(config.runs)
    folder, key = Path(config.output_dir), _key(config, halves)
    if finished(folder / RECORD, key) is not None:
        return Comparison(
            table=read_table(folder / f"{TABLE}.parquet"),
            agreement=read_table(folder / f"{AGREEMENT}.parquet"),
            trends=read_table(folder / f"{TRENDS}.parquet"),
            verdict=read_json(folder / f"{VERDICT}.json"),
            folder=folder,
        )
    (folder / RECORD).unlink(missing_ok=True)
    found = _compare(config, halves)
    write_table(folder / f"{TABLE}.parquet", found.table)
    write_table(folder / f"{AGREEMENT}.parquet", found.agreement)
    write_table(folder / f"{TRENDS}.parquet", found.trends)
    write_json(folder / f"{VERDICT}.json", found.verdict)
    sentences = list(found.verdict["sentences"])
    write_text(folder / f"{VERDICT}.txt", "\n".join(sentences) + "\n")
    missing = [*missing_lines(found.table), *found.verdict["missing"]]
    write_text(folder / f"{TABLE}.md", markdown(found.table, found.agreement, sentences, missing))
    write_text(folder / f"{TABLE}.tex", latex(found.table, found.agreement))
    write_record(folder / RECORD, {"key": key, "config": settings_dict(config)}, listed(folder, WRITTEN))
    return found


def run_compare(config: CompareConfig) -> int:
    """The command: compare, and say what came out and where it lies."""
    found = compare(config)
    print(summary(found))
    return 0


def summary(found: Comparison) -> str:
    """A few lines for a terminal: the verdict, how many numbers there are, and the paths."""
    table = found.table
    counts = table[table["value"].notna()].groupby("source", sort=False).size()
    told = ", ".join(f"{count} {source}" for source, count in counts.items())
    lines = [*found.verdict["sentences"], "", f"numbers: {told}; missing: {int(table['value'].isna().sum())}"]
    lines += [f"  {line}" for line in found.verdict["missing"]]
    return "\n".join([*lines, *(f"{found.folder / name}" for name in WRITTEN)])


def _compare(config: CompareConfig, halves: Sequence[Half]) -> Comparison:
    draws = Draws(num_resamples=config.num_resamples, num_permutations=config.num_permutations, seed=config.seed)
    by_learner = {name: own for name in LEARNERS if (own := [half for half in halves if half.learner == name])}
    readings = {name: read_all(own) for name, own in by_learner.items()}
    rows = [*external_rows(config.external), *published_rows(load_reference())]
    for name, own in by_learner.items():
        rows += measured_rows(name, own, readings[name], draws)
    table = make_table(rows)
    trends = trend_table(trends_of({name: found.table for name, found in readings.items()}, draws))
    return Comparison(
        table=table,
        agreement=agreement_table(table, trends),
        trends=trends,
        verdict=_verdict(by_learner, draws),
        folder=Path(config.output_dir),
    )


def _verdict(by_learner: Mapping[str, Sequence[Half]], draws: Draws) -> dict[str, Any]:
    learners: dict[str, Any] = {}
    sentences, missing = [], [f"{name}: no run has its half" for name in LEARNERS if name not in by_learner]
    for name, halves in by_learner.items():
        about, cost = association(halves, draws), taught(halves, draws)
        if any((half.folder / "evaluate").is_dir() for half in halves):
            cost["images"] = image_cost(halves)
        own = [*association_sentences(name, about), *taught_sentences(name, cost)]
        learners[name] = {"association": about, "taught": cost, "answer": answer(cost), "sentences": own}
        sentences += own
        missing += [f"{name}, {half.label}: {reason}" for half in halves for reason in half.left_out]
    words = {name: str(found["association"]["verdict"]) for name, found in learners.items()}
    return {
        "headline": headline(words),
        "verdicts": words,
        "learners": learners,
        "sentences": [headline(words), *sentences],
        "missing": missing,
        "runs": [
            {"label": half.label, "learner": name, "folder": str(half.folder)}
            for name, halves in by_learner.items()
            for half in halves
        ],
        "num_resamples": draws.num_resamples,
        "num_permutations": draws.num_permutations,
        "seed": draws.seed,
    }


def _key(config: CompareConfig, halves: Sequence[Half]) -> str:
    """A hash of all that is read: settings, runs' tables, external files."""
    settings = settings_dict(config)
    settings.pop("output_dir")
    files = [[str(file), file_hash(file)] for half in halves for file in half.files]
    files += [[file, file_hash(Path(file))] for file in config.external if Path(file).is_file()]
    return hashlib.sha256(json.dumps([LAYOUT, settings, files], sort_keys=True).encode()).hexdigest()
