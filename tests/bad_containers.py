"""Malformed shards of WebDataset and data sets of `datasets`, with what is said of each."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from small_sets import Write, cases, picture, pictures, read_by_probe, samples, tar


def shard(*last: tuple[str, bytes] | tarfile.TarInfo) -> Write:
    """Good samples, and these members behind them."""
    return lambda root: tar(root / "0.tar", [*samples(), *last])


def sample(**members: bytes) -> Write:
    """Good samples, and one of these members by suffix."""
    return shard(*((f"9.{suffix}", content) for suffix, content in members.items()))


def header(name: str, kind: bytes = tarfile.REGTYPE, *, to: str = "", pax: dict[str, str] | None = None) -> Any:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.pax_headers = kind, to, pax or {}
    return member


def changed(change: Callable[[bytes], bytes]) -> Write:
    """A good shard but for this change to its bytes."""

    def write(root: Path) -> None:
        shard()(root)
        (root / "0.tar").write_bytes(change((root / "0.tar").read_bytes()))

    return write


def claims_eight_gigabytes(content: bytes) -> bytes:
    """The shard with the size in its last header of 8 GiB - 1, and its checksum made right."""
    at = content.rindex(b"3.txt")
    head = bytearray(content[at : at + 512])
    head[124:136] = b"77777777777\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return content[:at] + bytes(head) + content[at + 512 :]


def link_out(root: Path) -> None:
    shard()(root.parent)
    (root / "0.tar").symlink_to(root.parent / "0.tar")


PICTURE = picture(9)
SHARDS: dict[str, tuple[Any, ...]] = {
    "no archive": (lambda root: (root / "0.tar").write_bytes(b"x" * 2000), r"0\.tar: not a readable \.tar shard"),
    "an empty file": (lambda root: (root / "0.tar").touch(), r"0\.tar: not a readable \.tar shard"),
    "one that is cut off": (changed(lambda c: c[: len(c) // 2]), r"0\.tar: is damaged or cut off after the start of"),
    "one without its end": (
        changed(lambda c: c[: c.rindex(b"a wug") + 512]),
        "is damaged or cut off after the start",
    ),
    "a compressed one": (changed(gzip.compress), r"0\.tar: is compressed \(gzip\); unpack it to a plain \.tar"),
    "a bomb: a gigabyte of zeros, compressed": (
        lambda root: (root / "0.tar").write_bytes(gzip.compress(bytes(1 << 27)) * 8),
        r"is compressed \(gzip\)",
    ),
    "a member that claims eight gigabytes": (changed(claims_eight_gigabytes), r"3\.txt: is longer than 1073741824"),
    "a sparse member that claims one": (
        shard(
            header("9.png", pax={"GNU.sparse.major": "0", "GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 30)})
        ),
        r"0\.tar, 9\.png: is a sparse file, which may claim any size",
    ),
    "a member that goes up": (shard(("../9.png", PICTURE)), r"\.\./9\.png: has a name that leads out of the shard"),
    "a member with an absolute path": (shard(("/tmp/9.png", PICTURE)), "has a name that leads out of the shard"),
    "a link": (shard(header("9.png", tarfile.SYMTYPE, to="/etc/passwd")), r"9\.png: is a link or a device"),
    "a device": (shard(header("9.png", tarfile.CHRTYPE)), r"9\.png: is a link or a device, not a file"),
    "a pickle": (sample(png=PICTURE, pkl=b"x"), r"key 9: holds a \.pkl member, which may be a pickle"),
    "no image": (sample(txt=b"a wug"), r"0\.tar key 9: has 0 images \(none\), not one"),
    "two images": (sample(png=PICTURE, jpg=PICTURE), r"key 9: has 2 images \(\.jpg, \.png\), not one"),
    "no caption": (sample(png=PICTURE), r"key 9: the caption \(text\) is empty or missing"),
    "a caption of two megabytes": (sample(png=PICTURE, txt=b"a" * (2 << 20)), r"\.txt is longer than 65536 bytes"),
    "the same in its cells": (
        sample(png=PICTURE, json=json.dumps({"text": "a" * 100_000}).encode()),
        r"key 9: 'text' has 100000 characters; at most 65536 are read$",
    ),
    "broken cells": (sample(png=PICTURE, json=b"{"), r"key 9: its \.json is not valid JSON"),
    "a list for cells": (sample(png=PICTURE, json=b"[]"), r"key 9: its \.json is no object"),
    "two megabytes of cells": (
        sample(png=PICTURE, json=b" " * (2 << 20)),
        r"its \.json is longer than 1048576 bytes",
    ),
    "two captions that differ": (sample(png=PICTURE, txt=b"a wug", caption=b"a dax"), "has two captions that differ"),
    "a shard that is a link out of the folder": (
        link_out,
        r"0\.tar: is a symbolic link to a place outside the set's",
    ),
}


def saved(columns: dict[str, Any] | None = None) -> Write:
    """A data set of four pictures, and these columns in place of its captions."""
    features = datasets.Features({"image": datasets.Image()})

    def write(root: Path) -> None:
        images = datasets.Dataset.from_dict({"image": [{"bytes": picture(n)} for n in range(4)]}, features=features)
        whole = {"text": ["a wug"] * 4} if columns is None else columns
        for name, values in whole.items():
            images = images.add_column(name, values)
        images.save_to_disk(root)

    return write


def with_file(name: str, content: Any) -> Write:
    """The same with this file replaced."""

    def write(root: Path) -> None:
        saved()(root)
        (file,) = root.glob(name)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return write


def of_splits(*names: Any) -> Write:
    def write(root: Path) -> None:
        saved()(root / "train")
        (root / "dataset_dict.json").write_text(json.dumps({"splits": names}))

    return write


def without_images(root: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a wug"] * 4}).save_to_disk(root)


def images_elsewhere(root: Path) -> None:
    """Cells that name a file outside, as whoever wrote the set may have put there by hand."""
    pictures(root.parent / "elsewhere", 4)
    cells = [{"bytes": None, "path": str(root.parent / "elsewhere" / f"{n}.png")} for n in range(4)]
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": kind, "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": cells, "text": ["a wug"] * 4}, features=features).save_to_disk(root)
    info = json.loads((root / "dataset_info.json").read_text())
    info["features"]["image"] = {"_type": "Image"}
    (root / "dataset_info.json").write_text(json.dumps(info))


OUTSIDE = "names a file outside the data set"
DATASETS: dict[str, tuple[Any, ...]] = {
    "a state of another shape": (
        with_file("state.json", {"_data_files": 5}),
        r"state\.json: was not written by save_to",
    ),
    "a state that is a list": (with_file("state.json", []), r"state\.json: JSON, but no object"),
    "a state that names numbers": (with_file("state.json", {"_data_files": [{"filename": 5}]}), "for a name"),
    "a state that names a file outside": (
        with_file("state.json", {"_data_files": [{"filename": "../secret.arrow"}]}),
        rf"state\.json: {OUTSIDE} \(\.\./secret\.arrow\); nothing is read",
    ),
    "a split outside": (of_splits("train", "../other"), rf"dataset_dict\.json: {OUTSIDE}"),
    "a number for a split": (of_splits(7), r"dataset_dict\.json: was not written by save_to_disk"),
    "broken rows": (with_file("*.arrow", b"x" * 500), "not readable as a data set"),
    "another kind of information": (with_file("dataset_info.json", b"[]"), "not readable as a data set"),
    "no images": (without_images, "no column of images; found text; set image_column"),
    "no captions": (saved({}), "no column 'text'; found image"),
    "numbers for captions": (saved({"text": [1, 2, 3, 4]}), "train row 1: text is not text but 1"),
    "images outside": (images_elsewhere, "train row 1, .*: the image lies outside the data set"),
    "a folder of another kind": (pictures, ["concepts.layout=datasets"], "set: was not written by save_to_disk"),
}
CASES = [
    *cases("Shards", SHARDS, read_by_probe),
    *cases("Saved data sets", DATASETS, read_by_probe),
]
