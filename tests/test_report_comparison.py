"""The report's section on both learners: what it shows is what `compare` wrote, and foreign text stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from test_compare import compared_with, write_half

from diffusion_sft.files import read_json, read_table, write_json, write_table
from diffusion_sft.records import CATEGORIES, DIFFUSION, LLM
from diffusion_sft.report.cells import Table
from diffusion_sft.report.comparison import ComparisonSection, comparison_section, series_name
from diffusion_sft.report.page import _environment
from diffusion_sft.report.wording import Estimate, reading, share_reading

HOSTILE = "<script>alert(1)</script> & \"quotes' | 100%"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of both halves, compared with a learner of a hostile name."""
    folder = tmp_path_factory.mktemp("report") / "study"
    write_half(folder, DIFFUSION, seeds=(0,), error_sign=-1)
    write_half(folder, LLM, seeds=(0,))
    rows = [{"learner": HOSTILE, "metric": "gain", "category": c, "value": 3.0 - n} for n, c in enumerate(CATEGORIES)]
    pd.DataFrame(rows).to_csv(folder / "elsewhere.csv", index=False)
    compared_with(folder / "compare", str(folder), external=[str(folder / "elsewhere.csv")])
    return folder


@pytest.fixture(scope="module")
def section(study: Path) -> ComparisonSection:
    """What the page shows of it."""
    found = comparison_section(study)
    assert found is not None
    return found


def html_of(section: ComparisonSection) -> str:
    """The section by itself."""
    template = _environment().get_template("comparison.html.j2")
    name = "compare/comparison.csv"
    return template.render(comparison=section, files=[(name, name)], missing=[])


def rows_of(table: Table) -> dict[tuple[str, str], tuple[str, ...]]:
    """The text of each row's cells by the group's heading and the row's own."""
    return {
        (group.heading, row[0].text): tuple(cell.text for cell in row[1:])
        for group in table.groups
        for row in group.rows
    }


def test_every_number_is_the_tables(study: Path, section: ComparisonSection) -> None:
    long = read_table(study / "compare" / "comparison.parquet")
    shown = {key: cells for table in section.tables for key, cells in rows_of(table).items()}
    told = long[long["value"].notna()]
    assert len(shown) == len(told.groupby(["metric", "learner", "source"]))
    for row in told.to_dict("records"):
        heading = next(key[0] for key in shown if key[0].startswith(f"{row['name']} ("))
        cells = shown[heading, series_name(row["learner"], row["source"])]
        estimate = Estimate(value=row["value"], low=row["low"], high=row["high"])
        if row["unit"] in ("share", "change of share"):
            wanted = share_reading(estimate, signed=row["unit"] != "share", decimals=1)[0]
        else:
            wanted = reading(estimate)[0]
        assert cells[CATEGORIES.index(row["category"]) if row["category"] else 0] == wanted


def test_trends_stand_beside_their_learner(study: Path, section: ComparisonSection) -> None:
    trends = read_table(study / "compare" / "trends.parquet").set_index(["learner", "metric"])
    base = rows_of(section.tables[0])
    for learner in (DIFFUSION, LLM):
        row = trends.loc[(learner, "gain")]
        wanted = reading(Estimate(value=row["rho"], low=row["rho_low"], high=row["rho_high"]), signed=True)[0]
        assert base["information gain (nats)", series_name(learner)][-1] == wanted
    assert base["information gain (nats)", f"{HOSTILE}, external"][-1] == "–"


def test_agreement_is_told_for_every_pair(study: Path, section: ComparisonSection) -> None:
    table = read_table(study / "compare" / "agreement.parquet")
    assert section.agreement is not None
    rows = rows_of(section.agreement)
    assert len(rows) == len(table)
    assert rows["diffusion model and language model", "prior error"] == ("opposite", "−1.00", "no")
    assert rows["diffusion model and language model", "information gain"] == ("same", "+1.00", "yes")
    assert rows["language model and language model (published)", "b_unknown"][0] in ("same", "opposite")


def test_the_verdict_is_the_records(study: Path, section: ComparisonSection) -> None:
    verdict = read_json(study / "compare" / "verdict.json")
    assert section.headline == verdict["headline"]
    assert [half.word for half in section.halves] == [verdict["verdicts"][learner] for learner in (DIFFUSION, LLM)]
    answers = [verdict["learners"][learner]["answer"] for learner in (DIFFUSION, LLM)]
    assert [half.answer for half in section.halves] == answers
    assert [text for half in section.halves for text in half.sentences] == verdict["sentences"][1:]


def test_the_page_holds_hostile_text_as_text(section: ComparisonSection) -> None:
    html = html_of(section)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;quotes&#39; | 100%" in html
    assert html.count('<section id="comparison">') == 1
    assert 'href="compare/comparison.csv"' in html
    identities = re.findall(r'id="(table-comparison-[^"]+)"', html)
    assert len(identities) == len(set(identities)) == len(section.tables) + 1
    # No heading of a group is cut: each fits into what the page shows of a name.
    assert all(len(group.heading) <= 60 for table in section.tables for group in table.groups)


def test_hostile_records_are_shown_as_text_too(study: Path, tmp_path: Path) -> None:
    verdict = read_json(study / "compare" / "verdict.json")
    for name in ("comparison", "agreement", "trends"):
        write_table(tmp_path / "compare" / f"{name}.parquet", read_table(study / "compare" / f"{name}.parquet"))
    verdict["headline"], verdict["missing"] = HOSTILE, [HOSTILE]
    verdict["learners"][LLM]["sentences"] = [HOSTILE * 100]
    write_json(tmp_path / "compare" / "verdict.json", verdict)
    found = comparison_section(tmp_path)
    assert found is not None
    assert "<script" not in html_of(found)


def test_what_is_not_there_is_named(study: Path, tmp_path: Path) -> None:
    assert comparison_section(tmp_path) is None
    write_table(tmp_path / "compare" / "comparison.parquet", pd.DataFrame({"learner": ["llm"]}))
    (tmp_path / "compare" / "trends.parquet").write_bytes(b"no table")
    found = comparison_section(tmp_path)
    assert found is not None
    assert (found.headline, found.agreement, found.tables, found.halves) == ("", None, (), ())
    text = html_of(found)
    for name in (
        "comparison.parquet: no column metric, family",
        "agreement.parquet: not there",
        "trends.parquet: not there",
        "verdict.json",
    ):
        assert f"compare/{name}" in text


def test_missing_metrics_are_named_once_for_each_reason(tmp_path: Path) -> None:
    half = write_half(tmp_path, LLM, seeds=(0,))
    (half / "solve" / "systems.parquet").unlink()
    compared_with(tmp_path / "compare", str(tmp_path))
    found = comparison_section(tmp_path)
    assert found is not None
    systems = [line for line in found.missing if "solve/systems.parquet: not written by this run" in line]
    assert len(systems) == 1
    assert systems[0].startswith(
        "language model: rounds over sequential steps, R/T, early slope of the log residual,"
    )
    assert "diffusion: no run has its half" in found.missing
