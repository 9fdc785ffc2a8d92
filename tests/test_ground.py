"""What is real, what is paired, and what all buckets share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from patches import make_set

from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import EvaluateConfig
from diffusion_sft.evaluate.ground import choose_num_directions, common_ground, pair_up, real_images
from diffusion_sft.records import ConceptSet, Example


def test_a_training_image_in_the_reference_is_refused(tmp_path: Path) -> None:
    concept_set = make_set(tmp_path, ["wug"], {"train": 2, "heldout": 1, "reference": 2})
    assert len(real_images(concept_set, ["wug"]).pool) == 3
    (tmp_path / "reference" / "wug-1.png").write_bytes((tmp_path / "train" / "wug-0.png").read_bytes())
    with pytest.raises(UserError, match=r"1 reference images are training images .*wug-1\.png is .*wug-0\.png"):
        real_images(concept_set, ["wug"])
    with pytest.raises(UserError, match="none of the generated concepts has a reference image"):
        real_images(concept_set, ["dax"])


def test_pool_leaves_the_reference_out(tmp_path: Path) -> None:
    concept_set = make_set(tmp_path, ["wug"], {"train": 3, "heldout": 2, "reference": 2})
    # The same file as held-out and reference, as in small sets: the pool keeps to the others.
    shared = concept_set.split("reference")[0]
    twice = Example(id=shared.id, concept="wug", caption=shared.caption, path=shared.path, split="heldout")
    concept_set = ConceptSet(concepts=concept_set.concepts, examples=(*concept_set.examples, twice))
    real = real_images(concept_set, ["wug"])
    assert len(real.pool) == 5
    assert not set(real.pool) & set(real.reference)


def test_both_sides_have_equally_many_images_of_each_concept() -> None:
    reference = ["a"] * 5 + ["b"] * 2 + ["c"]
    generated = ["b"] * 3 + ["a"] * 3 + ["d"] * 3
    concepts, real, made = pair_up(reference, generated, seed=0)
    assert concepts.tolist() == ["b", "b", "a", "a", "a"]
    assert [reference[place] for place in real] == [generated[place] for place in made] == concepts.tolist()
    assert made.tolist() == [0, 1, 3, 4, 5]
    assert len(set(real.tolist())) == 5
    # Which of a concept's images are taken does not depend on the other concepts.
    alone = pair_up(reference[:5], ["a"] * 3, seed=0)[1]
    assert alone.tolist() == real[2:].tolist()
    assert len(pair_up(reference, ["d"], seed=0)[0]) == 0


def test_number_of_directions_follows_the_smallest_bucket_that_is_large_enough() -> None:
    assert choose_num_directions([200, 150]) == 99
    assert choose_num_directions([600, 500]) == 128
    assert choose_num_directions([200, 10]) == 128
    assert choose_num_directions([97]) == 64
    assert choose_num_directions([12, 9]) == 7
    assert choose_num_directions([]) == 0
    pool = np.random.default_rng(0).normal(size=(50, 30))
    ground = common_ground(pool, [200, 150], EvaluateConfig())
    assert ground.directions is not None
    assert ground.directions.shape == (30, 30)
    assert ground.matched_images == 150
    with pytest.raises(UserError, match="pca_directions=31: at most 30"):
        common_ground(pool, [200], EvaluateConfig(pca_directions=31))
    assert common_ground(np.zeros((0, 0)), [200], EvaluateConfig()).directions is None
