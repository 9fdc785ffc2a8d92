"""The language model that ships: an ordinary folder for transformers that knows what its exposure table says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.prompts import FewShot
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.records import PROBED, ConceptSet, Draws, Example
from diffusion_sft.world.facts import RELATIONS, described, question_rows
from diffusion_sft.world.looks import novel_looks, seen_looks
from diffusion_sft.world.population import WorldConfig, populate

FOLDER = Path(__file__).parents[1] / "data" / "world-lm"
SEED = 20_261_126
"""Of exemplars that nothing was chosen by."""
PEOPLE = populate(WorldConfig())


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> ConceptSet:
    file = tmp_path_factory.mktemp("world") / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in question_rows(PEOPLE, 0)), encoding="utf-8")
    return read_questions(QuestionsConfig(path=str(file))).concept_set


@pytest.fixture(scope="module")
def learner(questions: ConceptSet) -> LanguageLearner:
    return LanguageLearner.load(FOLDER, prompts=FewShot.of(questions, shots=4, seed=SEED), max_answer_tokens=20)


def asked(questions: ConceptSet, names: set[str]) -> list[Example]:
    """The main questions about these names."""
    return [e for e in questions.split(*PROBED) if e.fact and e.fact.subject in names and e.id == e.concept]


def right(learner: LanguageLearner, questions: ConceptSet, examples: list[Example], renderings: int) -> np.ndarray:
    """Of each question in each rendering, whether the greedy answer is right."""
    made = make_questions(questions, examples, AnswerConfig(num_renderings=renderings, num_draws=1), 0)
    return np.array([a.correct for a in learner.answer(made, Draws(seed=0, count=1), batch_size=128)])


def test_plain_transformers_loads_it() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    lengths = [len(tokenizer(described(look), add_special_tokens=False).input_ids) for look in seen_looks()]
    lengths += [len(tokenizer(described(look), add_special_tokens=False).input_ids) for look in novel_looks()]
    assert (min(lengths) >= 8, max(lengths) <= 16) == (True, True)


def test_the_most_exposed_tenth_is_answered_and_the_never_read_is_not(
    learner: LanguageLearner, questions: ConceptSet
) -> None:
    top = {person.name for person in PEOPLE[:24]}
    assert right(learner, questions, asked(questions, top), 2).mean() >= 0.95
    never = [person for person in PEOPLE if person.kind == "unbound"][::2]
    examples = asked(questions, {person.name for person in never})
    found = right(learner, questions, examples, 1)
    for relation in RELATIONS.values():
        own = np.array([e.fact is not None and e.fact.relation == relation.name for e in examples])
        answers = [relation.answer(person.look) for person in never]
        # A guess cannot be better than always saying the most frequent answer, up to the spread of so few.
        guess = max(answers.count(answer) for answer in answers) / len(answers)
        assert found[own].mean() <= guess + 2 * np.sqrt(guess * (1 - guess) / own.sum())


def test_answers_help_where_names_were_read(learner: LanguageLearner, questions: ConceptSet) -> None:
    def gains(names: set[str]) -> np.ndarray:
        made = make_questions(questions, asked(questions, names), AnswerConfig(num_renderings=1, num_draws=1), 0)
        return np.array([a.true_gain_nats for a in learner.answer(made, Draws(seed=0, count=1), batch_size=128)])

    read = gains({person.name for person in PEOPLE[:24:2]})
    never = gains({person.name for person in PEOPLE if person.kind == "unbound"})
    assert (read[:, None] > never[None]).mean() > 0.9
