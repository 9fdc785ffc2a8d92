"""The charts' specifications: their data are the tables', their colours the page's, and they need no eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from synthetic_language import SUBJECTS, language_run
from synthetic_run import MIXES, NAMES, synthetic_run
from test_report import HOSTILE
from test_report_systems import write_solved

from diffusion_sft.files import read_table, write_table
from diffusion_sft.records import CATEGORIES
from diffusion_sft.report.chart_forms import Chart
from diffusion_sft.report.charts import ChartGroup, chart_groups
from diffusion_sft.report.run import learners_of, read_run
from diffusion_sft.report.scripts import chart_library
from diffusion_sft.report.svg import COLOURS
from diffusion_sft.report.systems import round_residuals
from diffusion_sft.report.systems_words import category_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves, solved; no test changes it."""
    run, _ = synthetic_run(tmp_path_factory.mktemp("both"), names=NAMES[:12], mixes=MIXES[:2])
    write_solved(run, "diffusion")
    write_solved(language_run(run, subjects=SUBJECTS[:4], seeds=(0, 1)), "llm")
    return run


@pytest.fixture(scope="module")
def groups(study: Path) -> dict[str, ChartGroup]:
    """Its charts."""
    return made(study)


def made(folder: Path) -> dict[str, ChartGroup]:
    """The groups of charts of a study by identity."""
    found = chart_groups({learner: read_run(folder, learner) for learner in learners_of(folder)})
    return {group.identity: group for group in found}


def rows_of(chart: Chart) -> pd.DataFrame:
    """The data of a chart."""
    spec: Any = chart.spec
    (values,) = spec["datasets"].values()
    return pd.DataFrame(values)


def close(found: pd.Series, table: pd.Series) -> None:
    """Equal cell by cell, missing ones too."""
    np.testing.assert_array_equal(found.astype(float).to_numpy(), table.astype(float).to_numpy())


def test_every_group_is_there(groups: dict[str, ChartGroup]) -> None:
    own = ["gains", "learning-charts", "fid-charts", "residual-charts"]
    assert list(groups) == [*own, *(f"llm-{name}" for name in own if name != "fid-charts")]
    identities = [chart.identity for group in groups.values() for chart in group.charts]
    assert len(identities) == len(set(identities))
    assert [len(group.charts) for group in groups.values()] == [2, 3, 7, 2, 2, 5, 2]


@pytest.mark.parametrize(("learner", "prefix", "first"), [("diffusion", "", 0), ("llm", "llm-", 12)])
def test_points_are_the_concepts_and_lead_to_their_pages(
    groups: dict[str, ChartGroup], study: Path, learner: str, prefix: str, first: int
) -> None:
    table = read_run(study, learner).concepts
    assert table is not None
    for chart in groups[f"{prefix}gains"].charts:
        points = rows_of(chart)
        assert points["name"].tolist() == table["concept"].tolist()
        assert points["category"].tolist() == table["category"].tolist()
        close(points["gain"], table["gain_nats"])
        close(points["error"], table["error_nats"])
        close(points["exposure"], table["exposure"])
        assert points["page"].tolist() == [f"#concept/{first + n}" for n in range(len(table))]
        unseen = points["exposure"] == 0
        assert unseen.any()
        assert (points["place"][unseen].abs() < 0.5).all()
        close(points["place"][~unseen], table["exposure"][~unseen.to_numpy()])


def test_curves_are_the_evaluations(groups: dict[str, ChartGroup], study: Path) -> None:
    group = groups["llm-learning-charts"]
    mixes = read_run(study, "llm").first_runs
    assert group.options == tuple(mix.name for mix in mixes)
    for chart in group.charts:
        role = chart.identity.removeprefix("llm-learning-chart-")
        shown = rows_of(chart)
        for place, mix in enumerate(mixes):
            table = read_table(study / f"llm/finetune/{mix.name}/evaluations.parquet").query(f"role == '{role}'")
            here = shown[shown["option"] == place]
            for column, name in (("accuracy", "accuracy"), ("low", "accuracy_low"), ("high", "accuracy_high")):
                close(here[column], table[name])
            assert here["num_correct"].tolist() == table["num_correct"].tolist()
            assert here["category"].tolist() == table["category"].tolist()


