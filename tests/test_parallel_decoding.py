"""Parallel decoding against transformers' own greedy `generate`, token for token, and against its definition written out
with plain passes over whole texts: no cache, no mask."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import CONTEXT, WINDOW, tiny_model
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, PreTrainedModel

from diffusion_sft.learners.attention_masks import FEW_PENDING, Layout, draft_mask, visibility
from diffusion_sft.learners.drafting import DecodingRecord
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.lookahead import NgramPool
from diffusion_sft.learners.parallel_decoding import Jacobi, Lookahead
from diffusion_sft.learners.prompts import FewShot
from diffusion_sft.numerics.sweeps import gauss_seidel_jacobi
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.records import PROBED, identity_seed
from diffusion_sft.world.facts import question_rows
from diffusion_sft.world.population import WorldConfig, populate

FULL_ATTENTION = ("llama", "gpt2", "qwen2", "qwen3")
WAYS: dict[str, Jacobi | Lookahead] = {
    "one by one": Jacobi(block_size=1),
    "jacobi": Jacobi(),
    "blocks": Jacobi(block_size=4, seed=3),
    "lookahead": Lookahead(),
    "bigrams": Lookahead(window=3, ngram=2, guesses=2, seed=5),
    "prompt": Lookahead(window=4, ngram=3, guesses=3, pool_from_prompt=True),
}
LENGTH = 24


@lru_cache
def model_of(architecture: str) -> PreTrainedModel:
    return tiny_model(architecture, dtype=torch.float64)


def prompts(architecture: str, count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    size = model_of(architecture).config.vocab_size
    return [generator.integers(3, size, generator.integers(1, 40)).tolist() for _ in range(count)]


def ends(architecture: str) -> list[int]:
    """Tokens that end an answer, so many that answers are of all lengths."""
    return list(range(0, model_of(architecture).config.vocab_size, 11))


def generated(model: PreTrainedModel, ids: torch.Tensor, way: Any = None, **settings: Any) -> torch.Tensor:
    own = {} if way is None else {"custom_generate": way}
    settings = {"max_new_tokens": LENGTH, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)} | settings
    return model.generate(ids, do_sample=False, **settings, **own)


def decoded(model: PreTrainedModel, prompt: list[int], way: Any, **settings: Any) -> tuple[list[int], DecodingRecord]:
    """The answer and what it cost."""
    records: list[DecodingRecord] = []
    ids = torch.tensor([prompt])
    found = generated(model, ids, replace(way, record=records.append), **settings)
    assert len(records) == 1
    return found[0, len(prompt) :].tolist(), records[0]


# --- equal to greedy decoding ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", FULL_ATTENTION)
def test_answers_are_those_of_generate(architecture: str, way: str) -> None:
    model, lengths = model_of(architecture), set()
    for prompt in prompts(architecture, 8):
        expected = generated(model, torch.tensor([prompt]), eos_token_id=ends(architecture))[
            0, len(prompt) :
        ].tolist()
        found, cost = decoded(model, prompt, WAYS[way], eos_token_id=ends(architecture))
        assert found == expected
        assert sum(cost.accepted) == cost.num_tokens == len(expected)
        assert cost.rounds == len(cost.accepted) <= len(expected)
        assert min(cost.accepted) >= 1
        lengths.add(len(expected))
    assert len(lengths) >= 4


@pytest.mark.parametrize("way", ["blocks", "jacobi", "lookahead", "prompt"])
def test_processors_see_the_true_tokens_alone(way: str) -> None:
    """Penalties, forbidden n-grams and least lengths change what greedy decoding says, in the same way for all."""
    rules: list[dict[str, Any]] = [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "repetition_penalty": 0.6},
        {"suppress_tokens": list(range(50, 250))},
        {"forced_eos_token_id": 7},
    ]
    model, few, changed = model_of("gpt2"), ends("gpt2")[::4], 0
    for rule in rules:
        for prompt in prompts("gpt2", 3, seed=1):
            ids = torch.tensor([prompt])
            plain = generated(model, ids, eos_token_id=few)
            expected = generated(model, ids, eos_token_id=few, **rule)
            found, _ = decoded(model, prompt, WAYS[way], eos_token_id=few, **rule)
            assert found == expected[0, len(prompt) :].tolist()
            changed += plain.tolist() != expected.tolist()
    assert changed >= 6


def test_processors_are_asked_once_for_each_token() -> None:
    seen: list[list[int]] = []

    def remembering(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        scores[:, seen[-1][-1]] = -torch.inf  # in place, as some processors do
        return scores

    prompt = prompts("gpt2", 1)[0]
    expected = generated(model_of("gpt2"), torch.tensor([prompt]), logits_processor=[remembering])[0].tolist()
    before, seen = seen, []
    found, _ = decoded(model_of("gpt2"), prompt, Lookahead(), logits_processor=[remembering])
    assert [*prompt, *found] == expected
    assert seen == before == [expected[:end] for end in range(len(prompt), len(expected))]


@pytest.mark.parametrize("way", ["jacobi", "lookahead"])
def test_criteria_end_an_answer_where_they_end_greedy_decoding(way: str) -> None:
    def even_pair(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return (ids[:, -2:] % 2 == 0).all(dim=1)

    model, lengths = model_of("gpt2"), set()
    for prompt in prompts("gpt2", 6):
        expected = generated(model, torch.tensor([prompt]), stopping_criteria=[even_pair])[0, len(prompt) :].tolist()
        found, _ = decoded(model, prompt, WAYS[way], stopping_criteria=[even_pair])
        assert found == expected
        lengths.add(len(expected))
    assert len(lengths) > 2


@pytest.mark.parametrize("way", ["jacobi", "lookahead"])
@pytest.mark.parametrize("architecture", FULL_ATTENTION)
def test_rows_of_a_padded_batch_are_those_of_generate(architecture: str, way: str) -> None:
    model, rows = model_of(architecture), prompts(architecture, 5, seed=2)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings: dict[str, Any] = {"attention_mask": mask, "eos_token_id": ends(architecture), "repetition_penalty": 1.3}
    expected = generated(model, ids, **settings)
    records: list[DecodingRecord] = []
    found = generated(model, ids, replace(WAYS[way], record=records.append), **settings)
    assert found.tolist() == expected.tolist()
    assert len({record.num_tokens for record in records}) > 1
    assert max(record.num_tokens for record in records) == expected.shape[1] - longest
    whole = generated(model, ids, WAYS[way], return_dict_in_generate=True, **settings)
    assert whole.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("way", ["jacobi", "lookahead", "prompt"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_guesses_never_reach_beyond_the_context(architecture: str, way: str) -> None:
    """GPT-2 has no position after its last."""
    prompt = np.random.default_rng(3).integers(3, 300, CONTEXT - 9).tolist()
    expected = generated(model_of(architecture), torch.tensor([prompt]), max_new_tokens=9)[0, len(prompt) :].tolist()
    found, _ = decoded(model_of(architecture), prompt, WAYS[way], max_new_tokens=9)
    assert found == expected


def test_eager_attention_takes_the_same_masks() -> None:
    model = tiny_model("llama", dtype=torch.float64, attn_implementation="eager")
    for prompt in prompts("llama", 4):
        expected = generated(model, torch.tensor([prompt]))[0, len(prompt) :].tolist()
        assert decoded(model, prompt, Lookahead())[0] == expected


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageLearner, list[list[int]]]:
    """The shipped language model, and few-shot prompts of the world's questions."""
    file = tmp_path_factory.mktemp("world") / "questions.jsonl"
    rows = question_rows(populate(WorldConfig()), 0)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = read_questions(QuestionsConfig(path=str(file))).concept_set
    shots = FewShot.of(questions, shots=4, seed=0)
    learner = LanguageLearner.load(Path(__file__).parents[1] / "data" / "world-lm", prompts=shots)
    chosen = sorted((e for e in questions.split(*PROBED)), key=lambda e: identity_seed(1, "decoding", e.id))[:20]
    asked = [shots.prompt(e, e.caption, number % 10).text for number, e in enumerate(chosen)]
    return learner, [learner.vocabulary.prompt(text) for text in asked]


