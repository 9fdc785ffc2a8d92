"""Concept sets: every malformed input is named, every well-formed one is read the same way from every format."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffusion_sft.concepts import ConceptsConfig, ReadResult, load_image, read_concept_set
from diffusion_sft.concepts.captions import caption_of
from diffusion_sft.concepts.dreambooth import read_classes
from diffusion_sft.concepts.rows import Problem
from diffusion_sft.errors import UserError
from diffusion_sft.records import HELDOUT, REFERENCE, TRAIN
from diffusion_sft.settings import load_settings

SPLITS = (TRAIN, HELDOUT, REFERENCE)
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"


def save_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_set(root: Path, rows: list[dict[str, Any]], suffix: str = "jsonl") -> Path:
    """Write the metadata, and an image of its own for every new file name that stays inside the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        name = row.get("file_name")
        if isinstance(name, str) and name and not (root / name).exists() and ".." not in name and name[0] != "/":
            save_image(root / name, number)
    table = pd.DataFrame(rows)
    if suffix == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    elif suffix == "csv":
        table.to_csv(root / "metadata.csv", index=False)
    else:
        table.to_parquet(root / "metadata.parquet", index=False)
    return root


def good_rows() -> list[dict[str, Any]]:
    return [
        {"file_name": f"{split}/{name}{i}.png", "text": f"a photo of a {name}", "concept": name, "split": split}
        for name in ("blorp", "wug")
        for split in SPLITS
        for i in range(2)
    ]


def read(root: Path, **settings: Any) -> ReadResult:
    return read_concept_set(ConceptsConfig(path=str(root), **settings))


