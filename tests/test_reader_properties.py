"""Whatever stands in a file, its reader gives what is there or a message to print, and looks at nothing outside the set."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sets import picture, questions

from diffusion_sft.concepts import ConceptsConfig, ReadResult, read_concept_set
from diffusion_sft.concepts.captions import LARGEST_CAPTION, caption_text
from diffusion_sft.concepts.rows import locate
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.command import FinetuneCommandConfig
from diffusion_sft.parsing import Problem
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.settings import load_settings

NUM_PICTURES = 4
LONGEST_LINE = 1500
tried = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The same examples on every machine."""
often, rarely = settings(tried, max_examples=1000), settings(tried, max_examples=40)
sometimes = settings(tried, max_examples=60)


class Watch:
    """Which files and folders Python opens, while somebody asks."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.opened is not None and event in ("open", "os.listdir", "os.scandir", "os.open"):
            name = arguments[0]
            if isinstance(name, (str, bytes, os.PathLike)):
                self.opened.append(os.fsdecode(name))

    @contextlib.contextmanager
    def only_in(self, *folders: Path) -> Iterator[None]:
        """Demand that nothing else is opened inside the block, but for Python's own libraries."""
        allowed = [folder.resolve() for folder in folders]
        allowed += [Path(place).resolve() for place in {sys.prefix, sys.base_prefix, "/usr/share", "/dev/null"}]
        self.opened = []
        try:
            yield
            opened, self.opened = self.opened, None
        finally:
            self.opened = None
        for name in dict.fromkeys(opened):
            assert any(Path(name).resolve().is_relative_to(place) for place in allowed), f"{name!r} was opened"


watch = Watch()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures without metadata, and a secret beside it."""
    folder = tmp_path_factory.mktemp("readers") / "set"
    folder.mkdir()
    (folder / "d").mkdir()
    (folder.parent / "secret.png").write_bytes(picture(99))
    for number in range(NUM_PICTURES):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


def check_message(error: Exception) -> None:
    """Demand one line, or a list of bad rows, of a bearable length; the command line escapes what cannot be printed."""
    lines = str(error).split("\n")
    assert all(len(line) < LONGEST_LINE for line in lines)
    assert len(lines) == 1 or (lines[0].endswith(":") and all(line.startswith("  ") for line in lines[1:]))


def check_reason(error: ValueError) -> None:
    """Demand that a row's problem can be printed."""
    assert str(Problem(where="line 1", file="\x1b", reason=str(error))).isprintable()


def check_read(root: Path, cells: dict[str, tuple[str, ...]] | None = None, **more: Any) -> ReadResult | None:
    """Read the set; it lies inside its folder and says what its cells say, or there is a message."""
    cache = root.parent / "cache"
    try:
        with watch.only_in(root, cache):
            result = read_concept_set(ConceptsConfig(path=str(root), on_bad="skip", cache_dir=str(cache), **more))
    except UserError as error:
        check_message(error)
        return None
    for example in result.concept_set.examples:
        assert any(example.path.resolve().is_relative_to(place.resolve()) for place in (root, cache))
        assert example.path.is_file()
        if cells is not None:
            assert example.caption in cells[example.id]
    for problem in result.problems:
        assert str(problem).isprintable()
    result.problems_table()
    result.concept_set.table()
    return result


def write(root: Path, name: str, content: bytes) -> None:
    for old in root.glob("metadata.*"):
        old.unlink()
    (root / name).write_bytes(content)


NAMES = st.one_of(
    st.sampled_from([f"{number}.png" for number in range(NUM_PICTURES)]),
    st.sampled_from(
        ["../secret.png", "/etc/passwd", "d/../0.png", "./0.png", "d", "", "C:\\x", "~/x", "0.png/", "\\\\a\\b"]
    ),
    st.text(max_size=12),
)
TEXTS = st.text(st.characters(codec=None), max_size=20)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
CELLS = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
COLUMNS = st.sampled_from(["file_name", "text", "concept", "split", "words", "exposure", "class", ""]) | TEXTS
SPLITS = st.sampled_from(["train", "heldout", "Test", " val ", "reference", "regularisation", "trian"])
RECORDS = st.builds(
    lambda name, text, more: {"file_name": name, "text": text, **more},
    NAMES,
    TEXTS,
    st.dictionaries(COLUMNS, CELLS | SPLITS, max_size=4),
)


