"""What the readers of all sets share: cells as text, records line by line, and problems that a user can find and mend."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import UserError

Record = tuple[str, dict[str, Any]]
"""Where a record stands ("metadata.jsonl line 3"), and its cells."""
LARGEST_TEXT = 1 << 30
"""Bytes of a text file of rows; a longer one would not fit into memory with what it says."""
_LONGEST_NAME = 200
"""Characters of a name in a message."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row or file that cannot be used: where it stands, which file it is about ("" for none), and why."""

    where: str
    file: str = ""
    reason: str

    def __str__(self) -> str:
        named = (
            shortened(part, _LONGEST_NAME) for part in (self.where, "" if self.file == self.where else self.file)
        )
        return printable(f"{', '.join(part for part in named if part)}: {shortened(self.reason, 2 * _LONGEST_NAME)}")


def problems_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """One row per skipped row or file: where, file, reason."""
    rows = [tuple(map(printable, (problem.where, problem.file, problem.reason))) for problem in problems]
    return pd.DataFrame(rows, columns=["where", "file", "reason"], dtype=str)


def problems_text(title: str, problems: Sequence[Problem], limit: int = 20) -> str:
    """The message that stops a reader: every problem on a line of its own, as far as `limit`."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  and {len(problems) - limit} more")
    one = len(problems) == 1
    count, it, this = ("1 problem", "it", "this row") if one else (f"{len(problems)} problems", "them", "these rows")
    return "\n".join([f"{title}: {count}; mend {it}, or set on_bad=skip to go on without {this}:", *lines])


def printable(text: str) -> str:
    """The text with control characters escaped, so that a hostile name cannot drive the user's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def few(names: list[str], limit: int = 10) -> str:
    """The first names, comma-separated, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(shortened(name) for name in names[:limit])) + more


def shortened(text: str, length: int = 60) -> str:
    """The text's beginning where it is too long for a message."""
    return text if len(text) <= length else f"{text[:length]}…"


def described(value: Any) -> str:
    """What a cell holds, short enough for a message."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, (str, bytes)):
        return shortened(repr(value[:100]))
    return str(value).lower() if isinstance(value, bool) else shortened(repr(value))


def seen(folder: Path) -> str:
    """The names in a folder, for messages that say what was found instead of what was looked for."""
    return few(sorted(path.name for path in folder.iterdir())) or "nothing"


def closest(word: str, names: Sequence[str], cutoff: float) -> list[str]:
    """The name nearest to the word, whatever the case of either; empty where none is that close."""
    by_lower = {name.lower(): name for name in names}
    return [by_lower[near] for near in difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=cutoff)]


def scalar(value: Any) -> str:
    """A cell as text, "" where it is missing; the same for JSON, CSV and parquet."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if "\x00" in text:
        raise ValueError(f"{described(text)} is not text (it holds zero bytes)")
    if not _encodable(text):
        raise ValueError(f"{described(text)} is not valid UTF-8 text")
    return text


def count_of(value: Any, column: str) -> int | None:
    """A cell as a count, None where it is missing; ValueError for anything else."""
    text = scalar(value)
    if not text:
        return None
    try:
        number = float(text)
        if not 0 <= number < 2**63 or number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{column} {described(text)} is not a count (0, 1, 2, ...)") from None
    return int(number)


def text_bytes(path: Path) -> bytes:
    """A text file's bytes without a byte order mark.

    Raises:
        UserError: it cannot be read, is UTF-16, or is far too long.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_TEXT:
            raise UserError(f"{path}: has {size:,} bytes, more than the {LARGEST_TEXT:,} that are read; split it")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16; save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def confined(root: Path, path: Path) -> Path:
    """The path itself.

    Raises:
        UserError: it leads out of the folder `root` through a symbolic link: whoever made the set may have linked any
            file.
    """
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # Links in a circle.
        raise UserError(f"{path}: is a loop of symbolic links") from None
    if not inside:
        raise UserError(f"{path}: is a symbolic link to a place outside the set's folder; put what it links to there")
    return path


def json_value(content: bytes) -> Any:
    """What a JSON text holds.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is not valid JSON, or an object in it has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {described(next(key for key in keys if keys.count(key) > 1))} occurs twice")
    return found


def json_lines(name: str, content: bytes, example: str) -> Iterator[Record | Problem]:
    """One record per line of JSON, with a problem in the place of each that is no object like the example."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{name} line {number}"
        if not line.strip():
            continue
        try:
            record = json_value(line)
        except UnicodeDecodeError:
            yield Problem(where=where, reason="is not UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield Problem(where=where, reason=f"is not valid JSON ({shortened(first_line(error), 200)})")
        else:
            if isinstance(record, dict):
                yield where, record
            else:
                yield Problem(where=where, reason=f"is JSON but not an object {example}")


def separated_lines(path: Path, content: bytes, delimiter: str = ",") -> Iterator[Record | Problem]:
    """One record per row under the header of a CSV or TSV, with a problem in the place of each that has no such form.

    Raises:
        UserError: a column name occurs twice, or something else parts the fields.
    """
    # surrogateescape keeps undecodable bytes visible, so that only the rows that hold them are refused
    stream = io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline="")
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    format_name = "TSV" if delimiter == "\t" else "CSV"
    header: list[str] = []
    while True:
        where = f"{path.name} line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(where=where, reason=f"is not valid {format_name} ({error})")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len(header) == 1 and (parted := next((mark for mark in ";\t," if mark in header[0]), "")):
                raise UserError(
                    f"{path}: its fields are parted by {parted!r}, not by {delimiter!r}; save it with these"
                )
            if len(set(header)) < len(header):
                raise UserError(f"{path}: a column name occurs twice: {few(header)}")
        elif len(cells) != len(header):
            yield Problem(where=where, reason=f"has {len(cells)} fields where the header has {len(header)}")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
