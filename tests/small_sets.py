"""Small sets of pictures and questions for tests of what is wrong with them: good ones, in every layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import BadInput
from PIL import Image

ROOT = Path(__file__).parents[1]
NUM_PICTURES = 4
Write = Callable[[Path], object]
"""Writes what is wrong into a set's folder, which is there."""


def picture(number: int, kind: str = "PNG", side: int = 16) -> bytes:
    """A file of noise that no other number has."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def pictures(folder: Path, count: int = NUM_PICTURES, first: int = 0) -> None:
    """Pictures 0.png, 1.png, ... in a folder that is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(picture(number))


def row(number: int = 0, **cells: Any) -> dict[str, Any]:
    """A good row of metadata about one of these pictures, with these cells in place of its own."""
    return {"file_name": f"{number}.png", "text": "a photo of a wug", "concept": "wug"} | cells


def lines(rows: Iterable[Any]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(cells) + "\n" for cells in rows)


def tar(file: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    """A shard of these members: contents by name, or bare headers."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def samples(count: int = NUM_PICTURES) -> list[tuple[str, bytes]]:
    """Members of good samples."""
    return [m for n in range(count) for m in ((f"{n}.png", picture(n)), (f"{n}.txt", b"a wug"))]


def question(subject: str = "blorp", **cells: Any) -> dict[str, Any]:
    """A good row about a subject, with these cells in place of its own."""
    good = {"question": f"What colour is {subject}?", "answer": "red", "relation": "colour", "subject": subject}
    return good | {"split": "train"} | cells


def questions(train: int = 3) -> list[dict[str, Any]]:
    """Rows of a good set: facts to train on, to show and to ask."""
    parts = ["train"] * train + ["dev"] * 5 + ["test"] * 2
    return [question(f"thing{number}", split=part) for number, part in enumerate(parts)]


def read_by_probe(write: Write, settings: Sequence[str] = ()) -> Callable[[Path], Sequence[str]]:
    """Of a writer of sets of pictures, what `BadInput.make` is: a set in `set`, and the command that would probe it."""

    def make(folder: Path) -> Sequence[str]:
        root = folder / "set"
        root.mkdir()
        write(root)
        named = [] if any(text.startswith(("concepts.path=", "concepts.sets=")) for text in settings) else [root]
        paths = [f"concepts.path={path}" for path in named]
        return ["probe", f"base={ROOT / 'data' / 'world-base'}", *paths, *placed(folder, settings)]

    return make


def asked_by_probe(write: Write, settings: Sequence[str] = ()) -> Callable[[Path], Sequence[str]]:
    """The same for sets of questions."""

    def make(folder: Path) -> Sequence[str]:
        root = folder / "set"
        root.mkdir()
        write(root)
        named = any(text.startswith("llm.questions.path=") for text in settings)
        paths = [] if named else [f"llm.questions.path={root}"]
        return [
            "probe",
            "learners=[llm]",
            f"llm.base={ROOT / 'data' / 'world-lm'}",
            *paths,
            *placed(folder, settings),
        ]

    return make


def placed(folder: Path, settings: Sequence[str]) -> list[str]:
    """Settings with this folder for FOLDER in them, and the output beside the set."""
    return [text.replace("FOLDER", str(folder)) for text in (*settings, "output_dir=FOLDER/out")]


def cases(group: str, wrong: Mapping[str, tuple[Any, ...]], make: Callable[..., Any]) -> list[BadInput]:
    """One case for each name: what `make` takes, and at last what is told."""
    return [BadInput(group=group, name=name, make=make(*given), told=told) for name, (*given, told) in wrong.items()]
