"""The order of training: without replacement within each size, a pure function of (seed, update), and as it was."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_sft.finetune.captions import possible_captions
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.sampler import Sampler
from diffusion_sft.learner import TrainingItem
from diffusion_sft.records import REGULARISATION, SPLITS, TRAIN, Concept, ConceptSet, Example, identity_seed


def examples(count: int, *, repeats: int = 1, split: str = TRAIN, prefix: str = "") -> list[Example]:
    return [
        Example(
            id=f"{prefix}{i}.png",
            concept="a",
            caption=f"photo {prefix}{i}",
            path=Path(f"{i}.png"),
            split=split,
            repeats=repeats,
        )
        for i in range(count)
    ]


def sampler(members: Sequence[Example], **options: object) -> Sampler:
    return Sampler(members, **({"seed": 0, "batch_size": 6, "proportion_empty_prompts": 0.0} | options))  # type: ignore[arg-type]


def stream(a_sampler: Sampler, updates: int) -> list[TrainingItem]:
    return [item for update in range(1, updates + 1) for item in a_sampler.items(update)]


def test_a_set_of_one_size_is_ordered_as_ever() -> None:
    """The order that runs had before there were sizes, repeats and regularisation, written out."""
    names = [example.id for example in examples(7)]
    for micro in (None, 2, 5):
        items = stream(sampler(examples(7), seed=3, batch_size=10, micro_batch_size=micro), 9)
        expected = []
        for position in range(90):
            visit, index = divmod(position, 7)
            order = sorted(names, key=lambda name, visit=visit: (identity_seed(3, "order", visit, name), name))
            expected.append((order[index], visit))
        assert [(item.example.id, item.visit) for item in items] == expected
        assert {(item.size, item.weight, item.flipped) for item in items} == {(None, 1.0, False)}


def test_repeats_are_visits_of_one_pass_and_draw_anew() -> None:
    members = [*examples(3, repeats=4, prefix="often-"), *examples(5, prefix="once-")]
    a_sampler = sampler(members, batch_size=17)
    assert a_sampler.updates_per_pass == 1
    for update in (1, 2, 9):
        counts = Counter(item.example.id for item in a_sampler.items(update))
        assert counts == {example.id: example.repeats for example in members}
    items = stream(a_sampler, 20)
    assert len({(item.example.id, item.visit) for item in items}) == len(items)
    neighbours = [a.example.id == b.example.id for a, b in itertools.pairwise(items)]
    assert np.mean(neighbours) < 0.35  # spread over the pass: about Σ (4/17)(3/16) x 3 = 0.13, in a row 9/16


SIZES = {
    f"{i}.png": [(8, 8), (8, 16), (16, 8), (12, 8)][0 if i < 13 else 1 + (i >= 19) + (i >= 22)] for i in range(23)
}
"""13 squares, 6 and 3 of two other sizes, and a lone one."""


def test_a_micro_batch_is_of_one_size_and_every_example_of_a_size_is_seen_equally_often() -> None:
    a_sampler = sampler(examples(23), sizes=SIZES, micro_batch_size=4, batch_size=8)
    seen: Counter[str] = Counter()
    draws = set()
    per_size: Counter[tuple[int, int]] = Counter()
    for update in range(1, 400):
        items = a_sampler.items(update)
        for start in (0, 4):
            batch = items[start : start + 4]
            assert {item.size for item in batch} == {SIZES[batch[0].example.id]}
        seen.update(item.example.id for item in items)
        per_size.update(SIZES[item.example.id] for item in items)
        draws |= {(item.example.id, item.visit) for item in items}
        for size in set(SIZES.values()):
            of_size = [seen[name] for name in SIZES if SIZES[name] == size]
            # Without replacement; only the end of a batch may be in the next pass (the lone image fills batches).
            assert max(of_size) - min(of_size) <= 1
    assert len(draws) == 399 * 8
    passes = 399 * 8 / 23
    for size, count in per_size.items():
        members = sum(other == size for other in SIZES.values())
        assert abs(count - passes * members) < 8 + members, size


def test_each_pass_sees_every_example_and_says_how_long_it_is() -> None:
    a_sampler = sampler(examples(23), sizes=SIZES, micro_batch_size=4, batch_size=4)
    assert a_sampler.updates_per_pass == 4 + 2 + 1 + 1
    assert {item.example.id for item in stream(a_sampler, 8)} == set(SIZES)
    assert sampler(examples(7), batch_size=5).updates_per_pass == 2
    # Sizes are mixed within a pass, not one after another.
    sizes = [a_sampler.items(update)[0].size for update in range(1, 200)]
    assert np.mean([a != b for a, b in itertools.pairwise(sizes)]) > 0.4


def test_an_update_is_a_function_of_seed_and_number_alone() -> None:
    options = {
        "sizes": SIZES,
        "micro_batch_size": 3,
        "batch_size": 6,
        "random_flip": True,
        "regularisation": prior(5),
    }
    options["proportion_empty_prompts"] = 0.3
    forward = sampler(examples(23), **options)
    backward = sampler(examples(23)[::-1], **(options | {"regularisation": prior(5)[::-1]}))
    straight = [forward.items(update) for update in range(1, 60)]
    assert [backward.items(update) for update in range(59, 0, -1)] == straight[::-1]
    assert sampler(examples(23), **options, seed=1).items(5) != straight[4]


def prior(count: int, repeats: int = 1) -> list[Example]:
    return examples(count, repeats=repeats, split=REGULARISATION, prefix="class-")


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_regularisation_images_come_one_to_one_with_their_weight(micro: int) -> None:
    a_sampler = sampler(
        examples(5), regularisation=prior(3), prior_loss_weight=0.5, batch_size=12, micro_batch_size=micro
    )
    items = stream(a_sampler, 25)
    own, held = items[::2], items[1::2]
    assert [(item.example.id, item.visit) for item in own] == [
        (item.example.id, item.visit) for item in stream(sampler(examples(5)), 25)
    ]
    assert {item.weight for item in own} == {1.0}
    assert {item.weight for item in held} == {0.5}
    assert {item.example.split for item in held} == {REGULARISATION}
    for start in range(0, 150, 3):
        assert len({item.example.id for item in held[start : start + 3]}) == 3
    assert len({(item.example.id, item.visit) for item in held}) == 150
    assert a_sampler.updates_per_pass == -(-10 // micro) * micro / 12


def test_regularisation_images_take_the_size_of_their_batch_and_never_draw_twice_alike() -> None:
    a_sampler = sampler(
        examples(23), sizes=SIZES, regularisation=prior(4, repeats=2), micro_batch_size=4, batch_size=8
    )
    items = stream(a_sampler, 300)
    for start in range(0, len(items), 4):
        assert len({item.size for item in items[start : start + 4]}) == 1
    held = [item for item in items if item.example.split == REGULARISATION]
    assert len(held) == len(items) // 2
    assert len({(item.example.id, item.visit) for item in held}) == len(held)


def test_half_of_the_visits_are_mirrored_each_visit_by_itself() -> None:
    items = stream(sampler(examples(50), random_flip=True, batch_size=100), 100)
    flips = np.array([item.flipped for item in items])
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / 100
    mine = [item.flipped for item in items if item.example.id == "7.png"]
    assert 70 < sum(mine) < 130  # 200 visits, standard deviation 7
    assert not any(item.flipped for item in stream(sampler(examples(50)), 10))


def test_a_template_is_drawn_for_each_visit_with_the_concepts_words() -> None:
    templates = ("{caption}", "a sketch of {concept}", "{concept}, {caption}")
    a_sampler = sampler(
        examples(10), caption_templates=templates, words={"a": "a {caption} dog"}, regularisation=prior(2)
    )
    items = stream(a_sampler, 200)
    own = [item for item in items if item.example.split == TRAIN]
    counts = Counter(templates.index(_template(item)) for item in own)
    for count in counts.values():
        assert abs(count - len(own) / 3) < 4 * np.sqrt(len(own) * 2 / 9)
    assert len(counts) == 3
    assert all(item.caption == item.example.caption for item in items if item.example.split == REGULARISATION)


def _template(item: TrainingItem) -> str:
    # Braces in captions and words are text, never filled in again.
    rendered = {
        item.example.caption: "{caption}",
        "a sketch of a {caption} dog": "a sketch of {concept}",
        f"a {{caption}} dog, {item.example.caption}": "{concept}, {caption}",
    }
    return rendered[item.caption]


def test_dropout_comes_after_templates() -> None:
    a_sampler = sampler(examples(10), caption_templates=("{concept}",), proportion_empty_prompts=0.5, batch_size=100)
    dropped = [item.caption == "" for item in stream(a_sampler, 50)]
    assert abs(np.mean(dropped) - 0.5) < 4 * 0.5 / np.sqrt(5000)


def test_micro_batches_must_fit_into_an_update() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        sampler(examples(3), batch_size=6, micro_batch_size=4)
    with pytest.raises(ValueError, match="at least one example"):
        sampler([])


def a_set() -> ConceptSet:
    rows = [
        Example(id=f"{split}-{i}.png", concept="a", caption="a photo", path=Path("x"), split=split)
        for split in SPLITS
        for i in range(2)
    ]
    lone = Example(id="dog.png", concept="dog", caption="a dog", path=Path("x"), split=REGULARISATION)
    concepts = (Concept(name="a", words="an a"), Concept(name="dog", words="dog"))
    return ConceptSet(concepts=concepts, examples=(*rows, lone))


@pytest.mark.parametrize("everything", [False, True])
def test_a_mix_keeps_regularisation_apart(everything: bool) -> None:
    mix = compose(MixConfig(train_on_all_images=everything), None, a_set(), 0)
    assert len(mix.examples) == (6 if everything else 2)
    assert not any(example.id.startswith(REGULARISATION) for example in mix.examples)
    assert {example.id for example in mix.regularisation} == {
        f"{REGULARISATION}-0.png",
        f"{REGULARISATION}-1.png",
        "dog.png",
    }
    assert mix.categories == {"a": "all"}
    assert mix.words == {"a": "an a"}


def test_a_class_without_other_images_needs_no_row_in_the_table() -> None:
    import pandas as pd

    table = pd.DataFrame({"concept": ["a"], "category": ["Unknown"], "bucket": ["unknown"]})
    mix = compose(MixConfig(num_concepts=1, unknown_share=1.0), table, a_set(), 0)
    assert mix.categories == {"a": "Unknown"}


def test_a_run_s_sampler_is_made_from_its_mix_and_settings() -> None:
    mix = replace(compose(MixConfig(), None, a_set(), 0), regularisation=tuple(prior(2)))
    config = FinetuneConfig(
        train_batch_size=2,
        gradient_accumulation_steps=3,
        seed=5,
        prior_loss_weight=0.25,
        caption_templates=["{concept}!"],
        proportion_empty_prompts=0.0,
        random_flip=True,
    )
    made = Sampler.of(mix, config, 2, {example.id: (16, 8) for example in mix.examples})
    items = made.items(1)
    assert len(items) == 12
    assert {item.size for item in items} == {(16, 8)}
    assert [item.weight for item in items] == [1.0, 0.25] * 6
    assert {item.caption for item in items[::2]} == {"an a!"}
    assert any(item.flipped for item in items)


def test_all_captions_that_can_come_are_known_before() -> None:
    mix: Mix = compose(MixConfig(), None, a_set(), 0)
    assert possible_captions(mix, FinetuneConfig()) == ["a photo", "a dog"]
    config = FinetuneConfig(caption_templates=["{caption}, {concept}", "x {concept}"], class_prompt="a cat")
    assert possible_captions(mix, config) == ["a photo, an a", "x an a", "a photo", "a dog", "a cat"]
    made = Sampler.of(mix, config, 1, {})
    assert {item.caption for item in stream(made, 20)} - {""} <= set(possible_captions(mix, config))
