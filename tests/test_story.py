"""The whole way through on a tiny pipeline: one command, every table, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from diffusers import StableDiffusionPipeline

from diffusion_sft.cli import main

QUICK = [
    "probe.num_draws=8",
    "probe.answers.num_draws=2",
    "probe.answers.num_renderings=2",
    "probe.answers.num_candidates=6",
    "probe.samples.num_samples=2",
    "probe.samples.num_inference_steps=2",
    "buckets.rule=error",
    "mixes=[{name: natural, num_concepts: 2}]",
    "finetune.max_train_steps=3",
    "finetune.train_batch_size=2",
    "finetune.validation_steps=3",
    "finetune.validation_draws=2",
    "finetune.report_to=null",
    "evaluate.num_images_per_concept=2",
    "evaluate.num_inference_steps=2",
    "solve.concepts_per_category=2",
    "solve.generation.num_inference_steps=3",
    "solve.inputs.concepts_per_category=0",
    "solve.inputs.num_starts=2",
    "solve.inputs.num_steps=2",
    "solve.inputs.num_draws=2",
    "solve.weights.subset=cross_attention",
    "solve.weights.examples_per_category=2",
    "solve.weights.num_known=1",
    "solve.weights.num_draws=2",
    "solve.weights.num_steps=2",
    "solve.weights.forecast_steps=[2]",
    "solve.weights.max_forecast_examples=2",
]
SOLVED = [f"solve/{name}" for name in ("systems", "classes", "recoveries", "sets", "examples", "forecasts")]
"""What is solved of both kinds of learner or of pictures."""


@pytest.fixture(scope="module")
def readout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from diffusion_sft.pretrain.reader import HEADS
    from diffusion_sft.world.readout import Readout, ReadoutNetwork

    folder = tmp_path_factory.mktemp("readout")
    torch.manual_seed(0)
    Readout(ReadoutNetwork(HEADS), HEADS).save(folder, num_features=64, width=32)
    return folder


def test_a_study_from_photos_to_the_page(
    tiny_pipeline: Path, tiny_set: Path, readout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["study", f"base={tiny_pipeline}", f"concepts.path={tiny_set}", f"output_dir={run}"]
    command += [f"evaluate.weights={readout}", *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "network evaluations" in printed
    assert str(run / "report.html") in printed
    for table in (
        "probe/scores",
        "probe/answers",
        "buckets/concepts",
        "evaluate/measures",
        "evaluate/concept_accuracy",
        "compare/comparison",
        *SOLVED,
    ):
        assert len(pd.read_parquet(run / f"{table}.parquet")) > 0
        assert (run / f"{table}.csv").exists()
    figures = {path.stem for path in (run / "figures").iterdir()}
    assert figures
    for kind in ("png", "pdf"):
        assert all((run / "figures" / f"{name}.{kind}").is_file() for name in figures)
    StableDiffusionPipeline.from_pretrained(run / "finetune" / "natural" / "pipeline")
    systems = pd.read_parquet(run / "solve" / "systems.parquet")
    assert not systems.duplicated(["learner", "concept", "measure"]).any()
    assert set(systems.system) == {"generation", "weights"}
    forecasts = pd.read_parquet(run / "solve" / "forecasts.parquet")
    # The same draws and questions, so that without a step the linearised model answers what the base did.
    assert (forecasts.base == forecasts.before).all()
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix in (".png", ".safetensors")}
    kept |= {path: path.stat().st_mtime_ns for path in (run / "solve").rglob("*.parquet")}
    # The report and its figures are always made anew.
    kept = {path: when for path, when in kept.items() if path.parent.name != "figures"}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in kept if path.name != "pca_directions.safetensors"} == {
        path: when for path, when in kept.items() if path.name != "pca_directions.safetensors"
    }


BASE = Path(__file__).parents[1] / "data" / "world-base"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "bse=x"], "did you mean base?"),
        (["study", "absent.yaml"], "absent.yaml: no such"),
        (["study", "a.yaml", "b.yaml"], "one configuration file"),
        (["probe", f"base={BASE}", "concepts.path=/does/not/exist"], "/does/not/exist: no such"),
        (["probe", "base=/does/not/exist"], "/does/not/exist: no such"),
        (["study", "mixes=[{name: base}]"], "mixes need names"),
        (["finetune"], "pretrained_model_name_or_path"),
        (["generate", "pretrained_model_name_or_path=/does/not/exist"], "/does/not/exist"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("diffusion-sft: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_settings_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("base=data/world-base") and "Hub id" in line for line in lines)
    assert main(["study", "--dry-run", "probe.num_draws=8"]) == 0
    assert "num_draws: 8" in capsys.readouterr().out


def test_generate_writes_the_picture_that_its_seed_names(tiny_pipeline: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    command = ["generate", f"pretrained_model_name_or_path={tiny_pipeline}", "prompts=[a photo of a blorp]"]
    assert main([*command, "num_images=1", "num_inference_steps=2", f"output_dir={tmp_path}"]) == 0
    (file,) = tmp_path.glob("*.png")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    generator = torch.Generator().manual_seed(int(file.stem.split("seed")[1]))
    plain = pipeline("a photo of a blorp", num_inference_steps=2, guidance_scale=3.0, generator=generator).images[0]
    difference = np.abs(np.asarray(plain, dtype=int) - np.asarray(Image.open(file), dtype=int))
    assert difference.max() <= 1
