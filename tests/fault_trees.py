"""What two runs left, file by file and bit by bit; the only differences allowed are named here."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import parquet
from safetensors import safe_open

SECONDS: Mapping[str, Sequence[str]] = {
    "probe.json": ("seconds", "seal"),
    "solve.json": ("seconds", "seal"),
    "study.json": ("seconds", "seal"),
    "state.json": ("seconds", "seal"),
    "finetune.json": ("seconds", "seal"),
    "compare.json": ("key", "seal"),
}
"""JSON files that say how long their work took, and the keys that do: a seal is a hash of the file's other content, and a
comparison's key one of such files. Their hashes in the lists of other files (`files`) are left out too."""
PAGE_SECONDS = (
    r"Time: [^<]* in all\.",
    r"<summary><bdi>(?:language model: )?seconds</bdi></summary>\s*<table>.*?</table>",
    r'seconds</td><td class="mono"><bdi>[\d.,e+-]+</bdi>',
    r'seal</td><td class="mono"><bdi>[0-9a-f]{64}</bdi>',
)
"""Where a report says the same, as regular expressions."""
CACHE = "cache"
"""Of the entries of an encoding cache the library that writes them shuffles the header's metadata; their content is
compared."""


@dataclass(frozen=True)
class Difference:
    """One file in which a run is not the undisturbed one."""

    what: str
    """DIFFERENT, MISSING or LEFT BEHIND."""
    file: str

    def __str__(self) -> str:
        return f"{self.what}: {self.file}"


def differences(reference: Path, found: Path) -> list[Difference]:
    """Every file and empty folder in which a tree is not the reference."""
    wanted, there = tree(reference), tree(found)
    told = [Difference("MISSING", name) for name in sorted(wanted - there)]
    more = sorted(there - wanted)
    inside = tuple(name for name in more if name.endswith("/"))
    told += [Difference("LEFT BEHIND", n) for n in more if not any(n != f and n.startswith(f) for f in inside)]
    told += [
        Difference("DIFFERENT", name)
        for name in sorted(wanted & there)
        if not name.endswith("/") and not same_content(reference / name, found / name)
    ]
    return told


def close(reference: Path, found: Path, difference: Difference) -> bool:
    """Whether a file differs by no more than the last bits of its numbers; of records, which hold hashes, it is so."""
    if difference.what != "DIFFERENT":
        return False
    one, other = reference / difference.file, found / difference.file
    if one.name in SECONDS or one.name == "README.md":
        return True
    if one.suffix not in (".parquet", ".csv"):
        return False
    read = pd.read_parquet if one.suffix == ".parquet" else pd.read_csv
    try:
        pd.testing.assert_frame_equal(read(one), read(other), rtol=1e-4, atol=1e-6)
    except AssertionError:
        return False
    return True


def tree(root: Path) -> set[str]:
    """Names of all files and folders, hidden ones too, relative to the root; folders end with a slash."""
    names = set()
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        names |= {(here / name).as_posix() for name in files}
        names |= {(here / name).as_posix() + "/" for name in folders}
    return names


def same_content(first: Path, second: Path) -> bool:
    """Whether two files are the same to the last bit, seconds apart."""
    one, other = first.read_bytes(), second.read_bytes()
    if one == other:
        return True
    if first.name == "report.html":
        return _page_of(one) == _page_of(other)
    if first.name not in SECONDS:
        return False
    try:
        return _apart_from(SECONDS[first.name], one) == _apart_from(SECONDS[first.name], other)
    except ValueError:
        return False


def _apart_from(keys: Sequence[str], content: bytes) -> Any:
    """The object without the numbers under these keys; of a study's stages their names remain."""
    found = json.loads(content)
    if not isinstance(found, dict):
        return found
    listed = found.get("files")
    if isinstance(listed, dict):
        timed = (*SECONDS, "report.html")
        found["files"] = {name: None if name.rpartition("/")[2] in timed else entry for name, entry in listed.items()}
    return found | {key: sorted(found[key]) if isinstance(found[key], dict) else None for key in keys if key in found}


