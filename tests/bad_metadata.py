"""Malformed metadata: lines of JSON, CSV and parquet, with what is said of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from small_sets import NUM_PICTURES, Write, cases, lines, pictures, read_by_probe, row

GOOD = [row(number) for number in range(NUM_PICTURES)]
SPLITS = ("train", "validation", "test", "trian")
HEADER = "file_name,text,concept\n"


def file(name: str, content: str | bytes) -> Write:
    """Good pictures with this file beside them."""

    def write(root: Path) -> None:
        pictures(root)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def rows(*last: Any) -> Write:
    """Good rows but for the last one or ones: a row's cells, or the line itself."""
    good = lines(GOOD[: NUM_PICTURES - 1])
    return file("metadata.jsonl", good + "".join(x + "\n" if isinstance(x, str) else lines([x]) for x in last))


def csv(text: str) -> Write:
    return file("metadata.csv", HEADER + "0.png,a wug,wug\n1.png,a wug,wug\n" + text)


def table(columns: dict[str, Any]) -> Write:
    def write(root: Path) -> None:
        pictures(root)
        parquet.write_table(pa.table(columns), root / "metadata.parquet")

    return write


def of_all(name: str) -> list[Any]:
    return [cells[name] for cells in GOOD]


def cut_off(root: Path) -> None:
    table({name: of_all(name) for name in GOOD[0]})(root)
    whole = root / "metadata.parquet"
    whole.write_bytes(whole.read_bytes()[:-40])


def without(column: str) -> Write:
    return file("metadata.jsonl", lines({k: v for k, v in cells.items() if k != column} for cells in GOOD))


def two_gigabytes(root: Path) -> None:
    """A sparse file: it takes no room on the disk."""
    with (root / "metadata.jsonl").open("wb") as stream:
        stream.truncate(2 << 30)


def three_million_rows(root: Path) -> None:
    """In a file of some kilobytes."""
    columns = {"file_name": ["0.png"], "text": ["a wug"]}
    repeated = {
        name: pa.DictionaryArray.from_arrays(np.zeros(3_000_000, dtype=np.int8), values)
        for name, values in columns.items()
    }
    parquet.write_table(pa.table(repeated), root / "metadata.parquet")


def long_texts(root: Path) -> None:
    """4,096 texts of a megabyte, which are one text 4,096 times: a file of some kilobytes."""
    cell = pa.array([b"a wug " * 170_000]).cast(pa.string())
    texts = pa.DictionaryArray.from_arrays(np.zeros(4096, dtype=np.int16), cell)
    parquet.write_table(pa.table({"file_name": ["0.png"] * 4096, "text": texts}), root / "metadata.parquet")


def link_out(root: Path) -> None:
    pictures(root)
    (root.parent / "secrets.jsonl").write_text(lines(GOOD))
    (root / "metadata.jsonl").symlink_to(root.parent / "secrets.jsonl")


def two_files(root: Path) -> None:
    file("metadata.jsonl", lines(GOOD))(root)
    file("metadata.csv", HEADER)(root)


def nearby(name: str) -> Write:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(lines(GOOD))

    return write


