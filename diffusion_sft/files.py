"""Files and folders that are either whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException
from safetensors import SafetensorError

from .errors import UserError
from .parsing import first_line, printable

PARTIAL = ".partial-"
"""How the names of files and folders begin that are not whole yet, or are on their way out."""
_PARTIAL = re.compile(
    re.escape(PARTIAL) + r"(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d{1,10})-[0-9a-f]{8}(\..*)?", re.DOTALL
)
OLD = re.compile(r"\.(?P<name>.+)\.old\.[0-9a-f]{8}")
"""A folder that was being replaced, and is put back if its successor never came."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, else removed.

    What a killed process leaves of it bears a name that begins with `PARTIAL` (see `locks`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path, path.suffix)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _raise_plain(error, path)
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    temporary = partial_path(path)
    try:
        temporary.mkdir()
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            if inside.is_dir():
                _sync_folder(inside)
            elif inside.is_file():
                with inside.open("rb") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            old = path.with_name(f".{path.name}.old.{secrets.token_hex(4)}")
            os.replace(path, old)
            os.replace(temporary, path)
            _sync_folder(path.parent)
            remove_folder(old)
        else:
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(path)
        _raise_plain(error, path)
        raise


def recover_folder(path: Path) -> None:
    """Put a folder back that was being replaced when its process died, and remove what is left of older ones."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.old.*")):
        if not path.exists():
            os.replace(old, path)
        else:
            remove_folder(old)


def remove_folder(path: Path) -> None:
    """Remove a folder that is named after what it holds; it loses its name first, so that no half ever bears it."""
    doomed = partial_path(path)
    os.replace(path, doomed)
    _sync_folder(path.parent)
    shutil.rmtree(doomed)


def partial_path(path: Path, suffix: str = "") -> Path:
    """A new name beside `path` that says whose it is; the suffix says to libraries what kind of file to write."""
    return path.with_name(f"{PARTIAL}{path.name[:64]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")


def partial_owner(name: str) -> tuple[str, bool] | None:
    """Of a name that `partial_path` made: the name beside which it stood (its first 64 characters), and whether the process
    that made it is known to be dead. None for other names."""
    found = _PARTIAL.fullmatch(name)
    if found is None:
        return None
    if found["host"] != _host():
        return found["name"], False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return found["name"], True
    except (OSError, OverflowError):
        return found["name"], False
    return found["name"], False


def remove_orphans(folder: Path) -> None:
    """Remove what dead processes of this machine left unfinished in a folder that several may write to at once."""
    for place, folders, files in os.walk(folder):
        for name in (*files, *folders):
            if (owner := partial_owner(name)) is not None and owner[1]:
                path = Path(place, name)
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not name.startswith(PARTIAL)]


def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()


def _raise_plain(error: BaseException, path: Path) -> None:
    """Raise what safetensors tells of a disk as the OSError that it is, for whoever handles those."""
    found = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    if found:
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk too."""
    if os.name != "posix":  # Others do not open folders.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in the given order, two spaces of indent."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # Among them endless integers and bytes that are no UTF-8.
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON that is an object; UserError for anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: JSON, but no object (it holds a {type(found).__name__})")
    return found


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as parquet at `path` and as CSV beside it."""
    write_parquet(path, table)
    write_csv(path, table)


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as parquet alone, with checksums of its pages."""
    with replaced(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write the CSV that stands beside the parquet table at `path`."""
    with replaced(path.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table; a missing or broken file is a UserError that names it."""
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; run the stage that writes it first") from None
    except (OSError, ValueError, ArrowException) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not a readable parquet table ({reason}); remove it and run again") from None


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, `~` for a home folder; UserError where nothing can be of this name."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{printable(str(text)[:80])}: no path that can be there ({reason})") from None
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
