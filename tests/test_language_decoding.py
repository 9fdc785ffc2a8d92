"""Continuations and likelihoods against transformers' own, token for token, and against distributions known in full."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import (
    ARCHITECTURES,
    CONTEXT,
    WINDOW,
    as_set,
    exact_language_learner,
    letter_tokenizer,
    question,
    question_set,
    tiny_learner,
    tiny_model,
)
from scipy import stats
from transformers import PreTrainedModel

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.errors import UserError
from diffusion_sft.learner import Query, Question
from diffusion_sft.learners.decoding import Continuations, DecodingConfig, Request, decode
from diffusion_sft.learners.likelihood import Continued, answer_nats
from diffusion_sft.learners.prefixes import batches, common_prefix
from diffusion_sft.learners.prompts import ClosedBook, FewShot
from diffusion_sft.learners.vocabulary import Vocabulary
from diffusion_sft.numerics.noise import uniform
from diffusion_sft.records import TEST, Draws

NUM_PROMPTS, MAX_NEW_TOKENS = 44, 10
CONFIG = DecodingConfig(max_new_tokens=MAX_NEW_TOKENS)
NO_SAMPLES = np.zeros((0, 0))
LONGEST_SHARED = 24
"""More than the tiny Mistral's window."""


@lru_cache
def model_of(architecture: str) -> PreTrainedModel:
    return tiny_model(architecture, dtype=torch.float64)


@lru_cache
def prompts_of(architecture: str) -> tuple[list[list[int]], list[str]]:
    """Prompts of 2 to 40 tokens and their groups: of three long beginnings, of a short one, and of none."""
    generator = np.random.default_rng(0)
    size = model_of(architecture).config.vocab_size
    beginnings = {"a": LONGEST_SHARED, "b": 13, "c": 1, "": 0, "d": LONGEST_SHARED - 5}
    shared = {group: generator.integers(3, size, count).tolist() for group, count in beginnings.items()}
    groups = [list(beginnings)[number % 5] for number in range(NUM_PROMPTS)]
    prompts = [shared[group] + generator.integers(3, size, generator.integers(2, 17)).tolist() for group in groups]
    return prompts, groups


def grouped(architecture: str, sharing: bool) -> tuple[list[list[int]], list[str]]:
    """The prompts, with their beginnings told to the reader or each in a group of its own."""
    prompts, groups = prompts_of(architecture)
    return prompts, groups if sharing else [str(number) for number in range(len(prompts))]


@lru_cache
def stops_of(architecture: str) -> np.ndarray:
    """Every seventh token ends an answer, so that answers are of all lengths."""
    stops = np.zeros(model_of(architecture).config.vocab_size, dtype=bool)
    stops[::7] = True
    return stops


@lru_cache
def generated(architecture: str) -> list[list[int]]:
    """What `generate` says to each prompt by itself, without the token that ended it."""
    model, stops = model_of(architecture), stops_of(architecture)
    found = []
    for prompt in prompts_of(architecture)[0]:
        ids = torch.tensor([prompt])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=np.flatnonzero(stops).tolist(),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        found.append(said[:-1] if stops[said[-1]] else said)
    return found


# --- greedy answers ---


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_generate(architecture: str, batch_size: int, sharing: bool) -> None:
    requests = [
        Request(prompt=p, group=g, uniforms=NO_SAMPLES) for p, g in zip(*grouped(architecture, sharing), strict=True)
    ]
    config = replace(CONFIG, batch_size=batch_size)
    found = decode(model_of(architecture), requests, stops_of(architecture), config)
    assert [continuations.greedy for continuations in found] == generated(architecture)
    assert all(continuations.samples == [] for continuations in found)


def test_the_prompts_and_answers_are_of_all_lengths() -> None:
    for architecture in ARCHITECTURES:
        prompts, _ = prompts_of(architecture)
        assert len(prompts) >= 40
        assert len({len(prompt) for prompt in prompts}) > 15
        assert max(len(prompt) for prompt in prompts) > 2 * WINDOW
        lengths = Counter(len(answer) for answer in generated(architecture))
        assert len(lengths) >= 5
        assert 0 < lengths[MAX_NEW_TOKENS] < NUM_PROMPTS
        assert len({tuple(answer) for answer in generated(architecture)}) > 20


def test_an_answer_is_cut_at_max_new_tokens() -> None:
    requests = [Request(prompt=p, group=g, uniforms=NO_SAMPLES) for p, g in zip(*prompts_of("llama"), strict=True)]
    for length in (1, 2, 5):
        cut = decode(model_of("llama"), requests, stops_of("llama"), replace(CONFIG, max_new_tokens=length))
        assert [c.greedy for c in cut] == [answer[:length] for answer in generated("llama")]


