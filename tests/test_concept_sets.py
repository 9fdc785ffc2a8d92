"""Several sets with roles in one: ids, splits, leaks between them, regularisation images, and what the stages get."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffusion_sft.concepts import ConceptsConfig, ConceptSourceConfig, ReadResult, read_concept_set
from diffusion_sft.concepts.images import load_image
from diffusion_sft.concepts.looks import look_at, near_pairs
from diffusion_sft.errors import UserError
from diffusion_sft.records import HELDOUT, REFERENCE, REGULARISATION, TRAIN, ConceptSet

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"


def picture(number: int, side: int = 96) -> Image.Image:
    """A smooth picture of random colours, a photo as far as its low frequencies go."""
    noise = np.random.default_rng(number).normal(size=(side, side, 3))
    smooth = gaussian_filter(noise, (side / 10, side / 10, 0))
    return Image.fromarray(np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8))


def folder_of(root: Path, concept: str, numbers: range, quality: int = 95) -> Path:
    """A kohya folder `1_concept` of pictures by number, each with a caption."""
    folder = root / f"1_{concept}"
    folder.mkdir(parents=True)
    for number in numbers:
        picture(number).save(folder / f"{number}.jpg", quality=quality)
        (folder / f"{number}.txt").write_text(f"a photo of {concept}", encoding="utf-8")
    return root


def read(*sets: dict[str, Any], **settings: Any) -> ReadResult:
    sources = [ConceptSourceConfig(**{key: str(v) if key == "path" else v for key, v in s.items()}) for s in sets]
    return read_concept_set(ConceptsConfig(sets=sources, **settings))


def by_split(concept_set: ConceptSet) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for example in concept_set.examples:
        found.setdefault(example.split, []).append(example.id)
    return found


def test_roles_become_splits(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", "dax", range(3))
    folder_of(tmp_path / "test", "dax", range(10, 12))
    folder_of(tmp_path / "real", "dax", range(20, 23))
    folder_of(tmp_path / "class", "animal", range(30, 34))
    result = read(
        {"path": tmp_path / "mine", "role": "train", "repeats": 5},
        {"path": tmp_path / "test", "role": "heldout"},
        {"path": tmp_path / "real", "role": "reference"},
        {"path": tmp_path / "class", "role": "regularisation", "name": "animals"},
    )
    assert result.problems == ()
    assert result.notes == ()
    assert by_split(result.concept_set) == {
        TRAIN: [f"mine/1_dax/{n}.jpg" for n in range(3)],
        HELDOUT: [f"test/1_dax/{n}.jpg" for n in (10, 11)],
        REFERENCE: [f"real/1_dax/{n}.jpg" for n in (20, 21, 22)],
        REGULARISATION: [f"animals/1_animal/{n}.jpg" for n in range(30, 34)],
    }
    assert {e.split: e.repeats for e in result.concept_set.examples}[TRAIN] == 5
    # regularisation images belong to the class they show, which is no concept that anything is asked about
    assert [c.name for c in result.concept_set.concepts] == ["dax"]
    assert list(result.concept_set.table()["concept"]) == ["dax"]
    assert {e.concept for e in result.concept_set.split(REGULARISATION)} == {"animal"}


def test_held_out_images_serve_as_reference_across_sets(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    folder_of(tmp_path / "b", "dax", range(10, 12))
    folder_of(tmp_path / "c", "wug", range(20, 22))
    result = read(
        {"path": tmp_path / "a", "role": "train"},
        {"path": tmp_path / "b", "role": "heldout"},
        {"path": tmp_path / "c", "role": "train"},
    )
    splits = by_split(result.concept_set)
    assert splits[REFERENCE] == splits[HELDOUT] == ["b/1_dax/10.jpg", "b/1_dax/11.jpg"]
    assert any(note.endswith("the held-out ones serve as such: dax") for note in result.notes)
    assert any(note.endswith("not probed: wug") for note in result.notes)


def test_a_set_of_its_own_keeps_its_splits_beside_others(tmp_path: Path) -> None:
    folder_of(tmp_path / "whole", "dax", range(8))
    folder_of(tmp_path / "more", "dax", range(20, 23))
    alone = read_concept_set(ConceptsConfig(path=str(tmp_path / "whole"))).concept_set
    both = read({"path": tmp_path / "whole"}, {"path": tmp_path / "more", "role": "train"}).concept_set
    kept = [(e.id.removeprefix("whole/"), e.split) for e in both.examples if e.id.startswith("whole/")]
    assert kept == [(e.id, e.split) for e in alone.examples]
    assert {e.split for e in both.examples if e.id.startswith("more/")} == {TRAIN}


def test_training_alone_needs_no_held_out_image(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    result = read_concept_set(ConceptsConfig(path=str(tmp_path / "a"), role="train"))
    assert by_split(result.concept_set) == {TRAIN: ["1_dax/0.jpg", "1_dax/1.jpg", "1_dax/2.jpg"]}
    assert any("not probed: dax" in note for note in result.notes)


def test_role_goes_before_the_sets_own_splits(tmp_path: Path) -> None:
    folder_of(tmp_path, "dax", range(2))
    rows = [{"file_name": f"1_dax/{n}.jpg", "text": "a dax", "split": s} for n, s in enumerate(("test", "train"))]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = read_concept_set(ConceptsConfig(path=str(tmp_path), role="train"))
    assert [e.split for e in result.concept_set.examples] == [TRAIN, TRAIN]
    assert "own splits are not used, because its role is train" in result.notes[0]


def test_regularisation_by_a_split_column(tmp_path: Path) -> None:
    folder_of(tmp_path, "dax", range(4))
    splits = ("train", "heldout", "reference", "Regularization")
    rows = [
        {"file_name": f"1_dax/{n}.jpg", "text": "x", "concept": "class" if n == 3 else "dax", "split": s}
        for n, s in enumerate(splits)
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_concept_set(ConceptsConfig(path=str(tmp_path))).concept_set
    assert [c.name for c in found.concepts] == ["dax"]
    assert by_split(found)[REGULARISATION] == ["1_dax/3.jpg"]


@pytest.mark.parametrize("role", ["train", "regularisation"])
@pytest.mark.parametrize("other", ["heldout", "reference"])
def test_same_bytes_across_roles(tmp_path: Path, role: str, other: str) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    folder_of(tmp_path / "b", "wug", range(2, 5))
    folder_of(tmp_path / "c", "wug", range(7, 9))
    sets = (
        {"path": tmp_path / "a", "role": role},
        {"path": tmp_path / "b", "role": other},
        {"path": tmp_path / "c", "role": "heldout"},
    )
    with pytest.raises(UserError) as caught:
        read(*sets)
    reason = f"a/1_dax/2.jpg: is in {role} with the same bytes as b/1_wug/2.jpg, which is in {other}"
    assert reason in str(caught.value)
    result = read(*sets, on_bad="skip")
    assert [str(problem) for problem in result.problems] == [reason]
    assert by_split(result.concept_set)[role] == ["a/1_dax/0.jpg", "a/1_dax/1.jpg"]


def test_pictures_that_look_the_same_across_roles(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    folder_of(tmp_path / "b", "dax", range(2, 5), quality=40)  # 2 saved again
    sets = ({"path": tmp_path / "a", "role": "train"}, {"path": tmp_path / "b", "role": "heldout"})
    result = read(*sets, on_bad="skip")
    assert [str(problem) for problem in result.problems] == [
        "a/1_dax/2.jpg: is in train and looks the same as b/1_dax/2.jpg, which is in heldout"
    ]
    assert len(result.concept_set.split(TRAIN)) == 2
    with pytest.raises(UserError, match="looks the same"):
        read(*sets)
    # twice on the same side, or within one set, is its maker's business
    assert read(*({**s, "role": "heldout"} for s in sets)).problems == ()
    folder_of(tmp_path / "one", "dax", range(3))
    picture(0).save(tmp_path / "one" / "1_dax" / "again.jpg", quality=40)
    (tmp_path / "one" / "1_dax" / "again.txt").write_text("a dax", encoding="utf-8")
    assert read({"path": tmp_path / "one"}).problems == ()


def test_sets_share_what_they_know_of_a_concept(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    folder_of(tmp_path / "b", "x", range(10, 12))
    rows = [
        {
            "file_name": f"1_x/{n}.jpg",
            "text": "a red star",
            "concept": "dax",
            "words": "red star",
            "exposure": 7,
            "k": "v",
        }
        for n in (10, 11)
    ]
    (tmp_path / "b" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = read({"path": tmp_path / "a", "role": "train"}, {"path": tmp_path / "b", "role": "heldout"})
    (concept,) = result.concept_set.concepts
    assert (concept.words, concept.exposure, dict(concept.attributes)) == ("red star", 7, {"k": "v"})


def test_names_of_sets(tmp_path: Path) -> None:
    folder_of(tmp_path / "x" / "set", "dax", range(3))
    folder_of(tmp_path / "y" / "set", "dax", range(10, 13))
    with pytest.raises(UserError, match=r"concepts.sets\[1\]: another set is called 'set' too"):
        read({"path": tmp_path / "x" / "set"}, {"path": tmp_path / "y" / "set"})
    for name in ("a/b", "..", "\x1b"):
        with pytest.raises(UserError, match=r"concepts.sets\[0\]: give it a path and a name"):
            read({"path": tmp_path / "x" / "set", "name": name})
    found = read({"path": tmp_path / "x" / "set"}, {"path": tmp_path / "y" / "set", "name": "other"}).concept_set
    assert {e.id.split("/")[0] for e in found.examples} == {"set", "other"}


def test_problems_name_their_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "dax", range(3))
    folder_of(tmp_path / "b", "dax", range(10, 13))
    (tmp_path / "a" / "1_dax" / "1.jpg").write_bytes(b"")
    (tmp_path / "b" / "metadata.jsonl").write_text(
        "nonsense\n" + json.dumps({"file_name": "1_dax/10.jpg", "text": "x"})
    )
    with pytest.raises(UserError) as caught:
        read({"path": tmp_path / "a"}, {"path": tmp_path / "b", "role": "train"})
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the 2 concept sets: 2 problems")
    assert lines[1] == "  a/1_dax/1.jpg: is empty (zero bytes)"
    assert lines[2].startswith("  set b, metadata.jsonl line 1: is not valid JSON")


# --- looks ---


def resaved(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def test_looks_find_copies_and_nothing_else() -> None:
    images = [picture(number) for number in range(60)]
    looks = [look_at(image) for image in images]
    assert [(i, j) for i, j, _ in near_pairs(looks, looks)] == [(i, i) for i in range(60)]
    for change in (
        lambda image: resaved(image, 30),
        lambda image: image.resize((300, 300)),
        lambda image: image.resize((48, 40)),
        lambda image: image.crop((1, 1, 95, 95)),
    ):
        found = [(i, j) for i, j, _ in near_pairs(looks, [look_at(change(image)) for image in images])]
        assert found == [(i, i) for i in range(60)]
    mirrored = [look_at(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) for image in images]
    assert list(near_pairs(looks, mirrored)) == []
    assert list(near_pairs(looks, [])) == list(near_pairs([], looks)) == []


def test_looks_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(number, side=32) for number in (*range(20), 3, 17, 3)]
    looks = [look_at(image) for image in images]
    expected = list(near_pairs(looks, looks))
    assert len(expected) == 23 + 2 * (3 + 1)
    monkeypatch.setattr("diffusion_sft.concepts.looks._BLOCK", 7)
    monkeypatch.setattr("diffusion_sft.concepts.looks._BLOCK_RIGHT", 5)
    assert list(near_pairs(looks, looks)) == expected == sorted(expected)


def test_looks_tell_flat_pictures_by_colour() -> None:
    """Flat pictures have no structure to hash, and two of one colour are the same picture."""
    looks = [
        look_at(Image.new("RGB", size, colour)) for size in ((9, 9), (64, 32)) for colour in ("red", "lime", "#222")
    ]
    assert [(i, j) for i, j, _ in near_pairs(looks, looks) if i < j] == [(0, 3), (1, 4), (2, 5)]
    # equal brightness everywhere, other colours
    halves = [Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "red")]
    halves[1].paste((0, 130, 0), (16, 0, 32, 32))
    assert [(i, j) for i, j, _ in near_pairs([look_at(halves[0])], [look_at(halves[1])])] == []


def test_a_look_is_the_hash_of_the_paper() -> None:
    """The signs of the 8 x 8 lowest DCT-II coefficients of 32 x 32 grey values, against the sums of their definition."""
    image = picture(5, side=32)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    n = np.arange(32)
    basis = np.cos(np.pi * np.outer(np.arange(8), 2 * n + 1) / 64)  # (8, 32)
    low = (basis @ grey @ basis.T).ravel()
    low *= np.outer(scale := np.where(np.arange(8) == 0, np.sqrt(1 / 32), np.sqrt(2 / 32)), scale).ravel()
    bits = low > np.median(low[1:])
    expected = int("".join("1" if bit else "0" for bit in bits), 2)
    assert look_at(image).phash == expected
    assert (look_at(image).width, look_at(image).height) == (32, 32)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not beside the repository")
def test_looks_of_photos() -> None:
    images = [load_image(path) for path in sorted(PHOTOS.glob("*/*.jpg"))]
    looks = [look_at(image) for image in images]
    assert [(i, j) for i, j, _ in near_pairs(looks, looks) if i < j] == []
    again = [look_at(resaved(image.resize((200, 200)), 50)) for image in images]
    assert [(i, j) for i, j, _ in near_pairs(looks, again)] == [(i, i) for i in range(len(images))]
