"""What it is to be refused: exit code 2, one line that says why, at once, and nothing left behind or changed."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest
from bad_input_page import check_documented, message_of
from bad_inputs import BadInput

from diffusion_sft import cli

MOST_SECONDS = 5.0


def assert_refused(case: BadInput, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Make the input, give it to the command, and hold what happens against what should."""
    words = case.make(folder)
    before = listing(folder)
    capsys.readouterr()
    started = time.monotonic()
    code = cli.main(words)
    seconds = time.monotonic() - started
    told = capsys.readouterr().err
    assert code == 2, told
    *others, last = told.removesuffix("\n").split("\n")
    assert last.startswith("diffusion-sft: "), told
    assert re.search(case.told, last), last
    assert last.isprintable(), last
    assert len(last) < 1000, last
    assert "Traceback" not in told, told
    assert not any(line.startswith("diffusion-sft: ") for line in others), told
    assert listing(folder) == before
    assert seconds < MOST_SECONDS
    check_documented(case, message_of(told, folder))


def listing(folder: Path) -> dict[bytes, tuple[int, bytes]]:
    """Kind and contents of everything in a folder, by name."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content = (
            path.read_bytes() if stat.S_ISREG(mode) else os.fsencode(os.readlink(path)) if path.is_symlink() else b""
        )
        found[os.fsencode(path)] = (mode, content)
    return found
