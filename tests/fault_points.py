"""Points at which a process is struck: every call that changes a file of its work folder, every update, every forward pass.

A point is a number: the k-th such event of a process, the same for every process that does the same work. A strike is what
happens there: a signal, a full disk, no memory. Everything is counted and done inside the process itself, after it was
forked and before it does anything.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

KILL, TERMINATE, INTERRUPT, MEMORY, DISK = "kill", "terminate", "interrupt", "memory", "disk"
SIGNALS = {KILL: signal.SIGKILL, TERMINATE: signal.SIGTERM, INTERRUPT: signal.SIGINT}
FILES, FORWARDS = "files", "forwards"
"""What is counted: events of files and updates together, and forward passes of modules."""


@dataclass(frozen=True)
class Strike:
    """What happens at the `at`-th event of its kind; a disk is full from there on."""

    fault: str
    at: int

    @property
    def counts(self) -> str:
        """Which events `at` counts."""
        return FORWARDS if self.fault == MEMORY else FILES


class Points:
    """The events of this process so far, a strike that waits for its turn, and a log of what is safe on disk.

    The log (one JSON list per line) says what a power failure needs to know: which bytes of which inode were synced, which
    names were changed and whether their folder was synced since.
    """

    def __init__(self, work: Path, log: Path, strike: Strike | None = None) -> None:
        self.work = os.path.realpath(work)
        self.strike = strike
        self.counted = {FILES: 0, FORWARDS: 0}
        self.kept = log.with_suffix(".kept")
        """What renamed files took the place of."""
        shutil.rmtree(self.kept, ignore_errors=True)
        self.kept.mkdir()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write, self._fsync = os.write, os.fsync

    def inside(self, path: str | None) -> bool:
        """Whether a path is in the work folder, or is it."""
        return path is not None and (path == self.work or path.startswith(self.work + os.sep))

    def tell(self, *words: Any) -> None:
        """One line of the log."""
        self._write(self._log, (json.dumps(words) + "\n").encode())

    def event(self, counts: str, what: str, path: str = "") -> None:
        """Count one, and strike where it is its turn."""
        self.counted[counts] += 1
        strike = self.strike
        if strike is None or strike.counts != counts or self.counted[counts] != strike.at:
            return
        self.tell("strike", what, os.path.relpath(path, self.work) if path else "")
        if strike.fault in SIGNALS:
            os.kill(os.getpid(), SIGNALS[strike.fault])
        elif strike.fault == MEMORY:
            if strike.at % 2:
                raise MemoryError
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def full(self) -> bool:
        """Whether the disk takes nothing more."""
        strike = self.strike
        return strike is not None and strike.fault == DISK and self.counted[FILES] >= strike.at


def no_space(path: str | None = None) -> OSError:
    """What the system says of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([path] if path else []))


def watch(points: Points) -> None:
    """Count everything that this process does from now on; never undone, the process is the fault's alone."""
    for name, takes_room in (("mkdir", True), ("link", True), ("unlink", False), ("remove", False), ("rmdir", False)):
        _watch_call(points, os, name, takes_room)
    _watch_rename(points, "replace")
    _watch_rename(points, "rename")
    _watch_sync(points)
    _watch_os_open(points)
    _watch_call(points, shutil, "rmtree", False)
    builtins.open = io.open = _watched_open(points)  # type: ignore[assignment]
    for library in (safetensors.torch, safetensors.numpy):
        _watch_safetensors(points, library)
    register_optimizer_step_pre_hook(lambda *_: points.event(FILES, "before an update"))
    register_optimizer_step_post_hook(lambda *_: points.event(FILES, "after an update"))
    register_module_forward_pre_hook(lambda *_: points.event(FORWARDS, "forward pass"))


def _path(target: Any, dir_fd: int | None = None) -> str | None:
    """The whole path of what a call is given: a path, or the number of an open file."""
    try:
        if isinstance(target, int):
            return os.readlink(f"/proc/self/fd/{target}")
        name = os.fsdecode(target)
        folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    except (OSError, TypeError):
        return None
    return os.path.normpath(os.path.join(folder, name))


