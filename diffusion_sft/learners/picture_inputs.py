"""Textual inversion: which token embeddings, in the place of a concept's words, say what its pictures show (S2)?

    min over v ∈ R^(k·d)  of  mean over fixed (x, t, ε) of  ‖ε − ε̂(x_t, t, c(v))‖² / D

c(v) is the caption whose words for the concept are the vectors v in the text encoders' embedding layers, D the
latents' dimensions; all weights are frozen (Gal et al., 2023, equation 2, with draws that stay the same). The draws
are common to all starts and to the named input. Vectors are counted in units of the embedding tables' root mean square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import NotFinite
from ..learner import Question
from ..numerics.descent import Descent, Evaluation, descend
from ..numerics.minima import num_distinct
from ..numerics.noise import normals, uniform
from ..numerics.randomised import condition_number, numerical_rank, resolved_singular_values
from ..numerics.schedule import Schedule
from ..records import identity_seed
from ..systems import InputSolution, InputSolutions, ReadInputs
from .diffusion import DiffusionLearner
from .free_words import FreeWords, math_attention
from .modes import evaluating


def picture_inputs(
    learner: DiffusionLearner,
    *,
    seed: int,
    num_vectors: int | None = 1,
    num_starts: int = 3,
    num_steps: int = 40,
    learning_rate: float = 0.2,
    num_draws: int = 8,
    batch_size: int = 64,
    rank_tolerance: float = 0.01,
) -> ReadInputs:
    """The textual inversions of concepts, each from all of its questions (their examples, templates and words).

    Args:
        learner: whose weights are only read.
        seed: of draws and starts, together with the concept and the examples.
        num_vectors: k; None: as many as the words have tokens.
        num_starts: of each concept, normal with the embedding tables' own root mean square.
        num_steps: the budget of each start.
        learning_rate: Adam's first step, in units of that root mean square.
        num_draws: pairs (t, ε) of a concept in all, dealt out to its questions in turn.
        batch_size: rows of the network at a time.
        rank_tolerance: singular values of the Jacobian below this times the largest do not count.

    Raises (when called):
        UserError: a template without a place for the words, a caption that is cut, a residual that is not finite.
    """
    search = _Search(
        seed=seed,
        num_vectors=num_vectors,
        num_starts=num_starts,
        num_steps=num_steps,
        learning_rate=learning_rate,
        num_draws=num_draws,
        batch_size=batch_size,
        rank_tolerance=rank_tolerance,
    )

    def read(concepts: Sequence[Sequence[Question]]) -> list[InputSolutions]:
        with evaluating(learner.network):
            return [_solve(learner, questions, search) for questions in concepts]

    return read


@dataclass(frozen=True, kw_only=True)
class _Search:
    """The arguments of `picture_inputs`."""

    seed: int
    num_vectors: int | None
    num_starts: int
    num_steps: int
    learning_rate: float
    num_draws: int
    batch_size: int
    rank_tolerance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _NoisyTargets:
    """The fixed draws of a concept's equations."""

    noisy: torch.Tensor
    """x_t, (num_draws, channels, height, width), on the device, as is `noise`."""
    noise: torch.Tensor
    timesteps: np.ndarray
    captions: np.ndarray
    """Which of the concept's templates each draw is read under."""

    def chunks(self, size: int) -> Iterator[slice]:
        """Places of so many draws at a time."""
        return (slice(start, start + size) for start in range(0, len(self.timesteps), max(size, 1)))


