"""One way to read an image file: as it is meant to look, in 8-bit sRGB, or not at all.

The orientation tag is applied, an embedded ICC profile is converted to sRGB, transparency is laid over white,
16-bit channels keep their high byte, and an animation gives its first frame. A file that cannot be decoded to
its last byte is an error that names it; nothing is ever filled in.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..parsing import shortened

Image.init()
FORMATS = tuple(
    kind
    for kind in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "HEIF")
    if kind in Image.OPEN
)
"""What is decoded, whatever a file is called. Not EPS, for one: that starts another program on what the file holds."""

BACKGROUND = (255, 255, 255)
"""The colour that shows through where an image is transparent."""

MOST_MEGAPIXELS = 160
"""The largest cameras' backs give 151. Pillow itself reads up to 178, and what claims more is a decompression bomb."""
MOST_ELONGATED = 100
"""How many times longer than the other one side of a picture may be; of a longer one, training would see a dot."""
_PHOTOS_OF_PHONES = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_HUNGRY = ("WEBP", "JPEG2000")
"""Whose decoders take twice the memory of the others; of these half as many pixels are read."""
_STRIP_PIXELS = 1 << 20
_MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class UnreadableImage(UserError):
    """A file that is not a whole image; `reason` says why without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # As it is made again where another process hears of it.
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load_image(path: Path) -> Image.Image:
    """Decode an image file completely and return it as it is meant to look, in mode RGB.

    Some 10 bytes of memory are taken for each pixel (20 by WebP and JPEG 2000): the decoded image, the returned one,
    and what the decoder needs.

    Args:
        path: any still or animated image that Pillow reads (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, ...).

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, far too large or narrow, or of a kind that has no
            stated range of values (floats outside 0..1, integers beyond 16 bits).
    """
    image = _decoded(path)
    shown = Image.new("RGB", image.size)
    to_srgb: Callable[[Image.Image], Image.Image] | None = None
    try:
        _check_range(image)
        # In strips, because every conversion of a whole photo of a hundred megapixels takes another 400 MB.
        for box in _strips(image):
            colours, alpha = _colours_and_alpha(image.crop(box))
            to_srgb = to_srgb or _srgb_converter(colours.mode, image.info.get("icc_profile"))
            rgb = to_srgb(colours)
            if alpha is not None:
                rgb = Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), alpha)
            shown.paste(rgb, box)
    except ValueError as error:
        raise UnreadableImage(path, str(error)) from None
    return shown


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, upper, right, lower) that cover the image from top to bottom, of about a megapixel each."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _decoded(path: Path) -> Image.Image:
    """The first frame, all its pixels read, turned upright."""
    try:
        _check_file(path)
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on, which cameras reach, and refuses from twice that on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return image
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(path, _unidentified(path)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, _too_large(MOST_MEGAPIXELS)) from None
    except Exception as error:  # decoders answer broken bytes with every kind of exception
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableImage(path, f"cannot be read ({error.strerror})") from None
        reason = shortened(" ".join(str(error).split()), 200)
        raise UnreadableImage(path, f"is damaged or cut off ({reason})") from error


def _check_file(path: Path) -> None:
    """Demand a file with something in it; a pipe would be waited for."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UnreadableImage(path, "no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableImage(path, "is a folder, not an image")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableImage(path, "is no plain file")
    if found.st_size == 0:
        raise UnreadableImage(path, "is empty (zero bytes)")


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    most = MOST_MEGAPIXELS // 2 if image.format in _HUNGRY else MOST_MEGAPIXELS
    if width * height > most * 1_000_000:
        raise UnreadableImage(path, f"{_too_large(most)}; it has {width}x{height}")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise UnreadableImage(
            path, f"is {width}x{height} pixels, one side more than {MOST_ELONGATED} times the other; crop it"
        )


def _unidentified(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _PHOTOS_OF_PHONES:
        return "is a HEIC photo, which is not read; save it as JPEG or PNG"
    return "is not an image of a kind that can be read"


def _too_large(most: int) -> str:
    return f"is too large to decode safely (more than {most} megapixels); scale it down"


def _colours_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An 8-bit image in mode L, RGB or CMYK, and its opacity in mode L (None where all of it is opaque)."""
    if image.mode.startswith("I") or image.mode == "F":
        return _narrowed(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        grey = image.mode in ("1", "L", "LA", "La")
        return opaque.convert("RGB").convert("L" if grey else "RGB"), opaque.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _check_range(image: Image.Image) -> None:
    """Demand values whose black and white are known; ValueError for others."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return
    ranges = [(values.min(), values.max()) for box in _strips(image) for values in [np.asarray(image.crop(box))]]
    low, high = (float(found) for found in (min(r[0] for r in ranges), max(r[1] for r in ranges)))
    if image.mode == "F" and not (low >= 0 and high <= 1):
        raise ValueError(f"holds floats from {low:g} to {high:g}; only 0 to 1 is understood: save it with 8 bits")
    if image.mode != "F" and (low < 0 or high > 65535):
        raise ValueError(f"holds integers from {low:g} to {high:g}, beyond 16 bits: save it with 8 bits")


def _narrowed(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Single-channel images of 16 bits (the high byte, as Pillow reads 16-bit colours) and of floats in 0..1."""
    values = np.asarray(image)
    alpha = None
    if isinstance(key := image.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    narrow = np.round(values * 255) if image.mode == "F" else values.astype(np.uint16) >> 8
    return Image.fromarray(narrow.astype(np.uint8)), alpha


def _srgb_converter(mode: str, icc_profile: bytes | None) -> Callable[[Image.Image], Image.Image]:
    """From images of this mode and profile to sRGB; a broken or ill-fitting profile is ignored, as browsers do."""
    if icc_profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            fits = _MODE_OF_PROFILE.get(source.profile.xcolor_space.strip())
            if fits == mode or (fits == "RGB" and mode == "L"):
                transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), fits, "RGB")
                return partial(_transformed, transform, fits)
        except (ImageCms.PyCMSError, OSError, ValueError):
            return _as_rgb
    return _as_rgb


def _transformed(transform: ImageCms.ImageCmsTransform, mode: str, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    assert converted is not None
    return converted


def _as_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
