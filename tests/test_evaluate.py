"""Every measure by bucket and model, with a learner that draws noisy patches of one colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patches import NAMES, SIDE, PatchLearner, make_set, pixel_extractor
from safetensors.numpy import load_file

from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import (
    EvaluateConfig,
    Extractor,
    Instruments,
    distance_table,
    evaluate,
    generate_images,
    nearest_concept_reader,
    read_generated,
)
from diffusion_sft.evaluate.cache import FeatureCache
from diffusion_sft.files import read_table
from diffusion_sft.numerics.frechet import frechet_distance
from diffusion_sft.numerics.kernels import kernel_distance, kernel_replicates
from diffusion_sft.numerics.resampling import split_groups
from diffusion_sft.records import ConceptSet


def bucket_table(names: Sequence[str]) -> pd.DataFrame:
    """The first half known (highly and maybe in turns), the others unknown."""
    half = len(names) // 2
    rows = [
        {"concept": name, "bucket": "known", "category": ("HighlyKnown", "MaybeKnown")[number % 2]}
        if number < half
        else {"concept": name, "bucket": "unknown", "category": "Unknown"}
        for number, name in enumerate(names)
    ]
    return pd.DataFrame(rows)


CONFIG = EvaluateConfig(num_images_per_concept=20, num_groups=10, num_splits=6)


@pytest.fixture(scope="module")
def concept_set(tmp_path_factory: pytest.TempPathFactory) -> ConceptSet:
    return make_set(tmp_path_factory.mktemp("set"), NAMES, {"train": 12, "heldout": 8, "reference": 18})


@pytest.fixture(scope="module")
def evaluated(concept_set: ConceptSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Base and one tuned model that drew 40 grey levels too bright; measures and their folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    generated = {
        model: generate_images(PatchLearner(shift), concept_set, NAMES, CONFIG, folder / model)
        for model, shift in (("base", 0.0), ("tuned", 40.0))
    }
    extractor = pixel_extractor()
    files = {name: [e.path for e in concept_set.split("heldout") if e.concept == name] for name in NAMES}
    reader = nearest_concept_reader(FeatureCache(folder / "features", extractor, (SIDE, SIDE), 32), files)
    instruments = Instruments(extractor=extractor, read_labels=reader)
    result = evaluate(generated, concept_set, bucket_table(NAMES), instruments, CONFIG, folder)
    return result.measures, folder


def value(measures: pd.DataFrame, model: str, bucket: str, metric: str) -> pd.Series:
    found = measures.query("model == @model and bucket == @bucket and metric == @metric")
    assert len(found) == 1, (model, bucket, metric, len(found))
    return found.iloc[0]


def test_figures_are_those_of_the_numerics_on_the_same_features(
    evaluated: tuple[pd.DataFrame, Path], concept_set: ConceptSet
) -> None:
    measures, folder = evaluated
    cache = FeatureCache(folder / "features", pixel_extractor(), (SIDE, SIDE), 32)
    for bucket, names in (("known", NAMES[:2]), ("MaybeKnown", ["wug"]), ("all", NAMES)):
        # 18 reference and 20 generated images of each concept: 18 of each are paired.
        real = cache.features([e.path for e in concept_set.split("reference") if e.concept in names])
        for model in ("base", "tuned"):
            images = [i for i in read_generated(folder / model) if i.concept in names and i.index < 18]
            generated = cache.features([image.path for image in images])
            fid, kid = (value(measures, model, bucket, metric) for metric in ("fid", "kid"))
            assert fid["value"] == pytest.approx(frechet_distance(real, generated), rel=1e-9)
            strata = np.repeat(np.arange(len(names)), 18)
            stratified = kernel_replicates(real, generated, strata, split_groups(strata, 10, 0)).value
            assert kid["value"] == pytest.approx(stratified, rel=1e-9)
            if len(names) == 1:
                assert kid["value"] == pytest.approx(kernel_distance(real, generated), rel=1e-9)
            assert fid["num_real"] == fid["num_generated"] == len(real) == len(generated)


def test_the_shifted_model_is_farther_away_by_every_measure(evaluated: tuple[pd.DataFrame, Path]) -> None:
    measures, _ = evaluated
    for bucket in ("known", "unknown", "all"):
        for metric in ("fid", "fid_excess", "fd_pca_23", "kid"):
            base, tuned = (value(measures, model, bucket, metric) for model in ("base", "tuned"))
            assert tuned["low"] > base["value"]
        for metric in ("fid_change", "fd_pca_23_change", "kid_change"):
            change = value(measures, "tuned", bucket, metric)
            source = metric.removesuffix("_change")
            expected = (
                value(measures, "tuned", bucket, source)["value"] - value(measures, "base", bucket, source)["value"]
            )
            assert change["value"] == pytest.approx(expected, rel=1e-9)
            assert change["low"] > 0
        # The base draws from the real distribution: its excess and unbiased distances are nil.
        for metric in ("fid_excess", "fd_pca_23", "kid"):
            row = value(measures, "base", bucket, metric)
            assert abs(row["value"]) < 4 * row["standard_error"]
        parts = [value(measures, "base", bucket, name)["value"] for name in ("fid_half", "fid_floor", "fid_excess")]
        assert parts[0] - parts[1] == pytest.approx(parts[2])


def test_rows_say_all_that_a_figure_needs(evaluated: tuple[pd.DataFrame, Path]) -> None:
    measures, folder = evaluated
    assert list(measures.columns) == [
        *("model", "bucket", "metric", "value", "standard_error", "low", "high"),
        *("num_real", "num_generated", "extractor", "note"),
    ]
    assert set(measures["extractor"]) == {"pixels, none, weights abababababab"}
    assert set(measures["bucket"]) == {"known", "unknown", "HighlyKnown", "MaybeKnown", "Unknown", "all"}
    assert not measures.duplicated(["model", "bucket", "metric"]).any()
    assert set(measures.query("model == 'base'")["metric"]) | {
        "fid_change",
        "kid_change",
        "fd_pca_23_change",
        "accuracy_change",
    } == set(measures.query("model == 'tuned'")["metric"])
    missing = measures[measures["value"].isna()]
    assert missing["note"].str.startswith("not measured: ").all()
    finite = measures.dropna()
    assert (finite["low"] <= finite["value"]).all()
    assert (finite["value"] <= finite["high"]).all()
    assert value(measures, "base", "known", "fid_matched")["num_real"] == 36
    assert value(measures, "base", "HighlyKnown", "fid")["note"].startswith("warning: 18 images in 24 dimensions")
    assert not value(measures, "base", "known", "fid")["note"].startswith("warning")
    pd.testing.assert_frame_equal(read_table(folder / "measures.parquet"), measures)
    record = json.loads((folder / "measures.json").read_text())
    assert (record["matched_images"], record["pca_directions"], record["pca_pool_images"]) == (36, 23, 80)
    assert record["paired_images"] == 72
    directions = load_file(folder / "pca_directions.safetensors")["directions"]
    np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-10)


def test_accuracy_by_concept(evaluated: tuple[pd.DataFrame, Path]) -> None:
    measures, folder = evaluated
    table = read_table(folder / "concept_accuracy.parquet")
    assert list(table.columns) == ["model", "concept", "bucket", "category", "num_images", "num_correct", "accuracy"]
    assert table["num_images"].eq(20).all()
    assert value(measures, "base", "all", "accuracy")["value"] == pytest.approx(
        table.query("model == 'base'")["accuracy"].mean()
    )
    assert value(measures, "base", "all", "accuracy")["value"] > 0.9


def test_evaluation_is_deterministic_and_takes_features_from_the_cache(
    evaluated: tuple[pd.DataFrame, Path], concept_set: ConceptSet
) -> None:
    measures, folder = evaluated

    def never(images: Sequence[np.ndarray]) -> np.ndarray:
        raise AssertionError("extracted again")

    extractor = Extractor(name="pixels", resize="none", weights_sha256="ab" * 32, function=never)
    generated = {model: read_generated(folder / model) for model in ("base", "tuned")}
    again = evaluate(generated, concept_set, bucket_table(NAMES), Instruments(extractor=extractor), CONFIG, folder)
    assert len(again.concept_accuracy) == 0
    expected = measures[~measures["metric"].str.startswith("accuracy")].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.measures, expected)


def test_the_table_can_be_read(evaluated: tuple[pd.DataFrame, Path]) -> None:
    measures, _ = evaluated
    text = distance_table(measures)
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["bucket", "model"]
    assert "FD-PCA-23" in lines[0]
    assert [line.split()[:2] for line in lines[2:4]] == [["known", "base"], ["known", "tuned"]]
    kid = value(measures, "base", "known", "kid")
    assert f"{1000 * kid['value']:.2f} ± {1000 * kid['standard_error']:.2f}" in lines[2]
    assert "extractor: pixels, none, weights abababababab" in text
    assert "warning: 18 images in 24 dimensions" in text


def test_a_handful_of_images_degrades_to_reasons(tmp_path: Path) -> None:
    names = ["wug", "dax"]
    for count in (1, 2, 5):
        concept_set = make_set(tmp_path / f"set{count}", names, {"train": 1, "heldout": 1, "reference": count})
        config = EvaluateConfig(num_images_per_concept=count)
        folder = tmp_path / f"evaluate{count}"
        generated = {
            model: generate_images(PatchLearner(shift), concept_set, names, config, folder / model)
            for model, shift in (("base", 0.0), ("tuned", 5.0))
        }
        instruments = Instruments(
            extractor=pixel_extractor(), read_labels=lambda images, asked: ["wug"] * len(images)
        )
        measures = evaluate(generated, concept_set, bucket_table(names), instruments, config, folder).measures
        missing = measures[measures["value"].isna()]
        assert missing["note"].str.startswith("not measured: ").all()
        assert np.isnan(value(measures, "base", "known", "fid")["value"]) == (count < 4)
        assert value(measures, "base", "known", "accuracy")["value"] == 1
        assert value(measures, "base", "unknown", "accuracy")["value"] == 0
        assert distance_table(measures).count("\n") > 10


def test_concepts_without_reference_images_are_not_on_one_side_only(tmp_path: Path) -> None:
    whole = make_set(tmp_path, NAMES, {"train": 3, "heldout": 3, "reference": 6})
    examples = tuple(e for e in whole.examples if not (e.concept == "fep" and e.split == "reference"))
    concept_set = ConceptSet(concepts=whole.concepts, examples=examples)
    config = EvaluateConfig(num_images_per_concept=6, num_splits=2)
    generated = {"base": generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path / "base")}
    instruments = Instruments(extractor=pixel_extractor(), read_labels=lambda images, asked: list(asked))
    measures = evaluate(generated, concept_set, bucket_table(NAMES), instruments, config, tmp_path).measures
    assert value(measures, "base", "all", "fid")["num_generated"] == 18
    assert value(measures, "base", "all", "vendi")["num_generated"] == 6
    assert value(measures, "base", "unknown", "fid")["num_generated"] == 6
    assert value(measures, "base", "all", "accuracy")["num_generated"] == 24


def test_models_must_pair_up_and_concepts_need_buckets(concept_set: ConceptSet, tmp_path: Path) -> None:
    config = EvaluateConfig(num_images_per_concept=2)
    base = generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path / "base")
    instruments = Instruments(extractor=pixel_extractor())
    with pytest.raises(UserError, match="base and tuned were not generated from the same prompts"):
        evaluate({"base": base, "tuned": base[::-1]}, concept_set, bucket_table(NAMES), instruments, config, tmp_path)
    with pytest.raises(UserError, match=r"1 generated concepts have no bucket \(first: 'fep'\)"):
        evaluate({"base": base}, concept_set, bucket_table(NAMES)[:-1], instruments, config, tmp_path)
    with pytest.raises(UserError, match="no generated images to evaluate"):
        evaluate({"base": []}, concept_set, bucket_table(NAMES), instruments, config, tmp_path)
