"""Sizes of aspect-ratio buckets in closed form, and which of them an image goes to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_sft.concepts.images import load_image
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.aspect import bucket_sizes, example_sizes, image_size, nearest_size
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.records import TRAIN, Example

WIDTHS_AT_512 = [256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]
HEIGHTS_AT_512 = [1024, 768, 640, 576, 512, 448, 384, 320, 320, 256, 256, 256, 256]
"""512² over the width, down to a multiple of 64: what kohya's make_bucket_resolutions lists for 512."""


def test_the_sizes_of_512_are_kohyas() -> None:
    expected = set(zip(HEIGHTS_AT_512, WIDTHS_AT_512, strict=True))
    expected |= {(width, height) for height, width in expected}
    sizes = bucket_sizes(512, steps=64, smallest=256, largest=1024)
    assert set(sizes) == expected
    assert list(sizes) == sorted(expected)


@pytest.mark.parametrize("resolution", [256, 500, 512, 768, 1024])
@pytest.mark.parametrize("steps", [8, 32, 64])
def test_every_size_is_as_large_as_the_area_allows(resolution: int, steps: int) -> None:
    sizes = bucket_sizes(resolution, steps=steps, smallest=128, largest=2048)
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert (width, height) in sizes
        assert height % steps == width % steps == 0
        assert min(height, width) >= 128
        assert height * width <= resolution**2
        assert (
            (height + steps) * width > resolution**2
            or (width + steps) * height > resolution**2
            or (height == width == resolution // steps * steps)
            or max(height, width) == 2048
        )


def test_limits_are_kept_and_impossible_ones_refused() -> None:
    assert bucket_sizes(16, steps=8, smallest=8, largest=16) == ((8, 16), (16, 8), (16, 16))
    assert bucket_sizes(512, steps=64, smallest=512, largest=512) == ((512, 512),)
    # Neither limit needs to be a multiple of the step.
    assert {side for size in bucket_sizes(64, steps=16, smallest=20, largest=100) for side in size} == {
        32,
        48,
        64,
        80,
        96,
    }
    for options in ({"smallest": 600, "largest": 1024}, {"smallest": 256, "largest": 448}):
        with pytest.raises(UserError, match="gives a square of 512, outside"):
            bucket_sizes(512, steps=64, **options)
    with pytest.raises(UserError, match="square of 0"):
        bucket_sizes(16, steps=64, smallest=1, largest=1024)


def test_the_nearest_ratio_wins_and_turning_an_image_turns_its_size() -> None:
    sizes = bucket_sizes(512, steps=64, smallest=256, largest=1024)
    known = {(480, 640): (448, 576), (1080, 1920): (384, 640), (3000, 3000): (512, 512), (100, 1000): (256, 1024)}
    for size, expected in known.items():
        ratios = {other: abs(math.log((other[1] / other[0]) / (size[1] / size[0]))) for other in sizes}
        assert ratios[expected] == min(ratios.values())
        assert nearest_size(size, sizes) == expected
        assert nearest_size(size[::-1], sizes) == expected[::-1]
    generator = np.random.default_rng(0)
    for height, width in generator.integers(50, 4000, (200, 2)).tolist():
        assert nearest_size((height, width), sizes) == nearest_size((width, height), sizes)[::-1]
    for size in sizes:  # an image of a bucket's own ratio goes there, or to a larger size of that ratio
        chosen = nearest_size((7 * size[0], 7 * size[1]), sizes)
        assert chosen[0] * size[1] == chosen[1] * size[0]
        assert chosen[0] >= size[0]


def test_sizes_are_read_upright_from_the_header(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    for suffix in ("jpg", "png", "webp", "tif"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            file = tmp_path / f"{orientation}.{suffix}"
            picture.save(file, exif=exif)
            assert image_size(file) == ((20, 30) if orientation < 5 else (30, 20)), file
            assert image_size(file) == load_image(file).size[::-1]
        picture.save(tmp_path / f"plain.{suffix}")
        assert image_size(tmp_path / f"plain.{suffix}") == (20, 30)


def test_a_header_is_enough(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    file = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    assert image_size(file) == (200, 300)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "broken.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: ") as caught:
        image_size(file)
    assert "\n" not in str(caught.value)


def test_examples_go_to_their_sizes_where_it_is_asked_for(tmp_path: Path) -> None:
    members = []
    for name, shape in {"wide": (10, 40, 3), "tall": (40, 20, 3), "square": (9, 9, 3)}.items():
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.png")
        members.append(Example(id=name, concept="a", caption="b", path=tmp_path / f"{name}.png", split=TRAIN))
    config = FinetuneConfig(aspect_ratio_buckets=True, bucket_reso_steps=4, min_bucket_reso=8, max_bucket_reso=32)
    assert example_sizes(members, config, 16) == {"wide": (8, 32), "tall": (20, 12), "square": (16, 16)}
    assert example_sizes(members, FinetuneConfig(), 16) == {}
    with pytest.raises(UserError, match="not trained on images"):
        example_sizes(members, config, None)
