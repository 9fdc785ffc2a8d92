"""Generation from fixed seeds, and every measure by bucket, with a learner that draws noisy patches of one colour."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

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
    readout_reader,
)
from diffusion_sft.evaluate.accuracy import accuracy, accuracy_change
from diffusion_sft.evaluate.cache import FeatureCache
from diffusion_sft.evaluate.generation import slug
from diffusion_sft.evaluate.ground import choose_num_directions, common_ground, pair_up, real_images
from diffusion_sft.files import read_table
from diffusion_sft.learner import Cue, Learner, Query, Reading, TrainingItem
from diffusion_sft.numerics.frechet import frechet_distance
from diffusion_sft.numerics.kernels import kernel_distance, kernel_replicates
from diffusion_sft.numerics.resampling import split_groups
from diffusion_sft.records import Concept, ConceptSet, Draws, Example, identity_seed
from diffusion_sft.world.readout import Readout, ReadoutNetwork

SIDE = 8


class PatchLearner(Learner):
    """Draws a patch of a prompt's own colour, shifted by `shift`, with the seed's noise."""

    def __init__(self, shift: float = 0.0) -> None:
        self.network = nn.Identity()
        self.shift = shift
        self.asked: list[Cue] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def check_captions(self, captions: Sequence[str]) -> None:
        pass

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        raise NotImplementedError

    def loss(self, items: Sequence[TrainingItem], *, seed: int) -> torch.Tensor:
        raise NotImplementedError

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        self.asked += cues
        return [patch(cue.prompt, cue.seed, self.shift) for cue in cues]

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"source": "patches", "shift": self.shift}


def patch(prompt: str, seed: int, shift: float = 0.0) -> np.ndarray:
    digest = hashlib.sha256(prompt.encode()).digest()
    colour = np.array([60 + byte % 120 for byte in digest[:3]]) + shift
    noise = np.random.default_rng(seed).normal(0, 25, (SIDE, SIDE, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def make_set(root: Path, names: Sequence[str], counts: dict[str, int]) -> ConceptSet:
    examples = []
    for name in names:
        for split, count in counts.items():
            for index in range(count):
                path = root / split / f"{slug(name)}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(patch(f"a photo of a {name}", identity_seed(1, name, split, index))).save(path)
                identity = path.relative_to(root).as_posix()
                caption = f"a photo of a {name}"
                examples.append(Example(id=identity, concept=name, caption=caption, path=path, split=split))
    concepts = tuple(Concept(name=name, words=name) for name in names)
    return ConceptSet(concepts=concepts, examples=tuple(examples))


def pixel_extractor(num_dims: int = 24) -> Extractor:
    """A fixed random projection of the pixels: a space in which the noise has full rank."""
    project = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, num_dims)) / 2000

    def function(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([image.reshape(-1) for image in images]).astype(np.float64) @ project

    return Extractor(name="pixels", resize="none", weights_sha256="ab" * 32, function=function)


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


NAMES = ["blorp", "wug", "dax", "fep"]
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
    heldout = {
        name: [np.asarray(Image.open(e.path)) for e in concept_set.split("heldout") if e.concept == name]
        for name in NAMES
    }
    extractor = pixel_extractor()
    instruments = Instruments(extractor=extractor, read_labels=nearest_concept_reader(extractor, heldout))
    result = evaluate(generated, concept_set, bucket_table(NAMES), instruments, CONFIG, folder)
    return result.measures, folder


def value(measures: pd.DataFrame, model: str, bucket: str, metric: str) -> pd.Series:
    found = measures.query("model == @model and bucket == @bucket and metric == @metric")
    assert len(found) == 1, (model, bucket, metric, len(found))
    return found.iloc[0]


# --- generation ---


def test_images_come_from_their_own_seeds_and_the_concepts_caption(concept_set: ConceptSet, tmp_path: Path) -> None:
    learner = PatchLearner()
    images = generate_images(learner, concept_set, ["wug", "fep"], CONFIG, tmp_path)
    assert [(image.concept, image.index) for image in images] == [(c, i) for c in ("wug", "fep") for i in range(20)]
    assert images[3].prompt == "a photo of a wug"
    assert images[3].seed == identity_seed(0, "generate", "wug", 3)
    assert images[3].path == tmp_path / "images" / "wug" / "0003.png"
    np.testing.assert_array_equal(np.asarray(Image.open(images[3].path)), patch(images[3].prompt, images[3].seed))
    assert read_generated(tmp_path) == images


def test_what_is_there_and_unchanged_is_kept(concept_set: ConceptSet, tmp_path: Path) -> None:
    config = EvaluateConfig(num_images_per_concept=3)
    first = generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path)
    again = PatchLearner()
    assert generate_images(again, concept_set, NAMES, config, tmp_path) == first
    assert again.asked == []
    # One image lost, one altered, one more asked for: those alone are made.
    first[1].path.unlink()
    first[5].path.write_bytes(first[4].path.read_bytes())
    more = PatchLearner()
    longer = EvaluateConfig(num_images_per_concept=4)
    images = generate_images(more, concept_set, NAMES, longer, tmp_path)
    assert {cue.seed for cue in more.asked} == {
        first[1].seed,
        first[5].seed,
        *(i.seed for i in images if i.index == 3),
    }
    assert [image.sha256 for image in images if image.index < 3] == [image.sha256 for image in first]
    # Fewer: what is no longer asked for goes.
    generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 12


@pytest.mark.parametrize("change", ["model", "guidance", "seed"])
def test_another_model_guidance_or_seed_makes_everything_anew(
    concept_set: ConceptSet, tmp_path: Path, change: str
) -> None:
    generate_images(PatchLearner(), concept_set, NAMES, EvaluateConfig(num_images_per_concept=2), tmp_path)
    learner = PatchLearner(1.0 if change == "model" else 0.0)
    config = EvaluateConfig(
        num_images_per_concept=2,
        guidance_scale=3.0 if change == "guidance" else 2.0,
        seed=1 if change == "seed" else 0,
    )
    generate_images(learner, concept_set, NAMES, config, tmp_path)
    assert len(learner.asked) == 8


def test_a_broken_run_goes_on(concept_set: ConceptSet, tmp_path: Path) -> None:
    class Interrupted(PatchLearner):
        def generate(self, cues: Sequence[Cue], **settings: Any) -> list[np.ndarray]:
            if self.asked:
                raise KeyboardInterrupt
            return super().generate(cues, **settings)

    config = EvaluateConfig(num_images_per_concept=10, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        generate_images(Interrupted(), concept_set, NAMES, config, tmp_path)
    learner = PatchLearner()
    images = generate_images(learner, concept_set, NAMES, config, tmp_path)
    assert len(images) == 40
    assert len(learner.asked) == 24


def test_hostile_names_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["wug", "Wug", "wug ", "../wug", "con", "a/b", "a b", "a-b", "", "...", "犬", "猫", "x" * 300, "é", "e"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slugs[0] == "wug"
    assert all(part == Path(part).name and len(part) <= 50 and part == part.lower() for part in slugs)
    assert slug("CON").lower() not in {"con", "nul"}
    # A plain name that looks like a hashed one is hashed again.
    assert slug(slugs[1]) != slugs[1]
    concept_set = make_set(tmp_path / "set", ["../x", "a/b"], {"heldout": 1})
    images = generate_images(
        PatchLearner(), concept_set, ["../x", "a/b"], EvaluateConfig(num_images_per_concept=1), tmp_path / "out"
    )
    assert all((tmp_path / "out" / "images") in image.path.resolve().parents for image in images)


def test_a_concept_without_examples_and_a_damaged_record_are_named(concept_set: ConceptSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="concept 'zorp' has no example"):
        generate_images(PatchLearner(), concept_set, ["zorp"], CONFIG, tmp_path)
    (tmp_path / "generated.json").write_text("[]")
    with pytest.raises(UserError, match=r"generated\.json: not a record of generated images"):
        generate_images(PatchLearner(), concept_set, ["wug"], CONFIG, tmp_path)


# --- what is real ---


def test_a_training_image_in_the_reference_is_refused(tmp_path: Path) -> None:
    concept_set = make_set(tmp_path, ["wug"], {"train": 2, "heldout": 1, "reference": 2})
    assert len(real_images(concept_set, ["wug"]).pool) == 3
    (tmp_path / "reference" / "wug-1.png").write_bytes((tmp_path / "train" / "wug-0.png").read_bytes())
    with pytest.raises(UserError, match=r"1 reference images are training images .*wug-1\.png is .*wug-0\.png"):
        real_images(concept_set, ["wug"])
    with pytest.raises(UserError, match="none of the generated concepts has a reference image"):
        real_images(concept_set, ["dax"])


def test_pool_leaves_the_reference_out(tmp_path: Path) -> None:
    concept_set = make_set(tmp_path, ["wug"], {"train": 3, "heldout": 2, "reference": 2})
    # The same file as held-out and reference, as in small sets: the pool keeps to the others.
    shared = concept_set.split("reference")[0]
    twice = Example(id=shared.id, concept="wug", caption=shared.caption, path=shared.path, split="heldout")
    concept_set = ConceptSet(concepts=concept_set.concepts, examples=(*concept_set.examples, twice))
    real = real_images(concept_set, ["wug"])
    assert len(real.pool) == 5
    assert not set(real.pool) & set(real.reference)


def test_both_sides_have_equally_many_images_of_each_concept() -> None:
    reference = ["a"] * 5 + ["b"] * 2 + ["c"]
    generated = ["b"] * 3 + ["a"] * 3 + ["d"] * 3
    concepts, real, made = pair_up(reference, generated, seed=0)
    assert concepts.tolist() == ["b", "b", "a", "a", "a"]
    assert [reference[place] for place in real] == [generated[place] for place in made] == concepts.tolist()
    assert made.tolist() == [0, 1, 3, 4, 5]
    assert len(set(real.tolist())) == 5
    # Which of a concept's images are taken does not depend on the other concepts.
    alone = pair_up(reference[:5], ["a"] * 3, seed=0)[1]
    assert alone.tolist() == real[2:].tolist()
    assert len(pair_up(reference, ["d"], seed=0)[0]) == 0


def test_number_of_directions_follows_the_smallest_bucket_that_is_large_enough() -> None:
    assert choose_num_directions([200, 150]) == 99
    assert choose_num_directions([600, 500]) == 128
    assert choose_num_directions([200, 10]) == 128
    assert choose_num_directions([97]) == 64
    assert choose_num_directions([12, 9]) == 7
    assert choose_num_directions([]) == 0
    pool = np.random.default_rng(0).normal(size=(50, 30))
    ground = common_ground(pool, [200, 150], EvaluateConfig())
    assert ground.directions is not None
    assert ground.directions.shape == (30, 30)
    assert ground.matched_images == 150
    with pytest.raises(UserError, match="pca_directions=31: at most 30"):
        common_ground(pool, [200], EvaluateConfig(pca_directions=31))
    assert common_ground(np.zeros((0, 0)), [200], EvaluateConfig()).directions is None


# --- measures ---


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


def test_six_hundred_images_take_seconds(tmp_path: Path) -> None:
    """300 images of base and of tuned in 64 dimensions; processor time, as the machine may be busy."""
    names = [f"wug{number}" for number in range(30)]
    concept_set = make_set(tmp_path, names, {"train": 4, "heldout": 4, "reference": 10})
    config = EvaluateConfig(num_images_per_concept=10)
    generated = {
        model: generate_images(PatchLearner(shift), concept_set, names, config, tmp_path / model)
        for model, shift in (("base", 0.0), ("tuned", 5.0))
    }
    instruments = Instruments(extractor=pixel_extractor(64))
    start = time.process_time()
    evaluate(generated, concept_set, bucket_table(names), instruments, config, tmp_path)
    assert time.process_time() - start < 5


# --- accuracy ---


def test_accuracy_intervals() -> None:
    spread = accuracy(np.array([0.0, 0.5, 1.0, 1.0, 0.5, 1.0]), 60, seed=0)
    assert spread.value == pytest.approx(4 / 6)
    assert spread.standard_error == pytest.approx(np.std([0, 0.5, 1, 1, 0.5, 1]) / np.sqrt(6), rel=0.05)
    assert 0.2 < spread.low < spread.value < spread.high <= 1
    alike = accuracy(np.zeros(20), 200, seed=0)
    assert (alike.value, alike.low) == (0, 0)
    assert alike.high == pytest.approx(0.161, abs=0.001)  # Wilson, 0 of 20
    one = accuracy(np.array([0.5]), 10, seed=0)
    assert one.low <= 0.5 <= one.high
    change = accuracy_change(np.array([0.2, 0.8, 0.5]), np.array([0.4, 0.9, 0.9]), 30, seed=0)
    assert change.value == pytest.approx(0.7 / 3)
    assert change.low >= 0.1 - 1e-12
    assert "all alike" in accuracy_change(np.zeros(3), np.ones(3), 30, seed=0).note
    assert np.isnan(accuracy_change(np.zeros(1), np.ones(1), 10, seed=0).value)


# --- readers ---


def test_readout_reader_names_the_look_and_prefers_the_asked_one() -> None:
    heads = {"shape": ["circle", "square"], "colour": ["red", "blue"]}

    class Fixed(Readout):
        def __init__(self, looks: list[tuple[str, str]]) -> None:
            super().__init__(ReadoutNetwork(heads, num_features=8, width=8), heads, 16, "")
            self.looks = looks

        def __call__(self, images: Any, batch_size: int = 256) -> Any:
            class Output:
                labels = {
                    "shape": [shape for shape, _ in self.looks[: len(images)]],
                    "colour": [colour for _, colour in self.looks[: len(images)]],
                }

            return Output

    def concept(name: str, shape: str, colour: str) -> Concept:
        return Concept(name=name, words=name, attributes={"shape": shape, "colour": colour, "kind": "seen"})

    concepts = [concept("wug", "circle", "red"), concept("dax", "circle", "red"), concept("fep", "square", "blue")]
    concepts.append(Concept(name="bare", words="bare"))
    looks = [("circle", "red")] * 3 + [("square", "blue"), ("square", "red")]
    read = readout_reader(Fixed(looks), concepts)
    asked = ["wug", "dax", "fep", "wug", "bare"]
    assert read([np.zeros((16, 16, 3), np.uint8)] * 5, asked) == ["wug", "dax", "wug", "fep", ""]


def test_nearest_concept_reader() -> None:
    extractor = Extractor(
        name="mean",
        resize="none",
        weights_sha256="",
        function=lambda images: np.stack([image.mean(axis=(0, 1)) for image in images]),
    )

    def flat(level: int) -> np.ndarray:
        return np.full((4, 4, 3), level, np.uint8)

    read = nearest_concept_reader(extractor, {"dark": [flat(10), flat(30)], "light": [flat(200)], "none": []})
    assert read([flat(0), flat(180), flat(90)], ["light", "light", "dark"]) == ["dark", "light", "dark"]
    assert read([], []) == []
    with pytest.raises(ValueError, match="no concept has an image"):
        nearest_concept_reader(extractor, {"none": []})
