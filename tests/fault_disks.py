"""A small file system that is really full: a tmpfs in a mount namespace of this process's own, where Linux lets it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEW_NAMESPACE, NEW_USER, RECURSIVE, PRIVATE, REMOUNT, DETACH = 0x00020000, 0x10000000, 1 << 14, 1 << 18, 1 << 5, 2
"""CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE, MS_REMOUNT, MNT_DETACH of <sched.h> and <sys/mount.h>."""
PAGE, PLENTY = 4096, 1 << 30


def private_mounts() -> bool:
    """Give this process and its children mounts of their own; whether that was possible.

    To be called before there is a second thread.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        if libc.unshare(NEW_NAMESPACE):
            if libc.unshare(NEW_NAMESPACE | NEW_USER):
                return False
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        return libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None) == 0
    except (OSError, AttributeError):
        return False


class SmallDisk:
    """A tmpfs whose size can be changed while it is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount(0, PLENTY)

    def needed(self, tree: Path) -> int:
        """Bytes of new files by the time that a command is through, in pages as a tmpfs counts."""
        sizes = [path.stat().st_size for path in tree.rglob("*") if path.is_file()]
        return max(PAGE, sum(-(-size // PAGE) for size in sizes) * PAGE - self._used())

    def leave(self, free: int | None) -> None:
        """Make the disk so large that this many bytes are free; None for plenty."""
        self._mount(REMOUNT, PLENTY if free is None else max(PAGE, (self._used() + free) // PAGE * PAGE))

    def close(self) -> None:
        """Take it away with everything on it."""
        _called("umount2", os.fsencode(self.folder), DETACH)

    def _used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _mount(self, flags: int, size: int) -> None:
        options = f"size={size},mode=0755".encode()
        _called("mount", b"tmpfs", os.fsencode(self.folder), b"tmpfs", flags, options)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """The folder is a small disk of its own inside the block; `private_mounts` must have been granted."""
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        disk.close()


def _called(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
