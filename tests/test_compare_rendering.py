"""Markdown and LaTeX: rendered and parsed, they hold the table's cells and nothing that a hostile name smuggled in."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from diffusion_sft.compare.agreement import agreement_table, trend_table
from diffusion_sft.compare.metrics import METRICS
from diffusion_sft.compare.rendering import (
    cell_text,
    escaped_latex,
    escaped_markdown,
    grid,
    latex,
    markdown,
    missing_lines,
    number,
    one_line,
)
from diffusion_sft.compare.rows import EXTERNAL, PUBLISHED, Row, check_rows, make_table, missing_row
from diffusion_sft.errors import UserError
from diffusion_sft.records import CATEGORIES, DIFFUSION, LLM

HOSTILE = (
    "a|b\\c & 50% $x$ #1 _i_ {y} ~z^2 <script>alert(1)</script>",
    "[link](javascript:alert(1)) ![i](x) `code` **bold** &amp; \u202edlrow",
    r"\input{/etc/passwd} \end{longtable} %",
    "line\nbreak\ttab | --- |\x07",
    "مرحبا 🦩 emoji",
)


def table_of(names: tuple[str, ...] = ()) -> pd.DataFrame:
    """Both learners and the published, and a learner of each name."""
    rows = [missing_row(LLM, "recovery", "study: solve/systems.parquet: not written by this run")]
    for learner, sign in ((DIFFUSION, 1), (LLM, -1)):
        for place, category in enumerate(CATEGORIES):
            value = sign * place / 4
            about = {"learner": learner, "metric": "gain", "category": category, "unit": "nats"}
            rows.append(
                Row(**about, value=value, low=value - 0.125, high=value + 0.125, n=8 + place, n_of="concepts")
            )
        rows.append(Row(learner=learner, metric="b_unknown", value=-0.25, low=-0.5, high=-0.125, n=6, n_of="runs"))
    rows.append(Row(learner=LLM, metric="b_unknown", value=-0.083, source=PUBLISHED))
    rows += [Row(learner=name, metric="b_unknown", value=0.5, source=EXTERNAL) for name in names]
    return make_table(rows)


class Cells(HTMLParser):
    """The text of every table's cells, and all other tags that there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def rendered(text: str) -> Cells:
    return Cells(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def tex_rows(text: str) -> list[list[str]]:
    """The rows of a longtable, parsed by hand (no TeX here): environments and braces balance, and every row has as many
    cells as there are columns."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    assert text.count(r"\begingroup") == text.count(r"\endgroup") == 1
    bare = re.sub(r"\\[\\{}%]", "", text)
    depth = 0
    for character in re.sub(r"(?m)%.*$", "", bare):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    columns = re.search(r"\\begin\{longtable\}\{(l+)\}", text)
    assert columns
    body = text.split(r"\endlastfoot")[1].split(r"\end{longtable}")[0]
    rows = []
    for line in body.strip().splitlines():
        if line.startswith((r"\addlinespace", r"\multicolumn")):
            continue
        assert line.endswith(r"\\"), line
        cells = re.split(r"(?<!\\)&", line[:-2])
        assert len(cells) == len(columns[1]), line
        rows.append([cell.strip() for cell in cells])
    return rows


def test_markdown_renders_to_the_tables_cells() -> None:
    table = table_of()
    agreed = agreement_table(table, trend_table({}))
    cells = grid(table, agreed)
    found = rendered(markdown(table, agreed, ["A sentence."], missing_lines(table)))
    body = [row for row in found.rows if row[0] != "metric"]
    assert [row for row in found.rows if row[0] == "metric"] == [list(cells.columns[1:])] * 2
    assert body == cells.drop(columns="family").to_numpy().tolist()
    assert body[0] == [
        "information gain (nats)",
        "HighlyKnown",
        "0 [−0.125, 0.125] (8)",
        "0 [−0.125, 0.125] (8)",
        "–",
        "opposite sign; ρ −1.00, p 0.083",
    ]
    assert body[3][1:4] == ["Unknown", "0.75 [0.625, 0.875] (11)", "−0.75 [−0.875, −0.625] (11)"]
    assert body[4][1:] == [
        "all",
        "−0.25 [−0.5, −0.125] (6)",
        "−0.25 [−0.5, −0.125] (6)",
        "−0.083",
        "same sign*",
    ]


def test_hostile_names_are_shown_as_they_are() -> None:
    table = table_of(HOSTILE)
    agreed = agreement_table(table, trend_table({}))
    found = rendered(markdown(table, agreed, list(HOSTILE), list(HOSTILE)))
    header = next(row for row in found.rows if row[0] == "metric")
    wanted = {" ".join(one_line(f"{name} (external)").split()) for name in HOSTILE}
    assert {" ".join(name.split()) for name in header} >= wanted
    assert all(len(row) == len(header) for row in found.rows)
    assert found.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


@pytest.mark.parametrize(
    "name", [*HOSTILE, "- item", "1. one", "# head", "> quote", "+ plus", "=====", "***", "http://x.y"]
)
def test_a_line_of_markdown_says_itself(name: str) -> None:
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(escaped_markdown(name))
    parser = Cells(f"<table><tr><td>{html}</td></tr></table>")
    assert parser.tags == {"table", "tr", "td", "p"}
    assert parser.rows[0][0].strip() == one_line(name)


def test_latex_is_balanced_and_has_the_same_cells() -> None:
    table = table_of(HOSTILE)
    agreed = agreement_table(table, trend_table({}))
    text = latex(table, agreed)
    rows = tex_rows(text)
    cells = grid(table, agreed).drop(columns="family")
    assert len(rows) == len(cells)
    assert [[plain(cell) for cell in row] for row in rows] == [
        [one_line(cell) for cell in row] for row in cells.to_numpy()
    ]
    for forbidden in (r"\input", r"\write", "$x$"):
        assert forbidden not in text
    assert r"\multicolumn{3}{l}{\textit{Reading the base}} \\" in text
    assert text.count(r"\multicolumn{3}") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    table = table_of((HOSTILE[0][:30], HOSTILE[2], "café"))
    (tmp_path / "comparison.tex").write_text(latex(table, agreement_table(table, trend_table({}))), encoding="utf-8")
    document = r"""\documentclass[a4paper,landscape]{article}
\usepackage[margin=1cm]{geometry}
\usepackage{booktabs,longtable}
\begin{document}
\input{comparison.tex}
\end{document}
"""
    (tmp_path / "document.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "document.pdf").stat().st_size > 5000


def plain(cell: str) -> str:
    """What LaTeX would set, undone from the escapes."""
    undone = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"\ldots{}": "…",
        "{[}": "[",
        "{]}": "]",
        "$-$": "−",
        "--": "–",
        r"$\delta$": "δ",
        "$^2$": "²",
        r"$\rho$": "ρ",
    }
    for escaped, character in undone.items():
        cell = cell.replace(escaped, character)
    return re.sub(r"\\([&%$#_{}])", r"\1", cell)


@pytest.mark.parametrize("character", list("&%$#_{}~^\\<>|[]"))
def test_every_special_character_of_latex(character: str) -> None:
    escaped = escaped_latex(f"a{character}b")
    assert plain(escaped) == f"a{character}b"
    assert escaped != f"a{character}b"


def test_names_of_metrics_can_be_set() -> None:
    for about in METRICS.values():
        left = re.sub(r"\$[^$]*\$", "", escaped_latex(f"{about.name} ({about.unit})"))
        assert left.isascii(), about.name


def test_numbers_are_short_and_missing_ones_are_grouped() -> None:
    assert [number(value) for value in (0.12345, -3.0, 1234.5, 0.00001)] == ["0.123", "−3", "1.23e+03", "1e−05"]
    row = {"value": 0.5, "low": float("nan"), "high": float("nan"), "n": 0}
    assert cell_text(row) == "0.5"
    assert cell_text(row | {"low": 0.25, "n": 3}) == "0.5 [0.25, …] (3)"
    table = make_table(
        [missing_row(LLM, "gain", "why"), missing_row(LLM, "slope", "why"), missing_row(LLM, "recovery", "x")]
    )
    assert missing_lines(table) == ["llm: gain, slope: why", "llm: recovery: x"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(learner=LLM, metric="gain", value=1.0)] * 2, "the comparison: llm .measured. has gain twice"),
        ([Row(learner=LLM, metric="gain")], "row 1 .llm, gain.: value is not a number"),
        ([Row(learner=LLM, metric="gain", value=float("inf"))], "value is infinite"),
        ([Row(learner=LLM, metric="gain", value=1.0, low=2.0, high=3.0)], "does not hold the value 1"),
    ],
)
def test_rows_that_cannot_be(rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_table(rows)


def test_one_learner_from_two_sources_is_two_series(tmp_path: Path) -> None:
    table = table_of((LLM,))
    check_rows(table, "here")
    cells = grid(table, agreement_table(table, trend_table({})))
    assert list(cells.columns[3:-1]) == [DIFFUSION, LLM, "llm (external)", "llm (published)"]
