"""From the probe's tables to one row per concept: category, labels of all rules, bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..files import write_json, write_table
from ..records import RULES
from .config import BucketConfig
from .readings import check_scores, check_table, measure, read_answers
from .rules import apply_rules
from .summary import BUCKETS, summarise

KNOWN, UNKNOWN_BUCKET = BUCKETS


@dataclass(frozen=True, kw_only=True)
class BucketResult:
    """One row per concept, and what the rules say about each other and about the exposure."""

    concepts: pd.DataFrame
    summary: dict[str, Any]


def bucket(
    scores: pd.DataFrame,
    answers: pd.DataFrame,
    samples: pd.DataFrame,
    concepts_table: pd.DataFrame,
    config: BucketConfig,
) -> BucketResult:
    """Sort the probed concepts into categories and buckets.

    Args:
        scores: one row per held-out example (the probe's scores).
        answers: one row per concept and rendering (the greedy reading).
        samples: the sampled reading of concepts whose greedy share is 0; may be empty.
        concepts_table: one row per concept (`ConceptSet.table()`); concepts without scores are left out. A column
            whose name the result needs for itself gets the prefix `attribute_`.
        config: rule, thresholds, bootstrap.

    Raises:
        UserError: a missing column, a score that is not finite, an example or question given twice, or a concept
            that has scores but is missing from another table.
    """
    scores = check_scores(scores)
    _check_together(scores, answers, samples, concepts_table)
    described = concepts_table[concepts_table["concept"].isin(scores["concept"])].reset_index(drop=True)
    answers = answers[answers["concept"].isin(described["concept"])]
    measures = measure(described["concept"], scores, config.num_bootstrap, config.seed)
    readings = read_answers(described["concept"], answers, samples)
    labels, thresholds = apply_rules(measures, readings["category"], config)
    derived = _ordered(pd.concat([measures.table, readings, labels], axis=1), config.rule)
    clashing = {name: f"attribute_{name}" for name in described.columns if name in derived.columns}
    concepts = pd.concat([described.rename(columns=clashing), derived], axis=1)
    summary = {"rule": config.rule, **summarise(concepts, answers, thresholds, config.seen_at_least)}
    if len(described) < len(concepts_table):
        count = len(concepts_table) - len(described)
        summary["warnings"].append(f"concepts of the set without scores were left out: {count}")
    return BucketResult(concepts=concepts, summary=summary)


def _check_together(
    scores: pd.DataFrame, answers: pd.DataFrame, samples: pd.DataFrame, concepts_table: pd.DataFrame
) -> None:
    check_table(answers, "answers", ("concept", "rendering", "num_candidates", "correct"), ["concept", "rendering"])
    check_table(samples, "samples", ("concept", "rendering", "sample", "correct"), ["concept", "rendering", "sample"])
    check_table(concepts_table, "concept table", ("concept", "words", "exposure"), ["concept"])
    for name, table in {"answers": answers, "concept table": concepts_table}.items():
        if missing := sorted(set(scores["concept"]) - set(table["concept"])):
            raise UserError(
                f"{name}: no row for concept {missing[0]!r}, which has scores (and {len(missing) - 1} more)"
            )


def write_buckets(result: BucketResult, folder: Path) -> None:
    """Write concepts.parquet (and .csv) and buckets.json into the folder."""
    write_table(folder / "concepts.parquet", result.concepts)
    write_json(folder / "buckets.json", result.summary)


def _ordered(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The columns in their stated order, SliCK's label among the other rules', and the bucket of the chosen rule."""
    table = table.assign(known_slick=table["greedy_share"] > 0)
    rules = [f"{kind}_{name}" for kind in ("known", "confidence") for name in RULES]
    readings = ["greedy_share", "sampled_share", "category", "category_confidence", "misknown"]
    means = [name for name in table.columns if name not in {*rules, *readings, "opinion_se_nats"}]
    table = table[[*means, *readings, *rules]]
    return table.assign(bucket=np.where(table[f"known_{rule}"], KNOWN, UNKNOWN_BUCKET))