def test_distances_are_the_measures(groups: dict[str, ChartGroup], study: Path) -> None:
    measures = read_table(study / "evaluate/measures.parquet")
    group = groups["fid-charts"]
    assert group.options[0] == "FID"
    assert len(group.options) == measures["metric"].nunique()
    for chart in group.charts:
        table = measures[measures["bucket"] == chart.title]
        shown = rows_of(chart)
        assert len(shown) == len(table)
        first = shown[shown["option"] == 0]
        fid = table[table["metric"] == "fid"]
        for column in ("value", "low", "high"):
            close(first[column], fid[column])
        assert first["shown"].tolist() == ["base", *(f"mix {mix}" for mix in MIXES[:2])]


def test_residuals_are_the_tables(groups: dict[str, ChartGroup], study: Path) -> None:
    run = read_run(study)
    rounds, krylov = groups["residual-charts"].charts
    lines = round_residuals(run.solved["generations"], category_of(run))
    shown = rows_of(rounds)
    close(shown["residual"], lines.loc[lines["residual"] > 0, "residual"])
    curves = run.solved["curves"]
    shown = rows_of(krylov).set_index(["category", "step"])["residual"]
    for (category, step), value in curves.set_index(["category", "step"])["relative_residual"].items():
        assert shown.get((category, step), value) == value
    assert len(shown) > 60
    assert groups["residual-charts"].legend == (*CATEGORIES, "shuffled")


def test_colours_are_the_pages(groups: dict[str, ChartGroup]) -> None:
    for group in groups.values():
        for chart in group.charts:
            spec: Any = chart.spec
            for layer in spec.get("layer", [spec]):
                colour = layer["encoding"].get("color")
                if colour is None:
                    continue
                given = dict(zip(colour["scale"]["domain"], colour["scale"]["range"], strict=True))
                for category in CATEGORIES:
                    assert given[category] == f"var(--{category}, {COLOURS[category]})"
            assert "legend" not in spec
            assert spec["width"] == "container"
    known = groups["fid-charts"].charts[0]
    assert f"var(--bucket-known, {COLOURS['known']})" in str(known.spec)


def test_every_specification_compiles(groups: dict[str, ChartGroup]) -> None:
    for group in groups.values():
        for chart in (group.charts[0], group.charts[-1]):
            alt.Chart.from_dict(dict(chart.spec))  # raises where the schema does not allow it
            compiled: Any = vl_convert.vegalite_to_vega(dict(chart.spec))
            assert compiled["marks"]


def test_the_library_is_one_script_without_addresses() -> None:
    text = chart_library()
    assert 500_000 < len(text) < 2_000_000
    assert "vegaEmbed" in text
    assert chart_library() is text


def test_names_are_cut_and_numbers_may_be_lacking(tmp_path: Path) -> None:
    names = [name.encode("utf-8", "replace").decode() for name in HOSTILE]
    run, _ = synthetic_run(tmp_path, names=names, mixes=(names[0][1:7], "b"))
    table = read_table(run / "buckets/concepts.parquet")
    table.loc[0, ["gain_nats", "error_nats"]] = np.nan
    table["exposure"] = pd.array([pd.NA] * len(table), dtype="Int64")
    write_table(run / "buckets/concepts.parquet", table)
    measures = read_table(run / "evaluate/measures.parquet")
    write_table(run / "evaluate/measures.parquet", measures.assign(low=np.nan, high=np.nan))
    found = made(run)
    (points,) = found["gains"].charts
    shown = rows_of(points)
    assert shown["name"].map(len).max() <= 60
    assert shown["gain"].isna().tolist() == [True] + [False] * (len(names) - 1)
    assert rows_of(found["fid-charts"].charts[0])["low"].isna().all()


def test_a_study_without_tables_has_no_charts(tmp_path: Path) -> None:
    assert made(tmp_path) == {}
