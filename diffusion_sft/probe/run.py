"""The probe: three tables about a base, finished work kept.

`scores`: error, gain and opinion of every held-out example under its own caption (`scores.py`). `answers`: the greedy
reading (`answers.py` of the package). `samples`: the sampled reading of concepts that no greedy answer got right.

Several processes share the work and the folder (`parts.py`); each of them calls `probe` and gets the whole result.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..answers import answer, make_questions
from ..errors import UserError
from ..files import file_hash, read_table, write_table
from ..learner import NULL_CUE, Learner, Query, Question
from ..manifests import finished, listed, table_files, write_record
from ..parts import PARTS, Parts, remove_parts
from ..processes import from_main, is_main, wait_for_everyone
from ..records import EXEMPLAR, PROBED, ConceptSet, Draws, Example
from ..settings import settings_dict
from .adaptive import adaptive_answers
from .config import LanguageProbeConfig, ProbeConfig
from .samples import SAMPLE_COLUMNS, Sampling
from .scores import own_caption, score

TABLES = ("scores", "answers", "samples")
RECORD = "probe.json"
LAYOUT = 2
"""Part of every key: raised when the tables' meaning changes, so that older results are not taken for new ones."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The three tables, as written to the folder."""

    scores: pd.DataFrame
    answers: pd.DataFrame
    samples: pd.DataFrame


def probe(
    learner: Learner,
    concept_set: ConceptSet,
    config: ProbeConfig | LanguageProbeConfig,
    folder: Path,
    sampling: Sampling | None = None,
) -> ProbeResult:
    """Read a base on the probed splits and write `scores`, `answers` and `samples` (parquet and csv) to `folder`.

    Finished parts are kept: the same probe of the same base and set goes on where it was stopped, and a finished one
    is read back. Without `sampling` there is no sampled reading.

    Raises:
        UserError: no held-out example, or captions that the tokenizer would cut.
    """
    examples = _chosen(concept_set, config.max_examples_per_concept)
    questions = make_questions(concept_set, examples, config.answers, config.seed)
    key = _key(learner, concept_set, examples, config, sampling is not None)
    if from_main(lambda: finished(folder / RECORD, key)) is not None:
        remove_parts(folder)  # Of a process that was killed just before it did.
        return ProbeResult(**{name: read_table(folder / f"{name}.parquet") for name in TABLES})
    learner.check_captions([*(e.caption for e in examples), *(cue for q in questions for cue in q.query.cues)])
    with Parts(folder / PARTS / key[:16], config.concepts_per_part) as parts:
        result = _read(learner, config, _Work(examples, questions, sampling), parts)
    wait_for_everyone()  # all have read the parts, which may now go
    if is_main():
        saved = _saved(result, _Work(examples, questions, sampling), config)
        (folder / RECORD).unlink(missing_ok=True)  # It must not speak for tables of another probe.
        for name in TABLES:
            write_table(folder / f"{name}.parquet", getattr(result, name))
        record: dict[str, Any] = {"key": key, "base": learner.identity(), "config": settings_dict(config)}
        record |= {"num_evaluations": parts.num_evaluations, "seconds": round(parts.seconds, 3)} | saved
        write_record(folder / RECORD, record, listed(folder, table_files(TABLES)))
        remove_parts(folder)
    wait_for_everyone()
    return result


@dataclass(frozen=True)
class _Work:
    examples: Sequence[Example]
    questions: Sequence[Question]
    sampling: Sampling | None


def _read(learner: Learner, config: ProbeConfig | LanguageProbeConfig, work: _Work, parts: Parts) -> ProbeResult:
    draws = Draws(seed=config.seed, count=config.answers.num_draws, estimator=config.estimator)

    def count_scores(examples: Sequence[Example]) -> int:
        return num_evaluations([own_caption(example) for example in examples], config.evaluations_per_caption)

    def count_answers(questions: Sequence[Question]) -> int:
        return num_evaluations([question.query for question in questions], draws.count)

    def ask(questions: Sequence[Question]) -> pd.DataFrame:
        if isinstance(config, ProbeConfig) and config.adaptive.enabled:
            return adaptive_answers(learner, questions, config)
        return answer(learner, questions, draws, config.batch_size)

    total = count_scores(work.examples) + count_answers(work.questions)
    asked = f"{len(work.examples)} examples and {len(work.questions)} questions"
    if is_main():
        most = "at most " if config.adaptive.enabled else ""
        print(f"probe: {most}{total:,} network evaluations for {asked}", file=sys.stderr)
    parts.expect(total)
    scores = parts.table("scores", work.examples, lambda some: score(learner, some, config), count_scores)
    answers = parts.table("answers", work.questions, ask, count_answers)
    samples = _no_samples()
    if (sampling := work.sampling) and config.samples.num_samples:
        missed = _missed(work.questions, answers)
        parts.expect(sampling.num_evaluations(missed))
        if missed:
            samples = parts.table("samples", missed, sampling.draw, sampling.num_evaluations)
    return ProbeResult(
        scores=scores.sort_values("example_id", ignore_index=True),
        answers=answers.sort_values(["concept", "rendering"], ignore_index=True),
        samples=samples.sort_values(["concept", "sample"], ignore_index=True),
    )


