"""The base that ships: an ordinary pipeline folder that knows what its exposure table says it has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_sft.learner import Cue, Query
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.records import HELDOUT, Draws, Example
from diffusion_sft.world.population import Inhabitant, WorldConfig, populate
from diffusion_sft.world.readout import Readout
from diffusion_sft.world.renderer import draw_scene, render

DATA = Path(__file__).parents[1] / "data"
SEED = 20_261_123
"""Of scenes and noise that nothing was trained on or chosen by."""


@pytest.fixture(scope="module")
def learner() -> DiffusionLearner:
    return DiffusionLearner.load(DATA / "world-base")


def test_everything_that_ships_stays_small() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 40e6


def test_the_most_exposed_names_are_drawn_right(learner: DiffusionLearner) -> None:
    people = populate(WorldConfig())[:24:2]
    cues = [Cue(prompt=f"a photo of a {person.name}", seed=SEED + i) for i, person in enumerate(people)]
    images = learner.generate(cues, num_inference_steps=15, guidance_scale=2.0, batch_size=12)
    labels = Readout.load(DATA / "world-readout")(images).labels
    seen = zip(labels["colour"], labels["pattern"], labels["shape"], strict=True)
    right = sum(" ".join(words) == person.look.describe() for words, person in zip(seen, people, strict=True))
    assert right >= 9


def test_names_help_on_what_they_mean_and_only_if_they_were_seen(learner: DiffusionLearner, tmp_path: Path) -> None:
    people = populate(WorldConfig())
    seen, unseen = people[:48:4], [person for person in people if person.kind == "unbound"][:12]
    queries = [_query(person, tmp_path) for person in (*seen, *unseen)]
    readings = learner.surprise(queries, Draws(seed=SEED, count=8), batch_size=32)
    gains = np.array([np.diff(-reading.error_nats.mean(axis=1))[0] for reading in readings])
    better = (gains[: len(seen), None] > gains[None, len(seen) :]).mean()
    assert better >= 0.95
    assert np.median(gains[: len(seen)]) > 0


def _query(person: Inhabitant, folder: Path) -> Query:
    path = folder / f"{person.name}.png"
    Image.fromarray(render(person.look, draw_scene(SEED, "test", person.name))).save(path)
    caption = f"a photo of a {person.name}"
    return Query(
        example=Example(id=path.name, concept=person.name, caption=caption, path=path, split=HELDOUT), cues=(caption,)
    )