def test_the_shipped_language_model_says_the_same_in_fewer_passes(
    shipped: tuple[LanguageLearner, list[list[int]]],
) -> None:
    learner, asked = shipped
    stops = np.flatnonzero(learner.vocabulary.stops).tolist()
    settings: dict[str, Any] = {"eos_token_id": stops, "pad_token_id": stops[0]}
    ways = {name: WAYS[name] for name in ("jacobi", "blocks", "lookahead")} | {
        "own": Lookahead(pool_from_prompt=True)
    }
    rounds, tokens = dict.fromkeys(ways, 0), 0
    for prompt in asked:
        expected = generated(learner.model, torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        tokens += len(expected)
        for name, way in ways.items():
            found, cost = decoded(learner.model, prompt, way, **settings)
            assert found == expected
            rounds[name] += cost.rounds
    assert tokens / rounds["own"] > 1.3
    assert all(count <= tokens for count in rounds.values())


# --- the definitions, written out ---


def next_tokens(model: PreTrainedModel, text: list[int]) -> list[int]:
    """The most likely token after each of the text's."""
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0].float().argmax(dim=-1).tolist()


@pytest.mark.parametrize("block", [None, 1, 5])
def test_jacobi_is_the_solver_of_triangular_systems(block: int | None) -> None:
    """Same start, same rounds, same evaluations as the sweeps of a system that is read without a cache."""
    count, faster = 17, 0
    for architecture in ("gpt2", "llama"):
        model = model_of(architecture)
        for prompt in prompts(architecture, 5, seed=4):
            generator = np.random.default_rng(identity_seed(11, "jacobi", 0))
            size = model.config.vocab_size
            parts = [min(block or count, count - begin) for begin in range(0, count, block or count)]
            start = np.concatenate([generator.integers(0, size, part) for part in parts])

            def sweep(_: np.ndarray, tokens: np.ndarray, prompt=prompt, model=model) -> np.ndarray:
                return np.array([next_tokens(model, [*prompt, *tokens[0, :-1].tolist()])[len(prompt) - 1 :]])

            (solution,) = gauss_seidel_jacobi(sweep, start[None], block or count)
            found, cost = decoded(
                model, prompt, Jacobi(block_size=block, seed=11), max_new_tokens=count, eos_token_id=None
            )
            assert found == solution.values.tolist()
            assert cost.rounds == solution.rounds
            # Solved tokens stay in the cache, so that a pass reads those alone that are not.
            if block is None:
                begun = count - np.cumsum([0, *cost.accepted[:-1]])
                assert cost.num_evaluations == begun.sum()
            if block == 1:
                assert cost.num_evaluations == count
            faster += cost.rounds < count
    assert (faster > 0) == (block != 1)


