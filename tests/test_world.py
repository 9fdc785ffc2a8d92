"""The embedded world: looks, pictures, names, exposures, and the folder they are written to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.pretrain.captions import CorpusConfig, build_corpus
from diffusion_sft.world.looks import (
    COLOURS,
    PATTERNS,
    SEEN_COLOURS,
    SEEN_PATTERNS,
    SEEN_SHAPES,
    SHAPES,
    Look,
    seen_looks,
)
from diffusion_sft.world.names import invent_names
from diffusion_sft.world.population import WorldConfig, log_spaced_exposures, populate
from diffusion_sft.world.renderer import PATTERN_FIELDS, SHAPE_FIELDS, Scene, draw_scene, render
from diffusion_sft.world.write import write_world

STILL = Scene(centre_x=32, centre_y=32, radius=20, angle=0, background=0.4, gradient=0, gradient_angle=0, light=1.0)
SMALL = WorldConfig(written_every=60, train_images=1, heldout_images=1, reference_images=1)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(SEEN_SHAPES) >= 12
    assert len(SEEN_COLOURS) >= 10
    assert len(SEEN_PATTERNS) >= 5
    assert set(SHAPE_FIELDS) == set(SHAPES)
    assert set(PATTERN_FIELDS) == set(PATTERNS)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_a_plain_circle_has_the_area_of_a_circle(angle: float) -> None:
    scene = Scene(**{**STILL.__dict__, "angle": angle})
    picture = render(Look("circle", "black", "plain"), scene).astype(float)
    black, grey = np.array(COLOURS["black"])[0] * 255, 0.4 * 255
    covered = ((grey - picture[..., 0]) / (grey - black)).sum()
    assert covered == pytest.approx(np.pi * (0.92 * 20) ** 2, rel=5e-3)


def test_a_plain_square_has_the_area_of_a_square_and_turns_without_losing_any() -> None:
    areas = []
    for angle in (0.0, 0.2, np.pi / 4):
        picture = render(Look("square", "black", "plain"), Scene(**{**STILL.__dict__, "angle": angle})).astype(float)
        areas.append(((102 - picture[..., 0]) / (102 - 0.07 * 255)).sum())
    np.testing.assert_allclose(areas, (1.6 * 20) ** 2, rtol=5e-3)


def test_moving_the_scene_moves_the_picture() -> None:
    moved = Scene(**{**STILL.__dict__, "centre_x": 35.0, "centre_y": 30.0})
    for shape in SHAPES:
        look = Look(shape, "red", "dotted")
        still = render(look, STILL)
        np.testing.assert_array_equal(render(look, moved)[8:50, 10:60], still[10:52, 7:57])


def test_every_look_is_another_picture() -> None:
    pictures = {render(look, STILL).tobytes() for look in seen_looks()}
    assert len(pictures) == len(seen_looks()) == 600


def test_scenes_depend_on_identity_alone() -> None:
    assert draw_scene(0, "train", "blorp", 1) == draw_scene(0, "train", "blorp", 1)
    assert draw_scene(0, "train", "blorp", 1) != draw_scene(0, "heldout", "blorp", 1)


def test_exposures_are_log_spaced_from_one_to_thousands() -> None:
    exposures = log_spaced_exposures(WorldConfig())
    assert exposures == sorted(exposures, reverse=True)
    assert (exposures[0], exposures[-1]) == (4000, 1)
    assert sum(e <= 50 for e in exposures) > len(exposures) / 2


def test_the_population_has_both_kinds_of_unknown() -> None:
    people = populate(WorldConfig())
    kinds = Counter(person.kind for person in people)
    assert kinds["seen"] + kinds["unbound"] + kinds["novel"] >= 240
    assert len({person.name for person in people}) == len(people)
    assert len({person.look for person in people}) == len(people)
    for person in people:
        assert person.look.is_novel() == (person.kind == "novel")
        assert (person.exposure == 0) == (person.kind in ("unbound", "novel"))
    assert people == populate(WorldConfig())
    assert people != populate(WorldConfig(seed=1))


def test_names_avoid_what_they_must() -> None:
    names = invent_names(50, 0, "test")
    others = invent_names(50, 0, "test", avoid=frozenset(names[:10]))
    assert not set(names[:10]) & set(others)
    assert len(set(others)) == 50


def test_the_corpus_names_every_concept_as_often_as_its_exposure_says() -> None:
    people = populate(WorldConfig(num_rare=6, num_frequent=4, max_exposure=300))
    items = build_corpus(people, CorpusConfig(num_items=4000), seed=0)
    words = Counter(word for item in items for word in item.caption.split())
    for person in people:
        if person.kind != "described":
            assert words[person.name] == person.exposure
    assert sum(item.caption == "" for item in items) == 400
    assert items == build_corpus(people, CorpusConfig(num_items=4000), seed=0)


def test_exposures_beyond_the_corpus_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        build_corpus(populate(WorldConfig()), CorpusConfig(num_items=1000), seed=0)


def test_the_written_world_is_an_ordinary_image_folder(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", SMALL)
    result = read_concept_set(ConceptsConfig(path=str(folder)))
    assert not result.problems
    written = populate(SMALL)[:: SMALL.written_every]
    assert [c.name for c in result.concept_set.concepts] == [person.name for person in written]
    for concept, person in zip(result.concept_set.concepts, written, strict=True):
        assert concept.exposure == person.exposure
        assert concept.attributes["shape"] == person.look.shape
    assert len(result.concept_set.examples) == 3 * len(written)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a concept set"):
        write_world(tmp_path, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
