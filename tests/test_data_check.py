"""`data check`: what it counts, what it shows, and that hostile captions stay text."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_concept_sets import folder_of, picture

from diffusion_sft.concepts import ConceptsConfig, ConceptSourceConfig, read_concept_set
from diffusion_sft.concepts import contact_sheet as sheet_module
from diffusion_sft.concepts.data_check import (
    DataCheckConfig,
    check_data,
    count_table,
    image_table,
    near_duplicate_table,
)
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_json, read_table
from diffusion_sft.settings import load_settings

HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(1)> {{ 7 * 7 }} \x1b[31m\u202e дом 🏠'


def words(caption: str) -> int:
    return len(caption.split()) + 2


class Page(html.parser.HTMLParser):
    """The tags of a page, its pictures' sources, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.events: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.events += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] != "style":
            self.text += data


@pytest.fixture
def sets(tmp_path: Path) -> ConceptsConfig:
    """Training images with one bad caption and one copy of a held-out image; held-out, reference and class images."""
    folder_of(tmp_path / "mine", "dax", range(6))
    (tmp_path / "mine" / "1_dax" / "5.txt").unlink()
    (tmp_path / "mine" / "1_dax" / "4.txt").write_text(HOSTILE, encoding="utf-8")
    folder_of(tmp_path / "test", "dax", range(3, 4), quality=40)
    picture(40, side=32).save(tmp_path / "test" / "1_dax" / "40.jpg")
    (tmp_path / "test" / "1_dax" / "40.txt").write_text("word " * 80, encoding="utf-8")
    folder_of(tmp_path / "class", "animal", range(50, 53))
    return ConceptsConfig(
        sets=[
            ConceptSourceConfig(path=str(tmp_path / "mine"), role="train", repeats=3),
            ConceptSourceConfig(path=str(tmp_path / "test"), role="heldout"),
            ConceptSourceConfig(path=str(tmp_path / "class"), role="regularisation"),
        ]
    )


def test_everything_is_written(sets: ConceptsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert check_data(DataCheckConfig(concepts=sets, resolution=64, output_dir=str(out)), words) == 1
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            *(f"{n}.{s}" for n in ("images", "concepts", "near_duplicates", "problems") for s in ("csv", "parquet")),
            *("contact-sheet.html", "contact-sheet.png", "summary.json"),
        ]
    )
    summary = read_json(out / "summary.json")
    assert {key: summary[key] for key in summary if key != "notes"} == {
        "num_concepts": 2,
        "num_images": 10,
        "num_images_by_split": {"train": 5, "heldout": 2, "reference": 2, "regularisation": 3},
        "shorter_side": {"min": 32.0, "median": 96.0, "max": 96.0},
        "resolution": 64,
        "num_below_resolution": 1,
        "num_empty_captions": 0,
        "num_truncated_captions": 1,
        "num_near_duplicate_pairs": 1,
        "num_leaking_pairs": 1,
        "num_problems": 1,
    }
    counts = read_table(out / "concepts.parquet").set_index("concept")
    assert counts.loc["dax"].to_dict() == {
        "train": 5,
        "heldout": 2,
        "reference": 2,
        "regularisation": 0,
        "images": 7,
        "below_resolution": 1,
    }
    assert counts.loc["animal", "regularisation"] == 3
    images = read_table(out / "images.parquet").set_index("id")
    assert images.loc["test/1_dax/40.jpg", "num_tokens"] == 82
    assert images.loc["test/1_dax/40.jpg", "split"] == "heldout+reference"
    assert images.loc["mine/1_dax/0.jpg", ["repeats", "width", "height"]].tolist() == [3, 96, 96]
    (problem,) = read_table(out / "problems.parquet").to_dict("records")
    assert problem["file"] == "mine/1_dax/5.jpg"
    assert "10 images of 2 concepts; sizes smallest 32x32, median 96x96, largest 96x96" in printed
    assert "1 of 10 captions (10.0%) are cut off at 77 tokens; the longest has 82" in printed
    assert "1 pairs look the same, 1 across training and measuring" in printed
    assert "mine/1_dax/3.jpg and test/1_dax/3.jpg (stops a run)" in printed
    assert "\x1b" not in printed
    assert "\u202e" not in printed


def test_leaks_and_what_stops_a_run(sets: ConceptsConfig) -> None:
    """Exactly what `data check` answers 1 to stops reading."""
    skipping = replace(sets, on_bad="skip")
    pairs = near_duplicate_table(read_concept_set(skipping, keep_alike=True), several=True)
    assert pairs[["first", "second", "leak", "between_sets"]].to_numpy().tolist() == [
        ["mine/1_dax/3.jpg", "test/1_dax/3.jpg", True, True]
    ]
    assert near_duplicate_table(read_concept_set(skipping)).empty
    with pytest.raises(UserError, match="looks the same"):
        read_concept_set(sets)


