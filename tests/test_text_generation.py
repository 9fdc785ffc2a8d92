"""Answers as solutions: against plain loops over whole texts, and a model whose every number is known on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from language_models import NOBODY, TEMPLATES, as_set, exact_language_learner, question, question_set, tiny_learner

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.errors import UserError
from diffusion_sft.learner import Question
from diffusion_sft.learners.exact_match import is_right
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.prompts import FewShot
from diffusion_sft.learners.text_generation import text_generations, text_recoveries
from diffusion_sft.records import DEVELOPMENT, HELDOUT, TEST, Draws, identity_seed
from diffusion_sft.systems import Generation

SEED, STARTS, TOKENS = 5, 3, 8
CONCEPTS = question_set(test=3)


@lru_cache
def learner_of(architecture: str) -> LanguageLearner:
    learner = tiny_learner(architecture, prompts=FewShot.of(CONCEPTS, shots=4, seed=0), max_answer_tokens=TOKENS)
    learner.model.double()
    # Every ninth token ends an answer, so that answers are of all lengths.
    learner.vocabulary.stops[::9] = True
    return learner


@lru_cache
def questions() -> tuple[Question, ...]:
    made = make_questions(CONCEPTS, CONCEPTS.split(TEST), AnswerConfig(num_renderings=2, num_draws=1), 0)
    return tuple(made)


@lru_cache
def generations(architecture: str, batch_size: int = 64) -> list[Generation]:
    read = text_generations(learner_of(architecture), seed=SEED, num_starts=STARTS, batch_size=batch_size)
    return read(questions())


def prompt_ids(learner: LanguageLearner, asked: Question, *, null: bool = False) -> list[int]:
    assert asked.example.fact is not None
    caption = asked.example.fact.null_question if null else asked.example.caption
    text = learner.prompts.prompt(asked.example, caption, asked.rendering).text
    return learner.vocabulary.prompt(text)


def logits_after(learner: LanguageLearner, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of each of the answer's places given what stands before it, (len(answer), vocabulary), from one plain pass."""
    with torch.no_grad():
        return learner.model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]


def greedy(learner: LanguageLearner, prompt: list[int]) -> list[int]:
    """The answer with the token that ends it."""
    answer: list[int] = []
    while len(answer) < TOKENS and not (answer and learner.vocabulary.stops[answer[-1]]):
        answer.append(int(logits_after(learner, prompt, [*answer, 0])[-1].argmax()))
    return answer


def start_of(learner: LanguageLearner, asked: Question, draw: int, count: int) -> list[int]:
    seed = identity_seed(SEED, "systems", asked.example.id, asked.rendering, draw)
    return np.random.default_rng(seed).integers(0, learner.vocabulary.size, TOKENS)[:count].tolist()


def plain_jacobi(learner: LanguageLearner, prompt: list[int], start: list[int]) -> list[list[int]]:
    """The iterates until nothing before the last one changes."""
    iterates = [start]
    while len(iterates) < 2 or iterates[-1][:-1] != iterates[-2][:-1]:
        iterates.append(logits_after(learner, prompt, iterates[-1]).argmax(dim=1).tolist())
    return iterates


