"""SliCK of a model whose answers are known exactly: categories, shares and likelihoods by arithmetic.

Every fact's law depends on its subject and on the exemplars before it, so that greedy and sampled readings can be
counted by hand (Gekhman et al., 2024, table 1).
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from language_models import NOBODY, TEMPLATES, as_set, exact_language_learner, question, tiny_learner
from scipy import stats

from diffusion_sft.answers import ANSWER_COLUMNS, AnswerConfig
from diffusion_sft.buckets import BucketConfig, bucket
from diffusion_sft.errors import UserError
from diffusion_sft.learner import Question
from diffusion_sft.learners.exact_match import is_right, normalised
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.prompts import ClosedBook, FewShot
from diffusion_sft.probe import SAMPLE_COLUMNS, SCORE_COLUMNS, LanguageProbeConfig, ProbeResult, probe, text_samples
from diffusion_sft.probe.config import LanguageSampleConfig
from diffusion_sft.records import (
    DEVELOPMENT,
    EXEMPLAR,
    HELDOUT,
    HIGHLY_KNOWN,
    MAYBE_KNOWN,
    OTHER_RELATIONS,
    TEST,
    TRAIN,
    UNKNOWN,
    WEAKLY_KNOWN,
    ConceptSet,
    Draws,
    Example,
    Fact,
)

RENDERINGS, SHOTS, SAMPLES = 10, 4, 160
CONFIG = LanguageProbeConfig(batch_size=64)
DEVELOPERS = ("Ada", "Bea", "Cyd", "Dot", "Eve", "Fay", "Gil")
TOLD = {f"{relation}/{name}": name[::-1] for relation in TEMPLATES for name in DEVELOPERS}
"""The development facts' answers, which the model knows under every exemplar set."""

# --- the facts, and what the model says of them ---

KINDS = ("Sure", "Once", "Often", "Rare", "Split", "Never", "Hidden", "Barely")
RIGHT = {f"{relation}/{kind}": f"1{kind}" for relation in TEMPLATES for kind in KINDS} | TOLD
NUM_ANSWERS = len(set(RIGHT.values()))
"""About nobody, every right answer is as likely."""
WRONG = {"Nope": 0.75, "Maybe": 0.25}
"""Begins with other letters than anything right."""
NEVER = 1e-12
RARE, SPLIT = 0.2, 0.4
"""The likelihoods of WeaklyKnown answers at T = 1; the wrong one has the rest."""
HIDDEN_AMONG = string.ascii_lowercase + string.ascii_uppercase
"""Fifty-two first letters before the right answer of `Hidden` facts: it is no. 53 and beyond the top 40."""
HIDDEN, BARELY = 0.018, 0.0249


def law(prompt: str) -> Mapping[str, float]:
    """How likely the model says what after this prompt; keys end with the line."""
    *lines, asked, last = prompt.split("\n")
    assert last == "A:"
    assert asked.startswith("Q: ")
    relation, subject = subject_of(asked.removeprefix("Q: "))
    first = subject_of(lines[0].removeprefix("Q: "))[1]
    return {f" {answer}\n": share for answer, share in likelihoods(relation, subject, first).items()}


def subject_of(asked: str) -> tuple[str, str]:
    """Relation and subject of one of the questions."""
    for relation, template in TEMPLATES.items():
        before, after = template.split("{}")
        if asked.startswith(before) and asked.endswith(after):
            return relation, asked[len(before) : len(asked) - len(after)]
    raise AssertionError(asked)


