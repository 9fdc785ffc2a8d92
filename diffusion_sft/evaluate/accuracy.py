"""Which share of a model's images shows the concept that was asked for? Counted and resampled by concept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm import tqdm

from ..concepts.images import load_image
from .pictures import GeneratedImage, check_unchanged
from .readers import LabelReader
from .rows import Row, missing

NUM_BOOTSTRAP = 4000
ACCURACY_COLUMNS = ("model", "concept", "bucket", "category", "num_images", "num_correct", "accuracy")


def read_accuracy(
    model: str, images: Sequence[GeneratedImage], read_labels: LabelReader, batch_size: int
) -> pd.DataFrame:
    """One row per concept: model, concept, num_images, num_correct, accuracy; concepts in the images' order.

    Files are read of those images alone that this reader did not read while they were made.
    """
    unread = [image for image in images if image.seen is None or image.reader != read_labels.identity]
    read: dict[Path, str] = {}
    for start in tqdm(range(0, len(unread), batch_size), desc=f"reading {model}", disable=None, leave=False):
        chunk = unread[start : start + batch_size]
        for image in chunk:
            check_unchanged(image)
        pictures = [np.asarray(load_image(image.path)) for image in chunk]
        seen = read_labels(pictures, [image.concept for image in chunk])
        read |= dict(zip([image.path for image in chunk], seen, strict=True))
    correct: dict[str, list[bool]] = {}
    for image in images:
        found = read.get(image.path, image.seen)
        correct.setdefault(image.concept, []).append(found == image.concept)
    rows = [
        {
            "model": model,
            "concept": concept,
            "num_images": len(hits),
            "num_correct": sum(hits),
            "accuracy": sum(hits) / len(hits),
        }
        for concept, hits in correct.items()
    ]
    return pd.DataFrame(rows, columns=["model", "concept", "num_images", "num_correct", "accuracy"])


def accuracy(accuracies: np.ndarray, num_images: int, seed: int) -> Row:
    """The mean over concepts of their accuracies, (num_concepts,), with a bootstrap interval over concepts.

    Concepts that are all alike have no spread to resample; the interval is then Wilson's, counting concepts.
    """
    counts = (0, num_images)
    if len(accuracies) == 0:
        return missing("accuracy", counts, "no concept")
    value, note = float(accuracies.mean()), f"mean over {len(accuracies)} concepts"
    if len(accuracies) == 1 or np.ptp(accuracies) == 0:
        bounds = binomtest(round(value * len(accuracies)), len(accuracies)).proportion_ci(method="wilson")
        low, high = min(value, float(bounds.low)), max(value, float(bounds.high))
        note += ", all alike: Wilson's interval, counting concepts"
        return _row("accuracy", (value, 0.0), (low, high), counts, note)
    means = _bootstrap(accuracies, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return _row("accuracy", (value, float(means.std(ddof=1))), (float(low), float(high)), counts, note)


def accuracy_change(before: np.ndarray, after: np.ndarray, num_images: int, seed: int) -> Row:
    """The mean change of accuracy over concepts, both (num_concepts,), with a paired bootstrap over concepts."""
    counts, change = (0, num_images), after - before
    if len(change) < 2:
        return missing("accuracy_change", counts, f"{len(change)} concepts, an interval needs two")
    value, note = float(change.mean()), f"paired over {len(change)} concepts"
    if np.ptp(change) == 0:
        nothing = (math.nan, math.nan)
        return _row("accuracy_change", (value, math.nan), nothing, counts, f"{note}, all alike: no interval")
    means = _bootstrap(change, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return _row("accuracy_change", (value, float(means.std(ddof=1))), (float(low), float(high)), counts, note)


def _bootstrap(values: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return values[generator.integers(len(values), size=(NUM_BOOTSTRAP, len(values)))].mean(axis=1)


def _row(
    metric: str, estimate: tuple[float, float], bounds: tuple[float, float], counts: tuple[int, int], note: str
) -> Row:
    return Row(
        metric=metric,
        value=estimate[0],
        standard_error=estimate[1],
        low=bounds[0],
        high=bounds[1],
        num_real=counts[0],
        num_generated=counts[1],
        note=note,
    )
