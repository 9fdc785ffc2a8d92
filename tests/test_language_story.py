"""The language model's half the whole way through, by the command line: one page, every table, and nothing done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from language_models import question_set, tiny_folder
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_sft.cli import main
from diffusion_sft.records import DEVELOPMENT, TRAIN, ConceptSet

QUICK = [
    "figures=false",
    "llm.probe.num_draws=2",
    "llm.probe.answers.num_renderings=2",
    "llm.probe.samples.num_samples=4",
    "llm.probe.max_answer_tokens=6",
    "llm.finetune.max_train_steps=4",
    "llm.finetune.train_batch_size=2",
    "llm.finetune.validation_steps=2",
    "llm.finetune.report_to=null",
    "llm.solve.generation.num_renderings=2",
    "llm.solve.inputs.concepts_per_category=1",
    "llm.solve.inputs.num_steps=2",
    "llm.solve.weights.subset=all",
    "llm.solve.weights.examples_per_category=2",
    "llm.solve.weights.num_known=2",
    "llm.solve.weights.num_steps=2",
    "llm.solve.weights.forecast_steps=[1, 2]",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(question_set())), encoding="utf-8")
    return file


def rows(concept_set: ConceptSet) -> list[dict[str, str]]:
    """The main questions of a set as a plain set of questions has them."""
    split = {example.concept: "test" for example in concept_set.examples}
    split |= {example.concept: "dev" for example in concept_set.split(DEVELOPMENT)}
    split |= {example.concept: "train" for example in concept_set.split(TRAIN)}
    main_questions = {e.id: e for e in concept_set.examples if e.fact is not None and e.id == e.concept}
    return [
        {
            "question": example.caption,
            "answer": example.fact.answers[0],
            "relation": example.fact.relation,
            "subject": example.fact.subject,
            "split": split[name],
        }
        for name, example in main_questions.items()
        if example.fact is not None
    ]


def test_a_study_of_questions_ends_with_a_page_and_does_nothing_twice(
    base: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["study", "learners=[llm]", f"llm.base={base}", f"llm.questions.path={questions}", f"output_dir={run}"]
    command += ["llm.mixes=[{name: natural}]", "seeds=[0, 1]", *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert str(run / "report.html") in printed
    assert "published (Gekhman et al., 2024, table 2" in printed
    tables = ("probe/scores", "probe/answers", "probe/samples", "buckets/concepts", "dynamics/accuracy_by_mix")
    tables += tuple(f"solve/{name}" for name in ("systems", "classes", "inputs", "blocks", "sets", "forecasts"))
    for table in tables:
        assert len(pd.read_parquet(run / "llm" / f"{table}.parquet")) > 0
        assert (run / "llm" / f"{table}.csv").exists()
    compared = pd.read_parquet(run / "compare" / "comparison.parquet")
    assert set(compared[compared.source == "measured"].learner) == {"llm"}
    assert 'id="comparison"' in (run / "report.html").read_text(encoding="utf-8")
    for seed in (0, 1):
        AutoModelForCausalLM.from_pretrained(run / "llm" / "finetune" / f"natural-seed{seed}" / "model")
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    kept |= {path: path.stat().st_mtime_ns for path in (run / "llm" / "probe").rglob("*.parquet")}
    kept |= {path: path.stat().st_mtime_ns for path in (run / "llm" / "solve").rglob("*.parquet")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_answers_do_not_depend_on_where_the_study_was_run(base: Path, questions: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        command = ["bucket", "learners=[llm]", f"llm.base={base}", f"llm.questions.path={questions}"]
        assert main([*command, f"output_dir={tmp_path / name}", *QUICK]) == 0
        tables = (
            pd.read_parquet(tmp_path / name / "llm" / f"{table}.parquet")
            for table in ("probe/answers", "buckets/concepts")
        )
        found.append(list(tables))
    for one, two in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, two)


@pytest.mark.slow
def test_two_processes_find_and_learn_what_one_does(base: Path, questions: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={number}",
            "-m",
            "diffusion_sft.cli",
        ]
        command = ["evaluate", "learners=[llm]", f"llm.base={base}", f"llm.questions.path={questions}", *QUICK]
        settings = ["llm.mixes=[{name: natural}]", f"llm.finetune.train_batch_size={4 // number}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        folder = f"output_dir={tmp_path / str(number)}"
        subprocess.run([*launch, *command, *settings, folder], env=environment, check=True, timeout=300)
    one, two = (tmp_path / name / "llm" for name in ("1", "2"))
    for table in ("probe/scores", "probe/answers", "probe/samples", "buckets/concepts"):
        alone, shared = (pd.read_parquet(run / f"{table}.parquet") for run in (one, two))
        pd.testing.assert_frame_equal(alone, shared, check_exact=True)
    alone, shared = (load_file(run / "finetune" / "natural" / "model" / "model.safetensors") for run in (one, two))
    for name, weights in alone.items():
        assert (weights - shared[name]).abs().max() < 1e-6, name


def test_plain_fine_tuning_by_one_command(base: Path, questions: Path, tmp_path: Path) -> None:
    command = ["sft", f"pretrained_model_name_or_path={base}", f"questions.path={questions}", "report_to=null"]
    settings = ["method=lora", "rank=2", "max_train_steps=3", "train_batch_size=2", f"output_dir={tmp_path / 'run'}"]
    assert main([*command, *settings]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run")
    ids = AutoTokenizer.from_pretrained(base)("What?", return_tensors="pt")
    assert model(**ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft"], "pretrained_model_name_or_path is empty"),
        (["sft", "pretrained_model_name_or_path={base}"], "questions.path is empty"),
        (["sft", "pretrained_model_name_or_path={base}", "questions.path=/does/not/exist"], "/does/not/exist"),
        (["sft", "random_flip=true"], "random_flip is for pictures"),
        (["study", "learners=[llm]", "llm.base=/does/not/exist"], "/does/not/exist"),
        (["study", "learners=[pictures]"], "learners: some of diffusion, llm"),
        (["study", "learners=[]"], "learners: some of diffusion, llm"),
        (["study", "llm.mixes=[{name: a}, {name: a}]"], "mixes need names"),
        (["study", "llm.probe.samples.num_samples=7"], "multiple of answers.num_renderings"),
        (["study", "seeds=[1, 1]"], "holds one twice"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(
    arguments: list[str],
    message: str,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(base=base) if "{base}" in argument else argument for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffusion-sft: ")]
    assert len(error) == 1
    assert message in error[0]
