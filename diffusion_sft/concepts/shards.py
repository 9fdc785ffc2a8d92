"""WebDataset shards: .tar files whose members of one key make one example.

Of a member's name everything up to the first dot of its last part is the key, and the rest says what it holds: an image,
a caption (.txt, .caption), further cells (.json) or a class (.cls). Nothing is extracted under a member's own name and
nothing is ever unpickled; a sample with a pickle in it is a problem.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tqdm import tqdm

from ..errors import UserError
from ..parsing import Problem, confined, described, few, json_value, seen
from .captions import CAPTION_SUFFIXES, agreed, caption_text
from .cells import check_columns, row_of
from .config import ConceptSourceConfig
from .folders import IMAGE_SUFFIXES
from .rows import Listing
from .store import Store

PICKLES = (".pyd", ".pickle", ".pkl", ".pth", ".pt", ".npy", ".npz")
"""What WebDataset's decoders would unpickle; numpy's two hold no pictures here and are refused with them."""
LARGEST_MEMBER = 1 << 30
"""Bytes; a longer member is no picture."""
LARGEST_CELLS = 1 << 20
"""Bytes of a sample's .json."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class _Sample:
    """The members of one key, as far as they are understood, and what is wrong with them."""

    shard: str
    key: str
    images: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    cells: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def where(self) -> str:
        return f"{self.shard} key {self.key}"


def find_shards(path: Path) -> list[Path]:
    """The .tar files of a folder by name, or the one file that the path is.

    Raises:
        UserError: one is a link to a place outside the folder.
    """
    if path.is_file():
        return [path]
    shards = (p for p in path.iterdir() if p.suffix == ".tar" and p.is_file() and not p.name.startswith("."))
    return sorted((confined(path, shard) for shard in shards), key=lambda shard: shard.name)


def read_shards(root: Path, config: ConceptSourceConfig, store: Store) -> Listing:
    """One row per sample with an image, in the order of the shards; image bytes go to the store as they are.

    Raises:
        UserError: no shard, a file that is no tar archive, or is compressed, or a column that the user named is
            missing.
    """
    shards = find_shards(root)
    if not shards:
        raise UserError(f"{root}: no .tar shard here; found {seen(root)}")
    records: list[tuple[str, dict[str, Any]]] = []
    problems: list[Problem] = []
    skipped: set[str] = set()
    for shard in tqdm(shards, desc="reading shards", unit="shard", disable=None):
        for sample in _samples(shard, problems, skipped):
            try:
                records.append((sample.where, _record(sample, config, store)))
            except ValueError as error:
                problems.append(Problem(where=sample.where, file="", reason=str(error)))
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    notes = check_columns(str(root), columns, config) if records else []
    rows = []
    for where, record in records:
        try:
            rows.append(row_of(store.folder, where, record, columns, config))
        except ValueError as error:
            problems.append(Problem(where=where, file="", reason=str(error)))
    if skipped:
        notes.append(f"members of these kinds were passed over: {few(sorted(skipped))}")
    return Listing(rows=rows, problems=problems, notes=notes)


def _samples(shard: Path, problems: list[Problem], skipped: set[str]) -> Iterator[_Sample]:
    """The samples of one shard: members of one key stand next to each other."""
    current: _Sample | None = None
    try:
        _check_start(shard)
        with tarfile.open(shard, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined] # else all headers of a shard stay in memory
                if member.isdir():
                    continue
                key, suffix = _key_and_suffix(member.name)
                if fault := _fault(member):
                    problems.append(Problem(where=shard.name, file=member.name, reason=fault))
                    continue
                if not suffix or key.startswith("__"):
                    continue
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = _Sample(shard=shard.name, key=key)
                stream = archive.extractfile(member)
                assert stream is not None
                _take(current, suffix, stream, skipped)
            _check_end(archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        if current is None:
            raise UserError(f"{shard}: not a readable .tar shard ({' '.join(str(error).split())})") from None
        reason = f"is damaged or cut off after the start of key {current.key}; nothing behind it was read"
        problems.append(Problem(where=shard.name, file="", reason=reason))
    if current is not None:
        yield current


def _check_start(shard: Path) -> None:
    """Demand an archive as it is: compressed, a few kilobytes could hold any number of bytes."""
    with shard.open("rb") as stream:
        start = stream.read(8)
    for signature, name in _COMPRESSED.items():
        if start.startswith(signature):
            raise UserError(f"{shard}: is compressed ({name}); unpack it to a plain .tar")


def _check_end(archive: tarfile.TarFile) -> None:
    """Demand the end mark; tarfile takes a damaged or missing header for the end without a word."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if (block := archive.fileobj.read(tarfile.BLOCKSIZE)) != tarfile.NUL * len(block) or not block:
        raise tarfile.ReadError("no end mark")


def _key_and_suffix(name: str) -> tuple[str, str]:
    """("a/b", ".seg.png") of a/b.seg.png, as WebDataset splits names."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return folder + slash + stem, (dot + rest).lower() if stem else ""


def _fault(member: tarfile.TarInfo) -> str:
    if not member.isreg():
        return "is a link or a device, not a file"
    if member.issparse():
        return "is a sparse file, which may claim any size"
    name = PurePosixPath(member.name)
    if name.is_absolute() or PureWindowsPath(member.name).is_absolute() or ".." in name.parts:
        return "has a name that leads out of the shard"
    if member.size > LARGEST_MEMBER:
        return f"is longer than {LARGEST_MEMBER} bytes"
    return ""


def _take(sample: _Sample, suffix: str, stream: IO[bytes], skipped: set[str]) -> None:
    if suffix.endswith(PICKLES):
        sample.fault = sample.fault or f"holds a {suffix} member, which may be a pickle and is never read"
    elif suffix in IMAGE_SUFFIXES:
        sample.images[suffix] = stream.read()
    elif suffix in (*CAPTION_SUFFIXES, ".json", ".cls"):
        try:
            _take_text(sample, suffix, stream.read(LARGEST_CELLS + 1))
        except ValueError as error:
            sample.fault = sample.fault or str(error)
    else:
        skipped.add(suffix)


def _take_text(sample: _Sample, suffix: str, content: bytes) -> None:
    if suffix != ".json":
        text = caption_text(content, suffix)
        if suffix == ".cls":
            sample.cells["cls"] = text
        else:
            sample.captions[suffix] = text
        return
    if len(content) > LARGEST_CELLS:
        raise ValueError(f"its .json is longer than {LARGEST_CELLS} bytes")
    try:
        cells = json_value(content)
    except (ValueError, RecursionError):
        raise ValueError("its .json is not valid JSON") from None
    if not isinstance(cells, dict):
        raise ValueError('its .json is no object {"text": ...}')
    sample.cells |= {str(name): value for name, value in cells.items()}


def _record(sample: _Sample, config: ConceptSourceConfig, store: Store) -> dict[str, Any]:
    """The sample as one record of cells; ValueError says what is wrong with it."""
    if sample.fault:
        raise ValueError(sample.fault)
    if len(sample.images) != 1:
        raise ValueError(f"has {len(sample.images)} images ({few(sorted(sample.images)) or 'none'}), not one")
    said = sample.cells.get(config.caption_column)
    captions = dict(sample.captions)
    if isinstance(said, str):
        captions[".json"] = " ".join(said.split())
    elif said is not None:
        raise ValueError(f"{config.caption_column} is not text but {described(said)}")
    (content,) = sample.images.values()
    return sample.cells | {config.image_column: store.put(content), config.caption_column: agreed(captions)}
