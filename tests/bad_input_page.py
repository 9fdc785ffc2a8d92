"""docs/bad-input.md: what the program says of each malformed input, written by scripts/bad_input_table.py."""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bad_inputs import BadInput

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bad-input.md"
MODULES = ("bad_concepts", "bad_bases", "bad_settings")
"""Of the tests, each with `CASES`."""
MENDED = "rewrite it: python scripts/bad_input_table.py"
HEAD = """# What is said of bad input

A mistake in data or settings ends with exit code 2 and one message on stderr: what is wrong, where, and what to do. A
reader of sets names every bad row, one a line, under the heading `set: 4 problems; mend them, or set on_bad=skip to go on
without these rows:`, which is left out below. There is no traceback, nothing half-made stays behind, and what claims to be
huge is not unpacked.

The {count} inputs below are made, given to the command line and compared with what is written here by the tests
(`tests/bad_*.py`). The folder in which an input was made is left out; a set is in `set`.
This page is written by `python scripts/bad_input_table.py`.
"""


def all_cases() -> list[BadInput]:
    """Of every module that is there."""
    return [
        case
        for name in MODULES
        if (ROOT / "tests" / f"{name}.py").is_file()
        for case in importlib.import_module(name).CASES
    ]


def message_of(stderr: str, folder: Path) -> str:
    """What was said last, without the heading of a list of bad rows, the name of the folder that the input was made in,
    and that of the repository."""
    text = stderr.rpartition("diffusion-sft: ")[2].rstrip("\n")
    text = re.sub(r"^.*: [0-9]+ problems?; mend [^\n]*:\n", "", text)
    for place in (folder, ROOT):
        text = text.replace(f"{place}/", "").replace(str(place), ".")
    # How much is shown of a name without end depends on the folder that it stands in.
    return re.sub(r"(\w)\1{30,}(\.\.\.|…)?", r"\1\1\1…", text)


def page_of(told: Mapping[tuple[str, str], str]) -> str:
    """The page, from the message of each group and name."""
    groups = dict.fromkeys(group for group, _ in told)
    parts = [HEAD.format(count=len(told))]
    for group in groups:
        rows = [f"| {escaped(name)} | {_shown(text)} |" for (own, name), text in told.items() if own == group]
        parts.append(
            "\n".join([f"## {group}", "", "| what is wrong | what the program says |", "|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def documented() -> dict[tuple[str, str], str]:
    """What the page shows, by group and name, as `shown` writes it; nothing where there is no page."""
    found, group = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.is_file() else ():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| what is wrong"):
            name, text = line.removeprefix("| ").removesuffix(" |").split(" | ")
            found[group, name] = text
    return found


def check_documented(case: BadInput, message: str) -> None:
    """Demand that the page shows this; what stands in brackets may be another version's of a library."""
    there = documented().get((case.group, escaped(case.name)))
    assert there is not None, f"{PAGE.name} has no row {case.group}: {case.name}; {MENDED}"
    assert _core(there) == _core(_shown(message)), f"{PAGE.name} is not what is said of {case.name}; {MENDED}"


def check_rows(cases: Sequence[BadInput]) -> None:
    """Demand that the page has these rows and no others."""
    wanted = {(case.group, escaped(case.name)) for case in cases}
    assert set(documented()) == wanted, f"{PAGE.name} has other rows than there are inputs; {MENDED}"


def escaped(text: str) -> str:
    """Text that is neither HTML nor Markdown."""
    return re.sub(r"[\\`*|\[\]~]|\b_|_\b", lambda found: _entity(found[0]), html.escape(text, quote=False))


def _entity(text: str) -> str:
    return "".join(f"&#{ord(character)};" for character in text)


def _shown(message: str) -> str:
    return "<br>".join(f"<code>{escaped(line.strip())}</code>" for line in message.split("\n"))


def _core(text: str) -> str:
    return re.sub(r"\(.*?\)", "()", text)