def _saved(result: ProbeResult, work: _Work, config: ProbeConfig | LanguageProbeConfig) -> dict[str, Any]:
    """What an adaptive probe took and what its whole budget would have been, for each table and together."""
    if not config.adaptive.enabled:
        return {}
    fixed = config.evaluations_per_caption - config.num_draws
    cues = {example.id: len({NULL_CUE, example.caption}) for example in work.examples}
    scored = (result.scores["num_draws"] + fixed) * result.scores["example_id"].map(cues)
    missed = _missed(work.questions, result.answers)
    drawn = work.sampling.num_evaluations(missed) if work.sampling and config.samples.num_samples else 0
    budget = {
        "scores": sum(cues.values()) * config.evaluations_per_caption,
        "answers": num_evaluations([question.query for question in work.questions], config.answers.num_draws),
        "samples": drawn,
    }
    most = len({question.concept for question in missed}) * config.samples.num_samples
    used = {
        "scores": int(scored.sum()),
        "answers": int(result.answers["num_evaluations"].sum()),
        "samples": round(drawn * len(result.samples) / most) if drawn else 0,
    }
    taken, whole = sum(used.values()), sum(budget.values())
    print(
        f"probe: {taken:,} network evaluations did for {whole:,}, {whole / taken:.1f} times as many", file=sys.stderr
    )
    stages = {name: {"used": used[name], "budget": budget[name]} for name in TABLES}
    return {"num_evaluations": taken, "num_evaluations_of_budget": whole, "adaptive": stages}


def num_evaluations(queries: Sequence[Query], per_cue: int) -> int:
    """How many network evaluations it takes to read these queries: so many for each distinct cue and for ∅."""
    return sum(len({NULL_CUE, *query.cues}) for query in queries) * per_cue


def _chosen(concept_set: ConceptSet, most: int | None) -> list[Example]:
    """The held-out examples by id, at most so many for each concept."""
    chosen: list[Example] = []
    by_concept: dict[str, list[Example]] = {}
    for example in sorted(concept_set.split(*PROBED), key=lambda example: example.id):
        by_concept.setdefault(example.concept, []).append(example)
    shown = {example.concept for example in concept_set.split(EXEMPLAR)}
    for concept in concept_set.concepts:
        own = by_concept.get(concept.name, [])
        if not own and concept.name not in shown and is_main():
            print(f"probe: concept {concept.name!r} has no held-out example and is left out", file=sys.stderr)
        chosen += own[:most]
    if not chosen:
        raise UserError("the concept set has no held-out examples to probe; give some rows split=heldout")
    return chosen


def _missed(questions: Sequence[Question], answers: pd.DataFrame) -> list[Question]:
    """The questions of the concepts whose greedy share is 0."""
    share = answers.groupby("concept")["correct"].mean()
    return [question for question in questions if share[question.concept] == 0]


def _no_samples() -> pd.DataFrame:
    kinds = {"concept": "str", "rendering": "int64", "sample": "int64", "seed": "int64", "answer": "str"}
    return pd.DataFrame(columns=list(SAMPLE_COLUMNS)).astype(kinds | {"correct": "bool"})


def _key(
    learner: Learner,
    concept_set: ConceptSet,
    examples: Sequence[Example],
    config: ProbeConfig | LanguageProbeConfig,
    sampled: bool,
) -> str:
    """A hash of all that the tables depend on; not of batch sizes, nor of where files lie or in which order."""
    settings: dict[str, Any] = settings_dict(config)
    settings.pop("batch_size")
    settings["samples"].pop("batch_size")
    if not config.adaptive.enabled:
        settings.pop("adaptive")  # so that what was probed before there was such a setting is still current
    if isinstance(config, ProbeConfig):
        settings["reconstruction"] = asdict(config.round_trip) if config.round_trip else None
        settings["reconstruction_draws"] = config.reconstruction.num_draws if config.error_kind == "sdedit" else None
    identity = {name: value for name, value in learner.identity().items() if name != "source"}
    words = sorted((concept.name, concept.words) for concept in concept_set.concepts)
    # Of pictures that are not probed nothing is read; of questions some are exemplars.
    probed = {e.id for e in examples}
    read = [e for e in concept_set.examples if e.id in probed or e.fact is not None]
    captions = sorted((e.id, e.concept, e.caption, e.split) for e in read)
    images = sorted((e.id, file_hash(e.path) if e.path.is_file() else "") for e in examples)
    content = [LAYOUT, settings, sampled, identity, words, captions, images]
    facts = sorted((e.id, e.fact.answers, e.fact.null_question) for e in concept_set.examples if e.fact is not None)
    content += [facts] if facts else []
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
