"""Files that are either whole or absent (temporary file, fsync, rename), and folders that one process works in at a time."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from pyarrow import ArrowException

from .errors import UserError
from .parsing import first_line, printable


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            if inside.is_dir():
                _sync_folder(inside)
            elif inside.is_file():
                with inside.open("rb") as stream:
                    os.fsync(stream.fileno())
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(path)
        raise


def recover_folder(path: Path) -> None:
    """Put a folder back that was being replaced when its process died, and remove what is left of older ones."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.old.*")):
        if not path.exists() and (old / path.name).exists():
            os.replace(old / path.name, path)
        shutil.rmtree(old)


def remove_folder(path: Path) -> None:
    """Remove a folder that is named after what it holds; it loses its name first, so that no half ever bears it."""
    doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.replace(path, doomed)
    shutil.rmtree(doomed)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder inside the block; a lock dies with its process, however that dies.

    The lock stands beside the folder, which may have to be empty.

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
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        stream.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})")
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            if made and not any(folder.parent.iterdir()):
                folder.parent.rmdir()


@contextmanager
def _locked_file(file: Path, folder: Path) -> Iterator[TextIO]:
    """The lock file, open and locked, and still the one of this name: its last owner removes it."""
    import fcntl

    while True:
        with file.open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise UserError(
                    f"{folder}: {owner} is at work there; wait for it, or choose another output_dir"
                ) from None
            if _is_named(file, stream):
                yield stream
                return


def _is_named(file: Path, stream: TextIO) -> bool:
    """Whether an open file is what now stands under this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False


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
    with replaced(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)
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
