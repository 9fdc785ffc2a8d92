"""Folders in the making: several studies, parts that are missing, results that are kept, numbers that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_compare import compared_with, one, write_half

from diffusion_sft.compare.rows import MISSING
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_json, read_table, write_json, write_table
from diffusion_sft.records import LLM


def test_several_folders_are_clusters_of_the_same_concepts(tmp_path: Path) -> None:
    folders = []
    for number in range(3):
        half = write_half(tmp_path / f"seed{number}", LLM, seeds=(0,))
        table = read_table(half / "buckets" / "concepts.parquet")
        write_table(half / "buckets" / "concepts.parquet", table.assign(error_nats=table["error_nats"] + number))
        folders.append(str(tmp_path / f"seed{number}"))
    found = compared_with(tmp_path / "out", *folders)
    row = one(found, LLM, "prior_error", "Unknown")
    assert row["value"] == pytest.approx(130 + 1.5 + 1)
    assert (row["n"], row["num_runs"], row["interval"]) == (8, 3, "cluster-robust by concept and run")
    assert "24 readings" in row["note"]
    sets = one(found, LLM, "set_residual_10", "Unknown")
    assert (sets["n"], sets["num_runs"], sets["value"]) == (15, 3, 3 / 8)
    assert one(found, LLM, "forecast_fit_accuracy")["n_of"] == "studies"
    assert one(found, LLM, "b_known")["n"] == 12
    # A concept counts once in the contingency table, and every run is told by itself.
    association = found.verdict["learners"][LLM]["association"]
    assert association["num_concepts"] == 32
    assert set(association["by_run"]) == {"seed0", "seed1", "seed2"}
    # Two studies say next to nothing of their spread.
    two = compared_with(tmp_path / "two", *folders[:2])
    assert one(two, LLM, "prior_error", "Unknown")["interval"] == "cluster-robust by concept"
    sets = one(two, LLM, "set_residual_10", "Unknown")
    assert sets["interval"] == ""
    assert "from 0.375 to 0.375 over 2 runs" in sets["note"]


def test_what_is_missing_is_named_and_nothing_is_filled_in(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM)
    for name in ("systems", "correlations", "sets"):
        (half / "solve" / f"{name}.parquet").unlink()
    (half / "finetune" / "half-seed0" / "answers.parquet").unlink()
    concepts = read_table(half / "buckets" / "concepts.parquet")
    write_table(
        half / "buckets" / "concepts.parquet",
        concepts[concepts["category"] != "WeaklyKnown"].drop(columns="gain_nats"),
    )
    found = compared_with(tmp_path / "out", str(tmp_path / "study"))
    reason = f"{MISSING}study: solve/systems.parquet: not written by this run"
    assert one(found, LLM, "recovery")["note"] == reason
    assert one(found, LLM, "side_effect")["note"] == reason.replace("systems", "sets")
    assert one(found, LLM, "forecast_fit_accuracy")["note"] == reason.replace("systems", "correlations")
    assert "not in this run's tables" in one(found, LLM, "gain")["note"]
    assert one(found, LLM, "prior_error", "WeaklyKnown")["note"] == f"{MISSING}no fact of this category was read"
    assert found.verdict["missing"] == [
        "diffusion: no run has its half",
        "llm, study: finetune/half-seed0/answers.parquet: not written by this run",
    ]
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "## Missing" in text


def test_runs_on_other_answers_are_left_out(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    before = compared_with(tmp_path / "before", str(tmp_path / "study"))
    runs = read_table(half / "dynamics" / "runs.parquet")
    write_table(half / "dynamics" / "runs.parquet", runs.assign(in_linear_model=runs["mix"] != "half"))
    after = compared_with(tmp_path / "after", str(tmp_path / "study"))
    assert one(before, LLM, "fitted_share_convergence", "Unknown")["num_runs"] == 3
    assert one(after, LLM, "fitted_share_convergence", "Unknown")["num_runs"] == 2


def test_a_short_budget_is_said(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    write_json(half / "solve" / "solve.json", {"config": {"weights": {"num_steps": 5}}})
    found = compared_with(tmp_path / "out", str(tmp_path / "study"))
    for metric in ("residual_10", "set_residual_10"):
        assert "study: after 5 steps, its whole budget" in one(found, LLM, metric, "Unknown")["note"]


def test_what_was_written_is_kept_until_something_changes(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    out = tmp_path / "out"
    first = compared_with(out, str(tmp_path / "study"))
    stamp = (out / "comparison.parquet").stat().st_mtime_ns
    again = compared_with(out, str(tmp_path / "study"))
    assert (out / "comparison.parquet").stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(first.table, again.table)
    pd.testing.assert_frame_equal(first.agreement, again.agreement)
    assert again.verdict == read_json(out / "verdict.json")
    (out / "verdict.txt").unlink()
    compared_with(out, str(tmp_path / "study"))
    assert (out / "verdict.txt").is_file()
    table = read_table(half / "buckets" / "concepts.parquet")
    write_table(half / "buckets" / "concepts.parquet", table.assign(error_nats=1.0))
    changed = compared_with(out, str(tmp_path / "study"))
    assert one(changed, LLM, "prior_error", "Unknown")["value"] == 1


def test_an_infinite_number_is_refused(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    table = read_table(half / "solve" / "systems.parquet")
    table.loc[3, "value"] = np.inf
    write_table(half / "solve" / "systems.parquet", table)
    with pytest.raises(UserError, match="rounds_per_step of 'HighlyKnown-3' is infinite"):
        compared_with(tmp_path / "out", str(tmp_path / "study"))
    assert not (tmp_path / "out" / "comparison.parquet").exists()