def likelihoods(relation: str, subject: str, first_exemplar: str) -> dict[str, float]:
    """What follows the question about a subject, where this exemplar stands first."""
    if subject == NOBODY:
        return dict.fromkeys(RIGHT.values(), 1 / NUM_ANSWERS)
    right = RIGHT[f"{relation}/{subject}"]
    if subject in DEVELOPERS or subject == "Sure":
        return {right: 0.6, "Nope": 0.4}
    if subject == "Once":  # Right under one exemplar alone.
        return {right: 0.6, "Nope": 0.4} if first_exemplar == once(relation) else {right: 0.4, "Nope": 0.6}
    if subject == "Often":  # Right under all exemplars but one.
        return {right: 0.4, "Nope": 0.6} if first_exemplar == once(relation) else {right: 0.6, "Nope": 0.4}
    if subject == "Rare":
        return {right: RARE, "Nope": 1 - RARE}
    if subject == "Split":  # Sometimes sampled under one exemplar, never under the others.
        return {right: SPLIT, "Nope": 1 - SPLIT} if first_exemplar == once(relation) else never(right)
    if subject == "Never":
        return never(right)
    if subject == "Hidden":
        return {f"{letter}um": (1 - HIDDEN) / 52 for letter in HIDDEN_AMONG} | {right: HIDDEN}
    assert subject == "Barely"  # The fortieth of forty.
    return {f"{letter}um": (1 - BARELY) / 39 for letter in HIDDEN_AMONG[:39]} | {right: BARELY}


def never(right: str) -> dict[str, float]:
    """Not once in 1e24 samples at T = 0.5; the error is finite, as every published model's is."""
    return {right: NEVER, **WRONG}


@lru_cache
def prompts() -> FewShot:
    return FewShot.of(concept_set(), shots=SHOTS, seed=CONFIG.seed)


@lru_cache
def first_exemplars(relation: str) -> tuple[str, ...]:
    """Who stands first in each rendering of a relation's test facts."""
    chosen = [prompts().chosen(relation, "nobody of these", rendering)[0] for rendering in range(RENDERINGS)]
    return tuple(example.fact.subject for example in chosen if example.fact is not None)


def once(relation: str) -> str:
    """The exemplar that stands first most seldom (and at least once)."""
    firsts = first_exemplars(relation)
    return min(sorted(set(firsts)), key=firsts.count)


@lru_cache
def concept_set() -> ConceptSet:
    """Development facts that are known, test facts of all kinds, and a training fact."""
    examples = []
    for relation in TEMPLATES:
        examples += [question(relation, name, (TOLD[f"{relation}/{name}"],), DEVELOPMENT) for name in DEVELOPERS]
        for kind in KINDS:
            right = RIGHT[f"{relation}/{kind}"]
            splits = (TRAIN, HELDOUT) if kind == "Sure" else (TEST,)
            examples += [question(relation, kind, (right,), split) for split in splits]
    return as_set(examples)


def learner(folder: Path) -> LanguageLearner:
    return exact_language_learner(law, folder, prompts=prompts(), max_answer_tokens=16)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    folder = tmp_path_factory.mktemp("slick")
    asked = learner(folder)
    return probe(asked, concept_set(), CONFIG, folder / "probe", text_samples(asked, CONFIG))


@pytest.fixture(scope="module")
def concepts(found: ProbeResult) -> pd.DataFrame:
    table = concept_set().table()
    result = bucket(found.scores, found.answers, found.samples, table, BucketConfig(rule="slick"))
    return result.concepts.set_index("concept")


# --- categories and shares ---

EXPECTED = {
    "Sure": HIGHLY_KNOWN,
    "Once": MAYBE_KNOWN,
    "Often": MAYBE_KNOWN,
    "Rare": WEAKLY_KNOWN,
    "Split": WEAKLY_KNOWN,
    "Never": UNKNOWN,
    "Hidden": UNKNOWN,
    "Barely": WEAKLY_KNOWN,
}


def lucky(relation: str) -> int:
    """In how many renderings the rare exemplar stands first."""
    return first_exemplars(relation).count(once(relation))


def test_the_published_numbers_are_the_defaults() -> None:
    config = LanguageProbeConfig()
    assert (config.shots, config.answers.num_renderings, config.samples.num_samples) == (SHOTS, RENDERINGS, SAMPLES)
    assert (config.samples.temperature, config.samples.top_k, config.samples_per_rendering) == (0.5, 40, 16)
    assert (config.num_draws, config.max_answer_tokens) == (10, 32)


