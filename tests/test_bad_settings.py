"""Every setting that nobody should hand in is refused in one line, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import BadInput
from bad_settings import CASES
from refusals import assert_refused


@pytest.mark.filterwarnings("ignore")  # What the libraries say of such folders is theirs.
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_a_setting_is_refused(case: BadInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(case, tmp_path, capsys)


def test_no_case_stands_twice() -> None:
    names = [(case.group, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 60
