"""A language model's answers as solutions of triangular systems (S1): Jacobi from random tokens, and what must be given.

    y_i = argmax p(· | prompt, y_<i),  i = 1..m        m: the greedy answer's tokens and the one that ends it

All of a learner's questions, draws and their null questions are swept together, in the batches in which its likelihoods
are read. The number of unknowns is taken from greedy decoding; the tokens are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..learner import Question
from ..numerics.sweeps import DiscreteSolution, jacobi
from ..records import identity_seed
from ..systems import Generation, ReadGenerations, ReadRecoveries
from .decoding import DecodingConfig, Request, decode
from .exact_match import is_right
from .language import LanguageLearner, fact_of
from .likelihood import Continued
from .modes import evaluating
from .prefixes import PrefixReader, batches

NO_SAMPLES = np.zeros((0, 0))


def text_generations(learner: LanguageLearner, *, seed: int, num_starts: int, batch_size: int) -> ReadGenerations:
    """A reader of questions' generations by this learner under its prompts.

    Args:
        learner: the model and how it is asked.
        seed: of the random starts; start d of a question is a function of it, the example's id, the rendering and d.
        num_starts: draws of each question.
        batch_size: rows of one forward pass.
    """

    def read(questions: Sequence[Question]) -> list[Generation]:
        with evaluating(learner.model):
            own, null = (_systems(learner, questions, is_null, batch_size) for is_null in (False, True))
            starts = [_starts(learner, question, seed, num_starts) for question in questions]
            solutions = _solve(learner, [*own, *null], [*starts, *starts], batch_size)
            found, of_null = solutions[: len(own)], solutions[len(own) :]
            spread = _sensitivities(learner, own, [rows[0].values for rows in found], batch_size)
        return [
            _generation(learner, question, draw, solution, other, sensitivity)
            for question, rows, others, sensitivity in zip(questions, found, of_null, spread, strict=True)
            for draw, (solution, other) in enumerate(zip(rows, others, strict=True))
        ]

    return read


def text_recoveries(learner: LanguageLearner, *, batch_size: int) -> ReadRecoveries:
    """A reader of how much of each question's right answer must be given: the smallest k/n, for k of its n tokens, after
    which the greedy continuation makes it a right answer; 0 where nothing must be given, 1 where all of it must."""

    def read(questions: Sequence[Question]) -> list[float]:
        asked = [_gold(learner, question) for question in questions]
        needed = [len(row.answer) for row in asked]
        open_questions = list(range(len(questions)))
        for given in range(max(needed, default=0)):
            open_questions = [number for number in open_questions if given < len(asked[number].answer)]
            rows = [asked[number] for number in open_questions]
            texts = _completed(learner, rows, given, batch_size)
            right = [
                is_right(text, fact_of(questions[n].example)) for n, text in zip(open_questions, texts, strict=True)
            ]
            for number, is_found in zip(open_questions, right, strict=True):
                needed[number] = given if is_found else needed[number]
            open_questions = [number for number, is_found in zip(open_questions, right, strict=True) if not is_found]
        return [k / len(row.answer) for k, row in zip(needed, asked, strict=True)]

    return read


# --- systems and their solutions ---


@dataclass(frozen=True, kw_only=True)
class _System:
    """One prompt and the number of unknowns after it."""

    prompt: tuple[int, ...]
    group: str
    num_unknowns: int


def _systems(
    learner: LanguageLearner, questions: Sequence[Question], is_null: bool, batch_size: int
) -> list[_System]:
    """The system of each question, or of its null question; like prompts are decoded once."""
    prompts = [_prompt(learner, question, is_null) for question in questions]
    unique = list(dict.fromkeys(prompts))
    requests = [Request(prompt=ids, group=group, uniforms=NO_SAMPLES) for ids, group in unique]
    config = DecodingConfig(max_new_tokens=learner.max_answer_tokens, batch_size=batch_size)
    found = decode(learner.model, requests, learner.vocabulary.stops, config)
    lengths = {
        prompt: min(len(continuations.greedy or []) + 1, learner.max_answer_tokens)
        for prompt, continuations in zip(unique, found, strict=True)
    }
    return [_System(prompt=p[0], group=p[1], num_unknowns=lengths[p]) for p in prompts]


def _starts(learner: LanguageLearner, question: Question, seed: int, num_starts: int) -> np.ndarray:
    """Random tokens, (num_starts, max_answer_tokens); a system of m unknowns begins with the first m."""
    seeds = [
        identity_seed(seed, "systems", question.example.id, question.rendering, draw) for draw in range(num_starts)
    ]
    size, count = learner.vocabulary.size, learner.max_answer_tokens
    return np.array([np.random.default_rng(own).integers(0, size, count) for own in seeds]).reshape(num_starts, count)


def _solve(
    learner: LanguageLearner, systems: Sequence[_System], starts: Sequence[np.ndarray], batch_size: int
) -> list[list[DiscreteSolution]]:
    """Each system solved from each of its starts."""
    rows = [(system, start) for system, own in zip(systems, starts, strict=True) for start in own]
    if not rows:
        return [[] for _ in systems]
    reader = PrefixReader(learner.model)

    def sweep(numbers: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        asked = [_continued(rows[n][0], own) for n, own in zip(numbers, tokens, strict=True)]
        answers = tokens.copy()
        for row, choices in enumerate(_choices(reader, asked, batch_size)):
            answers[row, : len(choices[0])] = choices[0]
        return answers

    start = np.stack([start for _, start in rows])
    found = iter(jacobi(sweep, start, lengths=[system.num_unknowns for system, _ in rows]))
    return [[next(found) for _ in own] for own in starts]


def _continued(system: _System, tokens: np.ndarray) -> Continued:
    return Continued(prompt=system.prompt, group=system.group, answer=tokens[: system.num_unknowns].tolist())


@torch.no_grad()
def _choices(reader: PrefixReader, rows: Sequence[Continued], batch_size: int) -> list[np.ndarray]:
    """What the model says in each place of the rows' answers given what stands before it: the most likely tokens and the
    second ones, (2, num_tokens) each; order as given."""
    found: list[np.ndarray] = [np.zeros((2, 0), dtype=np.int64)] * len(rows)
    for batch in batches([row.group for row in rows], [row.prompt for row in rows], batch_size):
        chunk = [rows[place] for place in batch.places]
        keep = max(len(row.answer) for row in chunk)
        logits, _ = reader.read(batch, [[*row.prompt, *row.answer[:-1]] for row in chunk], keep)
        first = logits.argmax(dim=2)
        second = logits.scatter(2, first[..., None], -torch.inf).argmax(dim=2)
        both = torch.stack([first, second], dim=1).cpu().numpy()  # (rows, 2, keep)
        for place, row, own in zip(batch.places, chunk, both, strict=True):
            found[place] = own[:, keep - len(row.answer) :]
    return found


def _sensitivities(
    learner: LanguageLearner, systems: Sequence[_System], solutions: Sequence[np.ndarray], batch_size: int
) -> list[float]:
    """Of each solution: the share of later tokens that one sweep changes when a token is replaced by its runner-up, in
    the mean over its tokens but the last; NaN for one of a single token."""
    reader = PrefixReader(learner.model)
    standing = _choices(
        reader, [_continued(s, values) for s, values in zip(systems, solutions, strict=True)], batch_size
    )
    changed, places = [], []
    for number, (system, values) in enumerate(zip(systems, solutions, strict=True)):
        for place in range(len(values) - 1):
            other = values.copy()
            other[place] = standing[number][1, place]
            changed.append(_continued(system, other))
            places.append((number, place))
    shares: list[list[float]] = [[] for _ in systems]
    for (number, place), choices in zip(places, _choices(reader, changed, batch_size), strict=True):
        later = slice(place + 1, None)
        shares[number].append(float((choices[0, later] != solutions[number][later]).mean()))
    return [float(np.mean(own)) if own else float("nan") for own in shares]


def _generation(
    learner: LanguageLearner,
    question: Question,
    draw: int,
    solution: DiscreteSolution,
    null: DiscreteSolution,
    sensitivity: float,
) -> Generation:
    values = solution.values.tolist()
    end = next((place for place, token in enumerate(values) if learner.vocabulary.stops[token]), len(values))
    answer = learner.vocabulary.text(values[:end])
    return Generation(
        concept=question.concept,
        rendering=question.rendering,
        draw=draw,
        answer=answer,
        correct=is_right(answer, fact_of(question.example)),
        num_steps=len(values),
        rounds=solution.rounds,
        num_evaluations=solution.num_evaluations,
        residuals=solution.residuals,
        first_passage=solution.first_passage,
        sensitivity=sensitivity,
        null_distance=_distance(solution.values, null.values),
        null_rounds=null.rounds,
    )


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The share of places at which two answers differ, of the longer one's."""
    shared = min(len(one), len(other))
    longest = max(len(one), len(other))
    return float((one[:shared] != other[:shared]).sum() + longest - shared) / longest