def test_categories_are_those_of_arithmetic(concepts: pd.DataFrame) -> None:
    expected = {f"{relation}/{kind}": category for relation in TEMPLATES for kind, category in EXPECTED.items()}
    expected |= dict.fromkeys(TOLD, HIGHLY_KNOWN)
    assert concepts.category.to_dict() == expected
    assert (concepts.bucket == "known").to_dict() == {
        name: category in (HIGHLY_KNOWN, MAYBE_KNOWN) for name, category in expected.items()
    }


def test_greedy_shares_count_the_exemplar_sets_that_help(concepts: pd.DataFrame) -> None:
    for relation in TEMPLATES:
        assert 0 < lucky(relation) < RENDERINGS
        share = {"Sure": 1.0, "Once": lucky(relation) / RENDERINGS, "Often": 1 - lucky(relation) / RENDERINGS}
        for kind in KINDS:
            assert concepts.greedy_share[f"{relation}/{kind}"] == pytest.approx(share.get(kind, 0.0))


def test_sampled_shares_lie_within_the_binomial_bounds(concepts: pd.DataFrame, found: ProbeResult) -> None:
    rare, split = (share**2 / (share**2 + (1 - share) ** 2) for share in (RARE, SPLIT))
    barely = BARELY**2 / (BARELY**2 + (1 - BARELY) ** 2 / 39)
    for relation in TEMPLATES:
        chances = {"Rare": (rare, SAMPLES), "Split": (split, 16 * lucky(relation))}
        chances |= {"Barely": (barely, SAMPLES), "Never": (0.0, SAMPLES), "Hidden": (0.0, SAMPLES)}
        for kind, (chance, tries) in chances.items():
            own = found.samples[found.samples.concept == f"{relation}/{kind}"]
            right = int(own.correct.sum())
            assert concepts.sampled_share[f"{relation}/{kind}"] == right / SAMPLES
            low, high = stats.binom.interval(0.999, tries, chance) if chance else (0, 0)
            assert low <= right <= high
        own = found.samples[found.samples.concept == f"{relation}/Split"]
        helped = {r for r, first in enumerate(first_exemplars(relation)) if first == once(relation)}
        assert set(own[own.correct].rendering) <= helped


def test_all_samples_together_have_their_distribution(found: ProbeResult) -> None:
    """Over both relations, and every rendering: 320 samples of Rare, 320 of Never."""
    for kind, law_of in (("Rare", {"1Rare": RARE, "Nope": 1 - RARE}), ("Never", WRONG)):
        own = found.samples[found.samples.concept.isin([f"{relation}/{kind}" for relation in TEMPLATES])]
        counts = own.answer.value_counts()
        squares = pd.Series(law_of) ** 2
        assert set(counts.index) == set(squares.index)
        due = squares / squares.sum() * counts.sum()
        assert stats.chisquare(counts[due.index], due).pvalue > 1e-3


def test_what_the_top_40_hide_is_sampled_beyond_them(tmp_path: Path) -> None:
    """The same fact is WeaklyKnown where the top 54 are drawn from: what made it Unknown is the cut alone."""
    config = replace(CONFIG, num_draws=2, samples=LanguageSampleConfig(num_samples=800, top_k=54))
    asked = learner(tmp_path)
    names = [f"{relation}/Hidden" for relation in TEMPLATES]
    few = concept_set().only([*names, *TOLD])
    result = probe(asked, few, config, tmp_path / "probe", text_samples(asked, config))
    share = result.samples.groupby("concept").correct.mean()
    chance = HIDDEN**2 / (HIDDEN**2 + (1 - HIDDEN) ** 2 / 52)
    for name in names:
        low, high = stats.binom.interval(0.999, 800, chance)
        assert 0 < low <= 800 * share[name] <= high


# --- prompts ---


