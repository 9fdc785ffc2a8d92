"""Encoded images and captions, kept under a hash of everything that they were made from.

A key names content, never a place: an edited image, another VAE, size or dtype has another key, so that nothing stale
is ever found. On disk there is one safetensors file per key, whole or absent, with a checksum of its own in its header;
a file that does not hold what it says is a miss, and is written anew. `manifest.json` lists the files that a folder
had when it was last filled, for `verify_cache`; nothing else trusts it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from ..errors import UserError
from ..files import PARTIAL, file_hash, read_object, remove_orphans, write_json
from ..layouts import write_tensors
from ..learner import TrainingItem
from ..tensor_files import tensor_digest

MANIFEST = "manifest.json"
MEMORY_LIMIT = 4 * 2**30
"""Bytes that are kept in memory, whether there are files or not; what was asked for longest ago is let go first. 65,000
latents of 512 x 512 pixels, or 18,000 captions of an SD 1.5."""
TENSOR_OVERHEAD = 768
"""Bytes that torch and Python take for a tensor in memory beside its numbers."""
CHUNK = 16
"""Items that are asked for at a time while a cache is filled."""
SUFFIX = ".safetensors"
KEY = re.compile(r"[0-9a-f]{64}")
logger = logging.getLogger(__name__)


def content_key(kind: str, /, **parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of what an entry is made from; parts are JSON values, in any order."""
    text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class TensorCache:
    """Named tensors by content key: in memory up to `MEMORY_LIMIT`, and in a folder where one is given. Entries are not
    to be written to. Several threads may use one cache."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._memory: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self._held = 0
        self._lock = Lock()
        self._told = self._swept = False

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors (on the CPU) put under this key; None where there are none, they were let go and are in no file, or
        their file is damaged."""
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        file = self.file(key)
        if file is None or not file.is_file():
            return None
        try:
            entry = read_entry(file)
        except DamagedEntry as error:
            logger.warning("%s; it is made anew", error)
            return None
        self._keep(key, entry)
        return entry

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep copies of these tensors on the CPU, and their file where there is a folder; returns the copies.

        Raises:
            UserError: the file cannot be written.
        """
        # Copies, because a view would keep all of a batch alive.
        entry = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        file = self.file(key)
        if file is not None:
            try:
                self._sweep()
                write_tensors(file, entry, {"key": key, "sha256": tensor_digest(entry)})
            except OSError as error:
                raise UserError(f"{file}: cannot be written ({error}); free some space or change cache_dir") from None
        self._keep(key, entry)
        return entry

    def _sweep(self) -> None:
        """Remove, once, what killed processes left unfinished; others that are alive may be filling the same folder."""
        with self._lock:
            swept, self._swept = self._swept, True
        if not swept and self.folder is not None:
            remove_orphans(self.folder)

    def file(self, key: str) -> Path | None:
        """Where this key's tensors are on disk, two levels deep; None without a folder."""
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no content key")
        return None if self.folder is None else self.folder / key[:2] / (key + SUFFIX)

    def _keep(self, key: str, entry: dict[str, torch.Tensor]) -> None:
        with self._lock:
            self._held += _bytes(entry) - _bytes(self._memory.pop(key, {}))
            self._memory[key] = entry
            full = self._held > MEMORY_LIMIT
            while self._held > MEMORY_LIMIT and len(self._memory) > 1:
                self._held -= _bytes(self._memory.popitem(last=False)[1])
        if full and self.folder is None and not self._told:
            self._told = True
            logger.warning(
                "encoded images and captions exceed the %.1f GiB that are kept in memory; those asked for longest ago are "
                "encoded again when they are needed; set cache_dir to keep them in files",
                MEMORY_LIMIT / 2**30,
            )


class Encoder(Protocol):
    """A learner that encodes images and captions through a `TensorCache` of its own."""

    def encode_items(self, items: Sequence[TrainingItem]) -> Any:
        """Encode each item's image at its size and orientation, those that are not in the cache."""

    def encode_captions(self, captions: Sequence[str]) -> None:
        """Encode the captions that are not in the cache."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What is in a cache folder, and what is wrong with it."""

    num_entries: int
    num_bytes: int
    damaged: tuple[str, ...] = ()
    """Files that do not hold what they say, or other bytes than the manifest has; they are made anew when asked for."""
    missing: tuple[str, ...] = ()
    """Keys of the manifest that have no file."""
    unlisted: tuple[str, ...] = ()
    """Whole files that came after the manifest."""


