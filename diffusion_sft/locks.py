"""Folders that one process works in at a time."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .errors import UserError
from .files import OLD, PARTIAL, partial_owner, recover_folder
from .parsing import printable

LACKING = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems without locks answer."""
_TIME = "%Y-%m-%d %H:%M:%S UTC"
logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder inside the block, and begin by removing what killed ones left unfinished.

    A lock dies with its process, however that dies, so that no stale one is ever in the way. It stands beside the
    folder, which may have to be empty.

    Raises:
        UserError: another process is at work there.
    """
    if os.name != "posix":  # Others have no such locks.
        yield
        return
    made = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f".{folder.name}.lock"
    with _locked_file(file, folder) as stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):{_TIME}}")
        stream.flush()
        try:
            _clear(folder)
            yield
        finally:
            file.unlink(missing_ok=True)
            if made and not any(folder.parent.iterdir()):
                folder.parent.rmdir()


def _clear(folder: Path) -> None:
    """Remove what killed processes left unfinished of a folder, in it and below, and put back what they were replacing.

    Folders below that another process works in are left alone.
    """
    recover_folder(folder)
    for beside in folder.parent.glob(f"{PARTIAL}*"):
        if partial_owner(beside.name) == (folder.name[:64], True) and beside.is_dir():
            shutil.rmtree(beside)
    for place, folders, files in os.walk(folder):
        for name in files:
            if partial_owner(name) is not None:
                Path(place, name).unlink(missing_ok=True)
        for name in list(folders):
            if partial_owner(name) is not None:
                folders.remove(name)
                shutil.rmtree(Path(place, name))
            elif found := OLD.fullmatch(name):
                folders.remove(name)
                recover_folder(Path(place, found["name"]))
            elif f".{name}.lock" in files and _is_held(Path(place, f".{name}.lock")):
                folders.remove(name)


def _is_held(file: Path) -> bool:
    """Whether a live process holds this lock."""
    import fcntl

    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # This file system has no locks.
    return False


@contextmanager
def _locked_file(file: Path, folder: Path) -> Iterator[TextIO]:
    """The lock file, open and locked, and still the one of this name: its last owner removes it."""
    import fcntl

    while True:
        with file.open("a+", encoding="utf-8", errors="replace") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise UserError(
                    f"{folder}: {_owner(stream.read(200))} is at work there; wait for it, or choose another output_dir"
                ) from None
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                logger.warning(
                    "%s: this file system has no locks; see to it that no other process works there", folder
                )
            if _is_named(file, stream):
                yield stream
                return


def _owner(text: str) -> str:
    """Who holds a lock, and for how long, as its file says."""
    text = printable(text.strip())
    _, _, since = text.rpartition(" since ")
    try:
        age = datetime.now(UTC) - datetime.strptime(since, _TIME).replace(tzinfo=UTC)
    except ValueError:  # Written by another version, or just now being written.
        return text or "another process"
    hours, minutes = divmod(max(0, int(age.total_seconds())) // 60, 60)
    return f"{text} ({hours} h {minutes} min)"


def _is_named(file: Path, stream: TextIO) -> bool:
    """Whether an open file is what now stands under this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False
