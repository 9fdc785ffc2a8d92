"""Drawings as files: one PNG and one PDF for each drawing on the page, with the same bytes for the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic_run import MIXES, NAMES, synthetic_run
from test_report import check_whole

from diffusion_sft.report.drawing import Panel
from diffusion_sft.report.figure_files import DOTS_PER_INCH, drawings_in, write_figures
from diffusion_sft.report.page import write_report
from diffusion_sft.report.svg import Drawing, inline_svg


def drawing(identity: str) -> Drawing:
    """A drawing of three by two inches."""
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1], [0, 1])
    return inline_svg(figure, identity, "a line")


@dataclass
class Part:
    """A record of a page."""

    panels: tuple[Panel, ...]
    others: dict[str, list[Panel]]


def test_drawings_are_found_wherever_they_are() -> None:
    panels = [Panel(title=name, svg=drawing(name)) for name in ("one", "two", "three")]
    part = Part(panels=(panels[0],), others={"a": [panels[1]], "b": []})
    assert [found.identity for found in drawings_in({"x": [part, "text", 3, None], "y": panels[2]})] == [
        "one",
        "two",
        "three",
    ]


def test_files_replace_those_of_before_and_stay_in_their_folder(tmp_path: Path) -> None:
    write_figures([drawing("old")], tmp_path)
    first = write_figures([drawing("../a b/é"), drawing("plain"), drawing("plain")], tmp_path)
    assert [name for name, _ in first] == ["_a_b_", "plain"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "_a_b_.pdf",
        "_a_b_.png",
        "plain.pdf",
        "plain.png",
    ]
    for _, links in first:
        for kind, href in links:
            content = (tmp_path / unquote(href)).read_bytes()
            assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])
    with Image.open(tmp_path / "figures/plain.png") as image:
        assert image.size == (3 * DOTS_PER_INCH, 2 * DOTS_PER_INCH)
        assert image.convert("RGBA").getpixel((0, 0)) == (0xFE, 0xFE, 0xFE, 255)
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    write_figures([drawing("../a b/é"), drawing("plain")], tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == before


def test_every_drawing_of_a_page_has_its_files(tmp_path: Path) -> None:
    run, concept_set = synthetic_run(tmp_path, names=NAMES[:8], mixes=MIXES[:1])
    read = check_whole(write_report(run, concept_set, title="t", figures=True))
    drawings = read.tags.count("svg") - read.text.count('class="mark"')
    files = list((run / "figures").iterdir())
    assert len(files) == 2 * drawings > 10
    assert {f"figures/{path.name}" for path in files} <= set(read.links)
    assert (run / "figures/exposure-gain.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_figure_is_drawn_on_paper(tmp_path: Path, kind: str) -> None:
    assert write_figures([drawing("one")], tmp_path)[0][1][kind == "pdf"][0] == kind
    assert (tmp_path / f"figures/one.{kind}").stat().st_size > 1_000
