"""What was cut short or altered after it was written is seen, named, and made again or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from diffusion_sft.errors import UserError
from diffusion_sft.files import write_table
from diffusion_sft.manifests import changes, files_below, finished, listed, read_record, table_files, write_record

RECORD = "stage.json"


def written(folder: Path) -> Path:
    """A stage of one table and one text; returns its record."""
    write_table(folder / "scores.parquet", pd.DataFrame({"concept": ["a", "b"], "gain": [0.1, None]}))
    (folder / "summary.txt").write_text("two concepts\n")
    write_record(folder / RECORD, {"key": "k", 1: "one"}, listed(folder, [*table_files(["scores"]), "summary.txt"]))
    return folder / RECORD


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


HARM: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "removed": Path.unlink}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = read_record(written(tmp_path))
    assert (content["key"], content["1"]) == ("k", "one")
    assert content["files"]["summary.txt"]["bytes"] == 13
    assert changes(tmp_path, content["files"]) == {}
    found = finished(tmp_path / RECORD, "k")
    assert found == content
    assert finished(tmp_path / RECORD, "another key") is None
    assert finished(tmp_path / "absent.json", "k") is None


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["scores.parquet", "summary.txt"])
def test_a_changed_file_is_named_and_the_stage_done_again(
    name: str, harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = written(tmp_path)
    HARM[harm](tmp_path / name)
    assert finished(record, "k") is None
    reason = {"flipped": "has other content", "cut": "bytes, and had", "removed": "is gone"}[harm]
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / name}: ")
    assert reason in told
    assert told.endswith("it is made again")


@pytest.mark.parametrize("harm", HARM)
def test_a_csv_is_written_again_from_its_parquet(harm: str, tmp_path: Path) -> None:
    record = written(tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    HARM[harm](tmp_path / "scores.csv")
    assert finished(record, "k") is not None
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_a_csv_is_not_made_of_a_damaged_parquet(tmp_path: Path) -> None:
    record = written(tmp_path)
    flip(tmp_path / "scores.csv")
    flip(tmp_path / "scores.parquet")
    assert finished(record, "k") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r | {"key": "other"}, "has other content than was written"),
        (lambda r: {k: v for k, v in r.items() if k != "seal"}, "written by another version"),
        (lambda r: r | {"files": []}, "written by another version"),
        (lambda r: r | {"files": {}}, "has other content than was written"),
    ],
)
def test_an_altered_record_is_refused(change: Callable[[dict], dict], told: str, tmp_path: Path) -> None:
    record = written(tmp_path)
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    with pytest.raises(UserError, match=rf"stage\.json: {told}"):
        read_record(record)


def test_a_broken_record_means_that_the_stage_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = written(tmp_path)
    cut(record)
    flip(record)
    with caplog.at_level(logging.WARNING):
        assert finished(record, "k") is None
    assert "stage.json" in caplog.text


def test_files_of_a_folder_are_found_by_their_names_in_another(tmp_path: Path) -> None:
    (tmp_path / "pipeline" / "unet").mkdir(parents=True)
    (tmp_path / "pipeline" / "unet" / "config.json").write_text("{}")
    (tmp_path / "card.md").write_text("")
    assert files_below(tmp_path, tmp_path / "pipeline") == ["pipeline/unet/config.json"]
    assert files_below(tmp_path, tmp_path / "card.md") == ["card.md"]
