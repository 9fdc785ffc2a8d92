"""A made-up run for the report's tests: tables and pictures with the columns of a real one and invented numbers.

python tests/synthetic_run.py FOLDER     writes one, and its report, to look at
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from diffusion_sft.dynamics import TunedRun, summarise_runs
from diffusion_sft.files import write_json, write_table
from diffusion_sft.records import CATEGORIES, RULES, Concept, ConceptSet, Example

MIXES = ("unknown-000", "unknown-050", "unknown-100")
ONSETS, CODAS = ("ba", "do", "fi", "gu", "ka", "lo", "mi", "nu"), ("rp", "zel", "tok", "van", "wim")
NAMES = tuple(onset + coda for onset in ONSETS for coda in CODAS)
SHAPES = ("circle", "square", "star", "triangle")


def synthetic_run(root: Path, names: Sequence[str] = NAMES, mixes: Sequence[str] = MIXES) -> tuple[Path, ConceptSet]:
    """Write a whole run below `root`; returns its folder and the concept set."""
    run, generator = root / "run", np.random.default_rng(0)
    concept_set = _concept_set(root, names)
    concepts = _concepts(concept_set, generator)
    _probe(run, concept_set, concepts)
    write_table(run / "buckets" / "concepts.parquet", concepts)
    write_json(run / "buckets" / "buckets.json", _summary(concepts))
    for place, mix in enumerate(mixes):
        _finetune(run / "finetune" / mix, concepts, place / max(1, len(mixes) - 1))
    _evaluate(run, concepts, ("base", *mixes), generator)
    summarise_runs(
        [TunedRun(mix=mix, seed=0, folder=run / "finetune" / mix) for mix in mixes], "diffusion", run / "dynamics"
    )
    write_json(run / "study.json", _study(mixes))
    return run, concept_set


def drawing(number: int, seed: int, wrong: bool = False, size: int = 64) -> Image.Image:
    """A shape in a colour that belong to the concept's number, somewhere in the picture."""
    generator = np.random.default_rng([number, seed])
    shown = number if not wrong else number + int(generator.integers(1, 7))
    hue = (shown * 47) % 360
    image = Image.new("RGB", (size, size), tuple(int(v) for v in generator.integers(215, 245, 3)))
    pen = ImageDraw.Draw(image)
    x, y, r = *generator.uniform(0.38 * size, 0.62 * size, 2), generator.uniform(0.2, 0.32) * size
    sides = {"circle": 40, "square": 4, "triangle": 3, "star": 5}[SHAPES[shown % 4]]
    turn = generator.uniform(0, 6.28)
    corners = [
        (x + r * math.cos(turn + a), y + r * math.sin(turn + a)) for a in np.arange(sides) * 2 * math.pi / sides
    ]
    pen.polygon(corners, fill=f"hsl({hue}, 70%, 45%)", outline=f"hsl({hue}, 70%, 25%)")
    return image


def _concept_set(root: Path, names: Sequence[str]) -> ConceptSet:
    concepts, examples = [], []
    for number, name in enumerate(names):
        exposure = 0 if number % 4 == 3 else round(3000 ** (1 - (number % 31) / 31))
        attributes = {"shape": SHAPES[number % 4]}
        concepts.append(Concept(name=name, words=name, exposure=exposure, attributes=attributes))
        for split, count in (("train", 2), ("heldout", 2), ("reference", 2)):
            for index in range(count):
                identity = f"{split}/{number}-{index}.png"
                path = root / "set" / identity
                path.parent.mkdir(parents=True, exist_ok=True)
                drawing(number, 10 + index + len(split)).save(path, compress_level=1)
                caption = f"a photo of a {name}"
                examples.append(Example(id=identity, concept=name, caption=caption, path=path, split=split))
    return ConceptSet(concepts=tuple(concepts), examples=tuple(examples))


def _concepts(concept_set: ConceptSet, generator: np.random.Generator) -> pd.DataFrame:
    table = concept_set.table()
    count = len(table)
    strength = np.log1p(table["exposure"].to_numpy(float)) / np.log(3000) + generator.normal(0, 0.12, count)
    gain = 45 * strength - 12 + generator.normal(0, 4, count)
    error = 620 - 60 * strength + generator.normal(0, 45, count)
    greedy = np.where(strength > 0.75, 1.0, np.where(strength > 0.4, np.round(strength, 1), 0.0))
    sampled = np.where(greedy > 0, np.nan, np.where(strength > 0.15, 0.125, 0.0))
    category = np.select(
        [greedy == 1, greedy > 0, np.nan_to_num(sampled) > 0], ["HighlyKnown", "MaybeKnown", "WeaklyKnown"], "Unknown"
    )
    table = table.assign(
        num_examples=2,
        error_nats=error,
        error_se_nats=4.0,
        null_error_nats=error + gain,
        gain_nats=gain,
        gain_se_nats=np.abs(generator.normal(3, 0.7, count)),
        opinion_nats=np.abs(gain) + 3,
        gap_nats=3.0,
        relative_error=error / (error + gain),
        error_per_dim=error / 1024,
        uniform_mse=0.2,
        greedy_share=greedy,
        sampled_share=sampled,
        category=category,
        category_confidence=generator.uniform(0.6, 1.0, count),
        misknown=(category == "Unknown") & (gain < -14),
    )
    known = {"error": error < np.median(error), "relative": gain > 8, "gain": gain > 6, "slick": greedy > 0}
    for rule in RULES:
        table[f"known_{rule}"] = known[rule]
        table[f"confidence_{rule}"] = generator.uniform(0.7, 1.0, count)
    table["bucket"] = np.where(table["known_gain"], "known", "unknown")
    return table


