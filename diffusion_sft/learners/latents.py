"""Between image files and latents: the VAE's posterior mean, scaled as the UNet was trained on it, and back.

The VAE works in float32 whatever the rest does. At the cleanest levels σ is 0.03, below what bfloat16 resolves, and
SDXL's VAE overflows in float16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from tqdm.auto import tqdm

from ..concepts.images import load_image
from ..errors import NotFinite, UserError
from ..files import file_hash
from ..parsing import few
from .cache import TensorCache, content_key
from .conditioning import Framing, Size

LATENTS_VERSION = 1
"""Part of every key of cached latents; one more when the same image comes to be encoded otherwise."""
CROP_RULE = "cover, centre, lanczos"
DECODED_PIXELS = 512 * 512
"""Pixels that a GPU decodes at once: small images fill it together, large ones alone do (2.5 TFLOP for 512×512), and
memory is that of one image of this size, or of one larger image."""
SETTLED_NS = 1_000_000_000
"""A file that was changed less than this before it was read may change again within the same tick of its clock."""


class Fit(NamedTuple):
    """An image file, the size that it is fitted to, and whether it is mirrored."""

    path: Path
    size: Size
    flipped: bool = False


@dataclass(frozen=True, kw_only=True)
class FittedLatents:
    """Latents (channels, height, width), float32 on the CPU, and how the image came to its size."""

    latents: torch.Tensor
    framing: Framing


class LatentCodec:
    """A pipeline's VAE, which it makes float32; latents are kept under a hash of all that they are made from."""

    def __init__(self, pipeline: Any, cache: TensorCache, identity: Callable[[], Mapping[str, Any]]) -> None:
        """Take the VAE and the place of latents; `identity` names the VAE's weights in keys of the cache, JSON
        values, and is asked only if there is a folder."""
        self.vae, self.processor = pipeline.vae, pipeline.image_processor
        self._cache, self._identity = cache, identity
        self._loaded_dtype = str(self.vae.dtype)
        # Not the VAE's own method, which warns of what this does on purpose.
        nn.Module.to(self.vae, dtype=torch.float32)
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}

    def fitted(self, fits: Sequence[Fit]) -> list[FittedLatents]:
        """The latents of each image, encoded once as long as the file's bytes stay the same.

        Raises:
            UserError: an image that cannot be read, or whose latents are not finite.
        """
        keys = [self._key(fit) for fit in fits]
        entries = {key: entry for key in dict.fromkeys(keys) if (entry := self._cache.get(key)) is not None}
        missing = {key: fit for key, fit in zip(keys, fits, strict=True) if key not in entries}
        # One at a time, because company changes the last bits, and a resumed run meets images in another order.
        for key, fit in _progress(missing.items(), len(missing)):
            entries[key] = self._cache.put(key, self._encode(fit))
        return [_fitted(entries[key], fit) for key, fit in zip(keys, fits, strict=True)]

    def decode(self, latents: torch.Tensor, names: Sequence[str] = ()) -> list[np.ndarray]:
        """Images of each row of latents, uint8 (height, width, 3). On a CPU one at a time, so that no company changes
        a bit; elsewhere as many at once as DECODED_PIXELS says, and brought to the host together.

        Args:
            names: of the rows, for errors: their prompts.

        Raises:
            NotFinite: latents or pixels that are no numbers, which would be shown as black pictures.
        """
        _check_rows(latents, "latents", names)
        images, finite = [], []
        for rows in latents.float().split(self._decoded_at_once(latents)):
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                pixels = self.vae.decode(self._unscaled(rows), return_dict=False)[0]
            finite.append(_finite_rows(pixels))
            shown = self.processor.postprocess(pixels, output_type="pt").permute(0, 2, 3, 1)
            images.append((shown * 255).round().to(torch.uint8))
        _check_rows(torch.cat(finite), "pixels", names)
        return list(torch.cat(images).contiguous().cpu().numpy())

    def _decoded_at_once(self, latents: torch.Tensor) -> int:
        pixels_each: int = latents.shape[-2] * latents.shape[-1] * self.processor.config.vae_scale_factor**2
        return 1 if latents.device.type == "cpu" else max(1, DECODED_PIXELS // pixels_each)

    def _encode(self, fit: Fit) -> dict[str, torch.Tensor]:
        """Cover the size, centre crop, [−1, 1], posterior mean, scaled."""
        image = load_image(fit.path)
        height, width = fit.size
        # Pillow counts width before height.
        fitted = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
        fitted = np.ascontiguousarray(fitted[:, ::-1]) if fit.flipped else fitted
        pixels = torch.from_numpy(fitted.copy()).permute(2, 0, 1)[None].to(self.vae.device, torch.float32) / 127.5 - 1
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            latents = self._scaled(self.vae.encode(pixels).latent_dist.mean)[0].cpu()
        if not bool(torch.isfinite(latents).all()):
            raise UserError(f"{fit.path}: its latents are not finite; the VAE's weights may be damaged")
        original = (image.height, image.width)
        return {
            "latents": latents,
            "original_size": torch.tensor(original),
            "crop": torch.tensor(crop_offsets(original, fit.size)),
        }

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """(latents − mean) · scaling factor / std, the mean and std of the VAE's settings, if it has them."""
        mean, std = self._statistics(latents)
        return (latents - mean) * self.vae.config.scaling_factor / std

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents)
        return latents * std / self.vae.config.scaling_factor + mean

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        mean, std = getattr(self.vae.config, "latents_mean", None), getattr(self.vae.config, "latents_std", None)
        if mean is None or std is None:
            return 0.0, 1.0
        return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)

    def _key(self, fit: Fit) -> str:
        parts: dict[str, Any] = {"image": self._content(fit.path), "size": list(fit.size), "flipped": fit.flipped}
        if self._cache.folder is not None:
            parts |= {"vae": dict(self._identity()), "dtype": self._loaded_dtype}
        return content_key("latents", version=LATENTS_VERSION, crop=CROP_RULE, **parts)

    def _content(self, path: Path) -> str:
        """The SHA-256 of the file, read again only when its state on disk is another.

        The time of the last change of state (ctime) is among it, which no program can set: an image that was edited
        and given its old size and modification time is seen.
        """
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        now = (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)
        before, content = self._hashes.get(str(path), ((), ""))
        if before != now:
            read_at, content = time.time_ns(), file_hash(path)
            if abs(read_at - state.st_ctime_ns) >= SETTLED_NS:
                self._hashes[str(path)] = now, content
        return content


