"""The published architectures with their true tokenizers: load, probe one image, train one update, save, load again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from architectures import needs_published, published_pipeline

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.learner import Query
from diffusion_sft.learners.adapters import LORA_FILE
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.records import Draws

NAMES = ("sd15", "sd21", "sdxl")


@needs_published
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "sdxl" else []) for name in NAMES]
)
def test_shrunk_architectures_go_all_the_way(name: str, tiny_set: Path, tmp_path: Path) -> None:
    published_pipeline(tmp_path / "base", name, shrink=True)
    _all_the_way(tmp_path / "base", tiny_set, tmp_path / "run", resolution=None)


@needs_published
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_architectures_go_all_the_way(name: str, tiny_set: Path, tmp_path: Path) -> None:
    published_pipeline(tmp_path / "base", name, shrink=False)
    _all_the_way(tmp_path / "base", tiny_set, tmp_path / "run", resolution=64)


def _all_the_way(base: Path, images: Path, folder: Path, resolution: int | None) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(images))).concept_set.only(["blorp"])
    learner = DiffusionLearner.load(base, resolution=resolution)
    example = concept_set.split("heldout")[0]
    (before,) = _read(learner, example)
    config = FinetuneConfig(
        method="lora", rank=2, learning_rate=0.1, train_batch_size=1, max_train_steps=1, report_to=None
    )
    mix = compose(MixConfig(name="all"), None, concept_set, config.seed)
    finetune(learner, mix, make_exam(mix, None, concept_set, config, AnswerConfig()), config, folder)
    (trained,) = _read(learner, example)
    del learner
    (again,) = _read(DiffusionLearner.load(base, resolution=resolution, lora=folder / LORA_FILE), example)
    assert np.isfinite(before).all()
    assert not np.array_equal(trained, before)
    np.testing.assert_allclose(again, trained, rtol=1e-5)


def _read(learner: DiffusionLearner, example) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    query = Query(example=example, cues=(example.caption,))
    readings = learner.surprise([query], Draws(seed=0, count=2), batch_size=2)
    return [reading.squared_error for reading in readings]