def test_a_request_wants_what_it_asks_for() -> None:
    """Greedy or not, with samples or without, side by side in one batch."""
    prompts, groups = prompts_of("qwen2")
    rows = uniforms(5)
    requests = [
        Request(prompt=p, group=g, uniforms=rows[: number % 3], greedy=number % 2 == 0)
        for number, (p, g) in enumerate(zip(prompts, groups, strict=True))
    ]
    found = decode(model_of("qwen2"), requests, stops_of("qwen2"), CONFIG)
    everything = sampled("qwen2", rows)
    for number, (continuations, answer) in enumerate(zip(found, generated("qwen2"), strict=True)):
        assert continuations.greedy == (answer if number % 2 == 0 else None)
        assert continuations.samples == everything[number].samples[: number % 3]
    assert decode(model_of("qwen2"), [], stops_of("qwen2"), CONFIG) == []


def test_rows_of_uniform_numbers_may_be_of_any_sufficient_length() -> None:
    prompts, _ = prompts_of("qwen2")
    long, exact = uniforms(3, MAX_NEW_TOKENS + 4), uniforms(3)[:, :MAX_NEW_TOKENS]
    requests = [
        Request(prompt=prompt, group="", uniforms=rows, greedy=False)
        for prompt, rows in zip(prompts[:2], (long, exact), strict=True)
    ]
    together = decode(model_of("qwen2"), requests, stops_of("qwen2"), CONFIG)
    alone = [decode(model_of("qwen2"), [request], stops_of("qwen2"), CONFIG)[0] for request in requests]
    assert together == alone


# --- samples ---


def uniforms(count: int, length: int = MAX_NEW_TOKENS) -> np.ndarray:
    return np.array([uniform(length, seed) for seed in range(count)])


def sampled(architecture: str, rows: np.ndarray) -> list[Continuations]:
    requests = [
        Request(prompt=p, group=g, uniforms=rows, greedy=False)
        for p, g in zip(*prompts_of(architecture), strict=True)
    ]
    return decode(model_of(architecture), requests, stops_of(architecture), CONFIG)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_a_sample_is_a_function_of_its_uniform_numbers_alone(architecture: str) -> None:
    """Not of the batch, nor of the order, nor of which other samples are drawn, nor of a greedy answer beside it."""
    rows = uniforms(8)
    whole = [found.samples for found in sampled(architecture, rows)]
    assert len({tuple(sample) for samples in whole for sample in samples}) > NUM_PROMPTS
    prompts, groups = prompts_of(architecture)
    generator = np.random.default_rng(1)
    for batch_size, sharing in ((3, True), (7, False)):
        order, kept = generator.permutation(NUM_PROMPTS), generator.permutation(8)[:5]
        requests = [
            Request(
                prompt=prompts[place],
                group=groups[place] if sharing else str(place),
                uniforms=rows[kept],
                greedy=bool(place % 2),
            )
            for place in order
        ]
        config = replace(CONFIG, batch_size=batch_size)
        found = decode(model_of(architecture), requests, stops_of(architecture), config)
        assert [c.samples for c in found] == [[whole[place][number] for number in kept] for place in order]