class _System:
    """The equations of one concept."""

    def __init__(self, learner: DiffusionLearner, words: FreeWords, draws: _NoisyTargets, batch_size: int) -> None:
        self.learner, self.words, self.draws, self.batch_size = learner, words, draws, batch_size

    def predict(self, vectors: torch.Tensor | None, place: slice) -> torch.Tensor:
        """ε̂ of these draws under each start's vectors (num_starts, num_free), or under the words themselves (None),
        float32 (num_starts, draws, channels, height, width)."""
        noisy, timesteps = self.draws.noisy[place], self.draws.timesteps[place]
        count = 1 if vectors is None else len(vectors)
        rows, at = noisy.repeat(count, 1, 1, 1), np.tile(timesteps, count)
        prediction = self.words.forward(vectors, rows.to(self.learner.dtype), at, self.draws.captions[place])
        noise = self.learner.schedule.noise_from_prediction(prediction.float(), rows, at)
        return noise.reshape(count, *noisy.shape)

    def errors(self, vectors: torch.Tensor | None, place: slice) -> torch.Tensor:
        """‖ε − ε̂‖² / D, (num_starts, draws)."""
        difference = self.predict(vectors, place) - self.draws.noise[place]
        return difference.flatten(2).square().mean(dim=2)

    def residuals(self, vectors: torch.Tensor | None) -> torch.Tensor:
        """The means over all draws, (num_starts,), without gradient."""
        count = 1 if vectors is None else len(vectors)
        with torch.no_grad():
            parts = [self.errors(vectors, place) for place in self.draws.chunks(self.batch_size // count)]
        return torch.cat(parts, dim=1).mean(dim=1)

    def evaluate(self, vectors: torch.Tensor, named_residual: float) -> Evaluation:
        """The residuals, their gradients, and whether they are at most the named input's."""
        vectors = vectors.detach().requires_grad_()
        parts, gradient = [], torch.zeros_like(vectors)
        for place in self.draws.chunks(self.batch_size // len(vectors)):
            errors = self.errors(vectors, place)
            gradient += torch.autograd.grad(errors.sum(), vectors)[0]
            parts.append(errors.detach())
        errors = torch.cat(parts, dim=1)
        values = errors.mean(dim=1)
        return Evaluation(values=values, gradients=gradient / errors.shape[1], solved=values <= named_residual)


def _solve(learner: DiffusionLearner, questions: Sequence[Question], search: _Search) -> InputSolutions:
    first = questions[0]
    words = FreeWords(
        learner,
        templates=[question.template for question in questions],
        words=first.words,
        num_vectors=search.num_vectors,
        num_starts=search.num_starts,
    )
    system = _System(learner, words, _draw(learner, questions, search, "inputs"), search.batch_size)
    fresh = _System(learner, words, _draw(learner, questions, search, "fresh inputs"), search.batch_size)
    named = float(system.residuals(None))
    seeds = [identity_seed(search.seed, first.concept, "start", number) for number in range(search.num_starts)]
    starts = normals((words.num_free,), seeds, learner.device)
    found = descend(
        lambda points, _: system.evaluate(points, named),
        starts,
        num_steps=search.num_steps,
        learning_rate=search.learning_rate,
    )
    if not np.isfinite([named, *(one.residual for one in found)]).all():
        raise NotFinite(f"{first.concept}: a residual is not finite")
    again = fresh.residuals(torch.stack([one.solution for one in found]))
    best = min(found, key=lambda one: one.residual)
    values = _singular_values(system, best.solution, search, identity_seed(search.seed, first.concept, "probes"))
    solutions = tuple(_solution(words, one, float(value)) for one, value in zip(found, again, strict=True))
    return InputSolutions(
        kind="textual_inversion",
        named_residual=named,
        named_fresh_residual=float(fresh.residuals(None)),
        starts=solutions,
        num_minima=num_distinct(np.stack([one.solution for one in solutions])),
        num_free=words.num_free,
        rank=numerical_rank(values, search.rank_tolerance),
        condition=condition_number(values, search.rank_tolerance),
    )


def _solution(words: FreeWords, found: Descent, fresh_residual: float) -> InputSolution:
    vectors = words.in_table_units(found.solution)
    distance = torch.linalg.vector_norm(vectors - words.named) / torch.linalg.vector_norm(words.named)
    return InputSolution(
        residual=found.residual,
        num_steps=found.num_steps,
        first_solved=found.first_solved,
        fresh_residual=fresh_residual,
        distance=float(distance),
        solved=found.first_solved is not None,
        solution=vectors.cpu().numpy(),
    )


def _draw(learner: DiffusionLearner, questions: Sequence[Question], search: _Search, stream: str) -> _NoisyTargets:
    """The draws of one stream: timesteps spread evenly over the trained ones with signal, so that their mean is the
    uniform-t mean, and in a random order, so that they do not follow the questions."""
    count = search.num_draws
    numbers = np.arange(count) % len(questions)
    targets = learner.targets([question.example for question in questions])
    clean = torch.stack([targets[number] for number in numbers]).to(learner.device)
    own = [questions[int(number)] for number in numbers]
    seeds = [
        identity_seed(search.seed, question.example.id, question.query.stream, stream, draw)
        for draw, question in enumerate(own)
    ]
    noise = normals(clean.shape[1:], seeds, learner.device)
    timesteps = _timesteps(learner.schedule, count, identity_seed(search.seed, questions[0].concept, stream))
    return _NoisyTargets(
        noisy=learner.schedule.add_noise(clean, noise, timesteps),
        noise=noise,
        timesteps=timesteps,
        captions=numbers,
    )


def _timesteps(schedule: Schedule, count: int, seed: int) -> np.ndarray:
    """u_i = (u0 + i) / n of the trained timesteps (Kingma et al., 2021, appendix I.1), int64 (count,)."""
    shares = (np.random.default_rng(seed).permutation(count) + uniform(1, seed)) / count
    return np.floor(shares * len(schedule.log_snr)).astype(np.int64)


class _Jacobian:
    """∂ε̂/∂v of all draws at one solution, as two products."""

    def __init__(self, system: _System, point: torch.Tensor) -> None:
        self._system, self._point = system, point
        outputs, self._pull = torch.func.vjp(self._outputs, point)[:2]
        self.num_rows, self.num_columns = outputs.numel(), point.numel()

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """J v."""
        product: torch.Tensor = torch.func.jvp(self._outputs, (self._point,), (columns,))[1]
        return product

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """Jᵀ u."""
        product: torch.Tensor = self._pull(rows)[0]
        return product

    def _outputs(self, point: torch.Tensor) -> torch.Tensor:
        return self._system.predict(point.unsqueeze(0), slice(None)).flatten()


def _singular_values(system: _System, point: torch.Tensor, search: _Search, seed: int) -> np.ndarray:
    chunk = max(1, search.batch_size // len(system.draws.timesteps))
    with math_attention():
        return resolved_singular_values(
            _Jacobian(system, point),
            relative_tolerance=search.rank_tolerance,
            seed=seed,
            # The values fall fast: more probes in one go are surer than fewer refined ones, and cost less.
            num_values=48,
            num_power_iterations=0,
            like=point,
            chunk_size=chunk,
        )
