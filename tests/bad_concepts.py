"""Malformed sets of pictures: images, captions, folders and sets, with what is said of each."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bad_containers
import bad_metadata
import bad_questions
import numpy as np
from bad_inputs import BadInput
from PIL import Image
from small_sets import ROOT, Write, cases, lines, picture, pictures, read_by_probe, row, tar


def encoded(values: np.ndarray, kind: str = "TIFF") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with one row's worth of pixels behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def flipped(content: bytes) -> bytes:
    """The same with one byte of its middle changed."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def beside(write: Callable[[Path], object]) -> Callable[[Path], Sequence[str]]:
    """A good set but for what `write` puts at the path of 3.png."""

    def wrong(root: Path) -> None:
        pictures(root, 3)
        (root / "metadata.jsonl").write_text(lines(row(number) for number in range(4)))
        write(root / "3.png")

    return read_by_probe(wrong)


def put(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def captioned(write: Callable[[Path], object]) -> Callable[[Path], Sequence[str]]:
    """Pictures with caption files beside them, but for what `write` puts at the path of 3.txt."""

    def wrong(root: Path) -> None:
        pictures(root)
        for number in range(3):
            (root / f"{number}.txt").write_text("a wug")
        write(root / "3.txt")

    return read_by_probe(wrong)


def linked(to: str) -> Callable[[Path], object]:
    """A symbolic link to what is outside the set; that is there."""

    def write(path: Path) -> None:
        outside = path.parent.parent / "outside"
        outside.write_bytes(picture(9) if path.suffix == ".png" else b"a secret")
        path.symlink_to(outside if to == "outside" else to)

    return write


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
CANNOT_BE_READ = r"line 4, 3\.png: is not an image of a kind that can be read"
IMAGES: dict[str, tuple[Any, ...]] = {
    "a PNG that is cut off": (put(picture(3)[:300]), r"line 4, 3\.png: is damaged or cut off"),
    "a JPEG that is cut off": (put(picture(3, "JPEG", 64)[:900]), r"3\.png: is damaged or cut off"),
    "a WebP that is cut off": (put(picture(3, "WEBP")[:100]), r"3\.png: is (damaged|not an image)"),
    "a GIF that is cut off": (put(picture(3, "GIF")[:900]), r"3\.png: is damaged or cut off"),
    "a PNG with a changed byte": (put(flipped(picture(3))), r"3\.png: is damaged or cut off"),
    "a file of zero bytes": (put(b""), r"3\.png: is empty \(zero bytes\)"),
    "a web page that is called .png": (put(b"<html>404 Not Found</html>"), CANNOT_BE_READ),
    "PostScript that is called .png": (put(POSTSCRIPT), CANNOT_BE_READ),
    "PDF that is called .png": (put(b"%PDF-1.7\n1 0 obj\n"), CANNOT_BE_READ),
    "a photo in HEIC": (put(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), r"3\.png: is a HEIC photo, which is not read"),
    "a header that claims 60,000 x 60,000 pixels": (
        put(png_of(60_000, 60_000)),
        r"3\.png: is too large to decode safely \(more than 160 megapixels\); scale it down",
    ),
    "a bomb: 169 megapixels in 20 kilobytes": (
        put(encoded(np.zeros((13_000, 13_000), dtype=bool), "PNG")),
        r"too large to decode safely .*; it has 13000x13000",
    ),
    "a picture of 1 x 100,000 pixels": (
        put(encoded(np.zeros((100_000, 1), dtype=np.uint8), "PNG")),
        r"is 1x100000 pixels, one side more than 100 times the other",
    ),
    "floats beyond 0 to 1": (
        put(encoded(np.full((8, 8), 2.5, dtype=np.float32))),
        r"3\.png: holds floats from 2\.5 to 2\.5; only 0 to 1 is understood",
    ),
    "integers beyond 16 bits": (put(encoded(np.full((8, 8), 70_000, dtype=np.int32))), "beyond 16 bits"),
    "a folder that is called 3.png": (Path.mkdir, r"3\.png: is a folder, not an image"),
    "a pipe that is called 3.png": (os.mkfifo, r"3\.png: is no plain file"),
    "no such file": (lambda path: None, r"3\.png: no such file"),
    "a link to nothing": (linked("nothing"), r"3\.png: no such file"),
    "a link to itself": (linked("3.png"), r"3\.png: is a loop of symbolic links"),
    "a link out of the folder": (linked("outside"), "is a symbolic link to a place outside the set's folder"),
}
CAPTIONS: dict[str, tuple[Any, ...]] = {
    "no caption file": (lambda path: None, r"3\.png: has no caption file beside it \(3\.txt or 3\.caption\); write"),
    "an empty one": (Path.touch, r"3\.png: its caption file 3\.txt is empty"),
    "one of blanks": (put(b" \n\t \n"), r"its caption file 3\.txt is empty"),
    "one that is not UTF-8": (put(b"a caf\xe9"), r"its caption file 3\.txt is not UTF-8 text"),
    "one in UTF-16": (put("a wug".encode("utf-16")), r"its caption file 3\.txt is not UTF-8 text"),
    "one with zero bytes": (put(b"a\0wug"), r"3\.txt is not text \(it holds zero bytes\)"),
    "one of two megabytes": (put(b"a wug " * 350_000), r"its caption file 3\.txt is longer than 65536 bytes"),
    "two that differ": (
        lambda path: (path.write_text("a wug"), path.with_suffix(".caption").write_text("a dax")),
        r"3\.png: has two captions that differ, in 3\.caption and 3\.txt; keep one",
    ),
    "a pipe": (os.mkfifo, r"its caption file 3\.txt is no plain file"),
    "a link to itself": (linked("3.txt"), r"3\.png: is a loop of symbolic links"),
    "a link out of the folder": (linked("outside"), "symbolic link to a place outside the set's folder"),
}


def long_captions(folder: Path) -> Sequence[str]:
    """They are read, and are no text for this base."""
    pictures(folder)
    (folder / "metadata.jsonl").write_text(lines(row(n, text="a photo of a wug " * 1000) for n in range(4)))
    settings = [f"pretrained_model_name_or_path={ROOT / 'data' / 'world-base'}", f"concepts.path={folder}"]
    return ["finetune", *settings, "concepts.role=train", f"output_dir={folder / 'out'}"]


def folders_of(*names: str | bytes, captions: bool = False) -> Write:
    """Three pictures in each folder, with captions where asked for."""

    def write(root: Path) -> None:
        for place, name in enumerate(names):
            folder = root / os.fsdecode(name)
            pictures(folder, 3, 10 * place)
            for file in folder.glob("*.png") if captions else ():
                file.with_suffix(".txt").write_text("a wug")

    return write


def hostile_names(root: Path) -> None:
    pictures(root, 2)
    (root / "\x1b[2J\n-rf.png").write_bytes(b"no picture")
    (root / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(8))
    for file in list(root.glob("*.png")):
        file.with_suffix(".txt").write_text("a wug")


def nothing(root: Path) -> None:
    """Leaves the set's folder empty."""


FOLDERS: dict[str, tuple[Any, ...]] = {
    "no such folder": (nothing, ["concepts.path=FOLDER/photos"], "photos: no such folder of concepts"),
    "a home folder of nobody's": (nothing, ["concepts.path=~nobody-of-this-name/x"], "no path that can be there"),
    "a path of 5,000 characters": (nothing, [f"concepts.path={'x' * 5000}"], "no path that can be there"),
    "an empty folder": (nothing, "set: neither a metadata file .* here; found nothing"),
    "no image in it": (lambda root: (root / "notes.txt").write_text("x"), r"neither .* here; found notes\.txt"),
    "a file instead of a folder": (
        lambda root: (root / "a.png").write_bytes(picture(0)),
        ["concepts.path=FOLDER/set/a.png"],
        r"a\.png: is a file, not a folder of concepts",
    ),
    "an address": (nothing, ["concepts.path=https://example.org/set.tar"], "not an address or a pattern"),
    "images without any captions": (pictures, r"no image here has a caption file \(.txt or .caption\) beside it"),
    "images both here and in folders": (
        lambda root: (pictures(root, 2), folders_of("dax", captions=True)(root)),
        r"images lie both here and in folders here \(dax\)",
    ),
    "some folders with repeats and some without": (
        folders_of("10_wug", "dax"),
        r"some folders start with repeats \(10_wug\) and some do not \(dax\)",
    ),
    "two folders of one name": (
        folders_of("red_cat", "red cat"),
        "folders red cat and red_cat both name 'red cat'; rename one",
    ),
    "a folder's name that is not UTF-8": (folders_of("wug", b"caf\xe9"), "name is not valid UTF-8; rename it"),
    "names that would drive a terminal": (hostile_names, r"\\x1b\[2J\\n-rf\.png: is not an image of a kind"),
    "a folder that is a link out of the set": (
        lambda root: (folders_of("wug")(root), pictures(root.parent / "dax"), (root / "dax").symlink_to("../dax")),
        "set/dax: is a symbolic link to a place outside the set's folder; put what it links to there",
    ),
    "class words that are not UTF-8": (
        lambda root: (folders_of("wug")(root), (root / "prompts_and_classes.txt").write_bytes(b"wug,caf\xe9")),
        r"prompts_and_classes\.txt: is not UTF-8 text$",
    ),
    "class words that are a link out of the folder": (
        lambda root: (folders_of("wug")(root), linked("outside")(root / "prompts_and_classes.txt")),
        "prompts_and_classes.txt: is a symbolic link to a place outside the set's folder",
    ),
    "images and shards both": (
        lambda root: (pictures(root), tar(root / "0.tar", [])),
        r"holds \.tar shards and images both; set layout",
    ),
}


def two_sets(change: Callable[[Path, Path], object]) -> Write:
    """Folders of captioned pictures `a` and `b` beside each other, and what `change` makes of them."""

    def write(root: Path) -> None:
        for place, name in enumerate(("a", "b")):
            folders_of(f"{name}/wug", captions=True)(root)
            for number in range(3):
                (root / name / "wug" / f"{number}.png").write_bytes(picture(50 * (place + 1) + number, side=64))
        change(root / "a" / "wug", root / "b" / "wug")

    return write


def copied(ours: Path, theirs: Path) -> None:
    (theirs / "0.png").write_bytes((ours / "0.png").read_bytes())


def saved_again(ours: Path, theirs: Path) -> None:
    with Image.open(ours / "0.png") as image:
        image.save(theirs / "0.png", "JPEG", quality=95)


BOTH = "concepts.sets=[{path: FOLDER/set/a, role: train}, {path: FOLDER/set/b, role: heldout}]"
TRAIN_ROWS = [row(number, split="train") for number in range(4)]


def metadata(rows: Sequence[Any]) -> Write:
    def write(root: Path) -> None:
        pictures(root)
        (root / "metadata.jsonl").write_text(lines(rows))

    return write


SETS: dict[str, tuple[Any, ...]] = {
    "nothing is held out": (
        metadata(TRAIN_ROWS),
        "set: no held-out image is left of 4 usable rows; nothing to probe",
    ),
    "all of it is for training": (
        metadata(TRAIN_ROWS),
        ["concepts.role=train"],
        "no held-out image in the concept sets, so nothing to probe",
    ),
    "one image, twice": (
        lambda root: (metadata([row(0), row(1)])(root), (root / "1.png").write_bytes(picture(0))),
        r"line 2, 1\.png: has the same bytes as 0\.png",
    ),
    "one image in two splits": (
        lambda root: (
            metadata([row(0, split="train"), row(1, split="test")])(root),
            (root / "1.png").write_bytes(picture(0)),
        ),
        r"line 1, 0\.png: is in train with the same bytes as 1\.png, which is in heldout",
    ),
    "one image in two sets": (two_sets(copied), [BOTH], "is in train with the same bytes as b/wug/0.png"),
    "one image in two sets, saved again": (two_sets(saved_again), [BOTH], "is in train and looks the same as b/wug"),
    "two sets of one name": (
        two_sets(copied),
        ["concepts.sets=[{path: FOLDER/set/a}, {path: FOLDER/set/b/../a}]"],
        r"concepts\.sets\[1\]: another set is called 'a' too",
    ),
    "a set without a path": (nothing, ["concepts.sets=[{role: train}]"], r"concepts\.sets\[0\]: give it a path"),
    "a set and a path": (
        nothing,
        ["concepts.path=FOLDER/set", "concepts.sets=[{path: FOLDER/set}]"],
        "path and sets are both given",
    ),
    "a role that there is not": (
        nothing,
        ["concepts.sets=[{path: a, role: validate}]"],
        "concepts.sets.*role",
    ),
    "two exposures of one concept": (
        metadata([row(0, exposure=3), row(1, exposure=3), row(2, exposure=4)]),
        r"line 3, 2\.png: gives concept 'wug' the exposure 4 where other rows say 3",
    ),
}


CASES: list[BadInput] = [
    *cases("Images", IMAGES, beside),
    *cases("Captions", CAPTIONS, captioned),
    BadInput(
        group="Captions",
        name="more tokens than the tokenizer has places",
        make=long_captions,
        told=r"captions longer than the tokenizer's 32 tokens: 'a photo .{1,200}' \(7002 tokens\); shorten them",
    ),
    *bad_metadata.CASES,
    *cases("Folders", FOLDERS, read_by_probe),
    *cases("Sets", SETS, read_by_probe),
    *bad_containers.CASES,
    *bad_questions.CASES,
]