@pytest.mark.parametrize("top_k", [3, 40, None])
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_every_quantile_of_the_first_two_tokens_is_in_its_place(temperature: float, top_k: int | None) -> None:
    """A grid of uniform numbers gives each token as often as its probability says, to one sample."""
    model, prompt, steps = model_of("llama"), prompts_of("llama")[0][0], 400
    grid = (np.arange(steps) + 0.5) / steps
    stops = np.zeros(model.config.vocab_size, dtype=bool)
    config = DecodingConfig(max_new_tokens=2, temperature=temperature, top_k=top_k)

    def expected(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].numpy() / temperature
        if top_k is not None:
            logits[logits < np.sort(logits)[-top_k]] = -np.inf
        shares = np.exp(logits - logits.max())
        assert np.count_nonzero(shares) == (top_k or len(shares))
        return shares / shares.sum()

    def counted(tokens: list[int]) -> np.ndarray:
        return np.bincount(tokens, minlength=len(stops))

    first = Request(prompt=prompt, group="", uniforms=np.stack([grid, np.full(steps, 0.5)], axis=1))
    tokens = [sample[0] for sample in decode(model, [first], stops, config)[0].samples]
    assert np.abs(counted(tokens) - steps * expected(prompt)).max() <= 1
    chosen = tokens[steps // 3]
    second = Request(prompt=prompt, group="", uniforms=np.stack([np.full(steps, grid[steps // 3]), grid], axis=1))
    samples = decode(model, [second], stops, config)[0].samples
    assert {sample[0] for sample in samples} == {chosen}
    following = counted([sample[1] for sample in samples])
    assert np.abs(following - steps * expected([*prompt, chosen])).max() <= 1


def test_the_first_tokens_of_random_samples_have_their_distribution() -> None:
    model, prompt = model_of("gpt2"), prompts_of("gpt2")[0][1]
    rows = uniforms(4000, 1)
    request = Request(prompt=prompt, group="", uniforms=rows)
    stops = np.zeros(model.config.vocab_size, dtype=bool)
    samples = decode(model, [request], stops, DecodingConfig(max_new_tokens=1))[0].samples
    with torch.no_grad():
        values, ids = model(torch.tensor([prompt])).logits[0, -1].topk(40)
    shares = dict(zip(ids.tolist(), (2 * values).softmax(0).tolist(), strict=True))
    counts = Counter(sample[0] for sample in samples)
    assert set(counts) <= set(shares)
    assert goodness(shares, counts) > 1e-3


def goodness(shares: dict, counts: Counter) -> float:
    """The p-value of Pearson's χ², the rare cells put together."""
    total = sum(counts.values())
    large = [cell for cell, share in shares.items() if share * total >= 10]
    seen, due = [counts[cell] for cell in large], [shares[cell] * total for cell in large]
    rest = total - sum(due)
    if rest > 1:
        seen, due = [*seen, total - sum(seen)], [*due, rest]
    return float(stats.chisquare(seen, np.array(due) * sum(seen) / sum(due)).pvalue)


LAW = {" Lima\n": 0.4, " Lisbon\n": 0.25, " Oslo\n": 0.2, " O\n": 0.1, " Qu\n": 0.05}


def known_shares(temperature: float) -> dict[str, float]:
    """Of whole answers. Letters are sharpened one by one, so that answers that begin alike are counted together first:
    L, O, Q; then Lim and Lis; then Oslo, and O with its end."""

    def sharpened(*parts: float) -> np.ndarray:
        powers = np.array(parts) ** (1 / temperature)
        return powers / powers.sum()

    first, after_li, after_o = sharpened(0.65, 0.3, 0.05), sharpened(0.4, 0.25), sharpened(0.2, 0.1)
    return {
        "Lima": first[0] * after_li[0],
        "Lisbon": first[0] * after_li[1],
        "Oslo": first[1] * after_o[0],
        "O": first[1] * after_o[1],
        "Qu": first[2],
    }


@pytest.mark.parametrize("temperature", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_whole_answers_have_the_distribution_that_is_known(temperature: float, tmp_path: Path) -> None:
    concept_set = question_set(test=2)
    learner = exact_language_learner(lambda _: LAW, tmp_path, prompts=FewShot.of(concept_set, shots=4, seed=0))
    asked = make_questions(concept_set, concept_set.split(TEST)[:1], AnswerConfig(num_renderings=1), 0)
    (texts,) = learner.sample(asked, seed=3, num_samples=6000, temperature=temperature, top_k=40, batch_size=8)
    assert {text for text, _ in texts} <= set(known_shares(temperature))
    assert goodness(known_shares(temperature), Counter(text for text, _ in texts)) > 1e-3
    (answer,) = learner.answer(asked, Draws(seed=0, count=1), batch_size=8)
    assert answer.text == "Lima"


def test_what_is_less_likely_than_the_top_is_never_said(tmp_path: Path) -> None:
    letters = string.ascii_letters
    law = {f" {letter}um\n": 1.0 + 0.01 * place for place, letter in enumerate(letters)}
    concept_set = question_set(test=1)
    learner = exact_language_learner(lambda _: law, tmp_path, prompts=FewShot.of(concept_set, shots=4, seed=0))
    asked = make_questions(concept_set, concept_set.split(TEST)[:1], AnswerConfig(num_renderings=1), 0)
    (texts,) = learner.sample(asked, seed=0, num_samples=4000, temperature=0.5, top_k=40, batch_size=8)
    likeliest = [f"{letter}um" for letter in letters[-40:]]
    weights = np.array([law[f" {text}\n"] for text in likeliest]) ** 2
    counts = Counter(text for text, _ in texts)
    assert set(counts) == set(likeliest)
    assert goodness(dict(zip(likeliest, weights / weights.sum(), strict=True)), counts) > 1e-3


# --- likelihoods ---


@lru_cache
def losses(architecture: str) -> tuple[list[list[int]], np.ndarray]:
    """Answers of 1 to 7 tokens, and transformers' own mean loss on each times the number of tokens."""
    model, generator = model_of(architecture), np.random.default_rng(2)
    answers = [generator.integers(3, model.config.vocab_size, generator.integers(1, 8)).tolist() for _ in range(44)]
    found = []
    for prompt, answer in zip(prompts_of(architecture)[0], answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            found.append(float(model(ids, labels=labels).loss) * len(answer))
    return answers, np.array(found)


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nats_are_transformers_own_loss(architecture: str, batch_size: int, sharing: bool) -> None:
    answers, expected = losses(architecture)
    prompts, groups = grouped(architecture, sharing)
    pairs = [Continued(prompt=p, group=g, answer=a) for p, g, a in zip(prompts, groups, answers, strict=True)]
    found = answer_nats(model_of(architecture), pairs, batch_size)
    assert [len(nats) for nats in found] == [len(answer) for answer in answers]
    np.testing.assert_allclose([nats.sum() for nats in found], expected, rtol=1e-5)
    assert all((nats >= 0).all() for nats in found)


def test_a_learner_reads_the_answer_after_a_space(tmp_path: Path) -> None:
    """Surprise is the loss on the answer's own tokens, of the question and of the question about nobody."""
    concept_set = question_set()
    for architecture in ("llama", "gpt2"):
        prompts = FewShot.of(concept_set, shots=4, seed=0)
        learner = tiny_learner(architecture, prompts=prompts)
        queries = [Query(example=e, cues=(e.caption,)) for e in concept_set.split(TEST)]
        readings = learner.surprise(queries, Draws(seed=0, count=3), batch_size=5)
        for query, reading in zip(queries, readings, strict=True):
            fact = query.example.fact
            assert fact is not None
            assert reading.squared_error.shape == (2, 3)
            for row, asked in enumerate((fact.null_question, query.example.caption)):
                for rendering in range(3):
                    text = prompts.prompt(query.example, asked, rendering).text
                    before = learner.vocabulary.tokenizer(text)["input_ids"]
                    whole = learner.vocabulary.tokenizer(f"{text} {fact.answers[0]}")["input_ids"]
                    assert whole[: len(before)] == before
                    answer = whole[len(before) :]
                    labels = torch.tensor([[-100] * len(before) + answer])
                    with torch.no_grad():
                        loss = learner.model(torch.tensor([whole]), labels=labels).loss
                    assert reading.num_dims == len(answer)
                    assert reading.error_nats[row, rendering] == pytest.approx(len(answer) * float(loss), rel=1e-5)


# --- prefixes ---


def test_a_common_prefix_is_the_longest_that_leaves_a_token() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        shared = generator.integers(0, 2, generator.integers(0, 6)).tolist()
        prompts = [shared + generator.integers(0, 2, generator.integers(1, 4)).tolist() for _ in range(4)]
        prefix = list(common_prefix(prompts))
        assert all(prompt[: len(prefix)] == prefix for prompt in prompts)
        assert all(len(prompt) > len(prefix) for prompt in prompts)
        longer = [prompt[: len(prefix) + 1] for prompt in prompts]
        assert any(a != longer[0] for a in longer) or min(map(len, prompts)) == len(prefix) + 1
        assert list(common_prefix(prompts[::-1])) == prefix
    assert list(common_prefix([[1, 2, 3]])) == [1, 2]
    assert list(common_prefix([[1, 2, 3], [1, 2, 3]])) == [1, 2]
    assert list(common_prefix([[5], [5, 6]])) == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_hold_every_prompt_once_and_one_group_each(batch_size: int) -> None:
    prompts, groups = prompts_of("llama")
    found = batches(groups, prompts, batch_size)
    assert sorted(place for batch in found for place in batch.places) == list(range(len(prompts)))
    for batch in found:
        assert len({groups[place] for place in batch.places}) == 1
        assert len(batch.places) <= batch_size
        members = [prompts[place] for place in range(len(prompts)) if groups[place] == groups[batch.places[0]]]
        assert list(batch.prefix) == list(common_prefix(members))
        lengths = [len(prompts[place]) for place in batch.places]
        assert lengths == sorted(lengths)


# --- what does not fit ---


def test_what_is_longer_than_the_context_is_refused_in_one_line() -> None:
    concept_set = question_set()
    example = concept_set.split(TEST)[0]
    asked = make_questions(concept_set, [example], AnswerConfig(num_renderings=1), 0)
    long = replace(example, caption=" ".join(["What is it that lies there,"] * 40))
    refused = make_questions(as_set([long]), [long], AnswerConfig(num_renderings=1), 0)
    learner = tiny_learner("qwen2")
    learner.answer(asked, Draws(seed=0, count=1), batch_size=4)
    draws = Draws(seed=0, count=1)
    sampling = {"seed": 0, "num_samples": 2, "temperature": 0.5, "top_k": 5, "batch_size": 4}
    for attempt in (
        lambda: learner.answer(refused, draws, batch_size=4),
        lambda: learner.sample(refused, **sampling),
        lambda: learner.surprise([refused[0].query], draws, batch_size=4),
        lambda: learner.check_captions([example.caption, long.caption]),
    ):
        with pytest.raises(UserError, match=str(CONTEXT) + "|1 questions with more than 248 tokens") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    # A question that fits alone may not fit behind its exemplars.
    learner.prompts = FewShot.of(question_set(development=40), shots=30, seed=0)
    with pytest.raises(UserError, match=f"{example.id}: .* tokens .*reads {CONTEXT}; ask with fewer shots"):
        learner.answer(asked, draws, batch_size=4)


def test_a_question_of_exactly_the_context_is_answered_and_one_token_more_is_not() -> None:
    learner = tiny_learner("gpt2", max_answer_tokens=4)
    template = question("capital", "#", ("Rome",), TEST)
    draws = Draws(seed=0, count=1)

    def asked(length: int) -> list[Question]:
        """A question whose prompt is of so many tokens: signs that no piece of the tokenizer joins."""
        short = len(learner.vocabulary.prompt(ClosedBook().prompt(template, "#", 0).text))
        example = replace(template, caption="#" * (length - short + 1))
        assert len(learner.vocabulary.prompt(ClosedBook().prompt(example, example.caption, 0).text)) == length
        return make_questions(as_set([example]), [example], AnswerConfig(num_renderings=1), 0)

    (answer,) = learner.answer(asked(CONTEXT - 4), draws, batch_size=1)
    assert answer.error_nats > 0
    with pytest.raises(UserError, match=f"{CONTEXT + 1} tokens .* reads {CONTEXT}"):
        learner.answer(asked(CONTEXT - 3), draws, batch_size=1)


# --- vocabularies ---


def test_line_ends_the_end_of_text_and_meaningless_ids_end_an_answer() -> None:
    learner = tiny_learner("qwen2")
    vocabulary = learner.vocabulary
    tokenizer = vocabulary.tokenizer
    assert vocabulary.size == len(tokenizer) + 5
    assert vocabulary.stops[len(tokenizer) :].all()
    assert vocabulary.stops[tokenizer.eos_token_id]
    for token in range(len(tokenizer)):
        if token != tokenizer.eos_token_id:
            assert vocabulary.stops[token] == ("\n" in tokenizer.decode([token]))
    assert 0 < vocabulary.stops[: len(tokenizer)].sum() < len(tokenizer) / 2


def test_prompts_begin_as_the_tokenizer_wants_and_do_not_end() -> None:
    for architecture in ("llama", "gpt2"):
        vocabulary = tiny_learner(architecture).vocabulary
        ids = vocabulary.prompt("Q: What?\nA:")
        assert (ids[0] == vocabulary.tokenizer.bos_token_id) == (architecture == "llama")
        assert ids[-1] != vocabulary.tokenizer.eos_token_id
        before, answer = vocabulary.pair("Q: What?\nA:", " Rome")
        assert before == ids
        assert vocabulary.text(answer) == "Rome"
        assert vocabulary.text([*answer, *vocabulary.prompt("\nQ: Who?")]) == "Rome"


def test_an_answer_that_melts_into_its_prompt_is_encoded_by_itself() -> None:
    vocabulary = Vocabulary(letter_tokenizer(), 259)
    merged = tiny_learner("gpt2").vocabulary
    (piece,) = merged.tokenizer(" the")["input_ids"][:1]
    before, answer = merged.pair("Q:", "")
    assert answer == []
    assert before == merged.prompt("Q:")
    text = merged.tokenizer.decode([piece])
    before, answer = merged.pair(f"Q:{text[:1]}", text[1:])
    assert before == merged.prompt(f"Q:{text[:1]}")
    assert merged.tokenizer.decode(answer) == text[1:]
    before, answer = vocabulary.pair("A:", " b")
    assert vocabulary.tokenizer.decode(answer) == " b"
