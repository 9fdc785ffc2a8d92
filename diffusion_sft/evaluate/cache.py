"""One feature cache for all metrics: a row for each image content, kept for each extractor.

A row is found by the SHA-256 of the image file's bytes (of a generated image without a file, of its pixels), within a
folder named after the extractor's name, resize and weights and the size that images are fitted to; so nothing stale or
of another extractor can ever be read. Rows are saved in whole files as they are made, and an interrupted extraction
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from ..concepts.images import load_image
from ..files import file_hash, write_json
from ..layouts import write_tensors
from ..tensor_files import tensor_digest
from .features import Extractor
from .pictures import GeneratedImage, check_unchanged

ROWS_PER_FILE = 512
logger = logging.getLogger(__name__)


def fitted_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An image file as the learner sees it: centre-cropped and resized to (height, width), uint8."""
    height, width = size
    return np.asarray(ImageOps.fit(load_image(path), (width, height), Image.Resampling.LANCZOS))


class FeatureCache:
    """Features of image files through one extractor, taken from `folder` where they are there."""

    def __init__(self, folder: Path, extractor: Extractor, image_size: tuple[int, int], batch_size: int) -> None:
        """Args:
        folder: of all caches; this one makes a folder of its own in it.
        image_size: (height, width) that every image is fitted to before the extractor's own resize.
        """
        self.extractor = extractor
        self._image_size = image_size
        self._batch_size = batch_size
        self.key = {
            "name": extractor.name,
            "resize": extractor.resize,
            "weights_sha256": extractor.weights_sha256,
            "image_size": list(image_size),
            "fit": "centre crop, Lanczos",
        }
        """All that decides a row but the image."""
        self._folder = folder / hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        write_json(self._folder / "key.json", self.key)  # For people: nothing reads it.
        self._rows = self._read()

    def features(self, paths: Sequence[Path], description: str = "features") -> np.ndarray:
        """The features of these files, (num_paths, d) float32, in the order given.

        Raises:
            UserError: a file that is no image, named.
        """
        return self.features_at([file_hash(path) for path in paths], paths, description)

    def generated_features(self, images: Sequence[GeneratedImage], description: str = "features") -> np.ndarray:
        """The features of generated images, (num_images, d) float32; files are read of those alone that were not
        looked at while they were made.

        Raises:
            UserError: an image that must be looked at and is not there, or has changed since it was made.
        """
        for image in images:
            if image.sha256 not in self:
                check_unchanged(image)
        return self.features_at([image.sha256 for image in images], [image.path for image in images], description)

    def add(self, hashes: Sequence[str], features: np.ndarray) -> None:
        """Keep rows, (n, d) float32, that the extractor gave for images of the very size that images are fitted to."""
        fresh = [place for place, digest in enumerate(hashes) if digest not in self]
        if fresh:
            self._save([hashes[place] for place in fresh], features[fresh])

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def features_at(self, hashes: Sequence[str], paths: Sequence[Path], description: str = "features") -> np.ndarray:
        """The same of images whose hashes are known, each beside its file."""
        missing = {digest: path for digest, path in zip(hashes, paths, strict=True) if digest not in self}
        with tqdm(total=len(missing), desc=description, unit="image", disable=None, leave=False) as bar:
            items = list(missing.items())
            for start in range(0, len(items), ROWS_PER_FILE):
                part = items[start : start + ROWS_PER_FILE]
                self._save([digest for digest, _ in part], self._extract([path for _, path in part], bar))
        if not hashes:
            return np.zeros((0, self.num_dims), dtype=np.float32)
        return np.stack([self._rows[digest] for digest in hashes])

    @property
    def num_dims(self) -> int:
        """The number of features; 0 as long as there is no row."""
        return next((len(row) for row in self._rows.values()), 0)

    def _extract(self, paths: Sequence[Path], bar: tqdm) -> np.ndarray:
        batches = []
        for start in range(0, len(paths), self._batch_size):
            chosen = paths[start : start + self._batch_size]
            images = [fitted_image(path, self._image_size) for path in chosen]
            batches.append(self.extractor(images, [str(path) for path in chosen]))
            bar.update(len(chosen))
        return np.concatenate(batches)

    def _save(self, hashes: Sequence[str], features: np.ndarray) -> None:
        digests = np.stack([np.frombuffer(bytes.fromhex(digest), dtype=np.uint8) for digest in hashes])
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        content = {"features": torch.from_numpy(np.ascontiguousarray(features)), "sha256": torch.from_numpy(digests)}
        write_tensors(self._folder / f"{name}.safetensors", content, {"checksum": tensor_digest(content)})
        self._rows |= dict(zip(hashes, features, strict=True))

    def _read(self) -> dict[str, np.ndarray]:
        rows: dict[str, np.ndarray] = {}
        for file in sorted(self._folder.glob("[0-9a-f]*.safetensors")):
            try:
                with safe_open(file, "pt") as stored:
                    checksum = (stored.metadata() or {}).get("checksum")
                    content = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                if checksum != tensor_digest(content):
                    raise ValueError("its checksum is another")
            except (SafetensorError, OSError, ValueError) as error:
                logger.warning("%s: damaged feature cache (%s); its rows are made again", file, error)
                file.unlink()
                continue
            hashes = [digest.tobytes().hex() for digest in content["sha256"].numpy()]
            rows |= dict(zip(hashes, content["features"].numpy(), strict=True))
        return rows
