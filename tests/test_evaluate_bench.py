"""The benchmark of evaluation: all ways draw the same pictures, and their figures add up."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusion_sft.pretrain.reader import HEADS
from diffusion_sft.world.readout import Readout, ReadoutNetwork

FOLDER = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_evaluate", FOLDER / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_evaluate", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e9)
    return module


@pytest.mark.slow
def test_the_ways_agree_and_their_times_add_up(
    bench: ModuleType, tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    Readout(ReadoutNetwork(HEADS), HEADS).save(tmp_path / "readout", num_features=64, width=32)
    files = ["--base", str(tiny_pipeline), "--concepts", str(tiny_set), "--output", str(tmp_path / "bench.json")]
    counts = ["--num-concepts", "2", "--images-per-concept", "3", "--batch-size", "4", "--num-inference-steps", "2"]
    looks = [
        "--extractor",
        "readout",
        "--weights",
        str(tmp_path / "readout"),
        "--num-workers",
        "0",
        "--device",
        "cpu",
    ]
    bench.main([*files, *counts, *looks])
    written = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["way"]: row for row in written["rows"]}
    assert list(rows) == ["plain", "folder", "in flight", "no files"]
    for row in rows.values():
        phases = [row[f"{name}_seconds"] for name in ("network", "decode", "write", "features")]
        assert min(phases) > 0
        assert sum(phases) == pytest.approx(row["total_seconds"])
        assert row["images_per_second"] == pytest.approx(row["num_images"] / row["total_seconds"])
        assert row["num_images"] == 6
    distance = rows["folder"]["frechet_distance"]
    assert distance > 0
    assert rows["in flight"]["frechet_distance"] == rows["no files"]["frechet_distance"]
    assert rows["in flight"]["frechet_distance"] == pytest.approx(distance, rel=1e-6)
    assert rows["plain"]["frechet_distance"] == pytest.approx(distance, rel=1e-2)
    floor = written["floor"]
    # Two steps of guidance, and one more of what the scheduler adds, if any.
    assert floor["evaluations_per_image"] in (4, 6)
    parts = [floor[f"{name}_seconds"] for name in ("network", "decode", "features")]
    assert sum(parts) == pytest.approx(floor["total_seconds"])
    tflop = sum(floor[f"{name}_tflop"] for name in ("network", "decode", "features"))
    assert floor["total_seconds"] == pytest.approx(6 * tflop * 1e12 / 1e9)
    printed = capsys.readouterr().out
    assert all(f"{way} " in printed for way in (*rows, "floor"))


def test_an_extractor_without_weights_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--extractor", "inception"])
    assert "--extractor inception needs --weights" in capsys.readouterr().err
    assert bench.arguments(["--device", "cuda:0"]).dtype == "bfloat16"
    assert bench.arguments(["--device", "cpu"]).dtype == "float32"
