"""Data sets of the `datasets` library and WebDataset shards: rows, ids and bytes as they were put in, hostile or not."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from diffusion_sft.concepts import ConceptsConfig, ConceptSourceConfig, ReadResult, read_concept_set
from diffusion_sft.concepts.shards import read_shards
from diffusion_sft.concepts.store import Store
from diffusion_sft.errors import UserError
from diffusion_sft.records import HELDOUT, REFERENCE, TRAIN


def image_bytes(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def read(path: Path | str, cache: Path, **settings: Any) -> ReadResult:
    return read_concept_set(ConceptsConfig(path=str(path), cache_dir=str(cache), **settings))


def error_of(path: Path | str, cache: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, cache, **settings)
    return str(caught.value)


def summary(result: ReadResult) -> list[tuple[str, str, bytes]]:
    return [(e.caption, e.split, e.path.read_bytes()) for e in result.concept_set.examples]


# --- the store ---


def test_store_keeps_bytes_under_their_hash(tmp_path: Path) -> None:
    store = Store(tmp_path / "images")
    names = [store.put(image_bytes(n, kind)) for n, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]
    assert [Path(name).suffix for name in names] == [".png", ".jpg", ".webp", ".gif"]
    assert (store.folder / names[0]).read_bytes() == image_bytes(0)
    assert store.put(image_bytes(0)) == names[0]
    (store.folder / names[0]).write_bytes(b"cut")  # a crash left half a file
    assert store.put(image_bytes(0)) == names[0]
    assert (store.folder / names[0]).read_bytes() == image_bytes(0)
    assert sorted(p.name for p in store.folder.rglob("*") if p.is_file()) == sorted(Path(n).name for n in names)
    assert store.put(b"no image").count(".") == 0


# --- datasets ---


def data_set(numbers: range, **columns: list[Any]) -> datasets.Dataset:
    images = [{"bytes": image_bytes(n), "path": None} for n in numbers]
    features = datasets.Features({"image": datasets.Image()} | {name: datasets.Value("string") for name in columns})
    return datasets.Dataset.from_dict({"image": images, **columns}, features=features)


def test_saved_data_set(tmp_path: Path) -> None:
    found = data_set(range(8), text=["a photo of a dax"] * 8, note=["n"] * 8)
    found.save_to_disk(tmp_path / "set")
    result = read(tmp_path / "set", tmp_path / "cache")
    assert result.problems == ()
    assert [(c.name, dict(c.attributes)) for c in result.concept_set.concepts] == [
        ("a photo of a dax", {"note": "n"})
    ]
    assert {bytes_ for _, _, bytes_ in summary(result)} == {image_bytes(n) for n in range(8)}
    assert len(result.concept_set.split(HELDOUT)) == 2
    # ids are hashes of bytes: neither the rows' order nor the place of the cache changes them or the splits
    found.select(range(7, -1, -1)).save_to_disk(tmp_path / "turned")
    turned = read(tmp_path / "turned", tmp_path / "elsewhere")
    assert {e.id: e.split for e in turned.concept_set.examples} == {
        e.id: e.split for e in result.concept_set.examples
    }


def test_splits_and_labels_of_a_data_set(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["dax", "wug"])
    parts = {
        name: data_set(numbers, caption=["a thing"] * len(numbers)).add_column(
            "label", [n % 2 for n in numbers], feature=labels
        )
        for name, numbers in (("train", range(4)), ("validation", range(4, 8)), ("test", range(8, 10)))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    settings = {"caption_column": "caption", "concept_column": "label"}
    result = read(tmp_path / "set", tmp_path / "cache", **settings)
    assert [c.name for c in result.concept_set.concepts] == ["dax", "wug"]
    counts = {split: len(result.concept_set.split(split)) for split in (TRAIN, HELDOUT, REFERENCE)}
    assert counts == {TRAIN: 4, HELDOUT: 6, REFERENCE: 6}
    assert "no column 'text'; found image, caption, label; set caption_column=caption" in error_of(
        tmp_path / "set", tmp_path / "cache"
    )
    datasets.DatasetDict(parts | {"extra": parts["test"]}).save_to_disk(tmp_path / "odd")
    assert "split extra is none of train" in error_of(tmp_path / "odd", tmp_path / "cache", **settings)


def test_data_set_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((*names, revision))
        return datasets.DatasetDict(train=data_set(range(6), text=["a dax"] * 6))

    def dataset_info(api: object, name: str, *, revision: str | None, timeout: float) -> None:
        asked.append((name, revision))

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    result = read("owner/name", tmp_path / "cache", dataset_config_name="big", revision="v1")
    assert asked == [("owner/name", "v1"), ("owner/name", "big", "v1")]
    assert len({e.id for e in result.concept_set.examples}) == 6
    assert {e.split for e in result.concept_set.examples} == {TRAIN, HELDOUT, REFERENCE}


def test_hub_without_network_or_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    def unknown_host(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    def switched_off(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(HfApi, "dataset_info", unknown_host)  # the library would try again for half a minute
    assert error_of("owner/name", tmp_path) == (
        "owner/name: no such folder, and the Hugging Face Hub cannot be reached (Name or service not known); correct the"
        " path, or set HF_HUB_OFFLINE=1 to read what was downloaded before"
    )
    monkeypatch.setattr(HfApi, "dataset_info", switched_off)
    assert error_of("owner/name", tmp_path) == (
        "owner/name: no such folder, and not readable as a data set (Couldn't reach the Hub (offline))"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'diffusion_sft[datasets]'" in error_of("owner/name", tmp_path)


def test_image_columns_of_a_data_set(tmp_path: Path) -> None:
    one = data_set(range(2), text=["a dax"] * 2)
    cells = [{"bytes": image_bytes(n), "path": None} for n in (7, 8)]
    one.add_column("mask", cells, feature=datasets.Image()).save_to_disk(tmp_path / "two")
    assert "several columns of images (image, mask); found image, text, mask" in error_of(tmp_path / "two", tmp_path)
    assert len(read(tmp_path / "two", tmp_path / "cache", image_column="mask").concept_set.examples) == 3
    assert "no column 'imag'" in error_of(tmp_path / "two", tmp_path, image_column="imag")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "none")
    assert "no column of images; found text" in error_of(tmp_path / "none", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.arrow").touch()
    assert "was not written by save_to_disk" in error_of(tmp_path / "other", tmp_path, layout="datasets")
    (tmp_path / "other" / "state.json").write_text("{}")
    assert "state.json: was not written by save_to_disk" in error_of(tmp_path / "other", tmp_path)


def test_bad_rows_of_a_data_set(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(image_bytes(50))
    images = [{"bytes": image_bytes(n), "path": None} for n in range(3)]
    images += [{"bytes": b"no image", "path": "x.png"}, None, {"bytes": None, "path": str(secret)}]
    images += [{"bytes": image_bytes(9), "path": "../../x.png"}, {"bytes": image_bytes(0), "path": None}]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    texts = ["a dax"] * 6 + [None, "a dax"]
    found = datasets.Dataset.from_dict({"image": images, "text": texts}, features=features)
    # written by hand: save_to_disk itself would embed the file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: found)
        patch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
        patch.chdir(tmp_path)
        result = read("owner/name", tmp_path / "cache", on_bad="skip")
    reasons = {problem.where: problem.reason for problem in result.problems}
    assert "not an image" in reasons["train row 4"]
    assert reasons["train row 5"] == "the image is missing"
    assert "lies outside the data set" in reasons["train row 6"]
    assert reasons["train row 7"].startswith("the caption (text) is empty or missing")
    assert reasons["train row 8"] == "is listed twice, first at train row 1"
    assert len(reasons) == 5
    assert image_bytes(50) not in {p.read_bytes() for p in (tmp_path / "cache").rglob("*.png")}


# --- WebDataset ---


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_shards_as_webdataset_writes_and_reads_them(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "set-%03d.tar"), maxcount=3, verbose=0) as writer:
        for n in range(8):
            writer.write({"__key__": f"dir/sample{n}", "png": image_bytes(n), "txt": f"a photo of dax {n % 2}"})
    result = read(tmp_path, tmp_path / "cache")
    assert result.problems == ()
    theirs = []
    for path in sorted(tmp_path.glob("*.tar")):
        with path.open("rb") as stream:
            members = tar_file_expander([{"url": str(path), "stream": stream}])
            theirs += [(sample["txt"].decode(), sample["png"]) for sample in group_by_keys(members)]
    ours: dict[str, tuple[str, bytes]] = {e.id: (e.caption, e.path.read_bytes()) for e in result.concept_set.examples}
    assert len(theirs) == 8
    assert list(ours.values()) == theirs
    one = read(tmp_path / "set-000.tar", tmp_path / "cache").concept_set
    assert len({e.id for e in one.examples}) == 3


def large_shards(folder: Path, count: int, num_bytes: int) -> None:
    """`count` samples of random bytes that start as a PNG does, in shards of 300."""
    for start in range(0, count, 300):
        members = []
        for n in range(start, min(start + 300, count)):
            content = b"\x89PNG" + np.random.default_rng(n).bytes(num_bytes)
            members += [(f"{n:06d}.png", content), (f"{n:06d}.txt", f"a photo of dax {n % 10}".encode())]
        shard(folder / f"{start:06d}.tar", members)


def test_a_thousand_samples_are_read_one_at_a_time(tmp_path: Path) -> None:
    large_shards(tmp_path / "set", 1000, num_bytes=40_000)
    config = ConceptSourceConfig(path=str(tmp_path / "set"))
    tracemalloc.start()
    listing = read_shards(tmp_path / "set", config, Store(tmp_path / "cache"))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.where for row in listing.rows[298:301]] == [
        "000000.tar key 000298",
        "000000.tar key 000299",
        "000300.tar key 000300",
    ]
    assert len(listing.rows) == 1000
    assert listing.problems == []
    # 40 MB of images; rows and records are 2 KB each, and a sample is held once as read and once as written.
    assert peak < 4 * 2**20
    assert held < 3 * 2**20


def test_an_interrupted_reading_of_shards_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_shards(tmp_path / "set", 1000, num_bytes=100)
    config, plain = ConceptSourceConfig(path=str(tmp_path / "set")), os.replace
    written: list[str] = []

    def counted(source: str, target: Path) -> None:
        if len(written) == 400:
            raise KeyboardInterrupt
        plain(source, target)
        written.append(target.name)

    monkeypatch.setattr(os, "replace", counted)
    with pytest.raises(KeyboardInterrupt):
        read_shards(tmp_path / "set", config, Store(tmp_path / "cache"))
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 400
    monkeypatch.setattr(os, "replace", lambda source, target: (plain(source, target), written.append(target.name)))
    listing = read_shards(tmp_path / "set", config, Store(tmp_path / "cache"))
    assert len(written) == len(set(written)) == 1000
    fresh = read_shards(tmp_path / "set", config, Store(tmp_path / "other"))
    assert [(row.id, row.caption) for row in listing.rows] == [(row.id, row.caption) for row in fresh.rows]


@pytest.mark.parametrize("path", ["https://example.org/set-000.tar", "set-{000..009}.tar", "shards/*.tar"])
def test_addresses_and_patterns_of_shards_are_refused(path: str, tmp_path: Path) -> None:
    assert error_of(path, tmp_path).startswith(f"{path}: a set is a local folder or .tar file, not an address")


def test_cells_of_a_sample(tmp_path: Path) -> None:
    members = []
    for n, split in enumerate(("train", "val", "reference")):
        cells = {"text": "a photo of a dax", "concept": "dax", "split": split, "size": 3}
        members += [(f"{n}.jpg", image_bytes(n, "JPEG")), (f"{n}.json", json.dumps(cells).encode())]
        members += [(f"{n}.seg.png", image_bytes(100 + n)), (f"{n}.__index__", b"0")]
    shard(tmp_path / "a.tar", members)
    result = read(tmp_path, tmp_path / "cache")
    assert [(c.name, dict(c.attributes)) for c in result.concept_set.concepts] == [("dax", {"size": "3"})]
    assert [e.split for e in result.concept_set.examples] == [TRAIN, HELDOUT, REFERENCE]
    assert any(note.endswith("passed over: .__index__, .seg.png") for note in result.notes)
    classes = [(f"{n}.{kind}", c) for n in range(3) for kind, c in (("png", image_bytes(n)), ("cls", b"7"))]
    shard(tmp_path / "cls" / "a.tar", classes)
    found = read(tmp_path / "cls", tmp_path / "cache", concept_column="cls", template="number {concept}").concept_set
    assert {(e.concept, e.caption) for e in found.examples} == {("7", "number 7")}


def test_hostile_shards(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    bomb = pickle.dumps(Bomb())
    good = [m for n in range(3) for m in ((f"{n}.png", image_bytes(n)), (f"{n}.txt", b"a dax"))]
    bad = [
        ("p.png", image_bytes(10)), ("p.txt", b"a dax"), ("p.pyd", bomb),
        ("q.pickle", bomb), ("q.png", image_bytes(11)), ("q.txt", b"a dax"),
        ("../../out.png", image_bytes(12)), ("../../out.txt", b"a dax"),
        ("/abs.png", image_bytes(13)),
        ("two.png", image_bytes(14)), ("two.jpg", image_bytes(15, "JPEG")), ("two.txt", b"a dax"),
        ("differ.png", image_bytes(16)), ("differ.txt", b"a dax"), ("differ.json", b'{"text": "a wug"}'),
        ("none.txt", b"a dax"), ("list.png", image_bytes(17)), ("list.json", b"[1]"),
        ("utf.png", image_bytes(18)), ("utf.txt", b"\xff\xfe"), ("silent.png", image_bytes(19)),
        ("broken.png", image_bytes(20)[:60]), ("broken.txt", b"a dax"),
    ]  # fmt: skip
    path = shard(tmp_path / "set" / "0.tar", good + bad)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    result = read(tmp_path / "set", tmp_path / "cache", on_bad="skip")
    reasons = {(p.file or p.where).removeprefix("0.tar key "): p.reason for p in result.problems}
    assert "holds a .pyd member, which may be a pickle" in reasons["p"]
    assert "holds a .pickle member" in reasons["q"]
    assert {n for n, reason in reasons.items() if "leads out of the shard" in reason} == {
        *("../../out.png", "../../out.txt", "/abs.png")
    }
    assert reasons["two"] == "has 2 images (.jpg, .png), not one"
    assert reasons["differ"].startswith("has two captions that differ, in .txt and .json")
    assert reasons["none"].startswith("has 0 images")
    assert "no object" in reasons["list"]
    assert "not UTF-8" in reasons["utf"]
    assert reasons["silent"].startswith("the caption (text) is empty or missing")
    assert reasons["link.png"] == "is a link or a device, not a file"
    assert any("damaged or cut off" in reason for reason in reasons.values())
    assert len(result.problems) == 13
    assert len({e.id for e in result.concept_set.examples}) == 3
    assert not (tmp_path / "exploded").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"set", "cache"}
    assert all(
        p.is_relative_to(tmp_path / "cache" / "images") for p in (tmp_path / "cache").rglob("*") if p.is_file()
    )


def test_damaged_shards(tmp_path: Path) -> None:
    members = [m for n in range(4) for m in ((f"{n}.png", image_bytes(n)), (f"{n}.txt", b"a dax"))]
    path = shard(tmp_path / "set" / "0.tar", members)
    whole = path.read_bytes()
    for cut, last in ((512 * 14 + 100, 3), (512 * 12, 2), (512 * 13 + 10, 3), (512 * 9 + 3, 2)):
        path.write_bytes(whole[:cut])
        problems = read(tmp_path / "set", tmp_path / "cache", on_bad="skip").problems
        assert problems[0].where == "0.tar"
        assert f"damaged or cut off after the start of key {last}" in problems[0].reason
        # the sample that was being read may be whole or not; those before it are
        assert {p.where for p in problems[1:]} <= {f"0.tar key {last}"}
    path.write_bytes(whole[: 512 * 8] + b"\xff" * 512 + whole[512 * 9 :])  # a header in the middle
    (problem,) = read(tmp_path / "set", tmp_path / "cache", on_bad="skip").problems
    assert "after the start of key 1" in problem.reason
    path.write_bytes(b"no archive" * 100)
    assert "not a readable .tar shard" in error_of(tmp_path / "set", tmp_path / "cache")
    path.unlink()
    assert "no .tar shard here; found nothing" in error_of(tmp_path / "set", tmp_path, layout="webdataset")
