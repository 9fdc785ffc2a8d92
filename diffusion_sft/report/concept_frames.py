"""What was read of every concept of one half, as tables whose rows say by number which concept they are about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..files import read_table
from ..records import DIFFUSION, HELDOUT, ConceptSet
from .run import Run

SCORED = (
    *("example_id", "num_draws", "error_nats", "error_se_nats", "null_error_nats", "gain_nats", "gain_se_nats"),
    *("opinion_nats", "opinion_se_nats", "relative_error"),
)
ANSWERED = ("rendering", "template", "answer", "correct", "true_gain_nats", "best_other_gain_nats")
SOLVED_FOR = ("system", "measure", "value", "low", "high", "num_draws")
CLASSED = ("solution_class", "num_draws", "num_correct", "num_answers")
READ = ("model", "num_images", "num_correct", "accuracy")
"""Columns that a concept's page shows of each table, as far as they are there."""
ASKED = ("update", "role", "answer", "correct")
"""Columns of the answers that a fine-tuning run gave at its evaluations; without one of them there is no table."""
ASKED_ROWS = 150_000
"""Answers of fine-tuning runs that the page holds at most; runs beyond that are left out whole."""
PLACE = "place"
"""The column that says which concept a row is about: its row in the table of concepts, from 0."""


def concept_frames(run: Run, concept_set: ConceptSet, missing: list[str]) -> dict[str, pd.DataFrame]:
    """The tables of one half by name; `concepts` and `shown` have one row per concept, in the same order."""
    assert run.concepts is not None
    names = run.concepts["concept"]
    frames = {"concepts": run.concepts, "shown": _shown(run, concept_set)}
    frames |= {
        "scores": _about(run.scores, SCORED, names),
        "answers": _about(run.answers, ANSWERED, names),
        "samples": _samples(run, names),
        "systems": _about(run.solved.get("systems"), SOLVED_FOR, names),
        "classes": _about(run.solved.get("classes"), CLASSED, names),
        "accuracy": _accuracy(run, names),
        "asked": _asked(run, names, missing),
    }
    return frames


def left_out_runs(run: Run, asked: pd.DataFrame) -> list[str]:
    """The fine-tuning runs whose answers were written and are not in the table of them."""
    shown = set(asked["run"]) if "run" in asked else set()
    return [mix.name for mix in run.first_runs if mix.name not in shown and _answers_file(run, mix.name).is_file()]


def _shown(run: Run, concept_set: ConceptSet) -> pd.DataFrame:
    """What the list of concepts shows of other tables: words, answers, rounds, recovery, solution class."""
    assert run.concepts is not None
    names = run.concepts["concept"]
    shown = pd.DataFrame({"caption": names.map(_captions(run, concept_set))})
    if run.answers is not None:
        counts = run.answers.groupby(["concept", "answer"]).size().rename("count").reset_index()
        most = counts.sort_values("count", ascending=False, kind="stable").drop_duplicates("concept")
        most = most.set_index("concept")
        shown["said"], shown["said_count"] = names.map(most["answer"]), names.map(most["count"]).astype("Int64")
        shown["num_asked"] = names.map(run.answers.groupby("concept").size()).astype("Int64")
    systems = run.solved.get("systems")
    if systems is not None and {"measure", "value"} <= set(systems.columns):
        for measure in ("rounds", "recovery"):
            own = systems[systems["measure"] == measure].drop_duplicates("concept").set_index("concept")
            shown[measure] = names.map(own["value"]).astype(float)
    if (classes := run.solved.get("classes")) is not None:
        own = classes.drop_duplicates("concept").set_index("concept")
        shown["solution_class"] = names.map(own["solution_class"])
    return shown


def _captions(run: Run, concept_set: ConceptSet) -> dict[str, str]:
    """A caption of each concept's pictures, or the question about each fact."""
    if run.learner == DIFFUSION:
        return {example.concept: example.caption for example in reversed(concept_set.split(HELDOUT))}
    if run.answers is None or run.concepts is None:
        return {}
    words = dict(zip(run.concepts["concept"], run.concepts["words"], strict=True))
    first = run.answers.drop_duplicates("concept")
    asked = zip(first["concept"], first["template"], strict=True)
    return {name: str(template).replace("{}", str(words.get(name, name))) for name, template in asked}


def _about(table: pd.DataFrame | None, columns: Iterable[str], names: pd.Series) -> pd.DataFrame:
    """These columns of the rows that are about one of the concepts; nothing where there is no table."""
    if table is None or "concept" not in table:
        return pd.DataFrame()
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    place = table["concept"].map(places)
    kept = table[[column for column in columns if column in table.columns]].assign(**{PLACE: place})[place.notna()]
    return kept.astype({PLACE: int})


def _samples(run: Run, names: pd.Series) -> pd.DataFrame:
    """How often each answer was drawn."""
    if run.samples is None or run.samples.empty:
        return pd.DataFrame()
    counted = run.samples.groupby(["concept", "answer", "correct"], sort=False).size().rename("count").reset_index()
    return _about(counted.sort_values("count", ascending=False, kind="stable"), ("answer", "correct", "count"), names)


def _accuracy(run: Run, names: pd.Series) -> pd.DataFrame:
    """Images read correctly, of the models that the page shows."""
    if run.accuracy is None:
        return pd.DataFrame()
    table = _about(run.accuracy, READ, names)
    order = {model: place for place, model in enumerate(run.shown_models)}
    table = table[table["model"].isin(order.keys())]
    return table.sort_values("model", key=lambda models: models.map(order), kind="stable")


def _asked(run: Run, names: pd.Series, missing: list[str]) -> pd.DataFrame:
    """What the first run of every mix answered at each evaluation, up to `ASKED_ROWS` rows."""
    parts: list[pd.DataFrame] = []
    for mix in run.first_runs:
        path = _answers_file(run, mix.name)
        if not path.is_file():
            continue
        try:
            table = read_table(path)
        except UserError:
            missing.append(f"{path.relative_to(run.folder).as_posix()}: is not a readable table")
            continue
        if {"concept", *ASKED} <= set(table.columns):
            parts.append(_about(table, ASKED, names).assign(run=mix.name))
        if sum(map(len, parts)) > ASKED_ROWS:
            parts.pop()
            break
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _answers_file(run: Run, name: str) -> Path:
    return run.folder / "finetune" / name / "answers.parquet"
