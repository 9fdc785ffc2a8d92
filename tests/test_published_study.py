"""The published study: rebuilt pages are the committed ones, and no claim outlives its numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffusion_sft.report.wording import Estimate

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from study import pages  # noqa: E402
from study.analyses import system_rows  # noqa: E402
from study.checking import difference, differences  # noqa: E402
from study.halves import SHARES, over_runs, with_all  # noqa: E402
from study.learnt import learnt, learnt_points  # noqa: E402
from study.numbers import Published  # noqa: E402
from study.pages import PAGES, README, ClaimError, write_pages  # noqa: E402

RESULTS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def published() -> Published:
    return Published(RESULTS)


def test_the_pages_are_what_the_tables_say(published: Published, tmp_path: Path) -> None:
    (tmp_path / README).write_text((ROOT / README).read_text(encoding="utf-8"), encoding="utf-8")
    write_pages(published, tmp_path)
    for page in (*PAGES.values(), README):
        assert (tmp_path / page).read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8"), page


def test_a_claim_that_does_not_hold_stops_the_page(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in PAGES:
        (tmp_path / page).write_text("{{ holds(1 < 2) }}A.\n")
    (tmp_path / "findings.md.j2").write_text("{{ holds(2 < 1) }}B.\n")
    (tmp_path / README).write_text((ROOT / README).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    with pytest.raises(ClaimError, match=r"findings.md.j2: a claim does not hold"):
        write_pages(published, tmp_path)


def test_paragraphs_are_filled_and_tables_and_code_are_not() -> None:
    long = "word " * 60
    page = pages.filled(
        f"# Title\n\n{long}\n{long}\n\n\n\n- {long}\n- short\n\n| a | {long} |\n\n```bash\n{long}\n\n{long}\n```\n"
    )
    lines = page.splitlines()
    assert max(len(line) for line in lines[2:6]) <= pages.WIDTH
    assert page.count("word") == 360
    assert "\n\n\n" not in page
    assert [line for line in lines if line.startswith("- ")][1] == "- short"
    assert f"| a | {long} |" in lines
    assert (lines.count(long), lines.count("```")) == (2, 1)


def test_numbers_over_runs_are_students() -> None:
    found = over_runs([1.0, 2.0, 4.0, float("nan")])
    assert found.value == pytest.approx(7 / 3)
    assert found.high - found.value == pytest.approx(4.302652729911275 * np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert not over_runs([1.0]).has_interval
    assert isinstance(found, Estimate)


def test_what_was_altered_is_named(tmp_path: Path) -> None:
    for root, value in (("a", 1.0), ("b", 1.0 + 1e-6)):
        (tmp_path / root).mkdir()
        pd.DataFrame({"x": [value, 2.0]}).to_parquet(tmp_path / root / "t.parquet")
        (tmp_path / root / "t.csv").write_text(root)
        (tmp_path / root / "n.md").write_text(root)
        Image.fromarray(np.full((8, 8, 3), int(200 * value), np.uint8)).save(tmp_path / root / "p.png")
    found = differences(tmp_path / "a", tmp_path / "b", ["."])
    assert [line.split(":")[0] for line in found.lines] == ["n.md", "t.parquet"]
    assert found.num_files == 3
    (tmp_path / "b" / "n.md").unlink()
    assert "n.md: not rebuilt" in differences(tmp_path / "a", tmp_path / "b", ["."]).lines
    pd.DataFrame({"x": [1.0 + 1e-12, 2.0]}).to_parquet(tmp_path / "b" / "t.parquet")
    assert difference(tmp_path / "a" / "t.parquet", tmp_path / "b" / "t.parquet") == ""
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "b" / "p.png")
    assert "pixels differ" in difference(tmp_path / "a" / "p.png", tmp_path / "b" / "p.png")


def test_every_published_run_is_one_that_was_planned(published: Published) -> None:
    for half in published.halves.values():
        folders = {path.name for path in (half.folder / "finetune").iterdir()}
        assert folders == set(half.runs["run"]), (half.world, half.learner)
        assert np.isfinite(half.asked[["accuracy_before", "accuracy_end", "error_nats_end"]]).all(axis=None)
        assert half.asked["accuracy_end"].between(0, 1).all()


def test_all_categories_together_are_weighted_by_their_questions() -> None:
    table = pd.DataFrame(
        {
            "update": [0, 0, 5],
            "role": "test",
            "category": ["Unknown", "HighlyKnown", "Unknown"],
            "num_examples": [1, 3, 2],
            "accuracy": [0.0, 1.0, 0.5],
            "error_nats": [4.0, 2.0, 3.0],
        }
    )
    found = with_all(table)
    together = found[found["category"] == "all"].set_index("update")
    assert len(found) == 5
    assert together["accuracy"].to_dict() == {0: 0.75, 5: 0.5}
    assert together["error_nats"].to_dict() == {0: 2.5, 5: 3.0}
    assert together["num_examples"].to_dict() == {0: 4, 5: 2}


def test_what_is_newly_learnt_is_a_plain_regression_of_the_evaluations(published: Published) -> None:
    half = published.half("llm", "world-1")
    points, found = learnt_points(half), learnt(half)
    slope, start = np.polyfit(points["newly"], points["change"], 1)
    residual = points["change"] - slope * points["newly"] - start
    assert found.slope.value == pytest.approx(slope)
    assert found.slope.low < slope < found.slope.high
    assert found.r2 == pytest.approx(1 - residual.var(ddof=0) / points["change"].var(ddof=0))
    run = half.asked[(half.asked["mix"] == "unknown-100") & (half.asked["seed"] == 0)].set_index(["role", "category"])
    last = points[(points["mix"] == "unknown-100") & (points["seed"] == 0)].sort_values("update").iloc[-1]
    assert last["newly"] == pytest.approx(run.loc[("trained", "all"), "accuracy_change"])
    assert last["change"] == pytest.approx(run.loc[("test", "HighlyKnown"), "accuracy_change"])


def test_the_published_design_is_the_dynamics_of_its_mixes_alone(published: Published) -> None:
    half = published.half("llm", "world-0")
    points = half.table("dynamics/linear_model_points")
    own = points[points["mix"].isin(SHARES) & (points["role"] == "test") & (points["method"] == "full")]
    columns = np.column_stack([np.ones(len(own)), own["fitted_known_share"], own["fitted_unknown_share"]])
    expected = np.linalg.lstsq(columns, own["accuracy"].to_numpy(), rcond=None)[0]
    for term, value in zip(("b0", "b_known", "b_unknown"), expected, strict=True):
        assert half.coefficient(term, shares_alone=True)["estimate"] == pytest.approx(value)
    assert half.coefficient("b0")["num_points"] > len(own)


def test_a_system_has_a_row_for_each_measure_and_world(published: Published) -> None:
    rows = system_rows(published, "llm", "weights")
    assert [row.world for row in rows] == published.worlds_of("llm") * (len(rows) // 2)
    table = published.half("llm", "world-1").table("solve/categories").set_index(["measure", "category"])
    row = next(row for row in rows if row.world == "world-1" and row.name.startswith("‖δ‖"))
    for category, mean in row.means.items():
        assert mean == Estimate(**table.loc[("solution_norm", category), ["value", "low", "high"]].to_dict())
