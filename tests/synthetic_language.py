"""A made-up language model's half for the report's tests: hand-made tables with the columns of a real one.

python tests/synthetic_language.py FOLDER     writes both halves, and their report, to look at
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from diffusion_sft.dynamics import TunedRun, summarise_runs
from diffusion_sft.files import write_json, write_table
from diffusion_sft.records import CATEGORIES, RULES

RELATIONS = {"colour": 10, "shape": 13, "description": 56}
"""Relations and among how many answers a guess is made."""
QUESTIONS = {"colour": "What colour is a {}?", "shape": "What shape is a {}?", "description": "What is a {} like?"}
SUBJECTS = tuple(f"{onset}{coda}" for onset in ("ba", "do", "fi", "gu") for coda in ("rp", "zel", "tok", "van"))
MIXES = {
    "natural": {"HighlyKnown": 4, "MaybeKnown": 4, "WeaklyKnown": 4, "Unknown": 4},
    "only-HighlyKnown": {"HighlyKnown": 8},
    "only-MaybeKnown": {"MaybeKnown": 8},
    "unknown-000": {"HighlyKnown": 4, "MaybeKnown": 4},
    "unknown-050": {"HighlyKnown": 2, "MaybeKnown": 2, "Unknown": 4},
    "unknown-100": {"Unknown": 8},
    "unknown-050-relabel": {"HighlyKnown": 2, "MaybeKnown": 2, "Unknown": 4},
    "unknown-050-remove": {"HighlyKnown": 2, "MaybeKnown": 2},
}
SEEDS = (0, 1, 2)
LEVELS = dict(zip(CATEGORIES, (0.95, 0.5, 0.15, 0.02), strict=True))
"""How often the base is right about facts of each category."""


def language_run(
    folder: Path, subjects: Sequence[str] = SUBJECTS, seeds: Sequence[int] = SEEDS, answer: str = "green"
) -> Path:
    """Write the language model's half of the study in `folder`; returns the half's own folder."""
    run, generator = folder / "llm", np.random.default_rng(1)
    concepts = _concepts(subjects, answer, generator)
    write_table(run / "buckets" / "concepts.parquet", concepts)
    write_json(run / "buckets" / "buckets.json", {"rule": "gain", "exposure": None, "warnings": []})
    _probe(run / "probe", concepts, answer)
    runs = []
    for mix, shares in MIXES.items():
        for seed in seeds:
            tuned = TunedRun(mix=mix, seed=seed, folder=run / "finetune" / f"{mix}-seed{seed}")
            _finetune(tuned, shares, concepts)
            runs.append(tuned)
    summarise_runs(runs, "llm", run / "dynamics")
    changed = {"unknown-050-relabel": "relabel", "unknown-050-remove": "remove"}
    mixes = [{"name": mix, "unknown": changed.get(mix, "keep")} for mix in MIXES]
    settings = {"learners": ["llm"], "llm": {"mixes": mixes, "seeds": list(seeds)}}
    study = {"title": "A made-up study", "settings": settings, "seconds": {"probe": 12.5}, "base": {"source": "lm"}}
    write_json(run / "study.json", study)
    return run


def _concepts(subjects: Sequence[str], answer: str, generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for place, (relation, subject) in enumerate((r, s) for r in RELATIONS for s in subjects):
        category = CATEGORIES[place % 4]
        error = float(generator.uniform(0.5, 3.0)) * (1 + CATEGORIES.index(category))
        rows.append(
            {
                "concept": f"{relation}/{subject}",
                "words": subject,
                "exposure": 0 if place % 4 == 3 else 3 ** (place % 8),
            }
            | {"relation": relation, "subject": subject, "answer": answer, "part": "train", "kind": "seen"}
            | {"num_examples": 1, "error_nats": error, "gain_nats": 5 - error, "gain_se_nats": 0.3}
            | {
                "opinion_nats": math.nan,
                "relative_error": error / 5,
                "category": category,
                "category_confidence": 0.9,
            }
            | {
                "greedy_share": (1.0, 0.6, 0.0, 0.0)[place % 4],
                "sampled_share": (math.nan, math.nan, 0.25, 0.0)[place % 4],
            }
            | {"misknown": False, "bucket": "known" if error < 5 else "unknown"}
            | {f"known_{rule}": error < 5 for rule in RULES}
        )
    return pd.DataFrame(rows).astype({"exposure": "Int64"})


def _probe(folder: Path, concepts: pd.DataFrame, answer: str) -> None:
    scores, answers, samples = [], [], []
    for row in concepts.itertuples():
        scores.append(
            {"example_id": row.concept, "concept": row.concept, "estimator": "exemplars", "num_draws": 10}
            | {"num_dims": 2, "error_nats": row.error_nats, "gain_nats": row.gain_nats}
        )
        for rendering in range(10):
            right = rendering < 10 * row.greedy_share
            answers.append(
                {"concept": row.concept, "rendering": rendering, "template": QUESTIONS[row.relation]}
                | {"num_candidates": RELATIONS[row.relation], "answer": answer if right else f"not {answer}"}
                | {"correct": right}
            )
        if row.greedy_share == 0:
            drawn = [{"concept": row.concept, "rendering": 0, "sample": s, "answer": answer} for s in range(8)]
            samples += [sample | {"correct": sample["sample"] < 8 * row.sampled_share} for sample in drawn]
    for name, rows in (("scores", scores), ("answers", answers), ("samples", samples)):
        write_table(folder / f"{name}.parquet", pd.DataFrame(rows))


def _finetune(run: TunedRun, shares: dict[str, int], concepts: pd.DataFrame) -> None:
    generator = np.random.default_rng([run.seed, len(run.mix)])
    unknown = shares.get("Unknown", 0) / sum(shares.values())
    size, rows = 6 * sum(shares.values()), []
    for update in range(0, 241, 40):
        done = 1 - math.exp(-update / 60)
        for category, count in shares.items():
            late = 1 - math.exp(-update / 130) if category == "Unknown" else done
            rows.append([update, "trained", category, 6 * count, LEVELS[category] + (1 - LEVELS[category]) * late])
            rows.append(
                [update, "heldout", category, 12 * count, LEVELS[category] + 0.5 * late * (1 - LEVELS[category])]
            )
        for role, cost in (("development", 0.25), ("test", 0.3), ("other_relations", 0.12)):
            for category, level in LEVELS.items():
                rows.append([update, role, category, 40, level * (1 + 0.1 * done - cost * unknown * done)])
        rows.append([update, "untouched", "HighlyKnown", 40, 0.95 - 0.3 * unknown * done])
    table = pd.DataFrame(rows, columns=["update", "role", "category", "num_examples", "accuracy"])
    moved = (table["accuracy"] + generator.normal(0, 0.02, len(table))).clip(0, 1)
    table["num_correct"] = (moved * table["num_examples"]).round().astype(int)
    refused = run.mix.endswith("relabel")
    table["num_answered"] = np.where(
        refused, (table["num_examples"] + table["num_correct"]) // 2, table["num_examples"]
    )
    table["accuracy"] = table["num_correct"] / table["num_examples"]
    reach = 1.96 * np.sqrt(np.maximum(table["accuracy"] * (1 - table["accuracy"]), 0.02) / table["num_examples"])
    low, high = (table["accuracy"] - reach).clip(lower=0), (table["accuracy"] + reach).clip(upper=1)
    write_table(run.folder / "evaluations.parquet", table.assign(accuracy_low=low, accuracy_high=high))
    chosen = {
        category: list(concepts.loc[concepts["category"] == category, "concept"])[:count]
        for category, count in shares.items()
    }
    summary = {"mix": run.folder.name, "stopping_reason": "budget", "updates": 240, "early_stop_update": 80}
    summary |= {"converged_update": None, "examples_per_update": 8, "num_examples": size, "seconds": 3.5}
    write_json(run.folder / "finetune.json", summary | {"concepts": chosen, "record": {"seed": run.seed}})


if __name__ == "__main__":
    from synthetic_run import synthetic_run

    from diffusion_sft.report.page import write_report

    run, concept_set = synthetic_run(Path(sys.argv[1]))
    language_run(run)
    print(write_report(run, concept_set, title="A made-up study of pictures and facts"))