def test_a_good_set_answers_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "set", "dax", range(8))
    again = tmp_path / "set" / "1_dax" / "again.jpg"  # alike within one set is shown and stops nothing
    picture(0).save(again, quality=40)
    again.with_suffix(".txt").write_text("a dax", encoding="utf-8")
    out = tmp_path / "out"
    config = DataCheckConfig(concepts=ConceptsConfig(path=str(tmp_path / "set")), output_dir=str(out))
    assert check_data(config) == 0
    printed = capsys.readouterr().out
    assert "captions' tokens are not counted" in printed
    assert "1 pairs look the same" in printed
    assert read_json(out / "summary.json")["num_truncated_captions"] is None
    assert "9 with a shorter side below 512 pixels" in printed
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".parquet"}
    assert check_data(config) == 0
    assert {name: (out / name).read_bytes() for name in first} == first


def test_page_is_one_safe_file(sets: ConceptsConfig, tmp_path: Path) -> None:
    check_data(DataCheckConfig(concepts=sets, output_dir=str(tmp_path / "out")), words)
    page = Page(tmp_path / "out" / "contact-sheet.html")
    assert "script" not in page.tags
    assert page.events == []
    pictures = [source for source in page.sources if not source.startswith("#")]
    assert all(source.startswith("data:image/") for source in pictures)
    assert len(pictures) == page.tags.count("img") == 10 + 2  # all images, and the pair once more
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\\x1b[31m\\u202e дом 🏠" in page.text
    assert "82 tokens, cut off" in page.text
    assert re.search(r"Train\s+5 images, 3 times each", page.text, flags=re.IGNORECASE)
    assert "mine/1_dax/5.jpg: has no caption file beside it" in page.text
    targets = {source[1:] for source in page.sources if source.startswith("#")}
    text = (tmp_path / "out" / "contact-sheet.html").read_text(encoding="utf-8")
    assert all(f'id="{target}"' in text for target in targets)
    assert text.startswith("<!doctype html>")
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text


def test_page_shows_a_share_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "set", "dax", range(30))
    monkeypatch.setattr(sheet_module, "MOST_PICTURES", 12)
    monkeypatch.setattr(sheet_module, "MOST_CELLS", 5)
    config = DataCheckConfig(concepts=ConceptsConfig(path=str(tmp_path / "set")), output_dir=str(tmp_path / "out"))
    assert check_data(config) == 0
    page = Page(tmp_path / "out" / "contact-sheet.html")
    assert page.tags.count("img") == 12
    assert "4 of 16 images" in page.text
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.height < 400


def test_picture_shows_the_images(tmp_path: Path) -> None:
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40 + i, 40), colour).save(tmp_path / "set" / name / f"{i}.png")
    config = DataCheckConfig(concepts=ConceptsConfig(path=str(tmp_path / "set")), output_dir=str(tmp_path / "out"))
    assert check_data(config) == 0
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    for colour in ((250, 10, 10), (10, 10, 250)):
        assert (pixels == colour).all(axis=1).sum() >= 2 * 160 * 150
    assert (pixels == (255, 255, 255)).all(axis=1).any()


def test_counts_follow_the_sets_order(tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(("zeta", "alpha", "mid")):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            picture(number * 10 + i).save(tmp_path / name / f"{i}.png")
            split = ("train", "heldout")[i]
            rows.append({"file_name": f"{name}/{i}.png", "text": name, "concept": name, "split": split})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    images = image_table(read_concept_set(ConceptsConfig(path=str(tmp_path))), 8, None)
    counts = count_table(images)
    assert list(counts["concept"]) == ["zeta", "alpha", "mid"]
    assert list(counts.columns) == ["concept", "train", "heldout", "reference", "images", "below_resolution"]
    assert counts["images"].tolist() == [2, 2, 2]
    assert images["num_tokens"].isna().all()
    assert isinstance(images["num_tokens"].dtype, pd.Int64Dtype)


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    folder_of(tmp_path / "set", "dax", range(2))
    for path in (tmp_path / "set" / "1_dax").glob("*.jpg"):
        path.write_bytes(b"")
    config = DataCheckConfig(concepts=ConceptsConfig(path=str(tmp_path / "set")), output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="no held-out image is left of 0 usable rows"):
        check_data(config)
    assert not (tmp_path / "out").exists()


def test_settings() -> None:
    config = load_settings(DataCheckConfig, None, ["concepts.path=x", "base=b", "resolution=768"])
    assert (config.concepts.path, config.base, config.resolution) == ("x", "b", 768)
    with pytest.raises(UserError, match="resolution must be at least 1"):
        load_settings(DataCheckConfig, None, ["resolution=0"])