def read_as(value: Any) -> str:
    """A caption's cell as it is read."""
    return " ".join(value.split()) if isinstance(value, str) else ""


@tried
@given(records=st.lists(RECORDS | CELLS, max_size=6))
def test_json_lines(records: list[Any], root: Path) -> None:
    write(root, "metadata.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    cells: dict[str, tuple[str, ...]] = {}
    for record in records:
        if isinstance(record, dict) and isinstance(record.get("file_name"), str):
            name = os.path.normpath(record["file_name"].strip())
            text = record.get("text")
            cells[name] = (*cells.get(name, ()), text.strip() if isinstance(text, str) else "")
    check_read(root, cells)


@tried
@given(text=st.lists(st.lists(NAMES | TEXTS, max_size=4).map(",".join), max_size=6).map("\n".join) | st.text())
def test_csv(text: str, root: Path) -> None:
    write(root, "metadata.csv", b"file_name,text\n" + text.encode("utf-8", errors="surrogatepass"))
    check_read(root)


@tried
@given(content=st.binary(max_size=200), name=st.sampled_from(["metadata.jsonl", "metadata.csv", "metadata.parquet"]))
def test_bytes(content: bytes, name: str, root: Path) -> None:
    write(root, name, content)
    check_read(root)


@tried
@given(records=st.lists(RECORDS, min_size=1, max_size=5), flips=st.lists(st.integers(0), max_size=3))
def test_parquet(records: list[dict[str, Any]], flips: list[int], root: Path) -> None:
    plain = [{k: v for k, v in record.items() if k and isinstance(v, str)} for record in records]
    stream = io.BytesIO()
    try:
        pd.DataFrame(plain).to_parquet(stream)
    except UnicodeEncodeError:
        return
    content = bytearray(stream.getvalue())
    for place in flips:
        content[place % len(content)] ^= 1 << place % 8
    write(root, "metadata.parquet", bytes(content))
    check_read(root)


@often
@given(name=NAMES)
def test_names_stay_inside(name: str, root: Path) -> None:
    try:
        identity, path = locate(root, name)
    except ValueError as error:
        check_reason(error)
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert root / identity == path


@often
@given(content=st.binary(max_size=60) | TEXTS.map(lambda text: text.encode("utf-8", errors="surrogatepass")))
def test_captions(content: bytes) -> None:
    try:
        text = caption_text(content, "a.txt")
    except ValueError as error:
        check_reason(error)
        return
    assert text == " ".join(content.decode("utf-8-sig").split())
    assert "\n" not in text
    with pytest.raises(ValueError, match=f"longer than {LARGEST_CAPTION} bytes"):
        caption_text(content + b" " * LARGEST_CAPTION + b".", "a.txt")


MEMBERS = st.tuples(
    st.sampled_from(["a", "b", "../x", "/x", "d/a", "__a", ""]) | st.text(max_size=5),
    st.sampled_from([".png", ".txt", ".caption", ".json", ".cls", ".pkl", ".PNG", ".seg.png", ""]),
    st.sampled_from([picture(0), picture(1), b"", b"a wug", b'{"text": "a wug"}', b"\xff"]) | st.binary(max_size=20),
    st.sampled_from(
        [tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"z"]
    ),
)


@tried
@given(
    members=st.lists(MEMBERS, max_size=6),
    pax=st.dictionaries(st.sampled_from(["size", "path", "GNU.sparse.map", "GNU.sparse.size", "linkpath"]), TEXTS),
    kept=st.floats(0, 1) | st.just(1.0),
    flips=st.lists(st.integers(0), max_size=2),
)
def test_shards(
    members: list[tuple[str, str, bytes, bytes]], pax: dict[str, str], kept: float, flips: list[int], root: Path
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, (key, suffix, content, kind) in enumerate(members):
            header = tarfile.TarInfo(key + suffix)
            header.size, header.type = len(content), kind
            header.pax_headers = (
                {k: v.encode("utf-8", "replace").decode() for k, v in pax.items()} if number == 1 else {}
            )
            archive.addfile(header, io.BytesIO(content))
    whole = bytearray(stream.getvalue())
    for place in flips:
        whole[place % len(whole)] ^= 1 << place % 8
    folder = root.parent / "shards"
    folder.mkdir(exist_ok=True)
    (folder / "0.tar").write_bytes(bytes(whole[: int(len(whole) * kept)]))
    check_read(folder, layout="webdataset")


QUESTIONS = st.builds(
    lambda good, more: good | more,
    st.sampled_from(questions()),
    st.dictionaries(
        st.sampled_from(["question", "answer", "answers", "relation", "subject", "split", "exposure"]),
        CELLS,
        max_size=2,
    ),
)


@tried
@given(rows=st.lists(QUESTIONS | CELLS, max_size=4))
def test_questions(rows: list[Any], root: Path) -> None:
    file = root.parent / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*questions(), *rows]))
    try:
        with watch.only_in(file):
            found = read_questions(QuestionsConfig(path=str(file), on_bad="skip"))
    except UserError as error:
        check_message(error)
        return
    assert all(example.fact is not None and example.fact.answers for example in found.concept_set.examples)
    found.problems_table()
    found.concept_set.table()


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
"""Of which captions and names of concepts are made: letters and digits of any script."""
EXPOSURES = st.none() | st.integers(0, 2**40)
ROLES = st.sampled_from(["train", "heldout", "reference"])


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a set that nothing is wrong with, one held out at least."""
    concepts = draw(st.dictionaries(WORDS, EXPOSURES, min_size=1, max_size=2))
    rows = []
    for number in range(NUM_PICTURES):
        concept = draw(st.sampled_from(sorted(concepts)))
        caption = f"{draw(WORDS)} {concept} {draw(WORDS)}"
        split = draw(ROLES) if number else "heldout"
        cells = {"file_name": f"{number}.png", "text": caption, "concept": concept, "split": split}
        rows.append(cells | {"exposure": concepts[concept], "colour": f"c{len(concept)}"})
    return rows


def seen_in(result: ReadResult) -> tuple[Any, Any]:
    """What a set holds, whatever the order."""
    concepts = {
        (c.name, c.words, c.exposure, tuple(sorted(c.attributes.items()))) for c in result.concept_set.concepts
    }
    return concepts, {(e.id, e.concept, e.caption, e.split, e.repeats) for e in result.concept_set.examples}


def written(root: Path, rows: list[dict[str, Any]], kind: str) -> tuple[Any, Any]:
    frame = pd.DataFrame(rows).astype({"exposure": "Int64"})
    stream = io.BytesIO()
    if kind == "csv":
        frame.to_csv(stream, index=False)
    elif kind == "parquet":
        frame.to_parquet(stream)
    else:
        stream.write("".join(json.dumps(row, ensure_ascii=kind == "ascii") + "\n" for row in rows).encode())
    write(root, f"metadata.{kind if kind in ('csv', 'parquet') else 'jsonl'}", stream.getvalue())
    result = check_read(root)
    assert result is not None
    assert not result.problems
    return seen_in(result)


@rarely
@given(rows=tables(), order=st.randoms(use_true_random=False))
def test_tables_read_back_as_they_were_written(rows: list[dict[str, Any]], order: random.Random, root: Path) -> None:
    first = written(root, rows, "jsonl")
    assert {(i, concept, text, split) for i, concept, text, split, _ in first[1]} >= {
        (row["file_name"], row["concept"], row["text"], row["split"]) for row in rows
    }
    assert {(name, exposure) for name, _, exposure, _ in first[0]} == {(r["concept"], r["exposure"]) for r in rows}
    for kind in ("ascii", "csv", "parquet"):
        order.shuffle(rows)
        assert written(root, rows, kind) == first


def contents(result: ReadResult) -> set[tuple[str, str, bytes]]:
    return {(e.concept, e.caption, e.path.read_bytes()) for e in result.concept_set.examples}


@rarely
@given(rows=tables(), repeats=st.integers(1, 20))
def test_layouts_hold_the_same(rows: list[dict[str, Any]], repeats: int, root: Path) -> None:
    wanted = {(row["concept"], row["text"], (root / row["file_name"]).read_bytes()) for row in rows}
    place = root.parent / "layouts"
    shutil.rmtree(place, ignore_errors=True)
    if len({row["concept"].casefold() for row in rows}) < len({row["concept"] for row in rows}):
        return  # Some file systems do not tell such folders apart.
    for prefix in ("", f"{repeats}_"):
        for row in rows:
            folder = place / f"kohya{prefix}" / f"{prefix}{row['concept']}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / row["file_name"], folder / row["file_name"])
            (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"], encoding="utf-8")
        result = check_read(place / f"kohya{prefix}", layout="kohya" if prefix else "sidecars")
        assert result is not None
        assert contents(result) == wanted
        assert {example.repeats for example in result.concept_set.examples} == {repeats if prefix else 1}
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "0.tar", "w") as archive:
        for row in rows:
            for suffix, content in (
                ("png", (root / row["file_name"]).read_bytes()),
                ("json", json.dumps(row).encode()),
            ):
                member = tarfile.TarInfo(f"{row['file_name'][0]}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    result = check_read(place / "shards")
    assert result is not None
    assert contents(result) == wanted


@rarely
@given(rows=tables())
def test_saved_data_sets_hold_the_same(rows: list[dict[str, Any]], root: Path) -> None:
    cells = {"image": [{"bytes": (root / row["file_name"]).read_bytes(), "path": None} for row in rows]}
    cells |= {name: [row[name] for row in rows] for name in ("text", "concept", "split")}
    features = datasets.Features(
        {"image": datasets.Image()} | dict.fromkeys(("text", "concept", "split"), datasets.Value("string"))
    )
    place = root.parent / "saved"
    shutil.rmtree(place, ignore_errors=True)
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(place)
    result = check_read(place)
    assert result is not None
    assert contents(result) == {(row["concept"], row["text"], (root / row["file_name"]).read_bytes()) for row in rows}


KEYS = st.sampled_from(
    [
        "seed",
        "method",
        "concepts",
        "concepts.path",
        "concepts.sets",
        "rank",
        "learning_rate",
        "mix.name",
        "",
        ".",
        "a.b",
    ]
)
VALUES = st.sampled_from(
    [
        "1",
        "-1",
        "1e400",
        "nan",
        "[",
        "{}",
        "[1",
        "${seed}",
        "${oc.env:HOME}",
        "null",
        "'",
        "{a: {b: 1}}",
        "!!python/x",
    ]
)


@sometimes
@given(override=st.builds("{}={}".format, KEYS | TEXTS, VALUES | TEXTS) | TEXTS)
def test_overrides(override: str) -> None:
    for schema in (ConceptsConfig, FinetuneCommandConfig):
        try:
            assert isinstance(load_settings(schema, None, [override]), schema)
        except UserError as error:
            check_message(error)


@sometimes
@given(
    text=st.lists(st.builds("{}: {}".format, KEYS | TEXTS, VALUES | TEXTS), max_size=3).map("\n".join)
    | st.text()
    | st.binary()
)
def test_yaml(text: str | bytes, root: Path) -> None:
    file = root.parent / "settings.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    try:
        assert isinstance(load_settings(FinetuneCommandConfig, file), FinetuneCommandConfig)
    except UserError as error:
        check_message(error)