# --- against plain loops ---


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_solutions_are_the_greedy_answers_whatever_they_began_with(architecture: str) -> None:
    learner, found = learner_of(architecture), generations(architecture)
    answers = learner.answer(questions(), Draws(seed=0, count=1), batch_size=64)
    assert [(g.concept, g.rendering, g.draw) for g in found] == [
        (q.concept, q.rendering, draw) for q in questions() for draw in range(STARTS)
    ]
    for place, (asked, answer) in enumerate(zip(questions(), answers, strict=True)):
        length = len(greedy(learner, prompt_ids(learner, asked)))
        for own in found[place * STARTS : (place + 1) * STARTS]:
            assert (own.answer, own.correct, own.num_steps) == (answer.text, answer.correct, length)
    assert len({g.num_steps for g in found}) >= 4
    assert max(g.num_steps for g in found) == TOKENS


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rounds_and_residuals_are_those_of_plain_sweeps(architecture: str) -> None:
    learner, faster = learner_of(architecture), 0
    for place, own in enumerate(generations(architecture)):
        asked = questions()[place // STARTS]
        start = start_of(learner, asked, own.draw, own.num_steps)
        iterates = np.array(plain_jacobi(learner, prompt_ids(learner, asked), start))
        assert own.rounds == len(iterates) - 1 <= own.num_steps
        assert own.num_evaluations == own.rounds * own.num_steps
        np.testing.assert_array_equal(own.residuals, iterates[:-1] != iterates[1:])
        standing = [(values == iterates[-1]).all() for values in iterates]
        assert own.first_passage == (0 if all(standing) else len(standing) - standing[::-1].index(False))
        faster += own.rounds < own.num_steps
    assert faster > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sensitivity_counts_what_a_runner_up_changes(architecture: str) -> None:
    learner, found, seen = learner_of(architecture), generations(architecture), []
    for place, asked in enumerate(questions()):
        prompt = prompt_ids(learner, asked)
        answer = greedy(learner, prompt)
        second = logits_after(learner, prompt, answer).topk(2).indices[:, 1].tolist()
        shares = []
        for changed in range(len(answer) - 1):
            other = [*answer[:changed], second[changed], *answer[changed + 1 :]]
            said = logits_after(learner, prompt, other).argmax(dim=1).tolist()
            shares.append(np.mean([a != b for a, b in zip(said[changed + 1 :], answer[changed + 1 :], strict=True)]))
        expected = np.mean(shares) if shares else np.nan
        for own in found[place * STARTS : (place + 1) * STARTS]:
            np.testing.assert_allclose(own.sensitivity, expected, rtol=1e-12)
        seen.append(expected)
    assert np.nanmax(seen) > np.nanmin(seen)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_null_question_is_solved_from_the_same_start(architecture: str) -> None:
    learner, distances = learner_of(architecture), set()
    for place, own in enumerate(generations(architecture)):
        asked = questions()[place // STARTS]
        answer, null = (greedy(learner, prompt_ids(learner, asked, null=is_null)) for is_null in (False, True))
        longest = max(len(answer), len(null))
        padded = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in (answer, null)]
        assert own.null_distance == np.mean([a != b for a, b in zip(*padded, strict=True)])
        start = start_of(learner, asked, own.draw, len(null))
        assert own.null_rounds == len(plain_jacobi(learner, prompt_ids(learner, asked, null=True), start)) - 1
        distances.add(own.null_distance)
    assert len(distances) > 2


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_and_company_change_nothing(batch_size: int) -> None:
    whole, small = generations("llama"), generations("llama", batch_size)
    some = text_generations(learner_of("llama"), seed=SEED, num_starts=2, batch_size=batch_size)(questions()[4:2:-1])
    kept = [g for q in questions()[4:2:-1] for g in whole if (g.concept, g.rendering) == (q.concept, q.rendering)]
    kept = [g for g in kept if g.draw < 2]
    for found, expected in ((small, whole), (some, kept)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.residuals, other.residuals)
            np.testing.assert_allclose(one.sensitivity, other.sensitivity)
            plain = {"residuals": None, "sensitivity": 0.0}
            assert replace(one, **plain).__dict__ == replace(other, **plain).__dict__


def test_another_seed_begins_elsewhere() -> None:
    other = text_generations(learner_of("llama"), seed=SEED + 1, num_starts=STARTS, batch_size=64)(questions())
    assert [g.answer for g in other] == [g.answer for g in generations("llama")]
    assert any(
        not np.array_equal(one.residuals, two.residuals) for one, two in zip(other, generations("llama"), strict=True)
    )


@pytest.mark.parametrize("batch_size", [1, 64])
def test_recovery_is_the_first_beginning_that_is_completed(batch_size: int) -> None:
    """With answers that the model does complete: its own texts, from its own second-best beginnings."""
    learner = learner_of("gpt2")
    asked, expected = [], []
    for place, own in enumerate(questions()):
        fact = own.example.fact
        assert fact is not None
        prompt = prompt_ids(learner, own)
        # The end of a long way round: after some forced tokens, what the model makes of it.
        forced = logits_after(learner, prompt, greedy(learner, prompt)).topk(3).indices[: place % 4, 1 + place % 2]
        text = learner.vocabulary.text([*forced.tolist(), *greedy(learner, [*prompt, *forced.tolist()])])
        fact = replace(fact, answers=(text or "nothing",))
        made = replace(own, example=replace(own.example, fact=fact))
        asked.append(made)
        whole = learner.prompts.prompt(made.example, made.example.caption, made.rendering).text
        ids, gold = learner.vocabulary.pair(whole, f" {fact.answers[0]}")
        share = 1.0
        for given in range(len(gold)):
            rest: list[int] = []
            while len(rest) < max(TOKENS - given, 1):
                token = int(logits_after(learner, [*ids, *gold[:given]], [*rest, 0])[-1].argmax())
                if learner.vocabulary.stops[token]:
                    break
                rest.append(token)
            if is_right(learner.vocabulary.text([*gold[:given], *rest]), fact):
                share = given / len(gold)
                break
        expected.append(share)
    assert text_recoveries(learner, batch_size=batch_size)(asked) == expected
    assert len(set(expected)) >= 2


# --- a model that is known on paper ---

DEVELOPERS = ("Ada", "Bea", "Cyd", "Dot", "Eve", "Fay")
SHARES = {" Lisbon\n": 0.5, " Lima\n": 0.3, " Oslo\n": 0.2}
ANSWERS = {"Sure": "Lisbon", "Later": "Lima", "Soon": "Oslo", "Never": "Quito"}


def law(prompt: str) -> Mapping[str, float]:
    """Of anybody alike; of nobody something that begins alike."""
    asked = prompt.split("\n")[-2]
    return {" Lisboa\n": 1.0} if NOBODY in asked else SHARES


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageLearner, list[Question]]:
    examples = [question("capital", name, (name[::-1],), DEVELOPMENT) for name in DEVELOPERS]
    examples += [question("capital", name, (answer,), TEST) for name, answer in ANSWERS.items()]
    concepts = as_set(examples)
    folder = tmp_path_factory.mktemp("exact")
    learner = exact_language_learner(law, folder, prompts=FewShot.of(concepts, shots=4, seed=0))
    made = make_questions(concepts, concepts.split(TEST), AnswerConfig(num_renderings=1, num_draws=1), 0)
    return learner, made