# --- prompts and answers ---


def _prompt(learner: LanguageLearner, question: Question, is_null: bool) -> tuple[tuple[int, ...], str]:
    """The prompt's ids and group."""
    fact = fact_of(question.example)
    asked = fact.null_question if is_null else question.example.caption
    prompt = learner.prompts.prompt(question.example, asked, question.rendering)
    ids = tuple(learner.vocabulary.prompt(prompt.text))
    learner.check_length(question.example, len(ids) + learner.max_answer_tokens)
    return ids, prompt.group


def _gold(learner: LanguageLearner, question: Question) -> Continued:
    """The prompt, and the first right answer after it."""
    fact = fact_of(question.example)
    prompt = learner.prompts.prompt(question.example, question.example.caption, question.rendering)
    ids, answer = learner.vocabulary.pair(prompt.text, f" {fact.answers[0]}")
    learner.check_length(question.example, len(ids) + max(learner.max_answer_tokens, len(answer) + 1))
    return Continued(prompt=ids, group=prompt.group, answer=answer)


def _completed(learner: LanguageLearner, rows: Sequence[Continued], given: int, batch_size: int) -> list[str]:
    """What the rows' answers become where so many of their tokens are given and the rest is decoded greedily."""
    begun = [replace(row, prompt=[*row.prompt, *row.answer[:given]]) for row in rows]
    requests = [Request(prompt=row.prompt, group=row.group, uniforms=NO_SAMPLES) for row in begun]
    config = DecodingConfig(max_new_tokens=max(learner.max_answer_tokens - given, 1), batch_size=batch_size)
    with evaluating(learner.model):
        found = decode(learner.model, requests, learner.vocabulary.stops, config)
    rests = [continuations.greedy or [] for continuations in found]
    return [learner.vocabulary.text([*row.answer[:given], *rest]) for row, rest in zip(rows, rests, strict=True)]
