"""The benches that are made for GPUs run on a CPU too, on a pipeline of a few thousand weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[1] / "scripts" / "bench"


def bench(name: str, *arguments: str, folder: Path) -> str:
    """Run a bench in a folder of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(BENCHES / name), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def without_weights(pipeline: Path, folder: Path) -> Path:
    """A pipeline's settings and tokenizers alone."""
    for file in pipeline.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            target = folder / file.relative_to(pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "cross_attention", "lora"])
def test_training_is_timed_beside_the_plain_loop(method: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    configs = without_weights(tiny_pipeline, tmp_path / "configs")
    bench("random_pipeline.py", str(configs), str(tmp_path / "base"), folder=tmp_path)
    options = ["--base", str(tmp_path / "base"), "--method", method, "--rank", "2", "--batch-size", "2"]
    options += ["--images", "8", "--warmup", "1", "--updates", "2", "--output", "train.json"]
    text = bench("train.py", *options, "--only", "+ cached", "+ fused", "- ", "ours, g", folder=tmp_path)
    found = json.loads((tmp_path / "train.json").read_text())
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == [
        "diffusers",
        "+ cached latents and embeddings",
        "+ fused AdamW",
        "- attention without a kernel",
        "- gradient checkpointing",
        "ours, gradient checkpointing",
    ]
    for name, row in rows.items():
        assert row["error"] is None, row
        assert row["images_per_second"] == pytest.approx(2 / row["seconds_per_update"])
        share = row["images_per_second"] * found["flops_per_image"] / found["matrix_flops_per_second"]
        assert row["mfu"] == pytest.approx(share)
        assert name in text


@pytest.mark.slow
def test_the_probe_is_timed_beside_plain_loops(tiny_pipeline: Path, tmp_path: Path) -> None:
    options = ["--base", str(tiny_pipeline), "--num-examples", "2", "--num-draws", "6", "--batch-size", "8"]
    text = bench("probe.py", "--gpu", *options, "--output", "probe.json", folder=tmp_path)
    found = json.loads((tmp_path / "probe.json").read_text())
    assert {speed["what"] for speed in found["speeds"]} == {"scores", "questions"}
    assert {speed["way"] for speed in found["speeds"]} == {"one at a time", "a caption at a time", "ours"}
    assert all(speed["evaluations_per_second"] > 0 for speed in found["speeds"])
    assert 0 < found["shared_part"] < 1
    assert math.isfinite(found["noise_seconds"])
    assert "before the first attention to the text" in text
