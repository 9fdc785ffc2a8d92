"""Soft prompts and the answer's own block: which input vectors make a language model say an answer (S2)?

    min over v ∈ R^(k·d)  of  −1/m Σ_i log p(a_i | x(v), a_<i)

soft_prompt: v stands where the question has its subject's name, so that the name's own tokens are the named input.
answer_block: v stands where the answer's tokens would (x'_1 … x'_(m−1) after the prompt), and the outputs there shall
be a_1 … a_m; nothing of v comes before a_1, whose surprise is a floor. All weights are frozen. Vectors are counted in
units of the embeddings' root mean square; facts share passes through the model, and know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import NotFinite, UserError
from ..learner import Question
from ..numerics.descent import Descent, Evaluation, descend
from ..numerics.minima import num_distinct
from ..numerics.noise import normals
from ..numerics.randomised import condition_number, numerical_rank
from ..records import identity_seed
from ..systems import InputSolution, InputSolutions
from .blanks import BlankReader, Blanks, named_spans
from .language import LanguageLearner
from .likelihood import Continued, answer_nats
from .modes import evaluating
from .prompts import ClosedBook, Prompts

ReadEach = Callable[[Sequence[Question]], list[InputSolutions]]
"""One result for each question; order as given."""


def soft_prompts(
    learner: LanguageLearner,
    *,
    seed: int,
    num_vectors: int | None = None,
    num_starts: int = 3,
    num_steps: int = 100,
    learning_rate: float = 0.1,
    tolerance: float = 0.01,
    batch_size: int = 64,
    rank_tolerance: float = 0.01,
    prompts: Prompts | None = None,
) -> ReadEach:
    """Free vectors in the place of each question's subject.

    Args:
        learner: whose weights are only read.
        seed: of the starts, together with each example.
        num_vectors: k; None: as many as the subject's tokens.
        num_starts: of each question, normal with the embeddings' own root mean square.
        num_steps: the budget of each start.
        learning_rate: Adam's first step, in units of that root mean square.
        tolerance: a start whose residual comes within so many nats per token of its floor is left there.
        batch_size: rows of the model at a time.
        rank_tolerance: singular values of the Jacobian below this times the largest do not count.
        prompts: how questions are asked; None means closed-book.

    Raises (when called):
        UserError: a question that does not hold its subject, or a residual that is not finite.
    """
    search = _Search(seed, num_starts, num_steps, learning_rate, tolerance, batch_size, rank_tolerance)
    asked = prompts or ClosedBook()

    def read(questions: Sequence[Question]) -> list[InputSolutions]:
        return _read(
            learner, [_in_the_name(learner, q, asked, num_vectors) for q in questions], search, "soft_prompt"
        )

    return read


def answer_blocks(
    learner: LanguageLearner,
    *,
    seed: int,
    num_starts: int = 3,
    num_steps: int = 100,
    learning_rate: float = 0.1,
    tolerance: float = 0.01,
    batch_size: int = 64,
    rank_tolerance: float = 0.01,
    prompts: Prompts | None = None,
) -> ReadEach:
    """Free vectors at the answer's positions; the arguments are those of `soft_prompts`.

    The named input is the gold answer's own tokens but the last, which is teacher forcing.
    """
    search = _Search(seed, num_starts, num_steps, learning_rate, tolerance, batch_size, rank_tolerance)
    asked = prompts or ClosedBook()

    def read(questions: Sequence[Question]) -> list[InputSolutions]:
        return _read(learner, [_in_the_answer(learner, q, asked) for q in questions], search, "answer_block")

    return read


@dataclass(frozen=True)
class _Search:
    """The arguments of `soft_prompts`."""

    seed: int
    num_starts: int
    num_steps: int
    learning_rate: float
    tolerance: float
    batch_size: int
    rank_tolerance: float


@dataclass(frozen=True)
class _Task:
    """One question with its blanks, and the same without."""

    question: Question
    blanks: Blanks
    prompt: list[int]
    floor: float = 0.0
    """Nats per token that the blanks cannot take away."""
    named_residual: float = float("nan")


def _in_the_name(learner: LanguageLearner, question: Question, prompts: Prompts, num_vectors: int | None) -> _Task:
    example = question.example
    assert example.fact is not None
    text = prompts.prompt(example, example.caption, question.rendering).text
    prompt, answer = learner.vocabulary.pair(text, f" {example.fact.answers[0]}")
    spans = named_spans(learner.vocabulary.tokenizer, text, example.caption, example.fact.subject)
    if not spans:
        raise UserError(
            f"{example.id}: its question {example.caption!r} does not hold its subject {example.fact.subject!r}, in "
            "whose place vectors could stand; leave it out"
        )
    named = prompt[spans[0].start : spans[0].stop]
    count = num_vectors or len(named)
    ids: list[int] = []
    slots: list[int] = []
    done = 0
    for span in spans:
        ids += prompt[done : span.start] + [0] * count
        slots += [-1] * (span.start - done) + list(range(count))
        done = span.stop
    rest = prompt[done:] + answer[:-1]
    blanks = Blanks(
        ids=(*ids, *rest),
        slots=(*slots, *[-1] * len(rest)),
        gold=tuple(answer),
        named=tuple(named),
        num_vectors=count,
    )
    return _Task(question, blanks, prompt)


def _in_the_answer(learner: LanguageLearner, question: Question, prompts: Prompts) -> _Task:
    example = question.example
    assert example.fact is not None
    text = prompts.prompt(example, example.caption, question.rendering).text
    prompt, answer = learner.vocabulary.pair(text, f" {example.fact.answers[0]}")
    count = len(answer) - 1
    blanks = Blanks(
        ids=(*prompt, *[0] * count),
        slots=(*[-1] * len(prompt), *range(count)),
        gold=tuple(answer),
        named=tuple(answer[:-1]),
        num_vectors=count,
    )
    return _Task(question, blanks, prompt)


def _read(learner: LanguageLearner, tasks: Sequence[_Task], search: _Search, kind: str) -> list[InputSolutions]:
    """Questions of like lengths together, order as given."""
    found: dict[int, InputSolutions] = {}
    with evaluating(learner.model):
        tasks = _with_named(learner, tasks, search, kind)
        reader = BlankReader(learner.model)
        places = sorted(range(len(tasks)), key=lambda place: (len(tasks[place].blanks.ids), place))
        size = max(1, search.batch_size // search.num_starts)
        for start in range(0, len(places), size):
            chunk = places[start : start + size]
            found |= zip(chunk, _solve(reader, [tasks[place] for place in chunk], search, kind), strict=True)
    return [found[place] for place in range(len(tasks))]


def _with_named(learner: LanguageLearner, tasks: Sequence[_Task], search: _Search, kind: str) -> list[_Task]:
    """With the residual under the words themselves, and the first answer token's share of an answer block."""
    pairs = [Continued(prompt=task.prompt, group="", answer=task.blanks.gold) for task in tasks]
    nats = answer_nats(learner.model, pairs, search.batch_size)
    floors = [float(own[0]) / len(own) if kind == "answer_block" else 0.0 for own in nats]
    return [
        replace(task, floor=floor, named_residual=float(own.mean()))
        for task, floor, own in zip(tasks, floors, nats, strict=True)
    ]


