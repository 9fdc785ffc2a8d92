"""Soft prompts and answer blocks against the model's own likelihood, torch's own Adam, and a model known on paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import ARCHITECTURES, letter_tokenizer, question, tiny_learner, tiny_model, tiny_tokenizer
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import DynamicCache, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Question
from diffusion_sft.learners.blanks import BlankReader, Blanks, named_spans
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.language_loading import LoadedLanguageModel
from diffusion_sft.learners.prompts import ClosedBook
from diffusion_sft.learners.text_inputs import (
    _in_the_answer,
    _in_the_name,
    answer_blocks,
    soft_prompts,
)
from diffusion_sft.numerics.noise import normal
from diffusion_sft.records import HELDOUT, Draws, Example, identity_seed
from diffusion_sft.systems import InputSolutions

ANSWERS = {"Blorp": "Wug", "Dax Fepzorp": "Kiru toma", "Mip": "a rather long answer"}
EXAMPLES = [question("capital", subject, (answer,), HELDOUT) for subject, answer in ANSWERS.items()]
SHORT: dict[str, Any] = {"seed": 4, "num_starts": 2, "num_steps": 5, "learning_rate": 0.3, "batch_size": 64}
MAKERS = {"soft_prompt": soft_prompts, "answer_block": answer_blocks}


def asked(example: Example) -> Question:
    """The question of a fact, as `make_questions` has it."""
    return Question(
        concept=example.concept,
        words=example.fact.subject if example.fact else "",
        rendering=0,
        template="{}",
        example=example,
        candidates=(),
        num_candidates=2,
    )


QUESTIONS = [asked(example) for example in EXAMPLES]


def double_learner(architecture: str) -> LanguageLearner:
    model = tiny_model(architecture, dtype=torch.float64)
    tokenizer = tiny_tokenizer(architecture)
    return LanguageLearner(
        LoadedLanguageModel(model=model, tokenizer=tokenizer, folder=Path("nowhere"), source={}), max_answer_tokens=8
    )


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_named_residuals_are_the_learners_surprise_and_the_blanks_filled_with_the_names(
    architecture: str, kind: str
) -> None:
    """Different lengths in one batch, padded on the right; the tiny Mistral's window is shorter than its prompts."""
    learner = tiny_learner(architecture)
    found = MAKERS[kind](learner, **(SHORT | {"num_steps": 0}))(QUESTIONS)
    answers = learner.answer(QUESTIONS, Draws(seed=0, count=1), batch_size=8)
    make = _in_the_name if kind == "soft_prompt" else _in_the_answer
    options = (None,) if kind == "soft_prompt" else ()
    blanks = [make(learner, q, ClosedBook(), *options).blanks for q in QUESTIONS]  # type: ignore[operator]
    lengths = [len(row.gold) for row in blanks]
    expected = [answer.error_nats / length for answer, length in zip(answers, lengths, strict=True)]
    np.testing.assert_allclose([one.named_residual for one in found], expected, rtol=1e-5)
    reader = BlankReader(learner.model)
    batch = reader.batch(blanks)
    points = np.zeros((3, batch.num_free), dtype=np.float32)
    for number, row in enumerate(blanks):
        own = reader.named(row) / reader.scale
        points[number, : len(own)] = own
    with torch.no_grad():
        read = batch.read(torch.from_numpy(points), torch.arange(3))
        again = batch.read(torch.from_numpy(points[[2, 0, 2]]), torch.tensor([2, 0, 2]))
    np.testing.assert_allclose(read.residuals.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(again.residuals.numpy(), np.array(expected)[[2, 0, 2]], rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_answer_token_is_the_answer_blocks_floor(architecture: str) -> None:
    """Its nats are those of the base after the prompt alone, by transformers' own forward."""
    learner = tiny_learner(architecture)
    for one, example in zip(answer_blocks(learner, **SHORT)(QUESTIONS), EXAMPLES, strict=True):
        assert example.fact is not None
        text = f"Answer the following question.\n{example.caption}\n"
        prompt, answer = learner.vocabulary.pair(text, f" {example.fact.answers[0]}")
        with torch.no_grad():
            logits = learner.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        nats = -float(logits.log_softmax(dim=0)[answer[0]])
        assert one.floor * len(answer) == pytest.approx(nats, rel=1e-5)
        assert one.num_free == 32 * (len(answer) - 1)
        assert one.rank <= len(answer) - 1
        assert all(start.residual >= one.floor for start in one.starts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gold_is_said_where_greedy_decoding_says_it(architecture: str) -> None:
    """Answers by transformers' own generation, and the same with one token exchanged."""
    learner = tiny_learner(architecture)
    rows, expected = [], []
    for length, question_ in zip((3, 1, 6), QUESTIONS, strict=True):
        prompt = learner.vocabulary.prompt(ClosedBook().prompt(question_.example, question_.example.caption, 0).text)
        ids = torch.tensor([prompt])
        generated = learner.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, eos_token_id=None
        )
        said = generated[0, len(prompt) :].tolist()
        for place in range(-1, length):
            gold = list(said)
            if place >= 0:
                gold[place] = (gold[place] + 1) % 300
            whole = (*prompt, *gold[:-1])
            rows.append(Blanks(ids=whole, slots=(-1,) * len(whole), gold=tuple(gold), named=(), num_vectors=0))
            expected.append(place < 0)
    batch = BlankReader(learner.model).batch(rows)
    with torch.no_grad():
        read = batch.read(torch.zeros(len(rows), batch.num_free), torch.arange(len(rows)))
    assert read.says_gold.tolist() == expected


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_path_is_torchs_adam_on_the_input_embeddings(architecture: str, kind: str) -> None:
    """With transformers' own loss of labelled tokens, one question, no padding, float64."""
    learner = double_learner(architecture)
    found = MAKERS[kind](learner, **SHORT)(QUESTIONS)[1]
    example = EXAMPLES[1]
    assert example.fact is not None
    prompt, answer = learner.vocabulary.pair(f"Answer the following question.\n{example.caption}\n", " Kiru toma")
    tokenizer, table = learner.vocabulary.tokenizer, learner.model.get_input_embeddings().weight.detach()
    scale = float(table.square().mean().sqrt())
    ids = torch.tensor([*prompt, *answer])
    if kind == "soft_prompt":
        places = [i for i, token in enumerate(prompt) if _spells(tokenizer, prompt, i, "Dax Fepzorp")]
        named = table[torch.tensor(prompt)[places]]
    else:
        places = list(range(len(prompt), len(ids) - 1))
        named = table[torch.tensor(answer[:-1])]
    labels = torch.where(torch.arange(len(ids)) < len(prompt), -100, ids)
    for number, start in enumerate(found.starts):
        widest = 32 * max(_num_vectors(learner, q, kind) for q in QUESTIONS)
        first = normal((widest,), identity_seed(4, example.id, kind, number))[: 32 * len(places)]
        free = nn.Parameter(scale * first.double().reshape(-1, 32))
        adam = torch.optim.Adam([free], lr=0.3 * scale, eps=1e-8 / scale)
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 5)
        values, paths = [], []
        for _ in range(6):
            embeddings = table[ids].index_copy(0, torch.tensor(places), free)
            output = learner.model(inputs_embeds=embeddings.unsqueeze(0), labels=labels.unsqueeze(0))
            values.append(float(output.loss.detach()))
            paths.append(free.detach().clone())
            adam.zero_grad()
            output.loss.backward()
            adam.step()
            decay.step()
        best = int(np.argmin(values))
        # transformers rounds the loss to float32.
        assert start.residual == pytest.approx(values[best], rel=1e-5)
        np.testing.assert_allclose(start.solution, paths[best].reshape(-1).numpy(), rtol=1e-4, atol=1e-4 * scale)
        distance = float((paths[best] - named).norm() / named.norm())
        assert start.distance == pytest.approx(distance, rel=1e-4)
        assert start.first_solved is None
    assert found.starts[0].residual < values[0]


def _spells(tokenizer: Any, prompt: Sequence[int], place: int, name: str) -> bool:
    """Whether the text up to this token reaches into the name, which stands nowhere else, and that before it ends."""
    before, after = tokenizer.decode(prompt[:place]), tokenizer.decode(prompt[: place + 1])
    whole = tokenizer.decode(prompt)
    begin = whole.index(name)
    return len(after) > begin and len(before) < begin + len(name)


def _num_vectors(learner: LanguageLearner, question_: Question, kind: str) -> int:
    if kind == "answer_block":
        return _in_the_answer(learner, question_, ClosedBook()).blanks.num_vectors
    return _in_the_name(learner, question_, ClosedBook(), None).blanks.num_vectors


# --- a model known on paper ---

WIDTH = 6


class Summing(PreTrainedModel):
    """logits = W Σ (embeddings so far): what it says depends on the sum of all that it has read."""

    config_class = LlamaConfig

    def __init__(self, readout: np.ndarray) -> None:
        tokenizer = letter_tokenizer()
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=512,
            )
        )
        generator = np.random.default_rng(0)
        self.table = nn.Embedding(len(tokenizer), WIDTH)
        with torch.no_grad():
            self.table.weight.copy_(torch.from_numpy(generator.normal(0, 0.1, (len(tokenizer), WIDTH))))
        self.readout = nn.Parameter(torch.from_numpy(readout))
        self.double().eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        states = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        new = states.shape[1]
        if past_key_values is not None:
            states = past_key_values.update(*[states.unsqueeze(1)] * 2, 0)[0].squeeze(1)
        assert attention_mask is not None
        summed = (states * attention_mask.unsqueeze(2)).cumsum(dim=1)[:, -(logits_to_keep or new) :]
        return CausalLMOutputWithPast(logits=summed @ self.readout.T, past_key_values=past_key_values)