def test_a_model_that_waits_for_every_letter_takes_a_round_for_each(
    known: tuple[LanguageLearner, list[Question]],
) -> None:
    """After a wrong letter it says the first of its tokens: nothing stands before all before it does."""
    learner, asked = known
    # No start of this seed begins with the right letter by chance, which would save its round.
    found = text_generations(learner, seed=2, num_starts=4, batch_size=8)(asked)
    length = len(" Lisbon\n")
    for own in found:
        assert own.answer == "Lisbon"
        assert own.correct == (own.concept == "capital/Sure")
        assert own.num_steps == own.rounds == own.first_passage == length
        # Round j finds the first j − 1 letters right and the next one wrong.
        for number, residual in enumerate(own.residuals):
            assert residual[: number + 1].tolist() == [0.0] * number + [1.0]
        # "Lisbon" and "Lisboa" part at their last letter; the line's end follows both.
        assert own.null_distance == 1 / length
        assert own.null_rounds == length


def test_runner_ups_change_all_that_follows_where_the_law_forks(
    known: tuple[LanguageLearner, list[Question]],
) -> None:
    """Only ' O' and ' Lim' are other ways on; any other wrong letter is followed by the first token, for ever."""
    learner, asked = known
    (own, *_) = text_generations(learner, seed=0, num_starts=1, batch_size=8)(asked[:1])
    assert own.sensitivity == 1.0


def test_recoveries_are_where_the_law_leaves_one_way(known: tuple[LanguageLearner, list[Question]]) -> None:
    """' Lisbon' is said at once; ' Lima' after ' Lim', four of five letters; ' Oslo' after ' O'; ' Quito' never."""
    learner, asked = known
    found = dict(zip([q.concept for q in asked], text_recoveries(learner, batch_size=3)(asked), strict=True))
    assert found == {"capital/Sure": 0.0, "capital/Later": 4 / 5, "capital/Soon": 2 / 5, "capital/Never": 1.0}


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    learner = learner_of("llama")
    long = replace(questions()[0].example, caption=TEMPLATES["capital"].format("a place far away, " * 40))
    asked = replace(questions()[0], example=long)
    for read in (
        text_generations(learner, seed=0, num_starts=1, batch_size=4),
        text_recoveries(learner, batch_size=4),
    ):
        with pytest.raises(UserError, match=f"{long.id}: .* tokens with its prompt and answer") as caught:
            read([asked])
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="no question with an answer"):
            read([replace(questions()[0], example=replace(long, fact=None, split=HELDOUT))])
        assert read([]) == []
