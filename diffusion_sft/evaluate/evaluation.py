"""Generated against real, bucket by bucket and model by model: `measures.parquet` and `concept_accuracy.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import save_file
from tqdm import tqdm

from ..errors import UserError
from ..files import replaced, write_json, write_table
from ..records import CATEGORIES, ConceptSet, identity_seed
from .accuracy import ACCURACY_COLUMNS, accuracy, accuracy_change, read_accuracy
from .cache import FeatureCache
from .comparison import CommonGround, Comparison
from .config import EvaluateConfig
from .features import Extractor
from .ground import common_ground, pair_up, real_images
from .looking import Instruments
from .measures import Measured, measure, paired_changes
from .pictures import GeneratedImage
from .readers import LabelReader
from .rows import Row

BASE = "base"
"""The model before fine-tuning; every other model's changes are from it."""
MAIN_BUCKETS = ("known", "unknown")
ALL = "all"
MEASURE_COLUMNS = (
    *("model", "bucket", "metric", "value", "standard_error", "low", "high"),
    *("num_real", "num_generated", "extractor", "note"),
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The two tables as they were written."""

    measures: pd.DataFrame
    concept_accuracy: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Features:
    """All features. Slot i is one reference image and one generated image of every model, all of `concepts[i]`."""

    num_reference: int
    """Before pairing."""
    concepts: np.ndarray
    reference: np.ndarray
    generated: dict[str, np.ndarray]
    train: np.ndarray
    train_concepts: np.ndarray
    pool: np.ndarray


def evaluate(
    generated: Mapping[str, Sequence[GeneratedImage]],
    concept_set: ConceptSet,
    concepts: pd.DataFrame,
    instruments: Instruments,
    config: EvaluateConfig,
    folder: Path,
) -> Evaluation:
    """Measure every model on every bucket and write both tables, `measures.json` and `pca_directions.safetensors`.

    Args:
        generated: by model, images of the same concepts, prompts and seeds; `base` is what changes are from.
        concept_set: holds the reference images.
        concepts: one row per concept: concept, bucket ("known" or "unknown"), category.
        folder: receives the files, and the feature cache in `features/`.

    Raises:
        UserError: models whose images do not pair up, a concept without a bucket, no reference images or training
            images among them.
    """
    generated = dict(sorted(generated.items(), key=lambda item: item[0] != BASE))
    images = _same_prompts(generated)
    table = _bucket_table(concepts, [image.concept for image in images])
    features = _extract(generated, concept_set, instruments.extractor, config, folder)
    # A concept without a reference image has no slot, and is in no distance.
    buckets = _buckets(table, set(features.concepts.tolist()))
    sizes = [int(_of(features.concepts, names).sum()) for name, names in buckets.items() if name in MAIN_BUCKETS]
    ground = common_ground(features.pool, sizes, config)
    _save_ground(ground, features, instruments.extractor, config, folder)
    found = _measure_all(buckets, features, ground, config)
    accuracies = _accuracies(generated, table, instruments.read_labels, config)
    if instruments.read_labels is not None:
        found += _accuracy_rows(_buckets(table, set(table["concept"])), accuracies, config)
    measures = _measures_table(found, list(generated), instruments.extractor.label)
    write_table(folder / "measures.parquet", measures)
    write_table(folder / "concept_accuracy.parquet", accuracies)
    return Evaluation(measures=measures, concept_accuracy=accuracies)


def _same_prompts(generated: Mapping[str, Sequence[GeneratedImage]]) -> Sequence[GeneratedImage]:
    """The first model's images, once every other model is known to have been asked for the same."""
    if not generated or not all(generated.values()):
        raise UserError("there are no generated images to evaluate; generate them first")
    first, *others = generated
    keys = [(image.concept, image.index, image.prompt, image.seed) for image in generated[first]]
    for model in others:
        if [(image.concept, image.index, image.prompt, image.seed) for image in generated[model]] != keys:
            raise UserError(f"{first} and {model} were not generated from the same prompts and seeds; generate again")
    return generated[first]


def _bucket_table(concepts: pd.DataFrame, asked: Sequence[str]) -> pd.DataFrame:
    """concept, bucket, category of the generated concepts, in the order of the images."""
    names = list(dict.fromkeys(asked))
    known = concepts.set_index("concept")
    lost = [name for name in names if name not in known.index]
    if lost:
        raise UserError(f"{len(lost)} generated concepts have no bucket (first: {lost[0]!r}); run bucket on this set")
    return known.loc[names, ["bucket", "category"]].reset_index()


def _buckets(table: pd.DataFrame, among: set[str]) -> dict[str, set[str]]:
    """Concept names by bucket: known, unknown, each category, all; those without a concept are left out."""
    kept = table[table["concept"].isin(among)]
    named = [("bucket", bucket) for bucket in MAIN_BUCKETS] + [("category", category) for category in CATEGORIES]
    buckets = {value: set(kept.loc[kept[column] == value, "concept"]) for column, value in named}
    return {name: names for name, names in buckets.items() if names} | {ALL: set(kept["concept"])}


def _extract(
    generated: Mapping[str, Sequence[GeneratedImage]],
    concept_set: ConceptSet,
    extractor: Extractor,
    config: EvaluateConfig,
    folder: Path,
) -> _Features:
    images = next(iter(generated.values()))
    asked = [image.concept for image in images]
    real = real_images(concept_set, asked)
    concepts, reference, chosen = pair_up(real.reference_concepts, asked, config.seed)
    cache = FeatureCache(folder / "features", extractor, _size(images[0]), config.batch_size)
    return _Features(
        num_reference=len(real.reference),
        concepts=concepts,
        reference=cache.features([real.reference[place] for place in reference], "features of real images"),
        generated={
            model: cache.generated_features([made[place] for place in chosen], f"features of {model}")
            for model, made in generated.items()
        },
        train=cache.features(real.train, "features of training images"),
        train_concepts=real.train_concepts,
        pool=cache.features(real.pool, "features of other real images"),
    )


def _size(image: GeneratedImage) -> tuple[int, int]:
    if image.size is not None:
        return image.size
    with Image.open(image.path) as opened:
        return opened.height, opened.width


def _measure_all(
    buckets: Mapping[str, set[str]], features: _Features, ground: CommonGround, config: EvaluateConfig
) -> list[tuple[str, str, Row]]:
    found: list[tuple[str, str, Row]] = []
    jobs = tqdm(total=len(buckets) * len(features.generated), desc="measuring", disable=None, leave=False)
    for bucket, names in buckets.items():
        measured: dict[str, Measured] = {}
        slots = _of(features.concepts, names)
        for model, rows in features.generated.items():
            comparison = Comparison(
                bucket=bucket,
                real=features.reference[slots],
                generated=rows[slots],
                strata=np.unique(features.concepts[slots], return_inverse=True)[1],
                train=features.train[_of(features.train_concepts, names)],
                ground=ground,
                config=config,
            )
            measured[model] = measure(comparison)
            found += [(model, bucket, row) for row in measured[model].rows]
            if model != BASE and BASE in measured:
                changes = paired_changes(measured[BASE], measured[model], comparison.counts)
                found += [(model, bucket, row) for row in changes]
            jobs.update()
    jobs.close()
    return found


def _accuracies(
    generated: Mapping[str, Sequence[GeneratedImage]],
    table: pd.DataFrame,
    read_labels: LabelReader | None,
    config: EvaluateConfig,
) -> pd.DataFrame:
    if read_labels is None:
        return pd.DataFrame(columns=list(ACCURACY_COLUMNS))
    read = [read_accuracy(model, images, read_labels, config.batch_size) for model, images in generated.items()]
    return pd.concat(read).merge(table, on="concept", how="left")[list(ACCURACY_COLUMNS)]


def _accuracy_rows(
    buckets: Mapping[str, set[str]], accuracies: pd.DataFrame, config: EvaluateConfig
) -> list[tuple[str, str, Row]]:
    found = []
    for bucket, names in buckets.items():
        kept = accuracies[accuracies["concept"].isin(names)]
        seed = identity_seed(config.seed, "evaluate", bucket, "accuracy")
        by_model = {model: rows.set_index("concept") for model, rows in kept.groupby("model", sort=False)}
        for model, rows in by_model.items():
            values, num_images = rows["accuracy"].to_numpy(), int(rows["num_images"].sum())
            found.append((str(model), bucket, accuracy(values, num_images, seed)))
            if model != BASE and BASE in by_model:
                before = by_model[BASE].loc[rows.index, "accuracy"].to_numpy()
                found.append((str(model), bucket, accuracy_change(before, values, num_images, seed)))
    return found


def _measures_table(found: Sequence[tuple[str, str, Row]], models: Sequence[str], label: str) -> pd.DataFrame:
    """One row per model, bucket and metric, model by model."""
    ordered = sorted(found, key=lambda entry: models.index(entry[0]))
    rows = [{"model": model, "bucket": bucket} | asdict(row) for model, bucket, row in ordered]
    return pd.DataFrame(rows).assign(extractor=label)[list(MEASURE_COLUMNS)]


def _save_ground(
    ground: CommonGround, features: _Features, extractor: Extractor, config: EvaluateConfig, folder: Path
) -> None:
    """What the figures stand on: extractor, n*, and the directions themselves."""
    k = 0
    if ground.directions is not None:
        k = ground.directions.shape[1]
        with replaced(folder / "pca_directions.safetensors") as temporary:
            save_file({"directions": ground.directions, "pool_mean": features.pool.mean(axis=0)}, temporary)
    content = {
        "extractor": {"name": extractor.name, "resize": extractor.resize, "weights_sha256": extractor.weights_sha256},
        "num_features": int(features.reference.shape[1]),
        "reference_images": features.num_reference,
        "paired_images": len(features.concepts),
        "matched_images": ground.matched_images,
        "pca_directions": k,
        "pca_pool_images": len(features.pool),
        "no_directions": ground.no_directions,
        "num_groups": config.num_groups,
        "num_splits": config.num_splits,
        "seed": config.seed,
    }
    write_json(folder / "measures.json", content)


def _of(concepts: np.ndarray, names: set[str]) -> np.ndarray:
    return np.array([concept in names for concept in concepts], dtype=bool)
