"""Folders of images as their owners have them: caption files, kohya's folders, DreamBooth's, told apart and read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_sft.concepts import ConceptsConfig, ReadResult, read_concept_set
from diffusion_sft.concepts.config import ConceptSourceConfig
from diffusion_sft.concepts.folders import repeats_and_name
from diffusion_sft.concepts.layouts import recognise
from diffusion_sft.errors import UserError
from diffusion_sft.records import HELDOUT, TRAIN, Example
from diffusion_sft.settings import load_settings

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"


def save_image(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def captioned(folder: Path, count: int, caption: str = "a photo of {name} {i}", suffix: str = ".txt") -> Path:
    """A folder of different images with a caption file beside each."""
    for i in range(count):
        path = save_image(folder / f"{i}.png", hash_of(folder.name) + i)
        path.with_suffix(suffix).write_text(caption.format(name=folder.name, i=i), encoding="utf-8")
    return folder


def hash_of(text: str) -> int:
    return sum(ord(character) * 31**i for i, character in enumerate(text)) % 10**9


def read(root: Path, **settings: object) -> ReadResult:
    return read_concept_set(ConceptsConfig(path=str(root), **settings))  # type: ignore[arg-type]


def error_of(root: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(root, **settings)
    return str(caught.value)


def reasons(root: Path, **settings: object) -> dict[str, str]:
    return {problem.file: problem.reason for problem in read(root, on_bad="skip", **settings).problems}


def distinct(result: ReadResult) -> dict[str, Example]:
    return {example.id: example for example in result.concept_set.examples}


# --- kohya ---


def test_kohya_folders(tmp_path: Path) -> None:
    captioned(tmp_path / "10_sks dog", 3, "a photo of sks dog {i}")
    captioned(tmp_path / "3_red_car", 2, "red_car number {i}", ".caption")
    result = read(tmp_path)
    assert [(c.name, c.words) for c in result.concept_set.concepts] == [
        ("sks dog", "sks dog"),
        ("red car", "red_car"),
    ]
    found = distinct(result)
    assert {name: (e.caption, e.repeats) for name, e in found.items()} == {
        "10_sks dog/0.png": ("a photo of sks dog 0", 10),
        "10_sks dog/1.png": ("a photo of sks dog 1", 10),
        "10_sks dog/2.png": ("a photo of sks dog 2", 10),
        "3_red_car/0.png": ("red_car number 0", 3),
        "3_red_car/1.png": ("red_car number 1", 3),
    }
    assert {e.repeats for e in read(tmp_path, repeats=2).concept_set.examples} == {20, 6}
    # one of the folders alone is a set too, and is read the same way
    alone = read(tmp_path / "10_sks dog")
    assert [(c.name, {e.repeats for e in alone.concept_set.examples}) for c in alone.concept_set.concepts] == [
        ("sks dog", {10})
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10_sks dog", (10, "sks dog")),
        ("1_red_car", (1, "red car")),
        ("5__cat", (5, "cat")),
        ("0_cat", None),
        ("10_", None),
        ("10_ _", None),
        ("dog6", None),
        ("dog_6", None),
        ("٣_cat", None),
        ("1000000_cat", None),
    ],
)
def test_kohya_names(name: str, expected: tuple[int, str] | None) -> None:
    assert repeats_and_name(name) == expected


def test_two_kohya_folders_of_one_concept(tmp_path: Path) -> None:
    captioned(tmp_path / "10_dog", 3)
    captioned(tmp_path / "2_dog", 3)
    result = read(tmp_path)
    assert [c.name for c in result.concept_set.concepts] == ["dog"]
    assert {name: e.repeats for name, e in distinct(result).items()} == {
        **{f"10_dog/{i}.png": 10 for i in range(3)},
        **{f"2_dog/{i}.png": 2 for i in range(3)},
    }


def test_some_folders_with_repeats_and_some_without(tmp_path: Path) -> None:
    captioned(tmp_path / "10_dog", 2)
    captioned(tmp_path / "cat", 2)
    assert "some folders start with repeats (10_dog) and some do not (cat)" in error_of(tmp_path)
    assert "folder cat holds images but its name does not start with repeats, as in 10_cat" in error_of(
        tmp_path, layout="kohya"
    )
    assert [c.name for c in read(tmp_path, layout="sidecars").concept_set.concepts] == ["10 dog", "cat"]
    assert [c.name for c in read(tmp_path, layout="dreambooth").concept_set.concepts] == ["10 dog", "cat"]


# --- captions beside images ---


def test_plain_folder_is_one_concept(tmp_path: Path) -> None:
    root = captioned(tmp_path / "my_cat", 7, "my cat, picture {i}")
    result = read(root)
    assert [(c.name, c.words) for c in result.concept_set.concepts] == [("my cat", "my cat")]
    assert sorted(distinct(result)) == [f"{i}.png" for i in range(7)]
    named = read(root, concept="Felix").concept_set
    assert [c.name for c in named.concepts] == ["Felix"]
    assert len(result.concept_set.split(HELDOUT)) == 1
    assert {e.split for e in read(root, role="train").concept_set.examples} == {TRAIN}


def test_folder_per_concept_with_captions(tmp_path: Path) -> None:
    captioned(tmp_path / "red_car", 2)
    captioned(tmp_path / "cat", 2)
    (tmp_path / "empty").mkdir()
    result = read(tmp_path)
    assert [c.name for c in result.concept_set.concepts] == ["cat", "red car"]
    assert distinct(result)["red_car/1.png"].caption == "a photo of red_car 1"
    assert any(note.endswith("passed over: empty") for note in result.notes)
    captioned(tmp_path / "red car", 2)
    assert "folders red car and red_car both name 'red car'" in error_of(tmp_path)


def test_both_caption_suffixes_are_looked_for(tmp_path: Path) -> None:
    root = captioned(tmp_path / "cat", 5)
    (root / "0.caption").write_text("  a photo of cat 0 \n", encoding="utf-8")  # says the same
    (root / "1.caption").write_text("another one", encoding="utf-8")
    (root / "2.txt").rename(root / "2.CAPTION")
    (root / "3.caption").write_text("\n", encoding="utf-8")  # empty beside one that is not
    assert reasons(root) == {"1.png": "has two captions that differ, in 1.caption and 1.txt; keep one"}
    assert {name: e.caption for name, e in distinct(read(root, on_bad="skip")).items()} == {
        f"{i}.png": f"a photo of cat {i}" for i in (0, 2, 3, 4)
    }


def test_missing_and_empty_captions_are_errors(tmp_path: Path) -> None:
    root = captioned(tmp_path / "cat", 4)
    (root / "0.txt").unlink()
    (root / "1.txt").write_text(" \n\t ", encoding="utf-8")
    found = reasons(root)
    assert found["0.png"].startswith(
        "has no caption file beside it (0.txt or 0.caption); write one, or set template="
    )
    assert found["1.png"].startswith("its caption file 1.txt is empty; write one, or set template=")
    assert "2 problems; mend them, or set on_bad=skip" in error_of(root)
    filled = distinct(read(root, template="a drawing of {concept}"))
    assert [filled[f"{i}.png"].caption for i in range(3)] == ["a drawing of cat"] * 2 + ["a photo of cat 2"]
    empty = distinct(read(root, allow_empty=True))
    assert [empty[f"{i}.png"].caption for i in range(3)] == ["", "", "a photo of cat 2"]


def test_no_caption_at_all_is_said_once(tmp_path: Path) -> None:
    for i in range(30):
        save_image(tmp_path / "10_dog" / f"{i}.png", i)
    message = error_of(tmp_path, on_bad="skip")
    assert len(message.splitlines()) == 1
    assert "no image here has a caption file (.txt or .caption) beside it" in message
    assert {e.caption for e in read(tmp_path, template="{concept}").concept_set.examples} == {"dog"}
    nothing = read(tmp_path, allow_empty=True).concept_set
    assert {e.caption for e in nothing.examples} == {""}
    assert nothing.concepts[0].words == "dog"


def test_captions_are_one_line_of_utf8(tmp_path: Path) -> None:
    root = captioned(tmp_path / "cat", 5)
    (root / "0.txt").write_bytes("\ufeffa cat\r\n on a  mat\r\n".encode())
    (root / "1.txt").write_bytes(b"a \xff cat")
    (root / "2.txt").write_text("a cat", encoding="utf-16")
    (root / "3.txt").write_text("cat " * 40_000, encoding="utf-8")
    found = reasons(root)
    assert found == {
        "1.png": "its caption file 1.txt is not UTF-8 text",
        "2.png": "its caption file 2.txt is not UTF-8 text",
        "3.png": "its caption file 3.txt is longer than 65536 bytes",
    }
    assert distinct(read(root, on_bad="skip"))["0.png"].caption == "a cat on a mat"


def test_hostile_captions_and_names(tmp_path: Path) -> None:
    root = tmp_path / "set" / "<b>{concept}&amp;"
    captions = ["<script>alert(1)</script>", "{concept} {0} %s", "\x1b[31mred\u202e", "дом 🏠"]
    for i, caption in enumerate(captions):
        path = save_image(root / f"-rf ~ $HOME {i};'\".png", i)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    result = read(root.parent, template="a {concept}")
    assert [e.caption for e in distinct(result).values()] == captions
    assert result.concept_set.concepts[0].name == "<b>{concept}&amp;"


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_links_out_of_the_folder(tmp_path: Path) -> None:
    root = captioned(tmp_path / "set" / "cat", 3)
    secret = tmp_path / "secret.txt"
    secret.write_text("password", encoding="utf-8")
    (root / "0.txt").unlink()
    (root / "0.txt").symlink_to(secret)
    (root / "1.png").unlink()
    (root / "1.png").symlink_to(save_image(tmp_path / "outside.png", 99))
    found = reasons(root.parent)
    assert set(found) == {"cat/0.png", "cat/1.png"}
    assert all("symbolic link to a place outside" in reason for reason in found.values())


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    root = captioned(tmp_path / "cat", 2)
    (root / "absent.txt").write_text("a caption without an image", encoding="utf-8")
    notes = " ".join(read(root).notes)
    assert "caption files without an image of their name: absent" in notes
    captioned(root / "more", 2)
    assert "images lie both here and in folders here (more)" in error_of(root)
    deeper = " ".join(read(shutil.move(root / "more", tmp_path / "more") and tmp_path).notes)
    assert "passed over" not in deeper
    captioned(tmp_path / "cat" / "inner", 1)
    assert "further inside were passed over: cat/inner" in " ".join(read(tmp_path).notes)


# --- which layout ---


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    config = ConceptSourceConfig(path="x")
    captioned(tmp_path / "kohya" / "10_dog", 1)
    captioned(tmp_path / "sidecars" / "dog", 1)
    captioned(tmp_path / "plain", 1)
    save_image(tmp_path / "dreambooth" / "dog" / "0.png", 0)
    (tmp_path / "imagefolder").mkdir()
    (tmp_path / "imagefolder" / "metadata.csv").touch()
    (tmp_path / "webdataset").mkdir()
    (tmp_path / "webdataset" / "0.tar").touch()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "state.json").touch()
    for name in ("kohya", "sidecars", "dreambooth", "imagefolder", "webdataset", "datasets"):
        assert recognise(tmp_path / name, config) == name
    assert recognise(tmp_path / "plain", config) == "sidecars"
    assert recognise(tmp_path / "webdataset" / "0.tar", config) == "webdataset"
    save_image(tmp_path / "webdataset" / "0.png", 0)
    with pytest.raises(UserError, match="shards and images both"):
        recognise(tmp_path / "webdataset", config)


def test_hub_names_are_not_folders() -> None:
    for path, layout in {"owner/name": "datasets", "lambdalabs/pokemon-blip_v1.2": "datasets"}.items():
        assert recognise(Path(path), ConceptSourceConfig(path=path)) == layout
    for path in ("owner/name/more", "name", "./owner/name", "/owner/name", "../name", "owner/", "a b/c"):
        with pytest.raises(UserError, match="no such folder"):
            recognise(Path(path), ConceptSourceConfig(path=path))


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned(tmp_path / "10_dog", 9)
    captioned(tmp_path / "2_cat", 4)
    before = read(tmp_path).concept_set
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    assert read(tmp_path).concept_set == before
    monkeypatch.undo()
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copy"))
    moved = read(copy).concept_set
    assert [(e.id, e.split) for e in moved.examples] == [(e.id, e.split) for e in before.examples]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not beside the repository")
def test_photos_as_kohya_folders(tmp_path: Path) -> None:
    for name, words in {"dog6": "sks dog", "cat": "orange cat"}.items():
        folder = tmp_path / f"10_{words}"
        folder.mkdir()
        for photo in (PHOTOS / name).glob("*.jpg"):
            shutil.copy(photo, folder)
            (folder / photo.name).with_suffix(".txt").write_text(f"a photo of {words} in the sun", encoding="utf-8")
    result = read(tmp_path)
    assert [(c.name, c.words) for c in result.concept_set.concepts] == [("orange cat",) * 2, ("sks dog",) * 2]
    assert len(distinct(result)) == 10
    assert {e.repeats for e in result.concept_set.examples} == {10}


def test_settings_of_sources(tmp_path: Path) -> None:
    config = load_settings(
        ConceptsConfig, None, [f"sets=[{{path: {tmp_path}, role: train, repeats: 3}}, {{path: b, layout: kohya}}]"]
    )
    assert config.sets[0] == ConceptSourceConfig(path=str(tmp_path), role="train", repeats=3)
    assert config.given
    assert not ConceptsConfig().given
    for override, message in {
        "sets=[{path: a, rol: train}]": "rol",
        "sets=[{path: a, role: test}]": "role",
        "repeats=0": "repeats must be at least 1",
        "role=test": "role",
    }.items():
        with pytest.raises(UserError, match=message):
            load_settings(ConceptsConfig, None, [override])
    with pytest.raises(UserError, match="template and sets are both given"):
        load_settings(ConceptsConfig, None, ["sets=[{path: a}]", "template=a {concept}"])
