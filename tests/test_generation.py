"""Images from fixed seeds: what they are made from, what is kept, and where they lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patches import NAMES, PatchLearner, make_set, patch
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import EvaluateConfig, generate_images, read_generated
from diffusion_sft.evaluate.generation import slug
from diffusion_sft.learner import Cue
from diffusion_sft.records import ConceptSet, identity_seed

CONFIG = EvaluateConfig(num_images_per_concept=20)


@pytest.fixture(scope="module")
def concept_set(tmp_path_factory: pytest.TempPathFactory) -> ConceptSet:
    return make_set(tmp_path_factory.mktemp("set"), NAMES, {"heldout": 1})


def test_images_come_from_their_own_seeds_and_the_concepts_caption(concept_set: ConceptSet, tmp_path: Path) -> None:
    learner = PatchLearner()
    images = generate_images(learner, concept_set, ["wug", "fep"], CONFIG, tmp_path)
    assert [(image.concept, image.index) for image in images] == [(c, i) for c in ("wug", "fep") for i in range(20)]
    assert images[3].prompt == "a photo of a wug"
    assert images[3].seed == identity_seed(0, "generate", "wug", 3)
    assert images[3].path == tmp_path / "images" / "wug" / "0003.png"
    np.testing.assert_array_equal(np.asarray(Image.open(images[3].path)), patch(images[3].prompt, images[3].seed))
    assert read_generated(tmp_path) == images


def test_what_is_there_and_unchanged_is_kept(concept_set: ConceptSet, tmp_path: Path) -> None:
    config = EvaluateConfig(num_images_per_concept=3)
    first = generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path)
    again = PatchLearner()
    assert generate_images(again, concept_set, NAMES, config, tmp_path) == first
    assert again.asked == []
    # One image lost, one altered, one more asked for: those alone are made.
    first[1].path.unlink()
    first[5].path.write_bytes(first[4].path.read_bytes())
    more = PatchLearner()
    longer = EvaluateConfig(num_images_per_concept=4)
    images = generate_images(more, concept_set, NAMES, longer, tmp_path)
    assert {cue.seed for cue in more.asked} == {
        first[1].seed,
        first[5].seed,
        *(i.seed for i in images if i.index == 3),
    }
    assert [image.sha256 for image in images if image.index < 3] == [image.sha256 for image in first]
    # Fewer: what is no longer asked for goes.
    generate_images(PatchLearner(), concept_set, NAMES, config, tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 12


@pytest.mark.parametrize("change", ["model", "guidance", "seed"])
def test_another_model_guidance_or_seed_makes_everything_anew(
    concept_set: ConceptSet, tmp_path: Path, change: str
) -> None:
    generate_images(PatchLearner(), concept_set, NAMES, EvaluateConfig(num_images_per_concept=2), tmp_path)
    learner = PatchLearner(1.0 if change == "model" else 0.0)
    config = EvaluateConfig(
        num_images_per_concept=2,
        guidance_scale=3.0 if change == "guidance" else 2.0,
        seed=1 if change == "seed" else 0,
    )
    generate_images(learner, concept_set, NAMES, config, tmp_path)
    assert len(learner.asked) == 8


def test_a_broken_run_goes_on(concept_set: ConceptSet, tmp_path: Path) -> None:
    class Interrupted(PatchLearner):
        def generate(self, cues: Sequence[Cue], **settings: Any) -> list[np.ndarray]:
            if self.asked:
                raise KeyboardInterrupt
            return super().generate(cues, **settings)

    config = EvaluateConfig(num_images_per_concept=10, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        generate_images(Interrupted(), concept_set, NAMES, config, tmp_path)
    learner = PatchLearner()
    images = generate_images(learner, concept_set, NAMES, config, tmp_path)
    assert len(images) == 40
    assert len(learner.asked) == 24


def test_hostile_names_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["wug", "Wug", "wug ", "../wug", "con", "a/b", "a b", "a-b", "", "...", "犬", "猫", "x" * 300, "é", "e"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slugs[0] == "wug"
    assert all(part == Path(part).name and len(part) <= 50 and part == part.lower() for part in slugs)
    assert slug("CON").lower() not in {"con", "nul"}
    # A plain name that looks like a hashed one is hashed again.
    assert slug(slugs[1]) != slugs[1]
    concept_set = make_set(tmp_path / "set", ["../x", "a/b"], {"heldout": 1})
    images = generate_images(
        PatchLearner(), concept_set, ["../x", "a/b"], EvaluateConfig(num_images_per_concept=1), tmp_path / "out"
    )
    assert all((tmp_path / "out" / "images") in image.path.resolve().parents for image in images)


def test_a_concept_without_examples_and_a_damaged_record_are_named(concept_set: ConceptSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="concept 'zorp' has no example"):
        generate_images(PatchLearner(), concept_set, ["zorp"], CONFIG, tmp_path)
    entry = {"file": "../x.png", "concept": "wug", "index": 0, "prompt": "p", "seed": 1, "sha256": ""}
    for content in ([], {"images": [1]}, {"images": [entry]}, {"images": [entry | {"file": "/x.png"}]}):
        (tmp_path / "generated.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"generated\.json: not a record of generated images"):
            generate_images(PatchLearner(), concept_set, ["wug"], CONFIG, tmp_path)
