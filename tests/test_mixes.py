"""Mixes: fixed size, given shares, and the same concepts whatever the order of the files."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import ALL, compose
from diffusion_sft.records import CATEGORIES, HELDOUT, REFERENCE, TRAIN, Concept, ConceptSet, Example

COUNTS = {"HighlyKnown": 12, "MaybeKnown": 6, "WeaklyKnown": 4, "Unknown": 10}
UNKNOWN_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def a_set(train: int = 3) -> ConceptSet:
    """32 concepts; every third has one training image more than the others."""
    names = [f"{category}-{index}" for category, count in COUNTS.items() for index in range(count)]
    examples = []
    for number, name in enumerate(names):
        for split, count in ((TRAIN, train + (number % 3 == 0)), (HELDOUT, 2), (REFERENCE, 1)):
            for index in range(count):
                id = f"{name}/{split}-{index}.png"
                caption = f"a photo of {name}"
                examples.append(Example(id=id, concept=name, caption=caption, path=Path(id), split=split))
    return ConceptSet(concepts=tuple(Concept(name=n, words=n) for n in names), examples=tuple(examples))


def a_table() -> pd.DataFrame:
    rows = [
        {"concept": f"{category}-{index}", "category": category, "bucket": "known" if index % 2 else "unknown"}
        for category, count in COUNTS.items()
        for index in range(count)
    ]
    return pd.DataFrame(rows)


def counts(mix: Mix) -> dict[str, int]:
    return {category: len(names) for category, names in mix.concepts.items()}


@pytest.mark.parametrize("share", UNKNOWN_SHARES)
def test_the_size_is_fixed_and_the_share_of_unknown_is_as_asked(share: float) -> None:
    mix = compose(MixConfig(name="m", num_concepts=8, unknown_share=share), a_table(), a_set(), 0)
    assert sum(counts(mix).values()) == 8
    assert counts(mix).get("Unknown", 0) == 8 * share
    assert {example.concept for example in mix.examples} == set(mix.categories)
    assert {example.split for example in mix.examples} == {TRAIN}


def test_the_unknown_concepts_of_a_small_share_are_among_those_of_a_larger_one() -> None:
    mixes = [
        compose(MixConfig(name="m", num_concepts=8, unknown_share=share), a_table(), a_set(), 3)
        for share in UNKNOWN_SHARES
    ]
    unknown = [set(mix.concepts.get("Unknown", ())) for mix in mixes]
    known = [set(mix.categories) - names for mix, names in zip(mixes, unknown, strict=True)]
    assert all(small < large for small, large in pairwise(unknown))
    assert all(large > small for large, small in pairwise(known))


def test_a_mix_does_not_depend_on_the_order_of_table_or_set() -> None:
    config = MixConfig(name="m", num_concepts=9, unknown_share=0.3, examples_per_concept=2)
    concept_set = a_set()
    turned = ConceptSet(concepts=concept_set.concepts[::-1], examples=concept_set.examples[::-1])
    here = compose(config, a_table(), concept_set, 1)
    there = compose(config, a_table().sample(frac=1.0, random_state=0), turned, 1)
    assert {e.id for e in here.examples} == {e.id for e in there.examples}
    other_seed = compose(config, a_table(), concept_set, 2)
    assert {e.id for e in here.examples} != {e.id for e in other_seed.examples}


def test_the_natural_mix_has_the_shares_of_the_set() -> None:
    mix = compose(MixConfig(name="natural", num_concepts=16), a_table(), a_set(), 0)
    assert counts(mix) == {"HighlyKnown": 6, "MaybeKnown": 3, "WeaklyKnown": 2, "Unknown": 5}
    everything = compose(MixConfig(), a_table(), a_set(), 0)
    assert counts(everything) == COUNTS


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_single_category(category: str) -> None:
    mix = compose(MixConfig(name="one", num_concepts=4, shares={category: 1.0}), a_table(), a_set(), 0)
    assert counts(mix) == {category: 4}


def test_shares_of_buckets_are_those_of_the_bucket_column() -> None:
    config = MixConfig(name="b", num_concepts=8, shares={"known": 0.75, "unknown": 0.25})
    mix = compose(config, a_table(), a_set(), 0)
    bucket = a_table().set_index("concept").bucket
    assert Counter(bucket[name] for name in mix.categories) == {"known": 6, "unknown": 2}


def test_a_size_in_examples_is_met_exactly() -> None:
    mix = compose(MixConfig(name="e", num_examples=20, unknown_share=0.25), a_table(), a_set(), 0)
    assert len(mix.examples) == 20
    assert sum(mix.categories[example.concept] == "Unknown" for example in mix.examples) == 5


def test_examples_per_concept_limits_and_selects() -> None:
    mix = compose(
        MixConfig(name="e", num_concepts=4, unknown_share=1.0, examples_per_concept=2), a_table(), a_set(), 0
    )
    assert set(Counter(example.concept for example in mix.examples).values()) == {2}


def test_asking_for_too_much_says_what_there_is_and_what_would_fit() -> None:
    config = MixConfig(name="big", num_concepts=20, unknown_share=0.75)
    with pytest.raises(UserError, match=r"15 Unknown concepts.*10 Unknown, 22 known; set num_concepts to at most 13"):
        compose(config, a_table(), a_set(), 0)
    fitting = compose(MixConfig(name="big", num_concepts=13, unknown_share=0.75), a_table(), a_set(), 0)
    assert sum(counts(fitting).values()) == 13
    with pytest.raises(UserError, match="no concept has 9 training examples"):
        compose(MixConfig(name="deep", num_concepts=1, examples_per_concept=9), a_table(), a_set(), 0)


def test_without_a_table_all_concepts_are_of_one_category() -> None:
    mix = compose(MixConfig(), None, a_set(), 0)
    assert counts(mix) == {ALL: sum(COUNTS.values())}
    assert len(mix.examples) == len(a_set().split(TRAIN))
    with pytest.raises(UserError, match="need a concepts_table"):
        compose(MixConfig(name="m", num_concepts=4, unknown_share=0.5), None, a_set(), 0)


def test_all_images_can_train() -> None:
    mix = compose(MixConfig(train_on_all_images=True), None, a_set(), 0)
    assert {example.id for example in mix.examples} == {example.id for example in a_set().examples}
    assert {example.split for example in mix.examples} == {TRAIN}
    exam = make_exam(mix, None, a_set(), FinetuneConfig(validation_steps=1), AnswerConfig())
    assert set(exam.questions) == {"trained"}


def test_a_table_of_another_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"no row for 1 of the set's concepts.*Unknown-9"):
        compose(MixConfig(), a_table().iloc[:-1], a_set(), 0)
    with pytest.raises(UserError, match="no column category"):
        compose(MixConfig(), a_table().drop(columns="category"), a_set(), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "names a folder"),
        ({"num_concepts": 3, "num_examples": 3}, "not both"),
        ({"num_concepts": 0}, "at least 1"),
        ({"unknown_share": 0.5}, "fixed size"),
        ({"num_concepts": 3, "unknown_share": 1.5}, "at most 1"),
        ({"num_concepts": 3, "unknown_share": 0.5, "shares": {"Unknown": 1.0}}, "not both"),
        ({"num_concepts": 3, "shares": {"Unknown": 0.5}}, "add up to 0.5"),
        ({"num_concepts": 3, "shares": {"Unknown": 0.5, "known": 0.5}}, "shares.known"),
        ({"num_concepts": 3, "shares": {"unknwn": 1.0}}, "shares.unknwn"),
    ],
)
def test_impossible_mixes_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixConfig(**settings)


def test_an_exam_asks_trained_held_out_and_untouched_examples() -> None:
    mix = compose(MixConfig(name="m", num_concepts=8, unknown_share=0.5), a_table(), a_set(), 0)
    config = FinetuneConfig(validation_steps=1, validation_untouched_concepts=5, validation_examples_per_concept=1)
    exam = make_exam(mix, a_table(), a_set(), config, AnswerConfig(num_renderings=7))
    asked = {role: [question.example for question in questions] for role, questions in exam.questions.items()}
    assert {role: len(examples) for role, examples in asked.items()} == {"trained": 8, "heldout": 8, "untouched": 5}
    assert {e.split for e in asked["trained"]} == {TRAIN}
    assert {e.split for e in (*asked["heldout"], *asked["untouched"])} == {HELDOUT}
    assert {e.concept for e in asked["trained"]} == {e.concept for e in asked["heldout"]} == set(mix.categories)
    untouched = {e.concept for e in asked["untouched"]}
    assert not untouched & set(mix.categories)
    assert all(exam.categories[name] != "Unknown" for name in untouched)
    in_full = make_exam(mix, a_table(), a_set(), FinetuneConfig(validation_steps=1), AnswerConfig())
    assert {q.example.id for q in in_full.questions["trained"]} == {e.id for e in mix.examples}
    assert not make_exam(mix, a_table(), a_set(), FinetuneConfig(), AnswerConfig()).questions
    assert {q.template for q in in_full.questions["trained"]} == {"a photo of {}"}


def test_mixes_of_one_size_are_asked_about_the_same_untouched_concepts() -> None:
    config = FinetuneConfig(validation_steps=1, validation_untouched_concepts=6)
    asked = []
    for share in (0.25, 0.5, 1.0):
        mix = compose(MixConfig(name="m", num_concepts=8, unknown_share=share), a_table(), a_set(), 0)
        exam = make_exam(mix, a_table(), a_set(), config, AnswerConfig())
        asked.append({question.concept for question in exam.questions["untouched"]})
    assert asked[0] == asked[1] == asked[2]
