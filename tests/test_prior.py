"""Class images: drawn once from identities, gone on with after a stop, and never mistaken for others'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.mix import Mix
from diffusion_sft.finetune.prior import FOLDER, class_images
from diffusion_sft.learner import Cue
from diffusion_sft.records import REGULARISATION, TRAIN, Example

PROMPT = "a photo of a circle"


class Drawing:
    """The part of a learner that draws: a picture is noise of its seed. It can be made to fail after some pictures."""

    resolution = 8

    def __init__(self, base: str = "one", allowed: int = 1000) -> None:
        self.base, self.allowed, self.drawn, self.batches = base, allowed, 0, []

    def identity(self) -> dict[str, Any]:
        return {"source": "anywhere", "weights": self.base}

    def generate(self, cues: Sequence[Cue], **options: Any) -> list[np.ndarray]:
        assert {cue.prompt for cue in cues} == {PROMPT}
        assert (options["num_inference_steps"], options["guidance_scale"]) == (50, 7.5)
        self.batches.append(options["batch_size"])
        self.drawn += len(cues)
        if self.drawn > self.allowed:
            raise KeyboardInterrupt
        return [np.random.default_rng(cue.seed).integers(0, 256, (8, 8, 3), np.uint8) for cue in cues]


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(cpu=True)


def a_mix(regularisation: int = 0) -> Mix:
    def example(id: str, split: str) -> Example:
        return Example(id=id, concept="a", caption="b", path=Path(id), split=split)

    held = tuple(example(f"reg-{n}", REGULARISATION) for n in range(regularisation))
    return Mix(name="m", concepts={"all": ("a",)}, examples=(example("x", TRAIN),), regularisation=held)


def config(count: int = 7, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(class_prompt=PROMPT, num_class_images=count, validation_batch_size=3, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / FOLDER).iterdir())}


def test_pictures_are_drawn_from_their_names_and_not_again(tmp_path: Path, accelerator: Accelerator) -> None:
    learner: Any = Drawing()
    found = class_images(learner, a_mix(), config(), tmp_path, accelerator)
    assert learner.batches == [3, 3, 1]
    assert [example.path.parent for example in found] == [tmp_path / FOLDER] * 7
    assert {(e.caption, e.split, e.repeats) for e in found} == {(PROMPT, REGULARISATION, 1)}
    assert [example.id for example in found] == [f"{FOLDER}/{name}" for name in contents(tmp_path)]
    for example in found:
        seed = int(example.path.stem.split("-seed")[1])
        expected = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        assert np.array_equal(np.asarray(Image.open(example.path)), expected)
    again: Any = Drawing()
    assert class_images(again, a_mix(), config(), tmp_path, accelerator) == found
    assert again.drawn == 0
    more = class_images(again, a_mix(), config(9), tmp_path, accelerator)
    assert more[:7] == found
    assert again.drawn == 2


def test_drawing_goes_on_where_it_was_stopped(tmp_path: Path, accelerator: Accelerator) -> None:
    stopping: Any = Drawing(allowed=5)
    with pytest.raises(KeyboardInterrupt):
        class_images(stopping, a_mix(), config(), tmp_path / "stopped", accelerator)
    assert len(contents(tmp_path / "stopped")) == 3
    rest: Any = Drawing()
    class_images(rest, a_mix(), config(), tmp_path / "stopped", accelerator)
    assert rest.drawn == 4
    class_images(Drawing(), a_mix(), config(), tmp_path / "straight", accelerator)  # type: ignore[arg-type]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_another_base_seed_or_resolution_draws_others(tmp_path: Path, accelerator: Accelerator) -> None:
    larger: Any = Drawing()
    larger.resolution = 16
    learners: list[Any] = [Drawing(), Drawing("two"), larger]
    names = [
        {example.id for example in class_images(learner, a_mix(), config(), tmp_path / str(n), accelerator)}
        for n, learner in enumerate(learners)
    ]
    names.append({e.id for e in class_images(learners[0], a_mix(), config(seed=1), tmp_path / "seed", accelerator)})
    for number, one in enumerate(names):
        assert all(not one & other for other in names[number + 1 :])


def test_images_of_the_set_come_first_and_count(tmp_path: Path, accelerator: Accelerator) -> None:
    learner: Any = Drawing()
    mix = a_mix(regularisation=4)
    found = class_images(learner, mix, config(), tmp_path, accelerator)
    assert found[:4] == mix.regularisation
    assert len(found) == 7
    assert learner.drawn == 3
    assert class_images(learner, a_mix(9), config(), tmp_path / "enough", accelerator) == a_mix(9).regularisation
    assert class_images(learner, mix, FinetuneConfig(), tmp_path / "none", accelerator) == mix.regularisation
    assert class_images(learner, a_mix(), FinetuneConfig(), tmp_path / "none", accelerator) == ()
    assert learner.drawn == 3
    assert not (tmp_path / "none").exists()


def test_only_the_main_process_draws_and_the_others_wait(tmp_path: Path) -> None:
    class Second:
        is_main_process = False
        waited = False

        def wait_for_everyone(self) -> None:
            self.waited = True

    learner: Any = Drawing()
    second: Any = Second()
    found = class_images(learner, a_mix(), config(), tmp_path, second)
    assert second.waited
    assert learner.drawn == 0
    assert len(found) == 7
    assert not (tmp_path / FOLDER).exists()
