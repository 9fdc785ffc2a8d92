"""Aspect-ratio buckets: images of many shapes, trained at sizes of about the same area, each batch of one size.

The sizes are kohya's: sides are multiples of `bucket_reso_steps`, and each is as large as `resolution`² pixels allow.
An image goes to the size of the nearest aspect ratio, by |log(w/h) − log(w'/h')|, so that a portrait goes to the
mirror of what its landscape goes to; kohya's difference of w/h itself is not symmetric.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..concepts.images import FORMATS
from ..errors import UserError
from ..records import Example
from .config import FinetuneConfig

Size = tuple[int, int]
"""Height and width in pixels."""
ORIENTATION, SIDEWAYS = 0x0112, range(5, 9)
"""The EXIF tag, and its values under which an image stands upright only with its sides exchanged."""


def bucket_sizes(resolution: int, *, steps: int, smallest: int, largest: int) -> tuple[Size, ...]:
    """All sizes, sorted: the square, and for each width the greatest height with height · width <= resolution².

    Raises:
        UserError: no square of whole steps fits between the smallest and the largest side.
    """
    square = resolution // steps * steps
    if not smallest <= square <= largest or square == 0:
        raise UserError(
            f"aspect_ratio_buckets: resolution {resolution} in steps of {steps} gives a square of {square}, outside "
            f"min_bucket_reso {smallest} to max_bucket_reso {largest}; change those or bucket_reso_steps"
        )
    found = {(square, square)}
    for width in range(-(-smallest // steps) * steps, largest + 1, steps):
        height = min(largest, resolution**2 // width) // steps * steps
        if height >= smallest:
            found |= {(height, width), (width, height)}
    return tuple(sorted(found))


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest; of two equally near ones the larger, then the taller."""
    ratio = math.log(size[1] / size[0])

    def key(other: Size) -> tuple[float, int, int]:
        return round(abs(math.log(other[1] / other[0]) - ratio), 12), -other[0] * other[1], -other[0]

    return min(sizes, key=key)


def image_size(path: Path) -> Size:
    """Height and width of an image as it is meant to be seen, from its header.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                # Asking some formats for the tag decodes them; a square has nothing to turn.
                sideways = image.width != image.height and image.getexif().get(ORIENTATION) in SIDEWAYS
                if sideways and image.format == "TIFF":
                    # Pillow turns these by itself, depending on its version already in the header's size.
                    image.load()
                    sideways = False
                width, height = image.size
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: its size cannot be read ({' '.join(str(error).split())})") from None
    return (width, height) if sideways else (height, width)


def example_sizes(examples: Iterable[Example], config: FinetuneConfig, resolution: int | None) -> dict[str, Size]:
    """The size that each example's image is fitted to, by the example's id; empty without aspect_ratio_buckets.

    Args:
        resolution: of the learner; None where its targets are no images.
    """
    if not config.aspect_ratio_buckets:
        return {}
    if resolution is None:
        raise UserError("aspect_ratio_buckets: this learner is not trained on images; set it to false")
    sizes = bucket_sizes(
        resolution,
        steps=config.bucket_reso_steps,
        smallest=config.min_bucket_reso,
        largest=config.max_bucket_reso,
    )
    return {example.id: nearest_size(image_size(example.path), sizes) for example in examples}
