"""Pictures that are looked at while they are made give what their files give, and need not be kept."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from patches import NAMES, SIDE, PatchLearner, make_set, patch, pixel_extractor
from PIL import Image
from safetensors.numpy import load_file
from test_evaluate import bucket_table
from test_two_processes_probe import Ranks

from diffusion_sft.cli import main
from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import (
    EvaluateConfig,
    Extractor,
    GeneratedImage,
    Instruments,
    LabelReader,
    Looking,
    evaluate,
    generate_images,
    nearest_concept_reader,
    read_generated,
)
from diffusion_sft.evaluate import accuracy as accuracy_module
from diffusion_sft.evaluate import cache as cache_module
from diffusion_sft.evaluate.cache import FeatureCache, fitted_image
from diffusion_sft.evaluate.features import readout_extractor
from diffusion_sft.evaluate.pictures import pixel_hash, write_picture
from diffusion_sft.files import read_json, write_json
from diffusion_sft.learner import Cue
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.pretrain.reader import HEADS
from diffusion_sft.records import SHOWN_IMAGES, ConceptSet
from diffusion_sft.report.grids import generated_pictures
from diffusion_sft.world.readout import Readout, ReadoutNetwork

MODELS = {"base": 0.0, "tuned": 40.0}
CONFIG = EvaluateConfig(num_images_per_concept=12, batch_size=8, num_groups=6, num_splits=4)
SPARSE = replace(CONFIG, keep_images=False)


@pytest.fixture(scope="module")
def concept_set(tmp_path_factory: pytest.TempPathFactory) -> ConceptSet:
    return make_set(tmp_path_factory.mktemp("set"), NAMES, {"train": 6, "heldout": 4, "reference": 12})


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    """A network, so that the last bits depend on the company that an image is looked at in."""
    torch.manual_seed(0)
    return readout_extractor(Readout(ReadoutNetwork(HEADS), HEADS, sha256="cd" * 32))


@pytest.fixture(scope="module")
def instruments(
    extractor: Extractor, concept_set: ConceptSet, tmp_path_factory: pytest.TempPathFactory
) -> Instruments:
    cache = FeatureCache(tmp_path_factory.mktemp("reader"), pixel_extractor(), (SIDE, SIDE), 8)
    files = {name: [e.path for e in concept_set.split("heldout") if e.concept == name] for name in NAMES}
    return Instruments(extractor=extractor, read_labels=nearest_concept_reader(cache, files))


def draw(
    folder: Path, concept_set: ConceptSet, config: EvaluateConfig, instruments: Instruments | None
) -> tuple[dict[str, list[GeneratedImage]], dict[str, PatchLearner]]:
    """Pictures of all models, and the learners that were asked for them."""
    looking = None if instruments is None else Looking(instruments, folder / "features", config.batch_size)
    learners = {model: PatchLearner(shift) for model, shift in MODELS.items()}
    images = {
        model: generate_images(learner, concept_set, NAMES, config, folder / model, looking)
        for model, learner in learners.items()
    }
    return images, learners


def features_of(folder: Path) -> dict[str, np.ndarray]:
    """All rows of a cache's only extractor, by the hash they lie under."""
    (cache,) = folder.iterdir()
    rows = {}
    for file in cache.glob("*.safetensors"):
        content = load_file(file)
        hashes = [digest.tobytes().hex() for digest in content["sha256"]]
        rows |= dict(zip(hashes, content["features"], strict=True))
    return rows


def measures_of(
    folder: Path, images: dict[str, list[GeneratedImage]], concept_set: ConceptSet, instruments: Instruments
) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = evaluate(images, concept_set, bucket_table(NAMES), instruments, CONFIG, folder)
    return found.measures, found.concept_accuracy


@contextmanager
def unread(folder: Path) -> Iterator[None]:
    """No image file below the folder can be read."""
    load = cache_module.load_image

    def refuse(path: Path) -> Image.Image:
        if path.is_relative_to(folder):
            raise AssertionError(f"{path} was read")
        return load(path)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(cache_module, "load_image", refuse)
        context.setattr(accuracy_module, "load_image", refuse)
        yield


