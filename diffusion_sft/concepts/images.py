"""One way to read an image file: as it is meant to look, in 8-bit sRGB, or not at all.

The orientation tag is applied, an embedded ICC profile is converted to sRGB, transparency is laid over white,
16-bit channels keep their high byte, and an animation gives its first frame. A file that cannot be decoded to
its last byte is an error that names it; nothing is ever filled in.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import UserError

Image.init()
FORMATS = tuple(
    kind
    for kind in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "HEIF")
    if kind in Image.OPEN
)
"""What is decoded, whatever a file is called. Not EPS, for one: that starts another program on what the file holds."""

BACKGROUND = (255, 255, 255)
"""The colour that shows through where an image is transparent."""

_MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class UnreadableImage(UserError):
    """A file that is not a whole image; `reason` says why without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def load_image(path: Path) -> Image.Image:
    """Decode an image file completely and return it as it is meant to look, in mode RGB.

    Args:
        path: any still or animated image that Pillow reads (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, ...).

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, far too large, or of a kind that has no
            stated range of values (floats outside 0..1, integers beyond 16 bits).
    """
    image = _decoded(path)
    try:
        colours, alpha = _colours_and_alpha(image)
    except ValueError as error:
        raise UnreadableImage(path, str(error)) from None
    rgb = _to_srgb(colours, image.info.get("icc_profile"))
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), alpha)
    rgb.info.clear()
    return rgb


def _decoded(path: Path) -> Image.Image:
    """The first frame, all its pixels read, turned upright."""
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage(path, "is empty (zero bytes)")
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on, which cameras reach, and refuses from twice that on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except (UnreadableImage, MemoryError):
        raise
    except FileNotFoundError:
        raise UnreadableImage(path, "no such file") from None
    except IsADirectoryError:
        raise UnreadableImage(path, "is a folder, not an image") from None
    except UnidentifiedImageError:
        raise UnreadableImage(path, "is not an image of a kind that can be read") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"is too large to decode safely ({error})") from None
    except Exception as error:  # decoders answer broken bytes with every kind of exception
        raise UnreadableImage(path, f"is damaged or cut off ({' '.join(str(error).split())})") from error


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


def _narrowed(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Single-channel images of 16 bits (the high byte, as Pillow reads 16-bit colours) and of floats in 0..1."""
    values = np.asarray(image)
    alpha = None
    if isinstance(key := image.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise ValueError(f"holds floats from {low:g} to {high:g}; only 0 to 1 is understood: save it with 8 bits")
        return Image.fromarray(np.round(values * 255).astype(np.uint8)), alpha
    if low < 0 or high > 65535:
        raise ValueError(f"holds integers from {low:g} to {high:g}, beyond 16 bits: save it with 8 bits")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)), alpha


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Convert from the embedded profile to sRGB; a broken or ill-fitting profile is ignored, as browsers do."""
    if icc_profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            fits = _MODE_OF_PROFILE.get(source.profile.xcolor_space.strip())
            if fits == "RGB" and image.mode == "L":
                image = image.convert("RGB")
            if fits == image.mode:
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image.convert("RGB")
    return image.convert("RGB")