class PlainLookahead:
    """Lookahead decoding with nothing but passes over whole texts: the definition of Fu et al. (2024)."""

    def __init__(self, model: PreTrainedModel, way: Lookahead, prompt: list[int]) -> None:
        self.model, self.way, self.text = model, way, list(prompt)
        generator = np.random.default_rng(identity_seed(way.seed, "lookahead", 0))
        self.levels = [generator.choice(np.asarray(prompt), way.window + way.ngram - 2).tolist()]
        self.pool: dict[int, list[tuple[int, ...]]] = {}
        if way.pool_from_prompt:
            for begin in range(len(prompt) - way.ngram + 1):
                self.remember(tuple(prompt[begin : begin + way.ngram]))

    def remember(self, ngram: tuple[int, ...]) -> None:
        own = self.pool.setdefault(ngram[0], [])
        if ngram[1:] in own:
            own.remove(ngram[1:])
        own.append(ngram[1:])
        self.pool[ngram[0]] = own[-self.way.guesses :]

    def window_choice(self, column: int) -> int:
        """What follows a column's last level, whose text is contiguous: the first level up to it, then its own."""
        own = [level[column] for level in self.levels[1:]]
        return next_tokens(self.model, [*self.text, *self.levels[0][: column + 1], *own])[-1]

    def step(self, room: int) -> list[int]:
        """One pass; returns what it adds."""
        best: list[int] = []
        for continuation in self.pool.get(self.text[-1], []):
            said = next_tokens(self.model, [*self.text, *continuation[:room]])[len(self.text) - 1 :]
            hits = 0
            while hits < len(continuation[:room]) and continuation[hits] == said[hits]:
                hits += 1
            best = max(best, said[: hits + 1], key=len)
        best = best or next_tokens(self.model, self.text)[-1:]
        if room:
            newest = [self.window_choice(column) for column in range(len(self.levels[0]))]
            if len(self.levels) < self.way.ngram - 1:
                self.levels = [level[1:] for level in [*self.levels, newest]]
            else:
                for ngram in zip(*self.levels, newest, strict=True):
                    self.remember(ngram)
                self.levels = [*self.levels[1:], newest]
        self.text += best
        return best