def _summary(concepts: pd.DataFrame) -> dict[str, object]:
    areas = {
        "error": (0.71, 0.58, 0.83),
        "relative": (0.985, 0.95, 1.0),
        "gain": (0.98, 0.94, 1.0),
        "slick": (0.9, 0.8, 0.97),
    }
    return {
        "rule": "gain",
        "agreement": [{"first": "relative", "second": "gain", "share": 0.98, "kappa": 0.95}],
        "exposure": {
            "seen_at_least": 200,
            "auroc": {rule: {"value": v, "low": low, "high": high} for rule, (v, low, high) in areas.items()},
            "spearman_with_log_exposure": {
                "gain": {"value": 0.74, "low": 0.6, "high": 0.85},
                "error": {"value": None},
            },
        },
        "warnings": ["bucket known holds only 9 concepts: figures for it say little beyond these"],
    }


def _probe(run: Path, concept_set: ConceptSet, concepts: pd.DataFrame) -> None:
    by_name = concepts.set_index("concept")
    scores = pd.DataFrame(
        [
            {"example_id": e.id, "concept": e.concept, "split": e.split, "estimator": "default", "num_draws": 32}
            | {"num_dims": 1024, "error_nats": by_name.error_nats[e.concept]}
            | {"gain_nats": by_name.gain_nats[e.concept], "gain_se_nats": by_name.gain_se_nats[e.concept]}
            for e in concept_set.split("heldout")
        ]
    )
    write_table(run / "probe" / "scores.parquet", scores)
    answers = [
        {"concept": name, "rendering": place, "num_candidates": 10, "answer": name, "correct": place < 10 * share}
        for name, share in by_name["greedy_share"].items()
        for place in range(10)
    ]
    write_table(run / "probe" / "answers.parquet", pd.DataFrame(answers))
    unread = concepts.loc[concepts["sampled_share"].notna(), "concept"]
    samples = [
        {"concept": name, "rendering": 0, "sample": s, "seed": s, "answer": ""} for name in unread for s in range(4)
    ]
    columns = ["concept", "rendering", "sample", "seed", "answer"]
    write_table(run / "probe" / "samples.parquet", pd.DataFrame(samples, columns=columns).assign(correct=False))


def _finetune(folder: Path, concepts: pd.DataFrame, unknown_share: float) -> None:
    rows = []
    for update in range(0, 401, 50):
        done = 1 - math.exp(-update / 90)
        for role, category, start, end, count in _curves(unknown_share):
            accuracy = start + (end - start) * done
            correct = round(accuracy * count)
            reach = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0.02) / count)
            low, high = max(0.0, accuracy - reach), min(1.0, accuracy + reach)
            numbers = {"num_examples": count, "num_correct": correct, "accuracy": correct / count}
            numbers |= {"accuracy_low": min(low, correct / count), "accuracy_high": max(high, correct / count)}
            rows.append(
                {"update": update, "role": role, "category": category, **numbers, "gain_nats": 0.0, "error_nats": 0.0}
            )
    write_table(folder / "evaluations.parquet", pd.DataFrame(rows))
    (folder / "metrics.jsonl").write_text(json.dumps({"update": 1, "loss": 0.2}) + "\n")
    chosen: dict[str, list[str]] = {}
    for category, count in (("Unknown", round(12 * unknown_share)), ("HighlyKnown", 12 - round(12 * unknown_share))):
        chosen[category] = list(concepts.loc[concepts["category"] == category, "concept"])[:count]
    summary = {"mix": folder.name, "stopping_reason": "budget", "updates": 400, "early_stop_update": 150}
    summary |= {"converged_update": None, "examples_per_update": 8, "num_examples": 48}
    write_json(
        folder / "finetune.json", summary | {"concepts": chosen, "seconds": 61.25, "record": {"learning_rate": 1e-4}}
    )


