"""Results made elsewhere: what is in order comes through unchanged, what is not is named with its column and row."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from test_compare import compared_with, one, write_half

from diffusion_sft.compare.external import OPTIONAL, REQUIRED, external_rows
from diffusion_sft.compare.metrics import METRICS
from diffusion_sft.errors import UserError
from diffusion_sft.records import CATEGORIES, DIFFUSION, LLM

ROWS = [
    *({"learner": "pythia", "metric": "gain", "category": c, "value": 3.0 - n} for n, c in enumerate(CATEGORIES)),
    {
        "learner": "pythia",
        "metric": "b_unknown",
        "category": "",
        "value": -0.05,
        "low": -0.09,
        "high": -0.01,
        "n": 36,
    },
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves."""
    folder = tmp_path_factory.mktemp("external") / "study"
    write_half(folder, DIFFUSION, seeds=(0,))
    write_half(folder, LLM, seeds=(0,))
    return folder


def file_of(folder: Path, rows: list[dict[str, object]], name: str = "elsewhere.csv") -> str:
    """The rows as a file; parquet where its name ends so."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if name.endswith(".parquet"):
        table.to_parquet(folder / name, index=False)
    else:
        table.to_csv(folder / name, index=False)
    return str(folder / name)


@pytest.mark.parametrize("name", ["elsewhere.csv", "elsewhere.parquet"])
def test_a_round_trip(name: str, study: Path, tmp_path: Path) -> None:
    found = compared_with(tmp_path / "out", str(study), external=[file_of(tmp_path, ROWS, name)])
    for row in ROWS:
        kept = one(found, "pythia", str(row["metric"]), str(row["category"]), "external")
        assert kept["value"] == row["value"]
        assert kept["unit"] == METRICS[str(row["metric"])].unit
        assert kept["note"] == name
    slope = one(found, "pythia", "b_unknown", source="external")
    assert (slope["low"], slope["high"], slope["n"]) == (-0.09, -0.01, 36)
    pairs = found.agreement.set_index(["metric", "first", "second"])
    row = pairs.loc[("gain", DIFFUSION, "pythia (external)")]
    assert row["spearman"] == pytest.approx(1)
    assert bool(row["same_order"])
    # It has no readings of single concepts, so no trend of them.
    assert pd.isna(row["second_rho"])
    assert pd.isna(row["both_exclude_zero"])
    assert bool(pairs.loc[("b_unknown", LLM, "pythia (external)"), "same_sign"])


def test_files_alone_are_enough_and_the_table_itself_comes_back(study: Path, tmp_path: Path) -> None:
    first = compared_with(tmp_path / "out", str(study))
    own = first.table[(first.table["source"] == "measured") & (first.table["learner"] == LLM)]
    columns = [name for name in (*REQUIRED, *OPTIONAL) if name in own]
    own[columns].assign(learner="again").to_csv(tmp_path / "again.csv", index=False)
    found = compared_with(tmp_path / "second", external=[str(tmp_path / "again.csv")])
    back = found.table[found.table["source"] == "external"]
    assert len(back) == len(own)
    pd.testing.assert_series_equal(back["value"], own["value"], check_index=False)
    pd.testing.assert_series_equal(back["high"], own["high"], check_index=False)
    assert found.verdict["verdicts"] == {}
    assert found.verdict["missing"] == ["diffusion: no run has its half", "llm: no run has its half"]


def test_an_empty_value_is_missing_with_its_note(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "value": None, "note": "not run"}, {**ROWS[1], "value": None}]
    found = external_rows([file_of(tmp_path, rows)])
    assert [row.note for row in found] == ["missing: not run", "missing: no value in elsewhere.csv"]
    assert math.isnan(found[0].value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "many"}, "row 2, column value: 'many' is not a number"),
        ({"value": "inf"}, "row 2, column value: 'inf' is not finite"),
        ({"value": "nan"}, "row 2, column value: 'nan' is not finite"),
        ({"low": "-inf"}, "row 2, column low: '-inf' is not finite"),
        ({"low": 5}, r"row 2 .*: the interval \[5, nan\] does not hold the value 2"),
        ({"n": -1}, "row 2, column n: a count is needed, not -1"),
        ({"n": 1.5}, "row 2, column n: a count is needed, not 1.5"),
        ({"metric": "gian"}, "row 2, column metric: 'gian' is not a metric; did you mean gain?"),
        ({"metric": "zzz"}, "is not a metric; docs/comparison.md lists them"),
        ({"category": "Known"}, "row 2, column category: gain needs one of HighlyKnown, MaybeKnown"),
        ({"metric": "b_known"}, "b_known needs nothing, it has no categories, not 'MaybeKnown'"),
        ({"metric": "category_share"}, r"category_share lies in 0..1, not 2; percent are not shares"),
        ({"metric": "outside_change_early_stop", "value": -50}, r"lies in -1..1, not -50"),
        ({"unit": "bits"}, "row 2, column unit: gain is told in 'nats', not 'bits'"),
        ({"learner": ""}, "row 2, column learner: 1 to 60 printable characters"),
        ({"learner": "a\x1b[2J"}, "row 2, column learner"),
        ({"learner": "x" * 61}, "row 2, column learner"),
        ({"category": "HighlyKnown"}, "pythia .*has gain of HighlyKnown twice"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [dict(ROWS[0]), {**ROWS[1], **change}]
    with pytest.raises(UserError, match=message) as error:
        external_rows([file_of(tmp_path, rows)])
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "elsewhere.csv" in str(error.value)


def test_columns_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column metric, value; needed are learner, metric, category, value"):
        external_rows([file_of(tmp_path, [{"learner": "a", "category": "Unknown"}])])
    with pytest.raises(UserError, match="column 'noot' is not known; did you mean note?"):
        external_rows([file_of(tmp_path, [{**ROWS[0], "noot": 1}])])
    with pytest.raises(UserError, match="no rows"):
        (tmp_path / "none.csv").write_text("learner,metric,category,value\n")
        external_rows([str(tmp_path / "none.csv")])


def test_files_are_checked_and_never_unpickled(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.pkl", b"\x80\x04.", r"a \.csv or \.parquet file is expected"),
        ("b.parquet", b"\x80\x04.", "not a readable parquet table"),
        ("c.csv", b"\xff\xfe\x00bad", "not a readable CSV file"),
        ("d.csv", b"", "not a readable CSV file"),
        ("e.csv", b'learner,metric,category,value\n"open', "not a readable CSV file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            external_rows([str(tmp_path / name)])
        assert name in str(error.value)


def test_the_same_number_in_two_files(tmp_path: Path) -> None:
    files = [file_of(tmp_path / place, ROWS) for place in ("a", "b")]
    with pytest.raises(UserError, match="pythia has gain of HighlyKnown twice"):
        external_rows(files)


def test_the_example_of_the_documentation_is_in_order(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text(encoding="utf-8")
    example = text.split("```csv\n")[1].split("```")[0]
    (tmp_path / "example.csv").write_text(example, encoding="utf-8")
    assert len(external_rows([str(tmp_path / "example.csv")])) == example.count("\n") - 1
    for metric in METRICS:
        # Families of names are told once, with the varying part in angle brackets.
        stem = metric.removesuffix("_early_stop").removesuffix("_convergence").removesuffix("_other_relations")
        assert f"`{metric}`" in text or f"`{stem}" in text or "forecast_" in metric or "start_" in metric, metric