def summing_learner(readout: np.ndarray) -> LanguageLearner:
    return LanguageLearner(
        LoadedLanguageModel(model=Summing(readout), tokenizer=letter_tokenizer(), folder=Path("nowhere"), source={})
    )


def readout(rank: int) -> np.ndarray:
    """A readout that hears so many directions."""
    generator = np.random.default_rng(7)
    found: np.ndarray = generator.normal(size=(len(letter_tokenizer()), rank)) @ generator.normal(size=(rank, WIDTH))
    return found


def fact(answer: str) -> Question:
    return asked(question("capital", "xyz", (answer,), HELDOUT, id=f"capital/{answer}"))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_solutions_dimension_is_that_of_what_is_not_heard(rank: int) -> None:
    """A sum of three vectors of six dimensions, of which `rank` are heard, before an answer of six letters (a space
    among them): 18 − rank free dimensions. In the answer's own block every letter but the first hears a vector that
    those before it do not."""
    learner = summing_learner(readout(rank))
    (soft,) = soft_prompts(learner, seed=0, num_steps=0, rank_tolerance=1e-9)([fact("abcde")])
    assert (soft.num_free, soft.rank) == (18, rank)
    (more,) = soft_prompts(learner, seed=0, num_steps=0, num_vectors=5, rank_tolerance=1e-9)([fact("abcde")])
    assert (more.num_free, more.rank) == (30, rank)
    (short,) = soft_prompts(learner, seed=0, num_steps=0, rank_tolerance=1e-9)([fact("a")])
    assert (short.num_free, short.rank) == (18, min(rank, 2))
    (block,) = answer_blocks(learner, seed=0, num_steps=0, rank_tolerance=1e-9)([fact("abcde")])
    assert (block.num_free, block.rank) == (30, 5)