def _fitted(entry: Mapping[str, torch.Tensor], fit: Fit) -> FittedLatents:
    (top, left), (height, width) = entry["crop"].tolist(), entry["original_size"].tolist()
    framing = Framing(original_size=(height, width), crop=(top, left), target_size=fit.size)
    return FittedLatents(latents=entry["latents"], framing=framing)


def _finite_rows(values: torch.Tensor) -> torch.Tensor:
    """Whether all numbers of each row are finite, bool (num_rows,)."""
    return torch.isfinite(values).flatten(1).all(dim=1)


def _check_rows(values: torch.Tensor, what: str, names: Sequence[str]) -> None:
    """Raise NotFinite for rows of numbers, or of truths about them, that are not finite."""
    finite = values if values.dtype == torch.bool else _finite_rows(values)
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        told = ": " + few([repr(names[place]) for place in bad]) if names else ""
        advice = "try dtype=bfloat16 or dtype=float32" if what == "latents" else "the VAE's weights may be damaged"
        raise NotFinite(f"generated {what} are not finite ({len(bad)} of {len(finite)}{told})", advice)


def crop_offsets(original: Size, target: Size) -> Size:
    """Rows and columns cut off at the top and left when an image that covers `target` is cropped to it in the middle.

    As in diffusers' SDXL scripts: of the resized image, whose longer side is cut down to whole pixels.
    """
    (height, width), (target_height, target_width) = original, target
    if height * target_width >= width * target_height:
        return max(0, round((target_width * height // width - target_height) / 2)), 0
    return 0, max(0, round((target_height * width // height - target_width) / 2))


def _progress(entries: Iterable[Any], count: int) -> Iterable[Any]:
    return tqdm(entries, desc="encoding images", total=count, disable=None if count > 8 else True, leave=False)
