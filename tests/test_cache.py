"""The feature cache: each content once, never another extractor's, and going on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from diffusion_sft.errors import UserError
from diffusion_sft.evaluate.cache import FeatureCache, fitted_image
from diffusion_sft.evaluate.features import Extractor


def pictures(count: int, height: int = 20, width: int = 24, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, size=(count, height, width, 3), dtype=np.uint8))


def mean_colour(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([image.mean(axis=(0, 1)) for image in images])


def colour_extractor(calls: list[int], **changes: str) -> Extractor:
    """Mean colours; every call is noted with its number of images."""

    def function(images: Sequence[np.ndarray]) -> np.ndarray:
        calls.append(len(images))
        return mean_colour(images)

    named = {"name": "mean colour", "resize": "none", "weights_sha256": "0" * 64} | changes
    return Extractor(function=function, **named)


def test_cache_extracts_each_content_once_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for number, picture in enumerate(pictures(7, 16, 16)):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(paths[-1])
    calls: list[int] = []
    monkeypatch.setattr("diffusion_sft.evaluate.cache.ROWS_PER_FILE", 3)
    cache = FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), batch_size=2)
    expected = mean_colour([fitted_image(path, (16, 16)) for path in paths])
    np.testing.assert_allclose(cache.features(paths[:5]), expected[:5], rtol=1e-6)
    assert calls == [2, 1, 2]
    calls.clear()
    again = FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), batch_size=2)
    np.testing.assert_allclose(again.features(paths[::-1]), expected[::-1], rtol=1e-6)
    assert calls == [2]
    # Same bytes under another name are the same row; other bytes under the same name are not.
    calls.clear()
    paths[0].write_bytes(paths[6].read_bytes())
    np.testing.assert_allclose(again.features([paths[0]]), expected[6:], rtol=1e-6)
    assert calls == []
    assert again.features([]).shape == (0, 3)


@pytest.mark.parametrize("change", [{"name": "other"}, {"resize": "clean"}, {"weights_sha256": "1" * 64}])
def test_cache_never_mixes_extractors(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(pictures(1)[0]).save(path)
    calls: list[int] = []
    FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), 4).features([path])
    FeatureCache(tmp_path / "cache", colour_extractor(calls, **change), (16, 16), 4).features([path])
    FeatureCache(tmp_path / "cache", colour_extractor(calls), (8, 16), 4).features([path])
    assert len(calls) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_cache_names_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(pictures(1)[0]).save(path)
    cache = FeatureCache(tmp_path / "cache", colour_extractor([]), (16, 16), 4)
    cache.features([path])
    broken = tmp_path / "broken.png"
    broken.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"broken.png"):
        cache.features([broken])


@pytest.mark.parametrize("harm", ["cut", "flipped", "of another version"])
def test_damaged_rows_are_named_and_made_again(harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(pictures(1)[0]).save(path)
    calls: list[int] = []
    rows = FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), 4).features([path])
    shard = next((tmp_path / "cache").rglob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    if harm == "of another version":
        save_file(load_file(shard), shard)
    else:
        content[-1] ^= 1
        shard.write_bytes(content if harm == "flipped" else content[:-7])
    again = FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), 4).features([path])
    np.testing.assert_array_equal(rows, again)
    assert len(calls) == 2
    assert f"{shard}: damaged feature cache" in caplog.text
    assert len(FeatureCache(tmp_path / "cache", colour_extractor(calls), (16, 16), 4).features([path])) == 1
    assert len(calls) == 2


def test_images_are_fitted_by_centre_crop(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (fitted_image(tmp_path / "wide.png", (10, 10)) == 200).all()
    np.testing.assert_array_equal(fitted_image(tmp_path / "wide.png", (10, 30)), wide)