def error_of(root: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(root, **settings)
    return str(caught.value)


def skipped(root: Path) -> list[tuple[str, str, str]]:
    """What is skipped, after making sure that the default stops and names the same problems."""
    problems = read(root, on_bad="skip").problems
    message = error_of(root)
    assert all(str(problem) in message for problem in problems)
    return [(problem.where, problem.file, problem.reason) for problem in problems]


def splits_by_id(result: ReadResult) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for example in result.concept_set.examples:
        splits.setdefault(example.id, set()).add(example.split)
    return splits


# --- ImageFolder, as it should be ---


def test_fixture_is_read_whole(tiny_set: Path) -> None:
    result = read(tiny_set)
    assert result.problems == ()
    assert result.notes == ()
    assert [c.name for c in result.concept_set.concepts] == ["blorp", "wug", "dax", "fep"]
    assert [c.exposure for c in result.concept_set.concepts] == [1000, 500, 0, 0]
    assert {s: len(result.concept_set.split(s)) for s in SPLITS} == {TRAIN: 12, HELDOUT: 12, REFERENCE: 16}
    example = result.concept_set.examples[0]
    assert (example.id, example.caption) == ("train/blorp-0.png", "a photo of a blorp")
    assert example.path == tiny_set / "train" / "blorp-0.png"
    assert result.concept_set.concept("wug").words == "wug"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    rows = [
        row | {"exposure": 7 if row["concept"] == "wug" else None, "shape": "star", "round": True, "size": 3}
        for row in good_rows()
    ]
    rows[0]["text"] = 'a photo of a blorp, "quoted"\nover two lines'
    one = read(write_set(tmp_path / "one", rows))
    other = read(write_set(tmp_path / "other", rows, suffix))
    assert one.concept_set.concepts[1].exposure == 7
    assert one.concept_set.concepts[0].exposure is None
    assert one.concept_set.concepts[0].attributes["size"] == "3"
    assert [c.words for c in one.concept_set.concepts] == ["blorp", "wug"]
    strip = [(e.id, e.caption, e.concept, e.split) for e in one.concept_set.examples]
    assert strip == [(e.id, e.caption, e.concept, e.split) for e in other.concept_set.examples]
    for ours, theirs in zip(one.concept_set.concepts, other.concept_set.concepts, strict=True):
        assert (ours.name, ours.words, ours.exposure) == (theirs.name, theirs.words, theirs.exposure)
        assert {k: v.lower() for k, v in ours.attributes.items()} == {
            k: v.lower() for k, v in theirs.attributes.items()
        }


def test_split_words_and_case(tmp_path: Path) -> None:
    words = {"Train": TRAIN, "heldout": HELDOUT, "validation": HELDOUT, "VAL": HELDOUT, "test": HELDOUT}
    words["Reference"] = REFERENCE
    rows = [{"file_name": f"{word}.png", "text": "a wug", "split": word} for word in words]
    result = read(write_set(tmp_path, rows))
    assert splits_by_id(result) == {f"{word}.png": {split} for word, split in words.items()}


def test_without_a_concept_column_each_caption_is_a_concept(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": ("a red  star", "a blue star")[i % 2]} for i in range(6)]
    concepts = read(write_set(tmp_path, rows)).concept_set.concepts
    assert [(c.name, c.words) for c in concepts] == [("a red star", "a red  star"), ("a blue star", "a blue star")]


@pytest.mark.parametrize(
    ("name", "captions", "words", "given"),
    [
        ("berry_bowl", ["a photo of Berry Bowl", "berry_bowl!"], "Berry Bowl", ""),
        ("cat", ["a CAT on a mat"] * 2, "CAT", ""),
        ("cat", ["a photo of a concatenation"] * 2, "a photo of a concatenation", ""),
        ("c++ (old)", ["the c++ (old) logo"] * 2, "c++ (old)", ""),
        ("blorp", ["a red star in the rain", "red star"], "red star", "red star"),
        ("star", ["a red star"] * 2, "red star", "red star"),
        ("été", ["photo d'Été"] * 2, "Été", ""),
    ],
)
def test_words_of_a_concept(tmp_path: Path, name: str, captions: list[str], words: str, given: str) -> None:
    rows = [
        {"file_name": f"{i}.png", "text": text, "concept": name} | ({"words": given} if given else {})
        for i, text in enumerate(captions)
    ]
    result = read(write_set(tmp_path, rows))
    assert result.concept_set.concepts[0].words == words
    assert not any("missing from some" in note for note in result.notes)


def test_words_missing_from_a_caption_are_remarked_on(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}", "concept": "wug"} for i in range(3)]
    result = read(write_set(tmp_path, rows))
    assert result.concept_set.concepts[0].words == "picture 0"
    assert any(note.endswith("missing from some of their captions: wug") for note in result.notes)


def test_columns_that_vary_within_a_concept_are_no_attributes(tmp_path: Path) -> None:
    rows = [row | {"angle": i, "shape": row["concept"], "nested": {"a": 1}} for i, row in enumerate(good_rows())]
    result = read(write_set(tmp_path, rows))
    assert [dict(c.attributes) for c in result.concept_set.concepts] == [{"shape": "blorp"}, {"shape": "wug"}]
    assert any(note.endswith("no attributes of it: angle") for note in result.notes)
    assert list(result.concept_set.table().columns) == ["concept", "words", "exposure", "shape"]


def test_other_column_names(tmp_path: Path) -> None:
    rows = [{"img": f"{i}.png", "caption": "a dax", "who": "dax", "part": "test"} for i in range(2)]
    write_set(tmp_path, rows)
    for i in range(2):
        save_image(tmp_path / f"{i}.png", i)
    names = {"image_column": "img", "caption_column": "caption", "concept_column": "who", "split_column": "part"}
    result = read(tmp_path, **names)
    assert len(result.concept_set.split(HELDOUT)) == 2
    assert "no column 'whom'; found img, caption, who, part; set concept_column=who" in error_of(
        tmp_path, **names | {"concept_column": "whom"}
    )


def test_hostile_names_and_captions_survive(tmp_path: Path) -> None:
    names = [
        "<script>alert('x')</script>",
        "quote \"double\" 'single'",
        "дом 家 🏠",
        "a,b;c\td",
        "{concept} %s",
        "-rf ~ $HOME",
    ]
    files = ["<b>&.png", "q\"'.png", "дом/家🏠.png", "a,b;c.png", "{x}%s.zip.png", "-rf $HOME.png"]
    rows = [
        {"file_name": file, "text": f"see {name} here", "concept": name, "split": "heldout"}
        for file, name in zip(files, names, strict=True)
    ]
    for suffix in ("jsonl", "csv", "parquet"):
        result = read(write_set(tmp_path / suffix, rows, suffix))
        assert [c.name for c in result.concept_set.concepts] == [" ".join(name.split()) for name in names]
        assert [c.words for c in result.concept_set.concepts] == names
        assert [e.id for e in result.concept_set.split(HELDOUT)] == files


def test_control_characters_do_not_reach_the_terminal() -> None:
    problem = Problem(where="metadata.jsonl line 1", file="\x1b[31m.png", reason="no such\nfile")
    assert str(problem) == "metadata.jsonl line 1, \\x1b[31m.png: no such\\nfile"


# --- ImageFolder, malformed ---


def test_bad_files_are_all_named_at_once(tmp_path: Path) -> None:
    rows = good_rows()
    write_set(tmp_path, rows)
    (tmp_path / "train/blorp0.png").write_bytes((tmp_path / "train/blorp0.png").read_bytes()[:60])
    (tmp_path / "train/blorp1.png").write_bytes(b"")
    (tmp_path / "heldout/blorp0.png").write_text("no image", encoding="utf-8")
    (tmp_path / "reference/wug1.png").unlink()
    found = {where: (file, reason) for where, file, reason in skipped(tmp_path)}
    assert found["metadata.jsonl line 1"][0] == "train/blorp0.png"
    assert "damaged or cut off" in found["metadata.jsonl line 1"][1]
    assert found["metadata.jsonl line 2"] == ("train/blorp1.png", "is empty (zero bytes)")
    assert "not an image" in found["metadata.jsonl line 3"][1]
    assert found["metadata.jsonl line 12"] == ("reference/wug1.png", "no such file")
    assert len(found) == 4
    result = read(tmp_path, on_bad="skip")
    assert len(result.concept_set.examples) == len(rows) - 4
    assert list(result.problems_table().columns) == ["where", "file", "reason"]
    assert len(result.problems_table()) == 4


def test_bad_cells_are_all_named_at_once(tmp_path: Path) -> None:
    rows = good_rows()
    rows[0]["text"] = "  "
    del rows[1]["text"]
    rows[2]["text"] = 5
    rows[3]["concept"] = None
    rows[4]["split"] = "trian"
    rows[5]["file_name"] = ""
    rows[6]["exposure"] = "many"
    rows[7]["file_name"] = "bad\ud800.png"
    root = write_set(tmp_path, rows[:7])
    with (root / "metadata.jsonl").open("a", encoding="utf-8") as stream:
        for row in rows[7:]:
            stream.write(json.dumps(row) + "\n")
            if row is not rows[7]:
                save_image(root / row["file_name"], int(row["file_name"][-5]) + len(row["file_name"]) * 10)
    reasons = {where.split()[-1]: reason for where, _, reason in skipped(root)}
    assert reasons["1"] == reasons["2"]
    assert reasons["1"].startswith("the caption (text) is empty or missing; write one, or set template=")
    assert reasons["3"] == "text is not text but 5"
    assert reasons["4"] == "concept is empty or missing"
    assert reasons["5"].startswith("split 'trian' is none of train, heldout")
    assert reasons["6"] == "the file name is empty"
    assert reasons["7"] == "exposure 'many' is not a count (0, 1, 2, ...)"
    assert "not valid UTF-8" in reasons["8"]
    assert len(reasons) == 8


def test_paths_outside_the_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "outside.png", 99)
    root = write_set(tmp_path / "set", good_rows())
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    names = [
        "../outside.png",
        str(tmp_path / "outside.png"),
        "C:\\x.png",
        "link.png",
        "loop.png",
        "train/../link.png",
    ]
    with (root / "metadata.jsonl").open("a", encoding="utf-8") as stream:
        for name in names:
            stream.write(json.dumps({"file_name": name, "text": "x", "concept": "x", "split": "train"}) + "\n")
    found = {file: reason for _, file, reason in skipped(root)}
    assert set(found) == set(names)
    assert "(..)" in found["../outside.png"]
    assert "(..)" in found["train/../link.png"]
    assert "absolute" in found[names[1]]
    assert "absolute" in found["C:\\x.png"]
    assert "symbolic link to a place outside" in found["link.png"]
    # the set's own folder may be reached through a link
    (tmp_path / "alias").symlink_to(root)
    assert len(read(tmp_path / "alias", on_bad="skip").concept_set.examples) == 12


def test_same_file_twice(tmp_path: Path) -> None:
    rows = good_rows()
    root = write_set(tmp_path, [*rows, rows[0] | {"file_name": "./train//blorp0.png"}])
    assert skipped(root) == [
        ("metadata.jsonl line 13", "train/blorp0.png", "is listed twice, first at metadata.jsonl line 1")
    ]


def test_same_bytes_in_training_and_evaluation(tmp_path: Path) -> None:
    root = write_set(tmp_path, good_rows())
    (root / "train/wug0.png").write_bytes((root / "heldout/blorp1.png").read_bytes())
    (root / "reference/wug0.png").write_bytes((root / "heldout/wug0.png").read_bytes())  # allowed
    (root / "train/blorp1.png").write_bytes((root / "train/blorp0.png").read_bytes())  # allowed
    ((_, file, reason),) = skipped(root)
    assert file == "train/wug0.png"
    assert reason == "is in train with the same bytes as heldout/blorp1.png, which is in heldout"


def test_same_bytes_in_a_set_without_splits(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": "a wug"} for i in range(7)]
    root = write_set(tmp_path, rows)
    (root / "5.png").write_bytes((root / "2.png").read_bytes())
    assert skipped(root) == [("metadata.jsonl line 6", "5.png", "has the same bytes as 2.png")]


def test_contradicting_exposures(tmp_path: Path) -> None:
    rows = [row | {"exposure": 3} for row in good_rows()]
    rows[4]["exposure"] = 4
    assert [(where, reason) for where, _, reason in skipped(write_set(tmp_path, rows))] == [
        ("metadata.jsonl line 5", "gives concept 'blorp' the exposure 4 where other rows say 3")
    ]


def test_damaged_jsonl_lines(tmp_path: Path) -> None:
    root = write_set(tmp_path, good_rows())
    content = (root / "metadata.jsonl").read_bytes().replace(b"\n", b"\r\n")
    bad = [b"{not json", b"[1, 2]", b'{"file_name": "\xff.png"}', b"", b"   ", b"[" * 100_000]
    (root / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + content + b"\n".join(bad))
    reasons = {where: reason for where, _, reason in skipped(root)}
    assert list(reasons) == [f"metadata.jsonl line {n}" for n in (13, 14, 15, 18)]
    assert "not valid JSON" in reasons["metadata.jsonl line 13"]
    assert "not an object" in reasons["metadata.jsonl line 14"]
    assert "not UTF-8" in reasons["metadata.jsonl line 15"]
    assert "not valid JSON" in reasons["metadata.jsonl line 18"]
    assert len(read(root, on_bad="skip").concept_set.examples) == 12


def test_damaged_csv_lines(tmp_path: Path) -> None:
    root = write_set(tmp_path, good_rows(), "csv")
    content = b"\xef\xbb\xbf" + (root / "metadata.csv").read_bytes()
    bad = [
        "a.png,b",
        "",
        "a.png,b,c,train,e",
        "\udcff.png,b,c,train",
        'x.png,"a" b,c,train',
        'y.png,"never closed,c,train',
    ]
    (root / "metadata.csv").write_bytes(content + "\n".join(bad).encode("utf-8", "surrogateescape"))
    reasons = {where.removeprefix("metadata.csv line "): reason for where, _, reason in skipped(root)}
    assert list(reasons) == ["14", "16", "18", "19", "17"]
    assert reasons["14"] == "has 2 fields where the header has 4"
    assert reasons["16"] == "has 5 fields where the header has 4"
    assert "not valid UTF-8" in reasons["17"]
    assert "not valid CSV" in reasons["18"]
    assert "not valid CSV" in reasons["19"]


def test_unreadable_metadata_files(tmp_path: Path) -> None:
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    assert "not a readable parquet file" in error_of(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    (tmp_path / "metadata.jsonl").write_text("{}", encoding="utf-16")
    assert "is UTF-16; save it as UTF-8" in error_of(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n\n", encoding="utf-8")
    assert "no held-out image is left of 0 usable rows" in error_of(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("text,text,file_name\na,b,c\n", encoding="utf-8")
    assert "a column name occurs twice" in error_of(tmp_path)


def test_missing_columns_name_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_nmae,caption\na.png,b\n", encoding="utf-8")
    message = error_of(tmp_path)
    assert "no column 'file_name'; found file_nmae, caption; set image_column=file_nmae" in message
    assert "no column 'text'; found file_nmae, caption; set caption_column=caption" in error_of(
        tmp_path, image_column="file_nmae"
    )


def test_near_misses_of_optional_columns_are_remarked_on(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": "a wug", "Concept": "wug", "splits": "train"} for i in range(6)]
    notes = " ".join(read(write_set(tmp_path, rows)).notes)
    assert "column 'Concept' is not read as 'concept'" in notes
    assert "column 'splits' is not read as 'split'" in notes


def test_which_metadata_file(tmp_path: Path) -> None:
    root = write_set(tmp_path / "two", good_rows())
    (root / "metadata.csv").write_text("file_name,text\n", encoding="utf-8")
    assert "found metadata.jsonl and metadata.csv; keep exactly one" in error_of(root)
    near = write_set(tmp_path / "near", good_rows())
    (near / "metadata.jsonl").rename(near / "Metadata.json")
    assert "found Metadata.json, but the metadata must be one file" in error_of(near)
    assert "found Metadata.json" in error_of(near, layout="imagefolder")
    write_set(tmp_path / "parts" / "train", good_rows())
    assert "found train/metadata.jsonl" in error_of(tmp_path / "parts")
    other = tmp_path / "other"
    save_image(other / "cat" / "0.png", 0)
    assert "none of metadata.jsonl, metadata.csv, metadata.parquet here; found cat" in error_of(
        other, layout="imagefolder"
    )


def test_no_such_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="path is empty"):
        read_concept_set(ConceptsConfig())
    assert "no such folder of concepts" in error_of(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    assert "neither a metadata file" in error_of(tmp_path)
    assert "found notes.txt" in error_of(tmp_path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    root = write_set(tmp_path, good_rows())
    with (root / "metadata.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("nonsense\n" * 30)
    lines = error_of(root).splitlines()
    assert "30 problems" in lines[0]
    assert "on_bad=skip" in lines[0]
    assert len(lines) == 22
    assert lines[-1] == "  and 10 more"


def test_nothing_left_after_skipping(tmp_path: Path) -> None:
    rows = [row for row in good_rows() if row["split"] != "reference"]
    root = write_set(tmp_path, rows)
    for row in rows:
        if row["split"] == "heldout":
            (root / row["file_name"]).write_bytes(b"")
    assert "no held-out image is left of 4 usable rows (4 bad ones skipped)" in error_of(root, on_bad="skip")


def test_long_metadata_stays_fast(tmp_path: Path) -> None:
    """100,000 rows that all fail before any file is opened."""
    lines = (json.dumps({"file_name": f"../{i}.png", "text": f"caption {i}", "concept": "x"}) for i in range(100_000))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    start = time.process_time()
    assert "100000 problems" in error_of(tmp_path)
    assert time.process_time() - start < 10


# --- splits ---


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 20, 101])
@pytest.mark.parametrize(("heldout", "reference"), [(0.25, 0.25), (0.05, 0.05), (0.45, 0.45), (0.9, 0.05)])
def test_every_split_is_filled_and_nothing_is_trained_on_twice(
    tmp_path: Path, count: int, heldout: float, reference: float
) -> None:
    rows = [{"file_name": f"{i}.png", "text": "a wug"} for i in range(count)]
    result = read(write_set(tmp_path, rows), heldout_share=heldout, reference_share=reference)
    splits = splits_by_id(result)
    assert len(splits) == count
    assert set(map(frozenset, splits.values())) <= {
        frozenset({TRAIN}),
        frozenset({HELDOUT}),
        frozenset({REFERENCE}),
        frozenset({HELDOUT, REFERENCE}),
    }
    present = set().union(*splits.values())
    assert present == (set(SPLITS) if count >= 2 else {HELDOUT, REFERENCE})
    shared = [names for names in splits.values() if len(names) == 2]
    assert bool(shared) == (count < 6)
    assert any("fewer than 6 images" in note for note in result.notes) == (count < 6)
    assert any("a single image" in note for note in result.notes) == (count == 1)
    if count == 101:
        assert sum(HELDOUT in names for names in splits.values()) == int(101 * heldout)
        assert sum(REFERENCE in names for names in splits.values()) == int(101 * reference)


def test_split_depends_on_names_and_seed_only(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": "a wug"} for i in range(40)]
    one = splits_by_id(read(write_set(tmp_path / "one", rows)))
    other = splits_by_id(read(write_set(tmp_path / "other", rows[::-1])))
    assert one == other
    assert splits_by_id(read(tmp_path / "one", seed=1)) != one


def test_given_splits_without_reference_or_heldout(tmp_path: Path) -> None:
    rows = [
        row
        for row in good_rows()
        if (row["concept"], row["split"]) not in [("blorp", "reference"), ("wug", "heldout")]
    ]
    result = read(write_set(tmp_path, rows))
    splits = splits_by_id(result)
    assert splits["heldout/blorp0.png"] == {HELDOUT, REFERENCE}
    assert splits["reference/wug0.png"] == {REFERENCE}
    assert any(note.endswith("the held-out ones serve as such: blorp") for note in result.notes)
    assert any(note.endswith("not probed: wug") for note in result.notes)


# --- DreamBooth ---


def dreambooth(root: Path, counts: dict[str, int]) -> Path:
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            save_image(root / name / f"{i:02}.png", number := number + 1)
    return root


def test_dreambooth_folders(tmp_path: Path) -> None:
    root = dreambooth(
        tmp_path / "set", {"rc_car": 4, "berry_bowl": 6, "dog6": 5, "unlisted": 3, "empty": 0, ".git": 2}
    )
    (root / "prompts_and_classes.txt").write_text(
        "﻿Classes\r\n\r\nsubject_name,class\r\nberry_bowl , bowl\r\nRC_car,toy\r\ndog6,dog\r\nabsent,cat\r\n,\r\n"
        "Prompts\r\n\r\n'a {0} {1} in the jungle'.format(unique_token, class_token),\r\nunlisted,wrong\r\n",
        encoding="utf-8",
    )
    (root / "rc_car" / "notes.txt").write_text("no photo", encoding="utf-8")
    (root / "rc_car" / ".hidden.png").write_bytes(b"")
    result = read(root)
    concepts = {c.name: (c.words, c.attributes["class"]) for c in result.concept_set.concepts}
    assert concepts == {
        "berry bowl": ("berry bowl", "bowl"),
        "dog6": ("dog6 dog", "dog"),
        "rc car": ("rc car toy", "toy"),
        "unlisted": ("unlisted", ""),
    }
    captions = {e.concept: e.caption for e in result.concept_set.examples}
    assert captions["berry bowl"] == "a photo of berry bowl"
    assert captions["rc car"] == "a photo of rc car toy"
    assert captions["unlisted"] == "a photo of unlisted"
    assert len(splits_by_id(result)) == 18
    assert any(note.endswith("passed over: empty") for note in result.notes)
    (root / "dog6" / "broken.jpg").write_bytes(b"no")
    assert [(w, f) for w, f, _ in skipped(root)] == [("dog6/broken.jpg", "dog6/broken.jpg")]
    (root / "rc car").mkdir()
    save_image(root / "rc car" / "0.png", 0)
    assert "folders rc car and rc_car both name 'rc car'" in error_of(root)


@pytest.mark.parametrize(
    ("template", "concept", "class_words", "caption"),
    [
        ("a photo of {concept} {class}", "dog6", "dog", "a photo of dog6 dog"),
        ("a photo of {concept} {class}", "berry bowl", "Bowl", "a photo of berry bowl"),
        ("a photo of {concept} {class}", "backpack", "backpack", "a photo of backpack"),
        ("a photo of {concept} {class}", "toucan", "can", "a photo of toucan can"),
        ("a {concept} {class} on a table", "vase", "", "a vase on a table"),
        ("a {class} called {concept}", "berry bowl", "bowl", "a bowl called berry bowl"),
        ("a photo of {concept}", "{class} <b>", "toy", "a photo of {class} <b>"),
    ],
)
def test_dreambooth_captions(template: str, concept: str, class_words: str, caption: str) -> None:
    assert caption_of(template, concept, class_words) == caption


def test_class_words_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"Classes\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_classes(tmp_path / "x.txt")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not beside the repository")
def test_real_photos() -> None:
    result = read(PHOTOS)
    assert [c.name for c in result.concept_set.concepts] == [
        *["backpack", "berry bowl", "cat", "clock", "dog6", "duck toy", "red cartoon", "teapot"]
    ]
    assert result.concept_set.concept("duck toy").attributes == {"class": "toy"}
    assert result.problems == ()
    for concept in result.concept_set.concepts:
        assert {e.split for e in result.concept_set.only([concept.name]).examples} == set(SPLITS)
    assert max(load_image(result.concept_set.examples[0].path).size) <= 384


# --- settings ---


def test_settings_load_and_refuse(tmp_path: Path) -> None:
    config = load_settings(ConceptsConfig, None, [f"path={tmp_path}", "on_bad=skip", "template=my {concept}"])
    assert config == ConceptsConfig(path=str(tmp_path), on_bad="skip", template="my {concept}")
    for override, message in {
        "heldout_share=0": "heldout_share must be above 0 and below 1",
        "heldout_share=0.8": "must be below 1",
        "template=a photo": "template must contain",
        "template=a {concept} {colour}": "template must contain",
        "caption_column=file_name": "must differ",
        "layout=folders": "layout",
    }.items():
        with pytest.raises(UserError, match=message):
            load_settings(ConceptsConfig, None, [override])