def _watch_call(points: Points, module: Any, name: str, takes_room: bool) -> None:
    """A call whose first argument is what it changes."""
    plain = getattr(module, name)

    @functools.wraps(plain)
    def watched(target: Any, *rest: Any, **named: Any) -> Any:
        path = _path(target, named.get("dir_fd"))
        if not points.inside(path):
            return plain(target, *rest, **named)
        assert path is not None
        points.event(FILES, f"before {name}", path)
        if takes_room and points.full():
            raise no_space(path)
        result = plain(target, *rest, **named)
        points.event(FILES, f"after {name}", path)
        return result

    setattr(module, name, watched)


def _watch_rename(points: Points, name: str) -> None:
    """A new name: until its folder is synced, a power failure may take it back."""
    plain: Callable[..., None] = getattr(os, name)

    @functools.wraps(plain)
    def watched(source: Any, target: Any, **named: Any) -> None:
        old, new = _path(source), _path(target)
        if not points.inside(new):
            plain(source, target, **named)
            return
        assert new is not None
        points.event(FILES, f"before {name}", new)
        if points.full():
            raise no_space(new)
        kept = str(points.kept / str(points.counted[FILES]))
        held = "file" if os.path.isfile(new) else "folder" if os.path.isdir(new) else "nothing"
        if held == "file":
            _plain_link(new, kept)
        plain(source, target, **named)
        points.tell("rename", old, new, held, kept)
        points.event(FILES, f"after {name}", new)

    setattr(os, name, watched)


_plain_link = os.link


def _watch_sync(points: Points) -> None:
    plain = os.fsync

    @functools.wraps(plain)
    def watched(handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        path = _path(number)
        if not points.inside(path):
            plain(handle)
            return
        assert path is not None
        points.event(FILES, "before fsync", path)
        if points.full():
            raise no_space()
        found = os.fstat(number)
        if os.path.isdir(path):
            points.tell("folder", path)
        else:
            points.tell("sync", found.st_ino, found.st_size)
        points.event(FILES, "after fsync", path)

    os.fsync = watched


def _watch_os_open(points: Points) -> None:
    plain = os.open

    @functools.wraps(plain)
    def watched(target: Any, flags: int, *rest: Any, **named: Any) -> int:
        path = _path(target, named.get("dir_fd"))
        if not points.inside(path) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return plain(target, flags, *rest, **named)
        assert path is not None
        points.event(FILES, "before opening", path)
        if points.full() and flags & os.O_CREAT:
            raise no_space(path)
        handle = plain(target, flags, *rest, **named)
        if flags & os.O_TRUNC:
            points.tell("emptied", os.fstat(handle).st_ino)
        points.event(FILES, "after opening", path)
        return handle

    os.open = watched


def _watched_open(points: Points) -> Callable[..., Any]:
    """`open` whose writes are events: half of the bytes are there, all of them are."""
    plain = io.open

    class Watched(io.FileIO):
        path = ""

        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            done = super().write(view[: len(view) // 2]) or 0
            points.event(FILES, "within a write", self.path)
            if points.full():
                raise no_space()
            done += super().write(view[done:]) or 0
            points.event(FILES, "after a write", self.path)
            return done

    def watched(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = _path(file)
        if not set(mode) & set("wax+") or not points.inside(path) or os.path.isdir(path or ""):
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        points.event(FILES, "before opening", path or "")
        if points.full() and not os.path.exists(path or ""):
            raise no_space(path)
        raw = Watched(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.path = path or ""
        if "w" in mode:
            points.tell("emptied", os.fstat(raw.fileno()).st_ino)
        points.event(FILES, "after opening", path or "")
        return _buffered(raw, mode, buffering, encoding, errors, newline)

    return watched


def _buffered(
    raw: io.FileIO, mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> Any:
    """The layers that `open` puts on a raw file."""
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffer
    text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode  # type: ignore[misc]
    return text


def _watch_safetensors(points: Points, library: Any) -> None:
    """The library writes by itself, beside the file, and renames; what it says of a full disk is no OSError."""
    plain = library.serialize_file

    @functools.wraps(plain)
    def watched(tensors: Any, filename: Any, metadata: Any = None) -> None:
        path = _path(filename)
        if not points.inside(path):
            plain(tensors, filename, metadata=metadata)
            return
        assert path is not None
        points.event(FILES, "before writing tensors", path)
        if points.full():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        plain(tensors, filename, metadata=metadata)
        points.event(FILES, "after writing tensors", path)

    library.serialize_file = watched