def cache_encodings(
    learner: Encoder, items: Sequence[TrainingItem], captions: Sequence[str], folder: Path
) -> CacheReport:
    """Fill the learner's cache, which is in `folder`, and write its manifest; goes on where an earlier call stopped.

    Raises:
        UserError: an image that cannot be read, a disk that is full, or a device without room for a single image.
    """
    remove_orphans(folder)
    with tqdm(total=len(items), desc="caching images", unit="image", disable=None) as bar:
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            try:
                learner.encode_items(chunk)
            except torch.cuda.OutOfMemoryError:
                # Images are encoded one at a time, so that there is no batch to halve.
                raise UserError(
                    f"{folder}: no device memory to encode a single image of {chunk[0].size or 'the full size'}; lower "
                    "resolution; what was encoded is kept"
                ) from None
            bar.update(len(chunk))
    learner.encode_captions(captions)
    files = _entries(folder)
    sizes = {key: file.stat().st_size for key, file in files.items()}
    entries = {key: {"bytes": sizes[key], "sha256": file_hash(file)} for key, file in files.items()}
    write_json(folder / MANIFEST, {"entries": entries})
    return CacheReport(num_entries=len(files), num_bytes=sum(sizes.values()))


def verify_cache(folder: Path) -> CacheReport:
    """Read every file of a cache and compare it with its own checksum and with the manifest.

    Raises:
        UserError: no cache there, or a broken manifest.
    """
    listed = read_object(folder / MANIFEST).get("entries", {})
    if not isinstance(listed, dict):
        raise UserError(f"{folder / MANIFEST}: its entries are no object; fill the cache again")
    files = _entries(folder)
    damaged = []
    for key, file in tqdm(files.items(), desc="verifying", unit="file", disable=None):
        try:
            read_entry(file)
        except DamagedEntry:
            damaged.append(key)
        else:
            if key in listed and listed[key]["sha256"] != file_hash(file):
                damaged.append(key)
    return CacheReport(
        num_entries=len(files),
        num_bytes=sum(file.stat().st_size for file in files.values()),
        damaged=tuple(str(files[key]) for key in damaged),
        missing=tuple(sorted(listed.keys() - files.keys())),
        unlisted=tuple(key for key in files if key not in listed and key not in damaged),
    )


def clear_cache(folder: Path) -> int:
    """Remove the entries, halves of entries that a killed process left, and the manifest; nothing else in the folder.

    Returns:
        The number of entries removed.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = _entries(folder)
    for file in files.values():
        file.unlink()
    for inside in folder.iterdir():
        if not re.fullmatch(r"[0-9a-f]{2}", inside.name) or not inside.is_dir():
            continue
        for half in inside.glob(f"{PARTIAL}*{SUFFIX}"):
            if KEY.fullmatch(half.name.removeprefix(PARTIAL).split(".")[0]):
                half.unlink()
        if not any(inside.iterdir()):
            inside.rmdir()
    (folder / MANIFEST).unlink(missing_ok=True)
    return len(files)


class DamagedEntry(Exception):
    """A cache file that does not hold what it says; the message names the file."""


def read_entry(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one cache file.

    Raises:
        DamagedEntry: not readable, under another name than it was written with, or changed since.
    """
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedEntry(f"{file}: damaged cache entry ({error})") from None
    if metadata.get("key") != file.name.removesuffix(SUFFIX) or metadata.get("sha256") != tensor_digest(tensors):
        raise DamagedEntry(f"{file}: damaged cache entry (its checksum is another)")
    return tensors


def _entries(folder: Path) -> dict[str, Path]:
    """The files of a cache by key, sorted."""
    found = {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"??/*{SUFFIX}")}
    return {key: found[key] for key in sorted(found) if KEY.fullmatch(key) and found[key].parent.name == key[:2]}


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() + TENSOR_OVERHEAD for tensor in tensors.values())
