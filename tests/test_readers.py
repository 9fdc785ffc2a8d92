"""Accuracy by concept, its intervals, and the readers behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_sft.evaluate import Extractor, LabelReader, nearest_concept_reader, readout_reader
from diffusion_sft.evaluate.accuracy import accuracy, accuracy_change
from diffusion_sft.evaluate.cache import FeatureCache
from diffusion_sft.records import Concept
from diffusion_sft.world.readout import Readout, ReadoutNetwork


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


def test_readout_reader_names_the_look_and_prefers_the_asked_one() -> None:
    heads = {"shape": ["circle", "square"], "colour": ["red", "blue"]}

    class Fixed(Readout):
        def __init__(self, looks: list[tuple[str, str]], sha256: str = "0") -> None:
            super().__init__(ReadoutNetwork(heads, num_features=8, width=8), heads, sha256=sha256)
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
    others = [readout_reader(Fixed(looks, "1"), concepts), readout_reader(Fixed(looks), concepts[1:])]
    assert len({read.identity, *(other.identity for other in others)}) == 3
    assert readout_reader(Fixed([]), concepts).identity == read.identity


def test_nearest_concept_reader(tmp_path: Path) -> None:
    extractor = Extractor(
        name="mean",
        resize="none",
        weights_sha256="",
        function=lambda images: np.stack([image.mean(axis=(0, 1)) for image in images]),
    )

    def flat(level: int) -> np.ndarray:
        return np.full((4, 4, 3), level, np.uint8)

    def file(level: int) -> Path:
        path = tmp_path / f"{level}.png"
        Image.fromarray(flat(level)).save(path)
        return path

    def reader(files: dict[str, list[Path]], changed: Extractor = extractor) -> LabelReader:
        return nearest_concept_reader(FeatureCache(tmp_path / "features", changed, (4, 4), 2), files)

    files = {"dark": [file(10), file(30)], "light": [file(200)], "none": []}
    read = reader(files)
    assert read([flat(0), flat(180), flat(90)], ["light", "light", "dark"]) == ["dark", "light", "dark"]
    assert read([], []) == []
    with pytest.raises(ValueError, match="no concept has an image"):
        reader({"none": []})
    # Known by all that decides what it reads, and by nothing else.
    others = [
        reader(files, replace(extractor, resize="other")),
        reader(files | {"light": [file(201)]}),
        reader({"darker": files["dark"], "light": files["light"]}),
        reader({"dark": files["dark"][:1], "light": [*files["dark"][1:], *files["light"]]}),
    ]
    assert len({read.identity, *(other.identity for other in others)}) == 5
    assert reader(dict(files)).identity == read.identity