def test_the_jacobian_is_the_slope_of_the_log_odds() -> None:
    """∂/∂v of z_a − log Σ_{o ≠ a} exp z_o is W_a − Σ_o p(o | o ≠ a) W_o, the same for every vector of the sum."""
    weights = readout(4)
    learner = summing_learner(weights)
    blanks = _in_the_name(learner, fact("ab"), ClosedBook(), None).blanks
    reader = BlankReader(learner.model)
    point = normal((3 * WIDTH,), 1).double()
    (jacobian,) = reader.batch([blanks]).jacobians(point.unsqueeze(0))
    vectors = reader.scale * point.numpy().reshape(3, WIDTH)
    table = learner.model.get_input_embeddings().weight.detach().numpy()
    rows = []
    for number, token in enumerate(blanks.gold):
        end = len(blanks.ids) - len(blanks.gold) + number + 1
        total = np.sum(
            [vectors[s] if s >= 0 else table[i] for i, s in zip(blanks.ids[:end], blanks.slots[:end], strict=True)],
            axis=0,
        )
        logits = weights @ total
        others = np.exp(logits - logits.max())
        others[token] = 0
        rows.append(np.tile(weights[token] - others / others.sum() @ weights, 3) * reader.scale)
    np.testing.assert_allclose(jacobian, rows, rtol=1e-9)