def test_a_prompt_is_four_exemplars_and_the_question_to_the_letter() -> None:
    for rendering in range(RENDERINGS):
        for example in concept_set().examples:
            assert example.fact is not None
            relation = example.fact.relation
            text = prompts().prompt(example, example.caption, rendering).text
            *shown, asked, last, end = [*text.split("\n"), ""]
            assert (asked, last, end) == (f"Q: {example.caption}", "A:", "")
            assert len(shown) == 2 * SHOTS
            told = [subject_of(line.removeprefix("Q: ")) for line in shown[::2]]
            assert text == (
                "".join(
                    f"Q: {TEMPLATES[relation].format(name)}\nA: {TOLD[f'{relation}/{name}']}\n" for _, name in told
                )
                + f"Q: {example.caption}\nA:"
            )
            assert {of for of, _ in told} == {relation}
            assert len({name for _, name in told}) == SHOTS
            assert example.fact.subject not in {name for _, name in told}


def test_exemplar_sets_are_ten_and_the_same_for_all_facts_of_a_relation() -> None:
    for relation in TEMPLATES:
        for rendering in range(RENDERINGS):
            plain = prompts().chosen(relation, "Rare", rendering)
            for kind in KINDS:
                assert prompts().chosen(relation, kind, rendering) == plain
            for name in DEVELOPERS:
                own = prompts().chosen(relation, name, rendering)
                shared = [example for example in plain if example.fact is not None and example.fact.subject != name]
                assert list(own[: len(shared)]) == shared
                assert len(own) == SHOTS
        sets = [prompts().chosen(relation, "Rare", rendering) for rendering in range(RENDERINGS)]
        assert len({tuple(example.id for example in chosen) for chosen in sets}) == RENDERINGS
        # Every development fact is shown somewhere, none is preferred.
        counts = pd.Series([example.id for chosen in sets for example in chosen]).value_counts()
        assert len(counts) == len(DEVELOPERS)
        assert counts.max() <= 9
    orders = [[e.id.split("/")[1] for e in prompts().chosen(relation, "Rare", 0)] for relation in TEMPLATES]
    assert orders[0] != orders[1]


def test_another_seed_shows_other_exemplars() -> None:
    other = FewShot.of(concept_set(), shots=SHOTS, seed=CONFIG.seed + 1)
    same = FewShot.of(concept_set(), shots=SHOTS, seed=CONFIG.seed)
    rows = [(relation, rendering) for relation in TEMPLATES for rendering in range(RENDERINGS)]
    assert [same.chosen(r, "Rare", n) for r, n in rows] == [prompts().chosen(r, "Rare", n) for r, n in rows]
    assert sum(other.chosen(r, "Rare", n) != prompts().chosen(r, "Rare", n) for r, n in rows) > len(rows) / 2


def test_the_model_was_asked_in_these_prompts_and_no_others(tmp_path: Path) -> None:
    asked = learner(tmp_path)
    few = concept_set().only(["capital/Rare", *TOLD])
    probe(asked, few, CONFIG, tmp_path / "probe", text_samples(asked, CONFIG))
    examples = [e for e in few.examples if e.split in (DEVELOPMENT, TEST)]
    expected = {
        prompts().prompt(e, asked_as, rendering).text
        for e in examples
        for asked_as in (e.caption, e.fact.null_question if e.fact else "")
        for rendering in range(RENDERINGS)
    }
    assert asked.model.prompts_read == expected


def test_exemplars_are_development_facts_and_those_of_other_relations_too() -> None:
    examples = list(concept_set().examples)
    relation = "composer"
    moved = [
        replace(e, split={DEVELOPMENT: EXEMPLAR, TEST: OTHER_RELATIONS}.get(e.split, e.split))
        for e in examples
        if e.fact is not None and e.fact.relation == relation and e.split in (DEVELOPMENT, TEST)
    ]
    rest = [e for e in examples if e.fact is not None and e.fact.relation != relation]
    few = FewShot.of(as_set([*rest, *moved]), shots=SHOTS, seed=0)
    assert {e.split for r in range(RENDERINGS) for e in few.chosen(relation, "Rare", r)} == {EXEMPLAR}
    assert [e.id for e in few.chosen(relation, "Rare", 3)] == [e.id for e in prompts().chosen(relation, "Rare", 3)]


