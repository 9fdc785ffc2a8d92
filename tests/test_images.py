"""Every kind of image file, against pixels worked out by hand or by another decoder."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from peak_memory import PeakMemory
from PIL import Image, ImageCms, ImageFile

from diffusion_sft.concepts import images
from diffusion_sft.concepts.images import UnreadableImage, load_image
from diffusion_sft.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
SMOOTH = np.linspace([10, 60, 200], [240, 160, 20], 32 * 32).reshape(32, 32, 3).astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None].astype(float) / 255
    return np.round(colours * opacity + 255 * (1 - opacity)).astype(int)


def png_16bit(path: Path, values: np.ndarray, colour_type: int, extra: bytes = b"") -> None:
    """A 16-bit PNG written byte by byte: values (height, width, channels) of uint16."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    lines = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_plain_rgb_comes_out_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(path), RGB)
    assert load_image(path).info == {}


@pytest.mark.parametrize("suffix", ["png", "tiff", "gif"])
def test_greyscale_and_bilevel(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(ALPHA).save(tmp_path / f"grey.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"grey.{suffix}"), np.repeat(ALPHA[..., None], 3, axis=2))
    Image.fromarray(ALPHA > 100).save(tmp_path / f"bits.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"bits.{suffix}")[..., 1], np.where(ALPHA > 100, 255, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_orientation_tag_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """What a viewer must do for each value, from the definition in the EXIF standard (row 0 / column 0 side)."""
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.kron(
        np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255] * 3, [128] * 3]]), np.ones((16, 16, 1))
    )
    Image.fromarray(blocks.astype(np.uint8)).save(tmp_path / f"x.{suffix}", exif=exif)
    assert np.abs(pixels(tmp_path / f"x.{suffix}") - upright(blocks)).mean() < 4


def test_cmyk_tiff_follows_the_plain_formula(tmp_path: Path) -> None:
    inks = np.random.default_rng(2).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "x.tiff")
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert np.abs(pixels(tmp_path / "x.tiff") - expected).max() <= 1


def test_adobe_inverted_cmyk_jpeg_agrees_with_libjpeg(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()[:200]
    other = torchvision.io.read_image(str(tmp_path / "x.jpg"), torchvision.io.ImageReadMode.RGB)
    ours = pixels(tmp_path / "x.jpg")
    assert np.abs(ours - other.permute(1, 2, 0).numpy().astype(int)).max() <= 2
    assert np.abs(ours - SMOOTH).mean() < 4


def test_sixteen_bits_keep_the_high_byte(tmp_path: Path) -> None:
    """Grey and colour files of the same 16-bit values give the same 8-bit pixels; widened 8-bit values come back."""
    values = np.random.default_rng(3).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    png_16bit(tmp_path / "colour.png", values, colour_type=2)
    png_16bit(tmp_path / "grey.png", values[..., :1], colour_type=0)
    np.testing.assert_array_equal(pixels(tmp_path / "colour.png"), values // 256)
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png"), np.repeat(values[..., :1] // 256, 3, axis=2))
    png_16bit(tmp_path / "widened.png", ALPHA[..., None].astype(np.uint16) * 257, colour_type=0)
    np.testing.assert_array_equal(pixels(tmp_path / "widened.png")[..., 0], ALPHA)
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.tiff")
    np.testing.assert_array_equal(pixels(tmp_path / "grey.tiff")[..., 2], values[..., 0] // 256)
    Image.fromarray(values[..., 0].astype(np.int32)).save(tmp_path / "wide.tiff")
    np.testing.assert_array_equal(pixels(tmp_path / "wide.tiff")[..., 2], values[..., 0] // 256)


def test_sixteen_bits_with_transparency(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (5, 7, 2), dtype=np.uint16)
    png_16bit(tmp_path / "alpha.png", values, colour_type=4)
    high = values // 256
    expected = over_white(np.repeat(high[..., :1], 3, axis=2), high[..., 1])
    assert np.abs(pixels(tmp_path / "alpha.png") - expected).max() <= 1
    key = int(values[2, 3, 0])
    data = b"tRNS" + struct.pack(">H", key)
    png_16bit(
        tmp_path / "key.png",
        values[..., :1],
        colour_type=0,
        extra=struct.pack(">I", 2) + data + struct.pack(">I", zlib.crc32(data)),
    )
    expected = np.where(values[..., 0] == key, 255, high[..., 0])
    np.testing.assert_array_equal(pixels(tmp_path / "key.png")[..., 0], expected)


def test_floats_of_unit_range_and_no_others(tmp_path: Path) -> None:
    Image.fromarray(ALPHA.astype(np.float32) / 255).save(tmp_path / "unit.tiff")
    np.testing.assert_array_equal(pixels(tmp_path / "unit.tiff")[..., 0], ALPHA)
    for name, values in {"wide": ALPHA.astype(np.float32), "nan": np.full((5, 7), np.nan, np.float32)}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        with pytest.raises(UnreadableImage, match=rf"{name}.tiff: holds floats"):
            load_image(tmp_path / f"{name}.tiff")
    Image.fromarray(np.full((5, 7), -1, np.int32)).save(tmp_path / "negative.tiff")
    with pytest.raises(UnreadableImage, match="beyond 16 bits"):
        load_image(tmp_path / "negative.tiff")


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_alpha_is_laid_over_white(tmp_path: Path, suffix: str) -> None:
    rgba = np.dstack([RGB, ALPHA])
    Image.fromarray(rgba).save(
        tmp_path / f"x.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    assert np.abs(pixels(tmp_path / f"x.{suffix}") - over_white(RGB, ALPHA)).max() <= 1


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB[..., 0], ALPHA])).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "LA"
    expected = over_white(np.repeat(RGB[..., :1], 3, axis=2), ALPHA)
    assert np.abs(pixels(tmp_path / "x.png") - expected).max() <= 1


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    indices = np.random.default_rng(4).integers(0, 4, (5, 7), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 150], [9, 8, 7]])
    image = Image.fromarray(indices)
    image.putpalette(colours.astype(np.uint8).tobytes())
    assert image.mode == "P"
    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(pixels(tmp_path / "plain.png"), colours[indices])
    opacities = np.array([255, 0, 100, 255])
    image.save(tmp_path / "many.png", transparency=bytes(opacities.tolist()))
    expected = over_white(colours[indices], opacities[indices].astype(np.uint8))
    assert np.abs(pixels(tmp_path / "many.png") - expected).max() <= 1
    for suffix in ("png", "gif"):
        image.save(tmp_path / f"one.{suffix}", transparency=2)
        expected = np.where((indices == 2)[..., None], 255, colours[indices])
        np.testing.assert_array_equal(pixels(tmp_path / f"one.{suffix}"), expected)


def test_colour_key_transparency(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png", transparency=tuple(int(c) for c in RGB[1, 2]))
    expected = np.where(np.equal(RGB, RGB[1, 2]).all(axis=2)[..., None], 255, RGB)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), expected)
    Image.fromarray(ALPHA > 100).save(tmp_path / "bits.png", transparency=0)
    np.testing.assert_array_equal(pixels(tmp_path / "bits.png"), np.full((5, 7, 3), 255))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{suffix}"), np.full((6, 8, 3), (255, 0, 0)))


def test_profiles_that_change_nothing(tmp_path: Path) -> None:
    """sRGB's own, one that does not fit the pixels, and one that is broken."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.fromarray(SMOOTH).save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    assert np.abs(pixels(tmp_path / "srgb.png") - SMOOTH).max() <= 1
    Image.fromarray(SMOOTH).save(tmp_path / "misfit.png", icc_profile=lab.tobytes())
    Image.fromarray(SMOOTH).save(tmp_path / "broken.png", icc_profile=b"not a profile")
    for name in ("misfit", "broken"):
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png"), SMOOTH)


def linear_profile(primaries_of_srgb: bool) -> bytes:
    """A minimal ICC v2 matrix profile with gamma 1: sRGB's primaries (D50-adapted), or red and blue exchanged."""
    columns = {"r": (0.43607, 0.22249, 0.01392), "g": (0.38515, 0.71687, 0.09708), "b": (0.14307, 0.06061, 0.71410)}
    if not primaries_of_srgb:
        columns["r"], columns["b"] = columns["b"], columns["r"]

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    for channel, column in columns.items():
        tags[f"{channel}XYZ".encode()] = xyz(*column)
        tags[f"{channel}TRC".encode()] = b"curv\0\0\0\0" + struct.pack(">I", 0)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    header = struct.pack(">I", 128 + len(table) + len(data)) + bytes(4) + struct.pack(">I", 0x02100000)
    header += b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + data


@pytest.mark.parametrize("primaries_of_srgb", [True, False])
def test_linear_profile_against_the_transfer_function(tmp_path: Path, primaries_of_srgb: bool) -> None:
    """Linear light v becomes 1.055 v^(1/2.4) − 0.055 (IEC 61966-2-1); exchanged primaries exchange the channels."""
    path = tmp_path / "x.png"
    Image.fromarray(SMOOTH).save(path, icc_profile=linear_profile(primaries_of_srgb))
    light = SMOOTH / 255.0
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    if not primaries_of_srgb:
        expected = expected[..., ::-1]
    assert np.abs(pixels(path) - expected).max() <= 2
    # under transparency the colours are converted before they are laid over white
    alpha = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    Image.fromarray(np.dstack([SMOOTH, alpha])).save(path, icc_profile=linear_profile(primaries_of_srgb))
    assert np.abs(pixels(path) - over_white(expected, alpha)).max() <= 2
    # a grey image in a colour profile is read through that profile
    Image.fromarray(SMOOTH[..., 0]).save(path, icc_profile=linear_profile(True))
    grey = 255 * (1.055 * light[..., 0] ** (1 / 2.4) - 0.055)
    assert np.abs(pixels(path) - grey[..., None]).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_cut_off_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UnreadableImage, match=rf"cut\.{suffix}: ") as caught:
        load_image(path)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_other_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<script>alert(1)</script>", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    reasons = {"empty": "empty", "text": "not an image", "folder": "folder", "missing": "no such file"}
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=rf"{name}\.png: .*{reason}") as caught:
            load_image(tmp_path / f"{name}.png")
        assert str(caught.value) == f"{tmp_path / name}.png: {caught.value.reason}"


def test_flipped_bytes_never_escape_as_another_exception(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    for suffix in ("jpg", "png", "gif", "webp", "tiff", "bmp"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(SMOOTH).save(path)
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            broken = content.copy()
            broken[generator.integers(0, len(broken), 4)] = generator.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            with contextlib.suppress(UnreadableImage):
                assert load_image(path).mode == "RGB"


def test_decompression_bomb_is_refused_but_a_large_camera_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (16000, 16000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(UnreadableImage, match=r"bomb\.png: is too large to decode safely"):
        load_image(tmp_path / "bomb.png")
    Image.fromarray(RGB).save(tmp_path / "camera.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 35 pixels: above the warning, below the error
    np.testing.assert_array_equal(pixels(tmp_path / "camera.png"), RGB)


def test_the_largest_photos_and_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix, most in (("png", 2), ("tiff", 2), ("webp", 1), ("jp2", 1)):
        for side, read in ((1000 * most, True), (1000 * most + 1, False)):
            path = tmp_path / f"{side}.{suffix}"
            Image.new("RGB", (1000, side)).save(path)
            monkeypatch.setattr(images, "MOST_MEGAPIXELS", 2)
            if read:
                assert load_image(path).size == (1000, side)
                continue
            with pytest.raises(UnreadableImage, match=rf"more than {most} megapixels\); scale it down; it has 1000x"):
                load_image(path)


@pytest.mark.parametrize("kind", ["RGBA.png", "RGB.jpg", "CMYK.tiff", "I;16.png"])
def test_a_photo_takes_little_more_than_its_pixels(kind: str, tmp_path: Path) -> None:
    mode, suffix = kind.split(".")
    path = tmp_path / f"x.{suffix}"
    profile = {} if mode in ("CMYK", "I;16") else {"icc_profile": linear_profile(primaries_of_srgb=True)}
    Image.new(mode, (5000, 4000)).save(path, **profile)
    memory = PeakMemory()
    load_image(path)
    assert memory.megabytes < 20 * 10  # 10 bytes each of 20 million; the same at once would take 20


def test_strips_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png", icc_profile=linear_profile(primaries_of_srgb=False))
    whole = pixels(tmp_path / "x.png")
    monkeypatch.setattr(images, "_STRIP_PIXELS", 210)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), whole)


def test_truncated_images_stay_refused_in_the_whole_process() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