def _curves(unknown_share: float) -> list[tuple[str, str, float, float, int]]:
    curves = [("untouched", "HighlyKnown", 0.97, 0.97 - 0.3 * unknown_share, 60)]
    curves += [("untouched", "MaybeKnown", 0.55, 0.55 - 0.25 * unknown_share, 50)]
    curves += [("untouched", "WeaklyKnown", 0.2, 0.18 - 0.05 * unknown_share, 40)]
    if unknown_share > 0:
        curves += [("trained", "Unknown", 0.1, 1.0, 48), ("heldout", "Unknown", 0.12, 0.72, 48)]
    if unknown_share < 1:
        curves += [("trained", "HighlyKnown", 0.98, 1.0, 48), ("heldout", "HighlyKnown", 0.96, 0.98, 48)]
    return curves


def _evaluate(run: Path, concepts: pd.DataFrame, models: Sequence[str], generator: np.random.Generator) -> None:
    measures, accuracy = [], []
    for place, model in enumerate(models):
        shift = (place - 1) / max(1, len(models) - 2) if place else 0.0
        images = []
        for number, row in enumerate(concepts.itertuples()):
            gained = 0.6 * shift if row.bucket == "unknown" else -0.2 * shift
            chance = min(1.0, max(0.0, (0.9 if row.bucket == "known" else 0.1) + gained))
            right = generator.random(8) < chance
            accuracy.append([model, row.concept, row.bucket, row.category, 8, int(right.sum()), right.mean()])
            for index in range(2):
                file = f"images/c{number}/{index:04d}.png"
                path = run / "evaluate" / model / file
                path.parent.mkdir(parents=True, exist_ok=True)
                drawing(number, 100 + index, wrong=not right[index]).save(path, compress_level=1)
                images.append({"file": file, "concept": row.concept, "index": index, "prompt": "", "seed": index})
        write_json(run / "evaluate" / model / "generated.json", {"settings": {}, "images": images})
        for bucket in ("known", "unknown", *CATEGORIES, "all"):
            measures += _measures(model, bucket, place > 0, shift)
    columns = ["model", "bucket", "metric", "value", "standard_error", "low", "high", "num_real", "num_generated"]
    write_table(
        run / "evaluate" / "measures.parquet", pd.DataFrame(measures, columns=[*columns, "extractor", "note"])
    )
    names = ["model", "concept", "bucket", "category", "num_images", "num_correct", "accuracy"]
    write_table(run / "evaluate" / "concept_accuracy.parquet", pd.DataFrame(accuracy, columns=names))


def _measures(model: str, bucket: str, tuned: bool, shift: float) -> list[list[object]]:
    better = bucket in ("unknown", "Unknown", "WeaklyKnown")
    size = {"known": 144, "unknown": 176, "all": 320}.get(bucket, 80)
    move, gained = (-26 if better else 14) * shift + len(bucket) / 9, (0.4 if better else -0.13) * shift
    levels = {
        "fid": (92, move, 3.0),
        "fid_half": (92 + 31, move, 3.0),
        "fid_floor": (61.0, 0, 2.0),
        "fid_excess": (31, move, 3.5),
    }
    levels |= {"fd_pca_64": (9.3, move / 6, 0.8), "kid": (0.021, move / 2000, 0.002)}
    levels |= {
        "accuracy": (0.2 if better else 0.85, gained, 0.03),
        "precision": (0.7, 0, 0.03),
        "recall": (0.4, 0, 0.04),
    }
    levels |= {"vendi": (21.4, 0, 1.1), "nearest_train_share": (0.05, 0, 0.01)}
    numbers = {metric: (level + by * tuned, error) for metric, (level, by, error) in levels.items()}
    if tuned:
        for metric in ("fid", "fd_pca_64", "kid", "accuracy"):
            numbers[f"{metric}_change"] = (levels[metric][1], 0.7 * levels[metric][2])
    rows: list[list[object]] = []
    for metric, (value, error) in numbers.items():
        note = f"warning: {size} images in 2048 dimensions, raw FID is nearly all bias" if metric == "fid" else ""
        ends = [value - 1.96 * error, value + 1.96 * error]
        rows.append([model, bucket, metric, value, error, *ends, size, size, "readout (sha256 3f0c9a…)", note])
    return rows


def _study(mixes: Sequence[str]) -> dict[str, object]:
    return {
        "settings": {"base": "data/base", "seed": 0, "finetune": {"method": "full", "mixes": list(mixes)}},
        "versions": {"torch": "2.6.0", "diffusers": "0.39.0"},
        "hardware": {"cpu": "2 cores", "gpu": None},
        "seconds": {"probe": 41.5, "finetune": 183.9, "evaluate": 77.0},
        "hashes": {"base": "9f86d081884c7d65"},
    }


if __name__ == "__main__":
    from diffusion_sft.report.page import write_report

    print(write_report(*synthetic_run(Path(sys.argv[1])), title="A made-up study of forty concepts"))
