"""Somewhere in the folder that is watched: every read of the live view goes through here, and none leaves the folder.

A link that leads out of it, a hidden name, `..` and whatever is no plain file are as good as absent. Reads are bounded, and
files that are broken, half written or gone in the meantime give nothing instead of an error.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_RECORD = 4 << 20
"""Larger JSON files are not read."""
WHOLE_LOG = 1 << 20
"""Up to this size a log is read whole; a larger one in `BLOCKS` places and at its end."""
BLOCKS, BLOCK, LOG_END = 200, 4096, 1 << 16
ENTRIES = 5000
"""A folder is read up to so many names."""
_NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""A named pipe must not hold up the page."""


@dataclass(frozen=True)
class Place:
    """A name below the watched folder (`root`, without links); whether anything is there is asked anew each time."""

    root: Path
    parts: tuple[str, ...] = ()

    def __truediv__(self, names: str) -> Place:
        return Place(self.root, (*self.parts, *names.split("/")))

    @property
    def name(self) -> str:
        """The last part; the watched folder's own name at its top."""
        return self.parts[-1] if self.parts else self.root.name

    @property
    def relative(self) -> str:
        """As it is called from the watched folder."""
        return "/".join(self.parts)

    @property
    def path(self) -> Path | None:
        """Where it is on the disk, links followed; None where nothing is there that may be read."""
        if not all(_plain(part) for part in self.parts):
            return None
        try:
            found = self.root.joinpath(*self.parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        if not found.is_relative_to(self.root) or not all(map(_plain, found.relative_to(self.root).parts)):
            return None
        return found

    @property
    def status(self) -> os.stat_result | None:
        """Its size and times."""
        path = self.path
        try:
            return None if path is None else path.stat()
        except OSError:
            return None

    @property
    def is_file(self) -> bool:
        """Whether a plain file is there."""
        status = self.status
        return status is not None and stat.S_ISREG(status.st_mode)

    @property
    def is_folder(self) -> bool:
        """Whether a folder is there."""
        status = self.status
        return status is not None and stat.S_ISDIR(status.st_mode)

    @property
    def changed(self) -> float:
        """When it was last written, in seconds since 1970; 0 where nothing is there."""
        status = self.status
        return 0.0 if status is None else status.st_mtime

    def open(self) -> BinaryIO | None:
        """The plain file, open for reading."""
        path = self.path
        if path is None:
            return None
        try:
            handle = os.open(path, os.O_RDONLY | _NOT_BLOCKING)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
        return None

    def entries(self) -> list[Place]:
        """What a folder holds, by name: what is not hidden, of at most `ENTRIES` names."""
        path = self.path
        if path is None:
            return []
        try:
            with os.scandir(path) as found:
                names = [entry.name for entry in islice(found, ENTRIES)]
        except OSError:
            return []
        return [self / name for name in sorted(names) if _plain(name)]

    def record(self) -> Mapping[str, Any] | None:
        """The names and values of a JSON file; None where there is none that can be read."""
        status = self.status
        if status is None or not self.is_file or status.st_size > LARGEST_RECORD:
            return None
        return _record(self, status.st_mtime_ns, status.st_size)

    def end(self, size: int) -> str:
        """The last so many bytes of a text."""
        stream = self.open()
        if stream is None:
            return ""
        with stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read(size).decode("utf-8", "replace")

    def log_lines(self) -> tuple[list[bytes], bool]:
        """Finished lines of a log that may be growing, in their order, and whether these are all of them."""
        stream = self.open()
        if stream is None:
            return [], True
        with stream:
            size = stream.seek(0, os.SEEK_END)
            if size <= WHOLE_LOG:
                stream.seek(0)
                return stream.read(size).split(b"\n")[:-1], True
            lines = []
            for number in range(BLOCKS):
                stream.seek(number * (size - LOG_END) // BLOCKS)
                lines += stream.read(BLOCK).split(b"\n")[1:-1]
            stream.seek(size - LOG_END)
            return lines + stream.read(LOG_END).split(b"\n")[1:-1], False


@lru_cache(maxsize=1024)
def _record(place: Place, changed: int, size: int) -> Mapping[str, Any] | None:
    """Read once for each time that it is written; nobody may change what this returns."""
    stream = place.open()
    if stream is None:
        return None
    with stream:
        content = stream.read(LARGEST_RECORD)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plain(name: str) -> bool:
    """Whether this is one name, neither hidden nor a way to somewhere else."""
    return name != "" and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}