LINES: dict[str, tuple[Any, ...]] = {
    "broken JSON": (
        rows('{"file_name": "3.png", "text'),
        r"metadata\.jsonl line 4: is not valid JSON \(Unterminated",
    ),
    "a list for a row": (rows('["3.png", "a wug"]'), r"line 4: is JSON but not an object \{\"file_name\": \.\.\.\}"),
    "a number for a row": (rows("7"), "line 4: is JSON but not an object"),
    "a key twice in a row": (
        rows('{"file_name": "3.png", "text": "a wug", "text": "a dax", "concept": "wug"}'),
        r"line 4: is not valid JSON \(the key 'text' occurs twice\)",
    ),
    "an image in two rows": (rows(row(2)), r"line 4, 2\.png: is listed twice, first at metadata\.jsonl line 3"),
    "JSON nested 100,000 deep": (rows("[" * 100_000), "line 4: is not valid JSON"),
    "a number of 5,000 digits": (
        rows('{"file_name": "3.png", "exposure": ' + "9" * 5000 + "}"),
        r"line 4: is not valid JSON \(Exceeds the limit",
    ),
    "a number beyond all bounds": (
        rows('{"file_name": "3.png", "text": "a", "concept": "wug", "exposure": 1e999}'),
        "exposure 'inf' is not a count",
    ),
    "a count below nothing": (rows(row(3, exposure=-1)), r"3\.png: exposure '-1' is not a count \(0, 1, 2, \.\.\.\)"),
    "half a character": (
        rows('{"file_name": "3.png", "text": "a \\ud800 wug"}'),
        r"3\.png: 'a \\ud800 wug' is not valid UTF-8 text",
    ),
    "a zero byte in a caption": (
        rows(row(3, text="a\0wug")),
        r"3\.png: 'a\\x00wug' is not text \(it holds zero bytes\)",
    ),
    "a caption of two megabytes": (
        rows(row(3, text="a wug " * 350_000)),
        r"3\.png: 'text' has 2099999 characters; at most 65536 are read$",
    ),
    "a caption that is a list": (rows(row(3, text=["a wug"])), r"3\.png: text is not text but a list"),
    "an empty caption": (rows(row(3, text=" ")), r"the caption \(text\) is empty or missing; write one"),
    "no concept": (rows(row(3, concept=None)), r"3\.png: concept is empty or missing"),
    "a file name that is a number": (rows(row(3, file_name=3)), r"line 4: file_name is not text but 3"),
    "an empty file name": (rows(row(3, file_name="")), r"line 4: the file name is empty"),
    "a file name of 5,000 characters": (
        rows(row(3, file_name="x" * 5000)),
        r"line 4, x{200}…: cannot be read \(File name too long\)$",
    ),
    "an absolute path": (
        rows(row(3, file_name="/etc/passwd")),
        r"/etc/passwd: is an absolute path; paths must be relative",
    ),
    "an absolute path of Windows": (rows(row(3, file_name="C:\\x.png")), "is an absolute path"),
    "a path that goes up": (rows(row(3, file_name="../3.png")), r"leads out of the set's folder \(\.\.\)"),
    "a file that is not there": (rows(row(9)), r"line 4, 9\.png: no such file"),
    "a split that there is not": (
        file("metadata.jsonl", lines(row(number, split=split) for number, split in enumerate(SPLITS))),
        r"line 4, 3\.png: split 'trian' is none of train, heldout",
    ),
    "a split in some of the rows": (
        rows(row(3, split="train")),
        r"line 1, 0\.png: split '' is none of train, heldout",
    ),
    "no column of file names": (without("file_name"), r"metadata\.jsonl: no column 'file_name'; found text, concept"),
    "captions in a column of another name": (
        file("metadata.jsonl", lines({"file_name": "0.png", "caption": "a wug"} for _ in range(1))),
        "no column 'text'; found file_name, caption; set caption_column=caption if that is the one",
    ),
    "a concept column that is not there": (
        file("metadata.jsonl", lines(GOOD)),
        ["concepts.concept_column=subject"],
        "no column 'subject'",
    ),
    "UTF-16": (file("metadata.jsonl", lines(GOOD).encode("utf-16")), r"metadata\.jsonl: is UTF-16; save it as UTF-8"),
    "not UTF-8": (file("metadata.jsonl", b'{"text": "caf\xe9"}'), r"metadata\.jsonl line 1: is not UTF-8 text"),
    "an empty file": (file("metadata.jsonl", b""), "no held-out image is left of 0 usable rows"),
    "two gigabytes": (two_gigabytes, r"metadata\.jsonl: has 2,147,483,648 bytes, more than the 1,073,741,824"),
    "a link out of the folder": (link_out, "metadata.jsonl: is a symbolic link to a place outside the set's folder"),
    "two files": (two_files, r"set: found metadata\.jsonl and metadata\.csv; keep exactly one of them"),
    "a file of nearly this name": (nearby("metadata.json"), r"set: found metadata\.json, but the metadata must be"),
    "a file in a folder further inside": (nearby("train/metadata.jsonl"), r"found train/metadata\.jsonl, but"),
}
TABLES: dict[str, tuple[Any, ...]] = {
    "a field too few": (csv("2.png,a wug\n"), r"metadata\.csv line 4: has 2 fields where the header has 3"),
    "a field too many": (csv("2.png,a wug,red,wug\n"), r"line 4: has 4 fields where the header has 3"),
    "a quote that is not closed": (csv('2.png,"a wug,wug\n'), r"line 4: is not valid CSV \(unexpected end of data\)"),
    "a field of a megabyte": (csv("2.png," + "a" * 1_000_000 + ",wug\n"), "line 4: is not valid CSV .field larger"),
    "a zero byte": (csv("2.png,a\0wug,wug\n"), r"line 4, 2\.png: 'a\\x00wug' is not text"),
    "bytes that are not UTF-8": (
        file("metadata.csv", HEADER.encode() + b"0.png,a caf\xe9,wug\n"),
        r"line 2, 0\.png: 'a caf\\udce9' is not valid UTF-8 text",
    ),
    "semicolons between fields": (
        file("metadata.csv", "file_name;text\n0.png;a wug\n"),
        r"metadata\.csv: its fields are parted by ';', not by ','; save it with these",
    ),
    "a column twice": (file("metadata.csv", "file_name,text,text\n"), "a column name occurs twice: file_name, text"),
}
PARQUET: dict[str, tuple[Any, ...]] = {
    "no parquet at all": (file("metadata.parquet", lines(GOOD)), r"metadata\.parquet: not a readable parquet file"),
    "a file that is cut off": (cut_off, r"metadata\.parquet: not a readable parquet file \(.{1,200}\)$"),
    "numbers for file names": (
        table({"file_name": [0, 1], "text": ["a wug"] * 2}),
        r"metadata\.parquet row 1: file_name is not text but 0",
    ),
    "lists for captions": (
        table({"file_name": ["0.png", "1.png"], "text": [["a wug"]] * 2}),
        "no column 'text'; found file_name",
    ),
    "no column of captions": (table({"file_name": ["0.png"]}), "no column 'text'; found file_name"),
    "a bomb: 3,000,000 rows in a few kilobytes": (
        three_million_rows,
        "has 3,000,000 rows, more than the 2,000,000 that are read",
    ),
    "a bomb: four gigabytes of captions in a few kilobytes": (
        long_texts,
        "column 'text' holds a text of 1,020,000 bytes; at most 262,144 are read",
    ),
    "a date that there is not": (
        table({"file_name": ["0.png"], "text": ["a wug"], "when": pa.array([2**62], pa.timestamp("us"))}),
        "not a readable parquet file",
    ),
}
CASES = [
    *cases("Metadata in lines of JSON", LINES, read_by_probe),
    *cases("Metadata in CSV", TABLES, read_by_probe),
    *cases("Metadata in parquet", PARQUET, read_by_probe),
]