def _page_of(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    for pattern in PAGE_SECONDS:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return text


def unreadable(root: Path) -> list[str]:
    """Files that bear their final names and are not whole, by the rules of their kinds."""
    names = [name for name in sorted(tree(root)) if not name.endswith("/") and not is_hidden(name)]
    return [name for name in names if not _is_whole(root / name)]


def _is_whole(file: Path) -> bool:
    try:
        if file.suffix == ".parquet":
            parquet.read_metadata(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, "np"):
                pass
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".png":
            return file.read_bytes()[-8:-4] == b"IEND"
        elif file.suffix in (".csv", ".yaml", ".html", ".txt", ".md"):
            return file.stat().st_size > 0
    except Exception:  # Each library has its own, and all say the same.
        return False
    return True


def is_hidden(name: str) -> bool:
    """Whether a path is a temporary one, by any of its names."""
    return any(part.startswith(".") for part in Path(name).parts)


# --- power failures ---


def inodes(root: Path) -> dict[int, int]:
    """The size of every file by its inode: what is safe on disk before a process starts."""
    found = [(root / name).stat() for name in tree(root) if not name.endswith("/")]
    return {each.st_ino: each.st_size for each in found}


def power_failure(work: Path, log: Path, safe: dict[int, int], rng: random.Random) -> list[str]:
    """Make a killed process's files what a power failure may leave of them; returns what was done.

    What was not synced is cut: to nothing, to half, or by one byte. Names that were changed and whose folder was not
    synced since are taken back, the latest first.

    Args:
        work: the work folder.
        log: what `Points` told.
        safe: sizes by inode before the process.
    """
    told = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    safe = dict(safe)
    for kind, *words in told:
        if kind == "sync":
            safe[words[0]] = words[1]
        elif kind == "emptied":
            safe[words[0]] = 0
    done = [_cut_at(work / name, safe, rng) for name in sorted(tree(work)) if not name.endswith("/")]
    done += _take_back(told, rng)
    return [text for text in done if text]


def _cut_at(file: Path, safe: dict[int, int], rng: random.Random) -> str:
    found = file.stat()
    kept = safe.get(found.st_ino, 0)
    loose = found.st_size - kept
    if loose <= 0:
        return ""
    size = kept + rng.choice([0, loose // 2, loose - 1])
    os.truncate(file, size)
    return f"{file.name} cut to {size} of {found.st_size} bytes"


def _take_back(told: Sequence[Sequence[Any]], rng: random.Random) -> list[str]:
    """Undo the last few of the new names that are not on disk."""
    loose: list[Sequence[Any]] = []
    for kind, *words in told:
        if kind == "rename":
            loose.append(words)
        elif kind == "folder":
            loose = [rename for rename in loose if os.path.dirname(rename[1]) != words[0]]
    done = []
    for source, target, held, kept in reversed(loose[rng.randint(0, len(loose)) :]):
        if os.path.exists(source) or not os.path.exists(target) or not os.path.isdir(os.path.dirname(source)):
            break
        os.rename(target, source)
        if held == "file":
            shutil.copyfile(kept, target)
        elif held == "folder":
            os.mkdir(target)
        done.append(f"{os.path.basename(target)} had its name taken back")
    return done


def altered(work: Path, names: Iterable[str], rng: random.Random) -> tuple[str, str]:
    """Alter one finished file: cut it off, or flip one bit; returns its name, and what was done."""
    files = sorted(name for name in names if not name.endswith("/") and (work / name).stat().st_size > 0)
    name = rng.choice(files)
    file = work / name
    content = bytearray(file.read_bytes())
    how = rng.choice(["emptied", "cut to half", "cut by a byte", "a bit flipped", "a bit flipped"])
    if how == "a bit flipped":
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
    else:
        del content[{"emptied": 0, "cut to half": len(content) // 2, "cut by a byte": len(content) - 1}[how] :]
    file.write_bytes(content)
    return name, how
