"""Every malformed set ends in one message on stderr and exit code 2, soon, in little memory, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path

import datasets
import pytest
from bad_concepts import CASES
from bad_input_page import all_cases, check_documented, check_rows, message_of
from bad_inputs import BadInput
from peak_memory import PeakMemory
from PIL import Image
from small_sets import lines, picture, pictures, questions, row, samples, tar

import diffusion_sft.commands
import diffusion_sft.study  # noqa: F401
from diffusion_sft import cli
from diffusion_sft.concepts import ConceptsConfig, UnreadableImage, hugging_face, load_image, read_concept_set
from diffusion_sft.concepts.store import Store
from diffusion_sft.errors import UserError
from diffusion_sft.questions import QuestionsConfig, read_questions

MOST_SECONDS = 5.0
MOST_MEGABYTES = 400
"""More than before the command. A whole pipeline is loaded for one of the cases."""
LONGEST_LINE = 700


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images out of shards are unpacked to a cache, whether or not a set can be used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def everything(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What lies in a folder: kind, size, time of change and contents, by name."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20
        content = path.read_bytes() if small else b""
        found[os.fsencode(path).hex()] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def check_form(told: str) -> None:
    """One line, or a list of bad rows under a line that says what to do about them; nothing that drives a terminal."""
    first, *others = told.split("\n")
    assert bool(others) == first.endswith(("without this row:", "without these rows:")), told
    assert all(line.startswith("  ") for line in others)
    assert all(line.isprintable() and len(line) < LONGEST_LINE for line in (first, *others))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_bad_input_is_told(case: BadInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = case.make(tmp_path)
    before = everything(tmp_path)
    memory, start = PeakMemory(), time.perf_counter()
    capsys.readouterr()
    code = cli.main(words)
    seconds = time.perf_counter() - start
    peak = memory.megabytes
    shown = capsys.readouterr()
    told = shown.err.rpartition("diffusion-sft: ")[2].removesuffix("\n")
    assert code == 2
    assert "Traceback" not in shown.err + shown.out
    assert shown.err.count("diffusion-sft: ") == 1, shown.err
    check_form(told)
    assert re.search(case.told, told), told
    check_documented(case, message_of(shown.err, tmp_path))
    assert everything(tmp_path) == before
    assert seconds < MOST_SECONDS
    assert peak < MOST_MEGABYTES


def test_the_page_has_a_row_for_each() -> None:
    check_rows(all_cases())


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    names = [(case.group, case.name) for case in CASES]
    assert len(names) == len(set(names)) >= 45


@pytest.fixture
def good_set(tmp_path: Path) -> Path:
    pictures(tmp_path / "set")
    (tmp_path / "set" / "metadata.jsonl").write_text(lines(row(number) for number in range(4)))
    (tmp_path / "set" / "questions.jsonl").write_text(lines(questions()))
    return tmp_path / "set"


def refused(path: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_folder_that_may_not_be_looked_into(good_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good_set / "metadata.jsonl").unlink()
    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match=r"set: cannot be read \(Permission denied\)$"):
        read_concept_set(ConceptsConfig(path=str(good_set)))
    with pytest.raises(UserError, match=r"set: cannot be read \(Permission denied\)$"):
        read_questions(QuestionsConfig(path=str(good_set)))


def test_a_picture_that_may_not_be_read(good_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda path, formats: refused(path))
    with pytest.raises(UnreadableImage, match=r"0\.png: cannot be read \(Permission denied\)$"):
        load_image(good_set / "0.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("name", ["", "0.png", "metadata.jsonl"])
def test_what_is_closed_to_the_user(name: str, good_set: Path) -> None:
    (good_set / name).chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be read"):
            read_concept_set(ConceptsConfig(path=str(good_set)))
    finally:
        (good_set / name).chmod(0o755)


def test_a_full_cache_is_not_taken_for_an_unreadable_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "0.tar", samples())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/images/x")

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(OSError, match="No space left"):
        read_concept_set(ConceptsConfig(path=str(tmp_path)))


def test_a_set_that_asks_for_a_decoder_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of lists of images, whose paths the library would open, or fetch, wherever they lead."""
    kind = {"image": datasets.Image(), "text": datasets.Value("string"), "more": datasets.List(datasets.Image())}
    cells = {
        "image": [{"bytes": picture(number), "path": None} for number in range(4)],
        "text": ["a wug"] * 4,
        "more": [[{"bytes": None, "path": "https://example.org/x.png"}]] * 4,
    }
    found = datasets.Dataset.from_dict(cells, features=datasets.Features(kind))
    monkeypatch.setattr(hugging_face, "_loaded", lambda config: {"train": found})
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("an image was decoded"))
    read = read_concept_set(ConceptsConfig(path="owner/name", layout="datasets", cache_dir=str(tmp_path)))
    assert len(read.concept_set.examples) == 6