def one_direction(loudest: str, silent: str) -> np.ndarray:
    """One direction is heard: it raises `loudest` by far the most, `silent` as much as half of the others."""
    tokenizer = letter_tokenizer()
    slopes = np.linspace(-1, 0.5, len(tokenizer))
    slopes[-1] = 1
    for letter, place in ((loudest, len(slopes) - 1), (silent, len(slopes) // 2)):
        token = tokenizer.encode(letter, add_special_tokens=False)[-1]
        slopes[[token, place]] = slopes[[place, token]]
    return 5 * np.outer(slopes, np.eye(WIDTH)[0])


def test_what_can_be_said_is_solved_and_what_cannot_has_the_floor_that_is_known() -> None:
    """Along one direction a letter is the likeliest only at an end: an answer of the loudest is solved, one of a middle
    letter never, and its residual is the minimum over one number."""
    weights = one_direction(loudest=" ", silent="q")
    learner = summing_learner(weights)
    settings: dict[str, Any] = {"seed": 1, "num_steps": 150, "learning_rate": 0.5, "tolerance": 1e-3}
    # Answers begin with a space; one that is nothing but the loudest letter.
    space, middle = soft_prompts(learner, **settings)([fact(" "), fact("q")])
    for start in space.starts:
        assert start.solved
        assert start.residual <= 1e-3
        assert start.first_solved is not None
        assert start.first_solved <= 150
    blanks = _in_the_name(learner, fact("q"), ClosedBook(), None).blanks
    table = learner.model.get_input_embeddings().weight.detach().numpy()

    def residual(push: float) -> float:
        """Mean nats where the vectors' sum is `push` along the direction."""
        end = len(blanks.ids) - len(blanks.gold)
        nats = []
        for number, token in enumerate(blanks.gold):
            seen = list(zip(blanks.ids, blanks.slots, strict=True))[: end + number + 1]
            total = push + sum(table[i, 0] for i, s in seen if s < 0)
            logits = weights[:, 0] * total
            nats.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
        return float(np.mean(nats))

    floor = minimize_scalar(residual, bracket=(-1, 1)).fun
    for start in middle.starts:
        assert not start.solved
        assert start.first_solved is None
        assert start.residual == pytest.approx(floor, abs=1e-4)
    assert (middle.rank, middle.num_free) == (1, 18)
    # The three vectors' sum is all that counts, so that every start ends at a place of its own.
    assert middle.num_minima == 3


def test_an_answer_of_one_token_has_no_block() -> None:
    learner = tiny_learner("gpt2")
    token = next(
        text
        for text in (learner.vocabulary.tokenizer.decode([i]) for i in range(len(learner.vocabulary.tokenizer)))
        if text.startswith(" ") and text.strip().isalpha() and len(learner.vocabulary.pair("?\n", text)[1]) == 1
    )
    single = asked(question("capital", "Blorp", (token.strip(),), HELDOUT))
    for group in ([single], [single, QUESTIONS[2]]):
        one = answer_blocks(learner, **SHORT)(group)[0]
        assert (one.num_free, one.rank, one.num_minima) == (0, 0, 1)
        assert np.isnan(one.condition)
        for start in one.starts:
            assert start.residual == pytest.approx(one.floor, rel=1e-5)
            assert one.floor == one.named_residual
            assert np.isnan(start.distance)
            assert start.solution.shape == (0,)


def same(a: InputSolutions, b: InputSolutions, rel: float) -> None:
    assert (a.rank, a.num_free, a.named_residual) == (b.rank, b.num_free, pytest.approx(b.named_residual, rel=rel))
    for one, other in zip(a.starts, b.starts, strict=True):
        assert one.residual == pytest.approx(other.residual, rel=rel)
        np.testing.assert_allclose(one.solution, other.solution, rtol=rel, atol=rel)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts_do_not_know_of_each_other(architecture: str, kind: str) -> None:
    learner = double_learner(architecture)
    together = MAKERS[kind](learner, **SHORT)(QUESTIONS)
    turned = MAKERS[kind](learner, **(SHORT | {"batch_size": 3}))(QUESTIONS[::-1])
    for number, question_ in enumerate(QUESTIONS):
        (alone,) = MAKERS[kind](learner, **SHORT)([question_])
        # The normalisations and rotations of some architectures are float32 whatever their weights are.
        same(alone, together[number], 1e-4)
        same(turned[::-1][number], together[number], 1e-4)
    (other,) = MAKERS[kind](learner, **(SHORT | {"seed": 5}))(QUESTIONS[1:2])
    assert other.starts[0].residual != pytest.approx(together[1].starts[0].residual, rel=1e-4)


def test_nothing_is_left_on_the_weights() -> None:
    learner = tiny_learner("llama")
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    for make in MAKERS.values():
        make(learner, **SHORT)(QUESTIONS)
    for name, parameter in learner.model.named_parameters():
        assert (parameter == before[name]).all()
        assert parameter.grad is None
        assert parameter.requires_grad
    assert not learner.model.training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_found_as_whole_words_wherever_they_stand(architecture: str) -> None:
    tokenizer = tiny_tokenizer(architecture)
    question_ = "Is Blorp, not Blorpish, the capital of BLORP?"
    prompt = f"Answer Blorp.\n{question_}\n"
    ids = tokenizer(prompt)["input_ids"]
    spans = named_spans(tokenizer, prompt, question_, "Blorp")
    said = [tokenizer.decode(ids[span.start : span.stop]).strip() for span in spans]
    assert said == ["Blorp", "BLORP"]
    assert "Blorp," in tokenizer.decode(ids[: spans[0].stop + 1])
    assert named_spans(tokenizer, prompt, question_, "Blo") == []


def test_a_question_without_its_subject_is_refused() -> None:
    learner = tiny_learner("llama")
    example = question("capital", "Blorp", ("Wug",), HELDOUT, caption="What is its capital?")
    with pytest.raises(UserError, match="capital/Blorp: its question 'What is its capital\\?' does not hold"):
        soft_prompts(learner, **SHORT)([asked(example)])


def test_what_is_not_finite_is_named() -> None:
    learner = tiny_learner("llama")
    with torch.no_grad():
        learner.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="capital/Blorp: a residual is not finite"):
        soft_prompts(learner, **SHORT)(QUESTIONS[:1])


def test_no_questions_have_no_solutions() -> None:
    assert soft_prompts(tiny_learner("llama"), **SHORT)([]) == []
