"""Questions that treat all candidates alike, and answers that are right when the learner knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_schedule import stable_diffusion

from diffusion_sft.answers import (
    ANSWER_COLUMNS,
    AnswerConfig,
    answer,
    caption_template,
    invented_words,
    make_questions,
)
from diffusion_sft.learner import fill
from diffusion_sft.learners.exact import ExactLearner, Mixture
from diffusion_sft.records import Concept, ConceptSet, Draws, Example

NUM_DIMS = 8
NAMES = ("blorp", "wug", "dax", "fep", "zorp")


def concept_set(num_examples: int = 3) -> ConceptSet:
    """Five concepts of one word each; captions hold the word twice."""
    examples = [
        Example(id=f"{n}-{i}", concept=n, caption=f"a {n}: one {n} here", path=Path(n), split="heldout")
        for n in NAMES
        for i in range(num_examples)
    ]
    return ConceptSet(concepts=tuple(Concept(name=n, words=n) for n in NAMES), examples=tuple(examples))


def exact_learner(known: tuple[str, ...]) -> ExactLearner:
    """Every concept is a distant Gaussian; the learner knows some under their captions, the rest are inert words."""
    generator = np.random.default_rng(0)
    centres = {name: generator.normal(0, 1.5, NUM_DIMS) for name in NAMES}
    spread = np.full(NUM_DIMS, 0.2)
    targets = {
        example.id: centres[example.concept] + np.sqrt(spread) * generator.normal(size=NUM_DIMS)
        for example in concept_set().examples
    }
    laws = {"": Mixture.gaussian(np.zeros(NUM_DIMS), np.full(NUM_DIMS, 2.5))}
    for name in known:
        for template in ("a {}", "{} there", "a {}: one {} here"):
            laws[template.replace("{}", name)] = Mixture.gaussian(centres[name], spread)
    return ExactLearner(laws, targets, stable_diffusion())


CONFIG = AnswerConfig(num_renderings=9, num_candidates=6, num_invented=2, num_draws=8, templates=["a {}", "{} there"])


def test_questions_are_the_same_for_any_order_of_the_set() -> None:
    whole = concept_set()
    turned = ConceptSet(concepts=whole.concepts[::-1], examples=whole.examples[::-1])
    questions = make_questions(whole, whole.examples, CONFIG, seed=3)
    again = make_questions(turned, turned.examples, CONFIG, seed=3)
    assert sorted(questions, key=lambda q: (q.concept, q.rendering)) == sorted(
        again, key=lambda q: (q.concept, q.rendering)
    )
    assert make_questions(whole, whole.examples, CONFIG, seed=4) != questions


def test_candidates_are_the_truth_siblings_invented_words_and_none() -> None:
    whole = concept_set()
    for question in make_questions(whole, whole.examples, CONFIG, seed=0):
        assert len(question.candidates) == len(set(question.candidates)) == 6
        assert question.candidates[0] == ""
        assert question.candidates[-1] == question.words
        siblings = set(NAMES) & set(question.candidates) - {question.words}
        assert len(siblings) == 2
        assert question.query.cues[0] == ""
        assert question.words in question.query.cues[-1]
        assert "{}" not in "".join(question.query.cues)
    alone = whole.only(["wug"])
    for question in make_questions(alone, alone.examples, CONFIG, seed=0):
        assert len(question.candidates) == 6


def test_renderings_walk_through_all_pairs_of_template_and_example() -> None:
    whole = concept_set()
    own = [q for q in make_questions(whole, whole.examples, CONFIG, seed=0) if q.concept == "dax"]
    assert len({(q.template, q.example.id) for q in own}) == 9
    assert {q.template for q in own} == {"a {}: one {} here", "a {}", "{} there"}
    assert len({q.query.stream for q in own}) == 9
    config = AnswerConfig(**{**CONFIG.__dict__, "own_caption": False})
    own = [q for q in make_questions(whole, whole.examples, config, seed=0) if q.concept == "dax"]
    assert len({(q.template, q.example.id) for q in own}) == 6


def test_a_learner_that_knows_answers_and_one_that_does_not_says_none() -> None:
    whole = concept_set()
    questions = make_questions(whole, whole.examples, CONFIG, seed=0)
    table = answer(exact_learner(known=NAMES[:3]), questions, Draws(seed=0, count=8), 512)
    assert tuple(table.columns) == ANSWER_COLUMNS
    assert len(table) == 5 * 9
    share = table.groupby("concept").correct.mean()
    assert (share[list(NAMES[:3])] == 1).all()
    assert (share[list(NAMES[3:])] == 0).all()
    unknown = table[table.concept.isin(NAMES[3:])]
    # Its own words are inert: it says a known sibling's where that helps, else the tie with ∅ goes to ∅.
    assert set(unknown.answer) <= {"", *NAMES[:3]}
    assert ((unknown.answer == "") == (unknown.best_other_gain_nats == 0)).all()
    assert (unknown.answer == "").mean() > 0.5
    assert (unknown.true_gain_nats == 0).all()
    assert (table[table.correct].true_gain_nats > table[table.correct].best_other_gain_nats).all()
    shuffled = answer(exact_learner(known=NAMES[:3]), questions[::-1], Draws(seed=0, count=8), 7)
    assert shuffled[::-1].reset_index(drop=True).answer.tolist() == table.answer.tolist()


def test_words_are_found_as_whole_words() -> None:
    assert caption_template("A Wug, a wugling and a wug", "wug") == "A {}, a wugling and a {}"
    assert caption_template("a photo", "wug") is None
    assert caption_template("a red circle.", "red circle") == "a {}."
    assert fill("a {} here", "wug") == "a wug here"
    assert fill("a {} here", "") == ""


def test_invented_words_avoid_what_there_is() -> None:
    words = invented_words(50, seed=1)
    assert len(set(words)) == 50
    assert words == invented_words(50, seed=1)
    assert not set(invented_words(50, seed=1, avoid=words[:10])) & set(words[:10])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_renderings": 0}, "num_renderings"),
        ({"num_candidates": 3, "num_invented": 2}, "room"),
        ({"templates": []}, "templates"),
        ({"templates": ["a photo"]}, "a photo"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerConfig(**changes)  # type: ignore[arg-type]