@pytest.mark.parametrize("way", ["lookahead", "bigrams", "prompt"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_lookahead_s_passes_are_those_of_its_definition(architecture: str, way: str) -> None:
    """Every pass accepts as many tokens as where all window tokens and guesses are read one by one, in plain texts."""
    model, own, several = model_of(architecture), WAYS[way], 0
    assert isinstance(own, Lookahead)
    for prompt in prompts(architecture, 3, seed=6):
        plain, accepted = PlainLookahead(model, own, prompt), []
        while sum(accepted) < LENGTH:
            accepted.append(len(plain.step(LENGTH - sum(accepted) - 1)))
        found, cost = decoded(model, prompt, own, eos_token_id=None)
        assert [*prompt, *found] == plain.text
        assert cost.accepted == tuple(accepted)
        several += sum(count > 1 for count in accepted)
    assert several > 0


def test_the_window_fills_in_as_many_passes_as_it_has_levels_and_finds_a_loop() -> None:
    """Where greedy decoding repeats itself, the window's n-grams are right, and a pass adds most of one."""
    model = tiny_model("gpt2", dtype=torch.float64, initializer_range=0.05)
    prompt = prompts("gpt2", 1, seed=8)[0]
    found, cost = decoded(model, prompt, Lookahead(), max_new_tokens=120, eos_token_id=None)
    assert (
        found
        == generated(model, torch.tensor([prompt]), max_new_tokens=120, eos_token_id=None)[0, len(prompt) :].tolist()
    )
    assert len(set(found[-20:])) < 10
    assert cost.accepted[:3] == (1, 1, 1)
    assert max(cost.accepted) == Lookahead().ngram
    assert cost.accepted.count(Lookahead().ngram) > 10


# --- the parts ---


def test_the_pool_forgets_what_was_not_seen_for_longest() -> None:
    pool = NgramPool(2)
    assert pool.after(1) == []
    pool.add(1, (2, 3))
    pool.add(1, (4, 5))
    pool.add(7, (8, 9))
    assert pool.after(1) == [(4, 5), (2, 3)]
    pool.add(1, (2, 3))
    pool.add(1, (6, 6))
    assert pool.after(1) == [(6, 6), (2, 3)]
    assert pool.after(7) == [(8, 9)]


def test_a_window_token_sees_the_trajectory_of_its_column_and_a_branch_itself() -> None:
    layout = Layout((2, 1), 3, 2)
    assert layout.num_tokens == 9
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 1],
    ]
    assert visibility(layout).int().tolist() == expected


@pytest.mark.parametrize("num_pending", [3, FEW_PENDING + 1])
def test_a_mask_shows_the_past_to_all_and_pending_tokens_no_drafts(num_pending: int) -> None:
    layout, device = Layout((1, 1), 0, 0), torch.device("cpu")
    mask = draft_mask(layout, num_cached=2, num_pending=num_pending, dtype=torch.float32, device=device)
    rows = [[1] * (3 + place) + [0] * (num_pending + 1 - place) for place in range(num_pending)]
    rows += [[1] * (2 + num_pending) + [1, 0], [1] * (2 + num_pending) + [0, 1]]
    assert mask.shape == (1, 1, num_pending + 2, num_pending + 4)
    assert torch.where(mask[0, 0] == 0, 1, 0).tolist() == rows
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


# --- what cannot be done ---


def test_what_is_not_greedy_is_refused_in_one_line() -> None:
    model, ids = model_of("llama"), torch.tensor([[5, 6, 7]])
    mask = torch.ones_like(ids)
    filled = DynamicCache(config=model.config)
    model(ids, past_key_values=filled)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"do_sample": True}, "do_sample=True"),
        ({"do_sample": False, "num_beams": 3}, "num_beams=3"),
        ({"do_sample": False, "return_dict_in_generate": True, "output_scores": True}, "leave out output_scores"),
        ({"do_sample": False, "past_key_values": filled}, "no filled cache"),
        ({"do_sample": False, "inputs_embeds": torch.zeros(1, 3, 32, dtype=torch.float64)}, "inputs_embeds"),
    ]
    for way in (Jacobi(), Lookahead()):
        for settings, message in refusals:
            with pytest.raises(ValueError, match=message) as caught:
                model.generate(ids, attention_mask=mask, max_new_tokens=4, custom_generate=way, **settings)
            assert "\n" not in str(caught.value)


def test_caches_that_cannot_take_tokens_back_are_refused() -> None:
    model, ids = model_of("mistral"), torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match=f"MistralForCausalLM: its attention window of {WINDOW} tokens"):
        generated(model, ids, Jacobi(), max_new_tokens=WINDOW - 4)
    # Where nothing falls out of the window, there is nothing to take back from it.
    expected = generated(model, ids, max_new_tokens=WINDOW - 5)
    assert generated(model, ids, Jacobi(), max_new_tokens=WINDOW - 5).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="and up to 31 are read"):
        generated(model, ids, Lookahead(window=2, ngram=4, guesses=1), max_new_tokens=12)
    wide = tiny_model("mistral", dtype=torch.float64)
    wide.config.sliding_window = 200
    assert generated(wide, ids, Lookahead()).tolist() == generated(wide, ids).tolist()
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()
    with pytest.raises(ValueError, match="MambaForCausalLM: its cache .* cannot take tokens back"):
        generated(mamba, ids, Jacobi())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size=0"):
        Jacobi(block_size=0)
    for settings in ({"window": 0}, {"ngram": 1}, {"guesses": 0}):
        with pytest.raises(ValueError, match="at least 1, 2 and 1"):
            Lookahead(**settings)
