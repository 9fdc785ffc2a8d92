"""Somewhere in the folder that is watched: every read of the live view goes through here, and none leaves the folder.

A link that leads out of it, a hidden name, `..` and whatever is no plain file are as good as absent. Reads are bounded, and
files that are broken, half written or gone in the meantime give nothing instead of an error.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Generic, TypeVar

T = TypeVar("T")
LARGEST_RECORD = 4 << 20
"""Larger JSON files are not read."""
KEPT_RECORD = 1 << 18
"""Larger ones are read anew each time that they are asked for."""
WHOLE_LOG = 1 << 20
"""Up to this size a log is read whole; a larger one in `BLOCKS` places and at its end."""
BLOCKS, BLOCK, LOG_END = 200, 4096, 1 << 16
ENTRIES = 5000
"""A folder is read up to so many names."""
AHEAD = 3600
"""Seconds that a file server's clock may be ahead of this one; what was written later than that was so before the clock
was set back, and tells nothing."""
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

    @property
    def version(self) -> tuple[int, ...] | None:
        """Another one after each change, whatever the clock says: files are replaced whole, or become longer."""
        status = self.status
        if status is None:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

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
        if status.st_size > KEPT_RECORD:
            return _record(self)
        return _RECORDS.of(self, lambda: _record(self))

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


class Remembered(Generic[T]):
    """What was made of files, for as long as they are the same: of each file the last alone, of `most` files at most.

    Nobody may change what is given out; several threads may ask.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Place, tuple[tuple[int, ...], T]] = OrderedDict()
        self._lock = Lock()

    def of(self, place: Place, make: Callable[[], T]) -> T:
        """What `make` makes of the file, made anew where it has changed."""
        # Before it is read, so that what is written meanwhile is seen the next time.
        version = place.version
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None and kept[0] == version:
                self._kept.move_to_end(place)
                return kept[1]
        made = make()
        with self._lock:
            self._kept.pop(place, None)
            if version is not None:
                self._kept[place] = version, made
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return made


_RECORDS: Remembered[Mapping[str, Any] | None] = Remembered(1024)


def latest(times: Iterable[float]) -> float:
    """The latest of these times of writing, those far ahead of the clock left out; 0 where there is none."""
    most = time.time() + AHEAD
    return max((moment for moment in times if moment <= most), default=0.0)


def _record(place: Place) -> Mapping[str, Any] | None:
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