def _solve(reader: BlankReader, tasks: Sequence[_Task], search: _Search, kind: str) -> list[InputSolutions]:
    """All starts of some questions at once; a start's row is question · num_starts + start."""
    batch, count = reader.batch([task.blanks for task in tasks]), search.num_starts
    seeds = [
        identity_seed(search.seed, task.question.example.id, kind, number)
        for task in tasks
        for number in range(count)
    ]
    starts = normals((batch.num_free,), seeds, reader.device).to(batch.dtype)
    enough = torch.tensor([task.floor + search.tolerance for task in tasks], dtype=batch.dtype)

    def evaluate(points: torch.Tensor, rows: torch.Tensor) -> Evaluation:
        points = points.detach().requires_grad_()
        read = batch.read(points, rows // count)
        gradients = torch.autograd.grad(read.residuals.sum(), points, allow_unused=True)[0]
        return Evaluation(
            values=read.residuals.detach(),
            gradients=torch.zeros_like(points) if gradients is None else gradients,
            solved=read.says_gold,
        )

    found = descend(
        evaluate,
        starts,
        num_steps=search.num_steps,
        learning_rate=search.learning_rate,
        enough=enough.repeat_interleave(count).to(reader.device),
    )
    grouped = [found[number * count : (number + 1) * count] for number in range(len(tasks))]
    for task, own in zip(tasks, grouped, strict=True):
        if not np.isfinite([one.residual for one in own]).all():
            raise NotFinite(f"{task.question.example.id}: a residual is not finite", "try dtype=float32")
    best = torch.stack([min(own, key=lambda one: one.residual).solution for own in grouped])
    jacobians = batch.jacobians(best)
    return [
        _solutions(reader, task, own, jacobian, search, kind)
        for task, own, jacobian in zip(tasks, grouped, jacobians, strict=True)
    ]


def _solutions(
    reader: BlankReader,
    task: _Task,
    found: Sequence[Descent],
    jacobian: np.ndarray,
    search: _Search,
    kind: str,
) -> InputSolutions:
    named, num_free = reader.named(task.blanks), task.blanks.num_vectors * reader.width
    values = np.linalg.svd(jacobian, compute_uv=False) if jacobian.size else np.zeros(0)
    starts = []
    for one in found:
        vectors = (one.solution[:num_free] * reader.scale).cpu().numpy()
        distance = np.linalg.norm(vectors - named) / np.linalg.norm(named) if num_free else np.nan
        starts.append(
            InputSolution(
                residual=one.residual,
                num_steps=one.num_steps,
                first_solved=one.first_solved,
                distance=float(distance),
                solved=one.first_solved is not None,
                solution=vectors,
            )
        )
    return InputSolutions(
        kind=kind,
        named_residual=task.named_residual,
        floor=task.floor,
        starts=tuple(starts),
        num_minima=num_distinct(np.stack([one.solution for one in starts])),
        num_free=num_free,
        rank=numerical_rank(values, search.rank_tolerance),
        condition=condition_number(values, search.rank_tolerance),
    )
