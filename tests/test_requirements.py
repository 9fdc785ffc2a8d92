"""docs/requirements.md: the complaints R1 to R27, each with a file that answers it and a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "requirements.md"


def rows() -> list[tuple[str, str, str]]:
    """Number, where it lives, and the tests of each row."""
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (R\d+) \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append((match[1], cells[2], cells[3]))
    return found


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if hasattr(node, "name")}


def test_all_of_them_stand_in_the_table() -> None:
    assert [number for number, _, _ in rows()] == [f"R{number}" for number in range(1, 28)]


@pytest.mark.parametrize(("number", "places", "tests"), rows(), ids=lambda text: text if text[:1] == "R" else "")
def test_places_and_tests_exist(number: str, places: str, tests: str) -> None:
    files = re.findall(r"`([\w/.-]+\.(?:py|yaml|md))`", places)
    assert files, number
    for file in files:
        assert (ROOT / file).is_file() or (ROOT / "diffusion_sft" / file).is_file(), f"{number}: {file}"
    named = re.findall(r"`(test_\w+)::(\w+)`", tests)
    assert named, number
    for module, function in named:
        assert function in functions_of(ROOT / "tests" / f"{module}.py"), f"{number}: {module}::{function}"