def test_looking_while_they_are_made_equals_the_folder_route(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    ahead, _ = draw(tmp_path / "ahead", concept_set, CONFIG, instruments)
    behind, _ = draw(tmp_path / "behind", concept_set, CONFIG, None)
    assert all(image.seen is not None for image in ahead["base"])
    assert all(image.seen is None for image in behind["base"])
    with unread(tmp_path / "ahead"):
        found = measures_of(tmp_path / "ahead", ahead, concept_set, instruments)
    expected = measures_of(tmp_path / "behind", behind, concept_set, instruments)
    # Twelve images of each concept on either side, in batches of eight: the same batches, so the same bits.
    rows, others = features_of(tmp_path / "ahead" / "features"), features_of(tmp_path / "behind" / "features")
    assert rows.keys() == others.keys()
    assert all(np.array_equal(rows[digest], others[digest]) for digest in rows)
    for table, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(table, other, check_exact=True)
    assert found[1]["accuracy"].between(0.01, 0.99).any()
    for image, other in zip(ahead["base"], behind["base"], strict=True):
        assert image.sha256 == other.sha256
        assert image.path.read_bytes() == other.path.read_bytes()


def test_images_that_are_not_kept_give_the_same_figures(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    kept, _ = draw(tmp_path / "kept", concept_set, CONFIG, instruments)
    sparse, _ = draw(tmp_path / "sparse", concept_set, SPARSE, instruments)
    for model in MODELS:
        files = sorted((tmp_path / "sparse" / model).rglob("*.png"))
        assert [f"{file.parent.name}/{file.name}" for file in files] == [
            f"{name}/000{index}.png" for name in sorted(NAMES) for index in (0, 1)
        ]
        assert [image.kept for image in sparse[model]] == [image.path.is_file() for image in sparse[model]]
        for image in sparse[model]:
            assert image.kept or image.sha256 == pixel_hash(patch(image.prompt, image.seed, MODELS[model]))
    expected = measures_of(tmp_path / "kept", kept, concept_set, instruments)
    found = measures_of(tmp_path / "sparse", sparse, concept_set, instruments)
    for table, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(table, other, check_exact=True)
    # And again from what was recorded, without drawing.
    again, learners = draw(tmp_path / "sparse", concept_set, SPARSE, instruments)
    assert again == sparse == {model: read_generated(tmp_path / "sparse" / model) for model in MODELS}
    assert [learner.asked for learner in learners.values()] == [[], []]


def counted(learners: dict[str, PatchLearner]) -> list[int]:
    return [len(learner.asked) for learner in learners.values()]


def test_images_without_files_are_drawn_again_for_whom_has_not_seen_them(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    draw(tmp_path, concept_set, SPARSE, instruments)
    gone, all_of = 10 * len(NAMES), 12 * len(NAMES)
    other_network = replace(instruments, extractor=replace(instruments.extractor, weights_sha256="ef" * 32))
    assert counted(draw(tmp_path, concept_set, SPARSE, other_network)[1]) == [gone, gone]
    assert counted(draw(tmp_path, concept_set, SPARSE, other_network)[1]) == [0, 0]
    # The first extractor's rows are still there: the same pixels have the same hash.
    assert counted(draw(tmp_path, concept_set, SPARSE, instruments)[1]) == [0, 0]
    reader = LabelReader(identity="another", function=lambda images, asked: list(asked))
    other_reader = replace(instruments, read_labels=reader)
    images, learners = draw(tmp_path, concept_set, SPARSE, other_reader)
    assert counted(learners) == [gone, gone]
    assert {image.seen == image.concept for image in images["tuned"] if not image.kept} == {True}
    # Nobody who reads needs nothing read.
    assert counted(draw(tmp_path, concept_set, SPARSE, replace(instruments, read_labels=None))[1]) == [0, 0]
    # What is to be kept from now on must be made anew; what is kept already needs not be made to do without.
    assert counted(draw(tmp_path, concept_set, CONFIG, other_reader)[1]) == [gone, gone]
    assert counted(draw(tmp_path, concept_set, SPARSE, instruments)[1]) == [0, 0]
    assert len(list(tmp_path.rglob("*.png"))) == 2 * all_of


def test_a_cache_that_is_lost_is_made_again(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    images, _ = draw(tmp_path, concept_set, SPARSE, instruments)
    for file in (tmp_path / "features").rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"0002\.png: was not kept.*generate again"):
        measures_of(tmp_path, images, concept_set, instruments)
    assert counted(draw(tmp_path, concept_set, SPARSE, instruments)[1]) == [40, 40]
    measures_of(tmp_path, images, concept_set, instruments)


def test_another_reader_reads_the_files_and_never_takes_over_what_was_read(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    images, _ = draw(tmp_path / "kept", concept_set, CONFIG, instruments)
    read: list[int] = []

    def always(pictures: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        read.append(len(pictures))
        return list(asked)

    other = replace(instruments, read_labels=LabelReader(identity="another", function=always))
    assert measures_of(tmp_path / "kept", images, concept_set, other)[1]["accuracy"].eq(1).all()
    assert sum(read) == 2 * 12 * len(NAMES)
    sparse, _ = draw(tmp_path / "sparse", concept_set, SPARSE, instruments)
    with pytest.raises(UserError, match=r"0002\.png: was not kept"):
        measures_of(tmp_path / "sparse", sparse, concept_set, other)


def test_an_altered_file_is_never_taken_for_the_picture(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    images, _ = draw(tmp_path, concept_set, CONFIG, None)
    images["base"][3].path.write_bytes(images["base"][4].path.read_bytes())
    with pytest.raises(UserError, match=r"0003\.png: is not the image that was generated; generate again"):
        measures_of(tmp_path, images, concept_set, instruments)


def test_records_of_earlier_versions_are_read(
    concept_set: ConceptSet, instruments: Instruments, tmp_path: Path
) -> None:
    draw(tmp_path, concept_set, CONFIG, instruments)
    for model in MODELS:
        record = tmp_path / model / "generated.json"
        content = read_json(record)
        for entry in content["images"]:
            for field in ("kept", "size", "seen", "reader"):
                del entry[field]
        write_json(record, content)
    images, learners = draw(tmp_path, concept_set, CONFIG, None)
    assert counted(learners) == [0, 0]
    assert images["base"][0].size is None
    measures_of(tmp_path, images, concept_set, instruments)


def test_a_png_gives_the_pixels_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate([(8, 8), (64, 64), (33, 70), (512, 512), (1, 5)]):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        assert write_picture(path, image) == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(fitted_image(path, (height, width)), image)
        plain = tmp_path / "plain.png"
        Image.fromarray(image).save(plain)
        assert plain.read_bytes() == path.read_bytes()
    assert pixel_hash(np.zeros((2, 3, 3), np.uint8)) != pixel_hash(np.zeros((3, 2, 3), np.uint8))


def test_rows_that_are_added_are_those_that_are_found(tmp_path: Path) -> None:
    picture = patch("a", 0)
    path = tmp_path / "a.png"
    digest = write_picture(path, picture)
    extractor = pixel_extractor()

    def cache() -> FeatureCache:
        return FeatureCache(tmp_path / "cache", extractor, (SIDE, SIDE), 4)

    first = cache()
    assert digest not in first
    first.add([digest, digest], extractor([picture, picture]))
    first.add([digest], extractor([picture]) + 1)
    np.testing.assert_array_equal(cache().features([path]), extractor([picture]))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_a_full_disk_is_one_line_and_nothing_is_recorded_that_is_not_written(
    concept_set: ConceptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if self.parent.name == NAMES[2]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    config = replace(CONFIG, num_images_per_concept=8, batch_size=1)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"png: cannot be written \(No space left on device\)$"):
        generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path)
    images = read_generated(tmp_path)
    # Chunks of eight: the first two are whole, the third failed, the fourth was drawn meanwhile.
    assert [image.concept for image in images] == [name for name in NAMES[:2] for _ in range(8)]
    assert all(hashlib.sha256(image.path.read_bytes()).hexdigest() == image.sha256 for image in images)
    assert not list(tmp_path.rglob(".*.png*"))
    monkeypatch.setattr(Path, "write_bytes", write)
    learner = PatchLearner()
    assert len(generate_images(learner, concept_set, NAMES, config, tmp_path)) == 32
    assert len(learner.asked) == 16


def test_the_next_pictures_are_drawn_before_the_last_are_recorded(concept_set: ConceptSet, tmp_path: Path) -> None:
    recorded: list[int] = []

    class Observant(PatchLearner):
        def generate(self, cues: Sequence[Cue], **settings: Any) -> list[np.ndarray]:
            recorded.append(len(read_generated(tmp_path)))
            return super().generate(cues, **settings)

    config = replace(CONFIG, num_images_per_concept=8, batch_size=1)
    generate_images(Observant(), concept_set, NAMES, config, tmp_path)
    assert recorded == [0, 0, 8, 16]
    assert len(read_generated(tmp_path)) == 32


def test_images_that_nobody_looks_at_must_be_kept(concept_set: ConceptSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_images=false needs somebody"):
        generate_images(PatchLearner(), concept_set, NAMES, SPARSE, tmp_path)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_look_as_one_does(
    count: int, concept_set: ConceptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instruments = Instruments(
        extractor=pixel_extractor(), read_labels=LabelReader(identity="x", function=lambda images, asked: list(asked))
    )
    alone, _ = draw(tmp_path / "alone", concept_set, SPARSE, instruments)
    ranks = Ranks(count, monkeypatch)

    def together() -> tuple[dict[str, list[GeneratedImage]], list[int]]:
        images, learners = draw(tmp_path / "shared", concept_set, SPARSE, instruments)
        return images, counted(learners)

    drawn = ranks.run(together)
    assert np.sum([asked for _, asked in drawn], axis=0).tolist() == [48, 48]
    assert [asked for _, asked in ranks.run(together)] == [[0, 0]] * count
    records = [json.loads((tmp_path / name / "tuned" / "generated.json").read_text()) for name in ("alone", "shared")]
    assert records[0] == records[1]
    assert len(alone["tuned"]) == 48
    rows, others = (features_of(tmp_path / name / "features") for name in ("alone", "shared"))
    assert rows.keys() == others.keys()
    for digest, row in rows.items():
        np.testing.assert_allclose(others[digest], row, rtol=1e-6)


def test_a_study_keeps_what_its_page_shows_and_draws_nothing_twice(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    Readout(ReadoutNetwork(HEADS), HEADS).save(tmp_path / "readout", num_features=64, width=32)
    command = ["evaluate", f"base={tiny_pipeline}", f"concepts.path={tiny_set}", "mixes=[]", "buckets.rule=error"]
    command += [f"evaluate.weights={tmp_path / 'readout'}", "evaluate.num_images_per_concept=4"]
    command += ["evaluate.num_inference_steps=1", "probe.num_draws=6", "probe.samples.num_samples=0"]
    command += ["probe.answers.num_draws=2", "probe.answers.num_renderings=1", "probe.answers.num_candidates=6"]

    command += ["evaluate.num_groups=2", "evaluate.num_splits=2", f"output_dir={tmp_path / 'run'}"]
    folder = tmp_path / "run" / "evaluate"

    def measured(keep: bool) -> pd.DataFrame:
        assert main([*command, f"evaluate.keep_images={str(keep).lower()}"]) == 0
        return pd.read_parquet(folder / "measures.parquet")

    kept = measured(True)
    assert len(list((folder / "base").rglob("*.png"))) == 16
    shutil.rmtree(folder)
    sparse = measured(False)
    pd.testing.assert_frame_equal(sparse, kept, check_exact=True)
    shown = generated_pictures(folder / "base")
    assert len(shown) == 4
    for pictures in shown.values():
        indices = sorted(pictures)
        assert [pictures[index].is_file() for index in indices] == [i < SHOWN_IMAGES for i in range(len(indices))]

    def refuse(*_: Any, **__: Any) -> list[np.ndarray]:
        raise AssertionError("drawn again")

    monkeypatch.setattr(DiffusionLearner, "generate", refuse)
    pd.testing.assert_frame_equal(measured(False), sparse, check_exact=True)