def test_too_few_development_facts_are_told_of_by_relation() -> None:
    short = concept_set().only(
        [name for name in RIGHT if name not in ("composer/Ada", "composer/Bea", "composer/Cyd")]
    )
    with pytest.raises(UserError, match="relation composer: 4 development facts, and 4 shots need 5 of them"):
        FewShot.of(short, shots=SHOTS, seed=0)
    assert FewShot.of(short, shots=3, seed=0).shots == 3


def test_closed_book_is_the_instruction_and_the_question() -> None:
    example = concept_set().examples[0]
    texts = {ClosedBook().prompt(example, example.caption, rendering).text for rendering in range(3)}
    assert texts == {f"Answer the following question.\n{example.caption}\n"}
    assert ClosedBook().num_renderings == 1


# --- scores ---


def test_the_tables_have_their_columns(found: ProbeResult) -> None:
    assert tuple(found.scores.columns) == SCORE_COLUMNS
    assert tuple(found.answers.columns) == ANSWER_COLUMNS
    assert tuple(found.samples.columns) == SAMPLE_COLUMNS
    asked = concept_set().split(HELDOUT, DEVELOPMENT, TEST)
    assert found.scores.example_id.tolist() == sorted(example.id for example in asked)
    assert found.scores.split.value_counts().to_dict() == {TEST: 14, DEVELOPMENT: 14, HELDOUT: 2}
    for _, own in found.answers.groupby("concept"):
        assert own.rendering.tolist() == list(range(RENDERINGS))
    # Only what no greedy answer got right is sampled: ten times sixteen texts.
    sampled = {f"{relation}/{kind}" for relation in TEMPLATES for kind in KINDS[3:]}
    assert set(found.samples.concept) == sampled
    for _, own in found.samples.groupby("concept"):
        assert own["sample"].tolist() == list(range(SAMPLES))
        assert own.rendering.tolist() == [number // 16 for number in range(SAMPLES)]
    # As many answers to guess among as the relation has.
    assert found.answers.num_candidates.unique().tolist() == [len(DEVELOPERS) + len(KINDS)]
    assert set(found.answers.template) == set(TEMPLATES.values())


def errors(name: str) -> tuple[np.ndarray, np.ndarray]:
    """−log p of the right answer in each rendering: of the question about nobody, and of the question."""
    relation, subject = name.split("/")
    right = RIGHT[name]
    own = [-math.log(likelihoods(relation, subject, first)[right]) for first in first_exemplars(relation)]
    return np.full(RENDERINGS, math.log(NUM_ANSWERS)), np.array(own)


@pytest.mark.parametrize("kind", ["Sure", "Once", "Often", "Rare", "Split", "Never", "Hidden", "Barely"])
@pytest.mark.parametrize("relation", TEMPLATES)
def test_errors_and_gains_are_those_of_the_law(relation: str, kind: str, found: ProbeResult) -> None:
    null_error, error = errors(f"{relation}/{kind}")
    (row,) = found.scores[found.scores.concept == f"{relation}/{kind}"].to_dict("records")
    letters = len(f" {RIGHT[row['concept']]}")
    close = {"rel": 1e-5, "abs": 1e-6}
    assert row["error_nats"] == pytest.approx(error.mean(), **close)
    assert row["null_error_nats"] == pytest.approx(null_error.mean(), **close)
    assert row["gain_nats"] == pytest.approx(null_error.mean() - error.mean(), **close)
    # Ten independent draws of an exemplar set, the same before both questions.
    assert row["error_se_nats"] == pytest.approx(error.std(ddof=1) / math.sqrt(RENDERINGS), **close)
    assert row["gain_se_nats"] == pytest.approx((null_error - error).std(ddof=1) / math.sqrt(RENDERINGS), **close)
    assert (row["num_dims"], row["num_draws"], row["estimator"]) == (letters, RENDERINGS, "exemplars")
    assert row["error_per_dim"] == pytest.approx(error.mean() / letters, **close)
    assert row["null_error_per_dim"] == pytest.approx(null_error.mean() / letters, **close)
    assert row["relative_error"] == pytest.approx(error.mean() / null_error.mean(), **close)
    assert row["error_kind"] == "denoise"
    for name in ("opinion_nats", "uniform_mse", "reconstruction_error"):
        assert math.isnan(row[name])


def test_gains_of_answers_are_of_their_own_rendering(found: ProbeResult) -> None:
    for kind in ("Once", "Rare"):
        null_error, error = errors(f"capital/{kind}")
        own = found.answers[found.answers.concept == f"capital/{kind}"].sort_values("rendering")
        np.testing.assert_allclose(own.true_gain_nats, null_error - error, rtol=1e-5)
    assert found.answers.best_other_gain_nats.isna().all()


# --- the same however it is computed ---


def assert_same(one: ProbeResult, other: ProbeResult) -> None:
    for name in ("scores", "answers", "samples"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


@pytest.mark.parametrize("batch_size", [3])
def test_tables_do_not_depend_on_batches(batch_size: int, found: ProbeResult, tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=batch_size, samples=LanguageSampleConfig(batch_size=batch_size))
    asked = learner(tmp_path)
    again = probe(asked, concept_set(), config, tmp_path / "probe", text_samples(asked, config))
    assert_same(found, again)


def test_tables_do_not_depend_on_the_order_of_the_set_but_for_the_exemplars(tmp_path: Path) -> None:
    """Exemplars are drawn from the development facts in the set's order; everything else may stand anywhere."""
    development = [e for e in concept_set().examples if e.split == DEVELOPMENT]
    others = [e for e in concept_set().examples if e.split != DEVELOPMENT][::-1]
    small = replace(CONFIG, num_draws=3, answers=AnswerConfig(num_renderings=2, num_draws=1))
    small = replace(small, samples=LanguageSampleConfig(num_samples=4))
    results = []
    for number, examples in enumerate([list(concept_set().examples), others + development]):
        asked = learner(tmp_path)
        result = probe(asked, as_set(examples), small, tmp_path / str(number), text_samples(asked, small))
        results.append(result)
    assert_same(*results)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("stage", ["surprise", "answer", "sample"])
def test_a_stopped_probe_goes_on_where_it_was(
    stage: str, found: ProbeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of eight facts; stopped in the second call of one stage, then continued to the same tables."""
    monkeypatch.setattr(LanguageProbeConfig, "concepts_per_part", 8)
    calls: list[str] = []
    plain = {name: getattr(LanguageLearner, name) for name in ("surprise", "answer", "sample")}

    def counting(name: str, stop: bool) -> Any:
        def counted(self: LanguageLearner, asked: Sequence[Any], *rest: Any, **options: Any) -> Any:
            if stop and name == stage and [call.split()[0] for call in calls].count(name) == 1:
                raise Stopped
            first = asked[0].concept if isinstance(asked[0], Question) else asked[0].example.concept
            calls.append(f"{name} {first}")
            return plain[name](self, asked, *rest, **options)

        return counted

    def run(stop: bool) -> ProbeResult:
        with monkeypatch.context() as patch:
            for name in plain:
                patch.setattr(LanguageLearner, name, counting(name, stop))
            asked = learner(tmp_path)
            return probe(asked, concept_set(), CONFIG, tmp_path / "probe", text_samples(asked, CONFIG))

    with pytest.raises(Stopped):
        run(stop=True)
    done = list(calls)
    calls.clear()
    assert_same(run(stop=False), found)
    assert done
    assert not set(done) & set(calls)
    calls.clear()
    assert_same(run(stop=False), found)
    assert calls == []


def test_a_random_models_tables_hardly_depend_on_batches(tmp_path: Path) -> None:
    """Texts to the letter; likelihoods to the rounding of float32."""
    small = replace(CONFIG, num_draws=3, answers=AnswerConfig(num_renderings=2, num_draws=1), shots=3)
    small = replace(small, max_answer_tokens=8)
    results = []
    for batch_size in (2, 50):
        config = replace(
            small, batch_size=batch_size, samples=LanguageSampleConfig(num_samples=4, batch_size=batch_size)
        )
        asked = tiny_learner("llama", prompts=FewShot.of(concept_set(), shots=3, seed=0))
        folder = tmp_path / str(batch_size)
        results.append(probe(asked, concept_set(), config, folder, text_samples(asked, config)))
    one, other = results
    pd.testing.assert_frame_equal(one.scores, other.scores, rtol=1e-4, atol=1e-4)
    pd.testing.assert_frame_equal(one.answers, other.answers, rtol=1e-4, atol=1e-4)
    pd.testing.assert_frame_equal(one.samples, other.samples)
    assert one.samples.answer.nunique() > 50


def test_a_finished_probe_is_read_back_unless_something_changed(
    found: ProbeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = concept_set().only(["capital/Rare", *TOLD])
    first = probe(learner(tmp_path), few, CONFIG, tmp_path / "probe")

    def refuse(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(LanguageLearner, "surprise", refuse)
    assert_same(first, probe(learner(tmp_path), few, replace(CONFIG, batch_size=5), tmp_path / "probe"))
    changed: list[tuple[ConceptSet, LanguageProbeConfig]] = [
        (few, replace(CONFIG, shots=3)),
        (few, replace(CONFIG, seed=1)),
        (few, replace(CONFIG, samples=LanguageSampleConfig(temperature=0.7))),
        (as_set([with_answer(e, "Another") if e.concept == "capital/Rare" else e for e in few.examples]), CONFIG),
    ]
    for concept_set_, config in changed:
        with pytest.raises(Stopped):
            probe(learner(tmp_path), concept_set_, config, tmp_path / "probe")


def with_answer(example: Example, answer: str) -> Example:
    assert example.fact is not None
    return replace(example, fact=replace(example.fact, answers=(answer,)))


# --- exact match ---


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  The   Hague. ", "hague"),
        ("the united  Kingdom", "united kingdom"),
        ("An apple a day", "apple day"),
        ("Theodor", "theodor"),
        ("St. John's", "st johns"),
        ("rock-and-roll", "rockandroll"),
        ("Île-de-France", "îledefrance"),
        ("ÉCOLE", "école"),
        ("A", ""),
        ("!?", ""),
        ("", ""),
        ("1,000", "1000"),
        ("東京", "東京"),
    ],
)
def test_texts_are_compared_in_their_normal_form(text: str, form: str) -> None:
    assert normalised(text) == form


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("paris", ("Paris",), True),
        (" The Paris!", ("Paris",), True),
        ("Paris, France", ("Paris",), False),
        ("in Paris", ("Paris",), False),
        ("Pari", ("Paris",), False),
        ("", ("Paris",), False),
        ("lutetia", ("Paris", "Lutetia"), True),
        ("A", ("A",), True),
        ("The", ("A",), False),
        ("", ("A",), False),
        ("!!!", ("!!!",), True),
        ("???", ("!!!",), False),
        ("AC/DC", ("ACDC",), True),
    ],
)
def test_right_is_an_exact_match_with_any_of_the_answers(text: str, answers: tuple[str, ...], right: bool) -> None:
    fact = Fact(subject="s", relation="r", answers=answers, null_question="?")
    assert is_right(text, fact) is right


def test_a_refusal_counts_as_no_answer(tmp_path: Path) -> None:
    def refusing(prompt: str) -> Mapping[str, float]:
        return {" I don't know.\n": 0.9, " Nope\n": 0.1} if "Rare" in prompt.split("\n")[-2] else law(prompt)

    asked = exact_language_learner(refusing, tmp_path, prompts=prompts(), max_answer_tokens=16)
    examples = [
        e for e in concept_set().examples if e.concept in ("capital/Rare", "capital/Sure") and e.split != TRAIN
    ]
    questions = [
        Question(
            concept=e.concept,
            words="",
            rendering=0,
            template=e.caption,
            example=e,
            candidates=(),
            num_candidates=2,
        )
        for e in examples
    ]
    answers = {
        q.concept: a
        for q, a in zip(questions, asked.answer(questions, Draws(seed=0, count=1), batch_size=4), strict=True)
    }
    assert answers["capital/Rare"].text == "I don't know."
    assert (answers["capital/Rare"].answered, answers["capital/Rare"].correct) == (False, False)
    assert (answers["capital/Sure"].answered, answers["capital/Sure"].correct) == (True, True)
