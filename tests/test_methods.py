"""A study with several methods of fine-tuning: runs of different methods are never pooled, by any reader."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_language import language_run
from test_compare import MIXES, write_half, write_run
from test_dynamics_stage import PAPER, diffusion_runs, language_runs, one
from test_language_story import QUICK, base, questions  # noqa: F401

from diffusion_sft.cli import main
from diffusion_sft.compare import CompareConfig, compare
from diffusion_sft.compare.half import Half
from diffusion_sft.dynamics import DynamicsResult, TunedRun, dynamics_text, summarise_runs
from diffusion_sft.dynamics.agreement import agreement
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_table, write_table
from diffusion_sft.records import LLM
from diffusion_sft.report.dynamics import half_dynamics
from diffusion_sft.report.run import read_run
from diffusion_sft.serve.halves import _num_runs


def of_methods(folder: Path) -> list[TunedRun]:
    """Runs that follow one line as `full`, and the same mixes and seeds with another one as `lora`."""
    other = [replace(run, mix=f"unknown{20 * place}") for place, run in enumerate(diffusion_runs(folder / "lora"))]
    plain = language_runs(folder / "full")
    return [*plain, *(replace(run, mix=plain[0].mix, method="lora") for run in other)]


def test_each_method_has_the_tables_it_would_have_alone(tmp_path: Path) -> None:
    runs = of_methods(tmp_path)
    together = summarise_runs(runs, "llm", tmp_path / "together")
    assert list(dict.fromkeys(together.linear_model.method)) == ["full", "lora"]
    for method in ("full", "lora"):
        alone = summarise_runs([run for run in runs if run.method == method], "llm", tmp_path / method / "alone")
        own = together.of_method(method)
        for field in fields(DynamicsResult):
            ours, theirs = getattr(own, field.name).reset_index(drop=True), getattr(alone, field.name)
            assert len(ours) > 0
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True, check_dtype=False)
        assert set(agreement(own.linear_model, PAPER).method) <= {method}
        text = dynamics_text(alone, PAPER)
        assert "method" not in text.splitlines()[0]
        named = text.replace("llm learner:", f"llm learner, method {method}:", 1)
        assert named in dynamics_text(together, PAPER)


def test_a_run_is_a_mix_a_seed_and_a_method(tmp_path: Path) -> None:
    run = language_runs(tmp_path)[0]
    table = summarise_runs([run, replace(run, method="lora")], "llm", tmp_path / "out").runs
    assert list(table.method) == ["full", "lora"]
    assert list(table.run) == [run.folder.name] * 2
    with pytest.raises(UserError, match="given twice with the method lora; give each run once"):
        summarise_runs([replace(run, method="lora")] * 2, "llm", tmp_path / "out")


def test_the_page_shows_each_method_by_itself(tmp_path: Path) -> None:
    half = language_run(tmp_path)
    assert [own is run for run in [read_run(tmp_path, LLM)] for own in run.by_method()] == [True]
    tables = {path.name: read_table(path) for path in (half / "dynamics").glob("*.parquet")}
    alone = half_dynamics(read_run(tmp_path, LLM), PAPER)
    for name, table in tables.items():
        other = table.assign(method="lora")
        if name == "linear_model.parquet":
            other = other.assign(estimate=other.estimate / 2)
        write_table(half / "dynamics" / name, pd.concat([table, other], ignore_index=True))
    full, lora = (half_dynamics(run, PAPER) for run in read_run(tmp_path, LLM).by_method())
    assert (full.heading, lora.heading) == (f"{alone.heading}, method full", f"{alone.heading}, method lora")
    assert full.sentences == alone.sentences
    assert lora.sentences != alone.sentences
    assert full.model is not None
    assert lora.model is not None
    assert alone.model is not None
    assert full.model.groups == alone.model.groups
    assert lora.model.groups != alone.model.groups
    assert full.model.identity != lora.model.identity
    # Tables that were written before there were methods.
    for name, table in tables.items():
        write_table(half / "dynamics" / name, table.drop(columns=["method", "run"], errors="ignore"))
    assert [half_dynamics(run, PAPER) for run in read_run(tmp_path, LLM).by_method()] == [alone]


def test_learners_are_compared_by_the_first_method_alone(tmp_path: Path) -> None:
    study = tmp_path / "study"
    half = write_half(study, LLM)
    alone = compare(CompareConfig(runs=[str(study)], output_dir=str(tmp_path / "alone")))
    runs = [
        TunedRun(mix=mix, seed=seed, folder=half / "finetune" / f"{mix}-seed{seed}")
        for mix in MIXES
        for seed in (0, 1)
    ]
    others = []
    for mix in MIXES:
        for seed in (0, 1):
            swapped = {"Unknown": 6} if mix != "unknown" else {"HighlyKnown": 6}
            run = write_run(tmp_path / "other", LLM, mix, seed, swapped)
            place = half / "finetune" / f"{mix}-lora-seed{seed}"
            shutil.copytree(run.folder, place)
            others.append(replace(run, folder=place, method="lora"))
    summarise_runs([*runs, *others], LLM, half / "dynamics")
    both = compare(CompareConfig(runs=[str(study)], output_dir=str(tmp_path / "both")))
    pd.testing.assert_frame_equal(both.table, alone.table)
    left_out = Half(LLM, "study", half).left_out
    assert left_out == ("runs of the method lora: a study is compared by its first, full",)
    assert f"llm, study: {left_out[0]}" in both.verdict["missing"]
    assert one(Half(LLM, "study", half).runs, mix="unknown", seed=0).run == "unknown-seed0"
    # Tables that were written before there were methods.
    for name in ("runs", "linear_model_points"):
        table = read_table(half / "dynamics" / f"{name}.parquet")
        table = table[table.method == "full"].drop(columns=["method", "run"], errors="ignore")
        write_table(half / "dynamics" / f"{name}.parquet", table)
    older = compare(CompareConfig(runs=[str(study)], output_dir=str(tmp_path / "older")))
    pd.testing.assert_frame_equal(older.table, alone.table)


def test_runs_to_come_are_counted_with_their_methods() -> None:
    mixes, methods = [{"name": "a"}, {"name": "b"}], [{"method": "full"}, {"method": "lora"}]
    assert _num_runs({"mixes": mixes, "methods": methods}, {"seeds": [0, 1, 2]}) == 12
    assert _num_runs({"mixes": mixes, "methods": []}, {"seeds": []}) == 2
    assert _num_runs({"mixes": mixes}, {}) == 2


def test_a_study_teaches_each_mix_with_each_method(
    base: Path,  # noqa: F811
    questions: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", "learners=[llm]", f"llm.base={base}", f"llm.questions.path={questions}", *QUICK]
    settings = ["llm.mixes=[{name: natural}]", "llm.methods=[{method: full}, {method: lora, rank: 2}]"]
    assert main([*command, *settings, "llm.probe.samples.num_samples=2", f"output_dir={tmp_path}"]) == 0
    half = tmp_path / "llm"
    assert {path.name for path in (half / "finetune").iterdir()} == {"natural-full", "natural-lora-rank2"}
    assert (half / "finetune" / "natural-full" / "model").is_dir()
    assert (half / "finetune" / "natural-lora-rank2" / "adapter_model.safetensors").is_file()
    runs = read_table(half / "dynamics" / "runs.parquet")
    assert list(runs.run) == ["natural-full", "natural-lora-rank2"]
    assert list(runs.method) == ["full", "lora-rank2"]
    assert set(runs.mix) == {"natural"}
    assert set(runs.kind) == {"Natural"}
    printed = capsys.readouterr().out
    assert "Fine-tuning of the llm learner, method full: 1 runs, 1 mixes" in printed
    assert "Fine-tuning of the llm learner, method lora-rank2: 1 runs, 1 mixes" in printed
