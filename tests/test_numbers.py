"""Numbers that are none, and numbers at the ends of their range: the right result, or a word about it; never a quiet one.

What training does with a loss or a gradient that is not finite is in test_finetune and test_stepping, what it does with
weights in test_faults, the VAE in half precision in test_latents.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from architectures import tiny_pipeline as make_pipeline
from language_models import tiny_learner
from linear_systems import LinearNetwork, concept_set_of
from PIL import Image
from safetensors.torch import load_file, save_file
from test_answers import NAMES, concept_set, exact_learner
from test_finetune import EXACT, UNKNOWN_MIX, run_exact

from diffusion_sft.concepts.images import UnreadableImage, load_image
from diffusion_sft.errors import NotFinite, UserError
from diffusion_sft.evaluate.features import Extractor
from diffusion_sft.evaluate.rows import Estimate, figure
from diffusion_sft.finetune.stepping import LOWEST_SCALE
from diffusion_sft.learner import Cue, Query, Reading
from diffusion_sft.learners.decoding import DecodingConfig, Request, decode
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.numerics.association import contingency_table, cramers_v, permutation_p
from diffusion_sft.numerics.fixed_point import Anderson, Picard, Sequential
from diffusion_sft.numerics.frechet import FrechetPoints, frechet_distance
from diffusion_sft.numerics.interference import RowSpan, constrained, solvable_share
from diffusion_sft.numerics.kernels import kernel_distance
from diffusion_sft.numerics.krylov import least_squares, length
from diffusion_sft.numerics.linear_map import DenseMap
from diffusion_sft.numerics.neighbours import is_copy, precision_recall_density_coverage, squared_distances
from diffusion_sft.numerics.quadrature import ESTIMATORS, standard_error
from diffusion_sft.numerics.resampling import Replicates, replicate
from diffusion_sft.numerics.statistics import (
    bootstrap_mean,
    bootstrap_noisy_means,
    spearman,
    standard_error_of_mean,
    student_mean,
    wilson,
)
from diffusion_sft.numerics.triangular import TriangularSystem
from diffusion_sft.probe import ProbeConfig
from diffusion_sft.probe.scores import score
from diffusion_sft.records import Draws, Example
from diffusion_sft.solve.config import WeightsConfig
from diffusion_sft.solve.generation import residual_profile, slope
from diffusion_sft.solve.weights import EquationSet, KnownSide, solve_examples, solve_sets
from diffusion_sft.systems import Equations, WeightSide

SCALES = (1e-30, 1.0, 1e30)
NAN, INF = math.nan, math.inf


# --- distances between features ---


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rows", [3, 12, 60])
def test_the_frechet_distance_goes_with_the_square_of_the_unit(scale: float, rows: int) -> None:
    """Below, at and above as many rows as dimensions; orthonormal rows have it in closed form."""
    generator = np.random.default_rng(rows)
    first, second = generator.normal(size=(rows, 12)), 2 * generator.normal(size=(rows + 1, 12)) + 1
    plain = frechet_distance(first, second)
    assert frechet_distance(scale * first, scale * second) == pytest.approx(scale**2 * plain, rel=1e-9)
    points = FrechetPoints(scale * np.concatenate([first, second]))
    slots = np.arange(2 * rows + 1)
    assert points.distance(slots[:rows], slots[rows:]) == pytest.approx(scale**2 * plain, rel=1e-9)
    assert frechet_distance(scale * first, 3 * scale * first - 2 * scale * first.mean(axis=0)) == pytest.approx(
        scale**2 * 4 * np.trace(np.cov(first.T)), rel=1e-9
    )  # same directions, thrice the deviation: Σ (3σ − σ)²


@pytest.mark.parametrize("scale", SCALES)
def test_identical_images_have_no_covariance_but_a_distance(scale: float) -> None:
    """Every picture black, say: |m1 − m2|² is all there is, of any number of rows."""
    black, white = np.zeros((5, 4)), np.full((7, 4), scale)
    assert frechet_distance(black, white) == pytest.approx(4 * scale**2, rel=1e-12)
    assert frechet_distance(white, white) <= 1e-40 * scale**2
    points = FrechetPoints(np.concatenate([black, white]))
    assert points.distance(np.arange(5), np.arange(5, 12)) == pytest.approx(4 * scale**2, rel=1e-12)
    # k(0, 0) + k(s, s) − 2 k(0, s) with k(x, y) = (x·y/d + 1)³
    assert kernel_distance(black, white) == pytest.approx((scale**2 + 1) ** 3 - 1, rel=1e-12, abs=1e-15)
    shares = precision_recall_density_coverage(black, black, k=2)
    assert (shares["precision"], shares["recall"], shares["coverage"]) == (1.0, 1.0, 1.0)
    assert precision_recall_density_coverage(black, white, k=2)["precision"] == 0.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e60])
def test_features_that_are_no_numbers_have_no_distance(bad: float) -> None:
    good = np.random.default_rng(0).normal(size=(8, 3))
    broken = good.copy()
    broken[3, 1] = bad
    for measure in (frechet_distance, kernel_distance):
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(ValueError, match="not finite|beyond 1e\\+50"):
                measure(*pair)
    if not math.isfinite(bad):
        for measure in (squared_distances, precision_recall_density_coverage, is_copy):
            with pytest.raises(ValueError, match="not finite"):
                measure(good, broken)


def test_one_image_is_no_distribution() -> None:
    one, many = np.ones((1, 3)), np.random.default_rng(0).normal(size=(5, 3))
    for measure in (frechet_distance, kernel_distance):
        for few in (one, one[:0]):
            with pytest.raises(ValueError, match="at least two rows"):
                measure(few, many)
    with pytest.raises(ValueError, match="at least two training rows"):
        is_copy(many, one)


# --- statistics ---


def test_means_keep_what_is_no_number() -> None:
    for values, expected in (([1.0, NAN], NAN), ([1.0, INF], INF), ([INF, -INF], NAN), ([INF, INF], INF), ([], NAN)):
        for found in (
            student_mean(np.array(values)),
            bootstrap_mean(np.array(values), range(len(values)), num_bootstrap=50, seed=0),
        ):
            assert found.value == expected or (math.isnan(found.value) and math.isnan(expected))
            assert math.isnan(found.low)
            assert math.isnan(found.high)
    noisy = np.array([[1.0, 2.0], [NAN, 3.0]]), np.ones((2, 2))
    assert np.isnan(standard_error_of_mean(*noisy)).tolist() == [True, False]
    drawn = bootstrap_noisy_means(*noisy, 10, np.random.default_rng(0))
    assert np.isnan(drawn[:, 0]).all()
    assert np.isfinite(drawn[:, 1]).all()
    for broken in (np.zeros((0, 2)), np.zeros((3, 2))):
        with pytest.raises(ValueError, match="standard errors of shape"):
            standard_error_of_mean(broken, np.ones((2, 2)))


@pytest.mark.parametrize("scale", [*SCALES, 1e300])
def test_means_and_ranks_know_no_unit(scale: float) -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0, 7.0])
    plain, scaled = student_mean(values), student_mean(min(scale, 1e150) * values)
    assert scaled.high / min(scale, 1e150) == pytest.approx(plain.high, rel=1e-12)
    assert spearman(scale * values, np.arange(5.0)) == spearman(values, np.arange(5.0))


def test_ranks_of_what_cannot_be_ranked() -> None:
    values = np.arange(6.0)
    with_end = np.array([0.0, 1, 2, 3, 4, INF])
    assert spearman(with_end, values).value == pytest.approx(1.0)  # infinite is the last
    for constant in (np.full(6, INF), np.full(6, 1e308), np.zeros(6)):
        assert math.isnan(spearman(constant, values).value)
    broken = values.copy()
    broken[2] = NAN
    for pair in ((broken, values), (values, broken)):
        assert math.isnan(spearman(*pair).value)
        assert math.isnan(spearman(*pair).low)
    with pytest.raises(ValueError, match="pairs are needed"):
        spearman(values, values[:3])
    for few in (values[:0], values[:1]):
        assert math.isnan(spearman(few, few).value)
    assert spearman(values[:2], values[:2]).value == pytest.approx(1.0)


def test_tables_of_nothing_and_of_no_counts() -> None:
    assert contingency_table([], []).shape == (0, 0)
    assert math.isnan(cramers_v(np.zeros((0, 0))))
    assert math.isnan(cramers_v(np.zeros((3, 3))))
    assert math.isnan(cramers_v(np.array([[5.0, 7.0]])))
    assert (permutation_p([], [], 9, 0), permutation_p(["a"], ["b"], 9, 0)) == (1.0, 1.0)
    assert cramers_v(np.diag([1e15, 1e15])) == pytest.approx(1.0)
    for bad in (NAN, INF, -1.0):
        with pytest.raises(ValueError, match="counts alone"):
            cramers_v(np.array([[1.0, bad], [2.0, 3.0]]))


def test_an_error_takes_two_groups() -> None:
    alone = Replicates(value=1.0, leave_outs=np.array([1.0]))
    assert math.isnan(alone.standard_error)
    row = figure(
        "share", Estimate(value=0.5, standard_error=alone.standard_error, degrees_of_freedom=0), (3, 3), "", (0, 1)
    )
    assert math.isnan(row.low)
    assert math.isnan(row.high)
    for groups in ([], [np.arange(3)]):
        with pytest.raises(ValueError, match="at least two of them"):
            replicate(lambda rows: float(len(rows)), groups)
    assert math.isnan(wilson(0, 0).value)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("scale", SCALES)
def test_an_integrals_error_goes_with_its_unit(name: str, scale: float) -> None:
    values = np.random.default_rng(0).normal(size=(3, 16))
    plain = standard_error(values, ESTIMATORS[name])
    np.testing.assert_allclose(standard_error(scale * values, ESTIMATORS[name]), scale * plain, rtol=1e-12)
    assert (standard_error(np.full((2, 16), scale), ESTIMATORS[name]) <= 1e-15 * scale).all()
    values[1, 5] = NAN
    assert np.isnan(standard_error(values, ESTIMATORS[name])).tolist() == [False, True, False]


# --- linear systems ---


@pytest.mark.parametrize("of_rhs", SCALES)
@pytest.mark.parametrize("of_map", [1e-6, 1.0, 1e6])
def test_least_squares_know_no_unit_even_in_float32(of_rhs: float, of_map: float) -> None:
    """The squares of such numbers leave float32's range, and rhs would pass for 0 or for infinite."""
    generator = np.random.default_rng(0)
    matrix, rhs = generator.normal(size=(6, 20)), generator.normal(size=6)
    found = least_squares(
        DenseMap(torch.from_numpy(of_map * matrix).float()), torch.from_numpy(of_rhs * rhs).float(), num_steps=6
    )
    expected = np.linalg.lstsq(matrix, rhs, rcond=None)[0]
    solution = found.solution.double().numpy() * of_map / of_rhs
    np.testing.assert_allclose(solution, expected, atol=2e-5 * np.linalg.norm(expected))
    assert found.residual_norms[0] == pytest.approx(of_rhs * np.linalg.norm(rhs), rel=1e-5)
    assert found.residual_norms[-1] < 1e-5 * found.residual_norms[0]
    np.testing.assert_allclose(found.ritz / of_map, np.linalg.svd(matrix)[1][: len(found.ritz)], rtol=1e-4)


def test_lengths_at_the_ends_of_float32() -> None:
    for scale in (1e-38, 1e-22, 1e-15, 1.0, 1e25, 1e38):
        assert length(torch.tensor([3 * scale, -4 * scale * 0.5]).float()) == pytest.approx(
            scale * math.sqrt(13), rel=1e-5
        )
    assert (length(torch.zeros(3)), length(torch.zeros(0))) == (0.0, 0.0)
    assert math.isnan(length(torch.tensor([1.0, NAN])))
    assert length(torch.tensor([1.0, -INF])) == INF


class Breaking:
    """A matrix whose products are no numbers from one of them on."""

    def __init__(self, matrix: np.ndarray, good: int, which: str) -> None:
        self.inner, self.good, self.which = DenseMap(torch.from_numpy(matrix)), good, which
        self.num_rows, self.num_columns = matrix.shape
        self.calls = {"jvp": 0, "vjp": 0}

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        return self._product("jvp", columns)

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        return self._product("vjp", rows)

    def _product(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        self.calls[name] += 1
        product = getattr(self.inner, name)(vector)
        if name == self.which and self.calls[name] > self.good:
            product[-1] = NAN
        return product


@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
@pytest.mark.parametrize(("which", "good", "steps"), [("jvp", 0, 0), ("jvp", 3, 3), ("vjp", 0, 0), ("vjp", 3, 2)])
def test_a_solve_ends_where_a_product_is_no_number(which: str, good: int, steps: int, shape: tuple[int, int]) -> None:
    """What is told is what an unbroken solve tells after as many steps; the rest of the budget is not spent."""
    generator = np.random.default_rng(0)
    matrix, rhs = generator.normal(size=shape), torch.from_numpy(generator.normal(size=shape[0]))
    broken = Breaking(matrix, good, which)
    found = least_squares(broken, rhs, num_steps=7, keep=(1, 5))
    assert (found.stopped, found.num_steps) == ("not finite", steps)
    assert broken.calls[which] == good + 1
    assert bool(torch.isfinite(found.solution).all())
    if steps:
        whole = least_squares(DenseMap(torch.from_numpy(matrix)), rhs, num_steps=steps)
        torch.testing.assert_close(found.solution, whole.solution)
        np.testing.assert_allclose(found.residual_norms, whole.residual_norms)
        np.testing.assert_allclose(found.ritz, whole.ritz)


def test_side_effects_that_cannot_be_told_are_nan() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(4, 10))
    known, residual = DenseMap(torch.from_numpy(matrix)), torch.ones(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="right side that is not finite"):
        least_squares(known, residual * NAN, num_steps=3)
    span = RowSpan.of(known, residual)
    gradient = torch.from_numpy(generator.normal(size=10))
    assert 0 < span.share_outside(gradient) < 1
    for bad in (gradient * 0, gradient * NAN, gradient * INF):
        assert math.isnan(span.share_outside(bad))
    broken = Breaking(matrix, 0, "jvp")
    with pytest.raises(ValueError, match="products with the known equations"):
        RowSpan.of(broken, residual)
    assert math.isnan(RowSpan(broken, span.inverse).share_outside(gradient))
    assert math.isnan(solvable_share(known, Breaking(matrix, 0, "vjp"), residual, num_steps=3))
    assert math.isnan(solvable_share(Breaking(matrix, 0, "vjp"), known, residual, num_steps=3))
    assert constrained(known, Breaking(matrix, 1, "jvp"), residual, 1.0, num_steps=3).stopped == "not finite"
    for weight in (-1.0, NAN, INF):
        with pytest.raises(ValueError, match="weight must be 0 or more"):
            constrained(known, known, residual, weight, num_steps=3)


# --- systems of a base ---


def network() -> tuple[LinearNetwork, tuple[Example, ...]]:
    features = {"a": np.array([1.0, 0, 0]), "b": np.array([0, 1.0, 0]), "c": np.array([0.5, 0.5, 1.0])}
    found = LinearNetwork(features=features, weights=np.array([2.0, -1.0, 0]), renderings=np.zeros((1, 3)))
    return found, tuple(concept_set_of(list(features)).split("train"))


def with_equations(changed: Any) -> WeightSide:
    plain, _ = network()
    weights = plain.systems().weights
    assert weights is not None
    return replace(weights, equations=lambda examples: changed(plain.equations(examples), examples))


def test_a_broken_solve_of_the_weights_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    _, examples = network()

    def breaking(equations: Equations, examples: Sequence[Example]) -> Equations:
        matrix = equations.jacobian.matrix.numpy()  # type: ignore[attr-defined]
        broken = any(example.concept == "c" for example in examples)
        return replace(equations, jacobian=Breaking(matrix, 1, "jvp")) if broken else equations

    weights = with_equations(breaking)
    sets = [
        EquationSet(concept="Unknown", examples=examples[1:]),
        EquationSet(concept="Maybe", examples=examples[1:2]),
    ]
    known = KnownSide(weights=weights, examples=(), num_steps=4)
    config = WeightsConfig(num_steps=4)
    with caplog.at_level(logging.WARNING):
        table = solve_sets(weights, known, sets, config).set_index("concept")
    broken, whole = table.loc["Unknown"], table.loc["Maybe"]
    assert (broken.stopped, whole.stopped) == ("not finite", "exhausted")
    assert math.isfinite(broken.residual_1)
    assert all(math.isnan(broken[name]) for name in ("residual_2", "residual_5", "residual_10", "solution_norm"))
    assert whole.residual_10 < 1e-9
    assert examples[2].id in caplog.text
    assert "not finite" in caplog.text
    never = with_equations(lambda e, _: replace(e, jacobian=Breaking(e.jacobian.matrix.numpy(), 0, "jvp")))
    single = solve_examples(never, known, [EquationSet(concept="c", examples=examples[2:])], config).iloc[0]
    assert (single.stopped, single.residual_norms) == ("not finite", [single.rhs_norm])
    assert math.isnan(single.residual_1)


def test_a_base_whose_answers_are_no_numbers_names_them() -> None:
    _, examples = network()
    weights = with_equations(lambda equations, examples: replace(equations, residual=equations.residual * NAN))
    known = KnownSide(weights=weights, examples=(), num_steps=4)
    with pytest.raises(
        UserError, match=rf"{examples[2].id}: what the base says of them is not finite; try dtype=float32"
    ):
        solve_sets(weights, known, [EquationSet(concept="c", examples=examples[2:])], WeightsConfig())


def four_steps(evaluate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> TriangularSystem:
    """One chain of two numbers that are 1 at first."""
    ones = np.ones(4)
    return TriangularSystem(
        start=torch.ones(1, 2, dtype=torch.float64), decay=ones, gain=ones, evaluate=evaluate, scale=ones
    )


def test_residuals_that_are_no_numbers_are_no_solved_equations() -> None:
    """A residual is NaN where an equation was not evaluated, and infinite where f was no number."""

    def broken(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        far = (steps == 3) & ((states - 1).abs().amax(dim=1) < 1e-12)  # of the copies of the start alone
        return torch.where(far[:, None], NAN, 0.1 * states)

    system = four_steps(broken)
    for solver in (Picard(tolerance=1e-9), Anderson(tolerance=1e-9)):
        (found,) = solver(system)
        torch.testing.assert_close(found.states[-1], torch.full((2,), 1.1**4, dtype=torch.float64), rtol=1e-8, atol=0)
        assert found.residuals[0, 3] == INF
        assert np.isfinite(found.residuals[0, :3]).all()
        assert np.isnan(found.residuals[1:, 0]).all()
        assert found.stopped in ("exact", "tolerance")
    assert math.isnan(slope(found.residuals))
    assert math.isfinite(slope(found.residuals[1:]))
    rows = pd.DataFrame([{"concept": "a", "num_steps": 4, "residuals": found.residuals.ravel().tolist()}])
    profile = residual_profile(rows, {"a": "Unknown"}).set_index(["round", "place"]).residual
    assert profile[0, 7] == INF
    assert profile[0, 0] == found.residuals[0, 0]
    assert profile[1, 0] == 0.0


def test_a_trajectory_that_ends_in_no_number_is_not_solved() -> None:
    def broken(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.where((steps == 2)[:, None], NAN, states)

    system = four_steps(broken)
    for solver in (Sequential(), Picard(), Anderson()):
        (found,) = solver(system)
        assert found.stopped == "not finite"


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_sweeps_know_no_unit(unit: float) -> None:
    def curved(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return unit * torch.tanh(states / unit)

    def solved(unit: float) -> Any:
        system = TriangularSystem(
            start=unit * torch.linspace(-1, 1, 3, dtype=torch.float64)[None],
            decay=np.full(8, 0.9),
            gain=np.full(8, 0.2),
            evaluate=curved,
            scale=np.full(8, unit),
        )
        return Picard(tolerance=1e-6)(system)[0]

    found = solved(unit)
    assert bool(torch.isfinite(found.states).all())
    if abs(math.log10(unit)) < 100:
        assert found.stopped == "tolerance"
    else:  # The squares of the defects leave float64: they read 0 or infinite, and are never NaN.
        assert not np.isnan(found.residuals[0]).any()


# --- the probe ---


class Spoilt:
    """An exact learner some of whose readings are no numbers."""

    def __init__(self, inner: ExactLearner, bad: Sequence[str], value: float) -> None:
        self.inner, self.bad, self.value = inner, bad, value

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        readings = self.inner.surprise(queries, draws, batch_size=batch_size)
        return [
            replace(
                reading,
                squared_error=np.where(
                    np.arange(reading.squared_error.shape[1]) == 1, self.value, reading.squared_error
                ),
            )
            if query.example.id in self.bad
            else reading
            for query, reading in zip(queries, readings, strict=True)
        ]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_probe_names_the_examples_whose_scores_are_no_numbers(value: float) -> None:
    examples = concept_set().split("heldout")
    bad = [examples[1].id, examples[4].id]
    learner: Any = Spoilt(exact_learner(known=NAMES[:3]), bad, value)
    for adaptive in (False, True):
        config = ProbeConfig(num_draws=16)
        config = replace(config, adaptive=replace(config.adaptive, enabled=adaptive))
        with pytest.raises(
            NotFinite, match=f"{bad[0]}, {bad[1]}: their errors are not finite .2 of .*try dtype=bfloat16"
        ):
            score(learner, examples, config)
    assert len(score(learner, [e for e in examples if e.id not in bad], config)) == len(examples) - 2


def test_an_error_of_not_finite_numbers_can_be_sent_to_other_processes() -> None:
    for error in (NotFinite("a/b: its prediction is not finite"), NotFinite("x is not finite", "do y")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.found, type(again)) == (str(error), error.found, NotFinite)


def test_a_word_is_never_chosen_among_likelihoods_that_are_none() -> None:
    """argmax takes NaN for the largest of all, and would give it as the answer."""
    learner = tiny_learner("llama")
    requests = [
        Request(prompt=learner.vocabulary.prompt(text), group="g", uniforms=np.full((2, 8), 0.5), name=name)
        for text, name in (("one", "a/1"), ("two words", "a/2"))
    ]
    config = DecodingConfig(max_new_tokens=3)
    assert len(decode(learner.model, requests, learner.vocabulary.stops, config)) == 2
    plain = learner.model.forward

    def spoilt(*args: Any, **options: Any) -> Any:
        output = plain(*args, **options)
        output.logits[-1, -1, 5] = NAN
        return output

    learner.model.forward = spoilt
    with pytest.raises(NotFinite, match=r"a/[12]: the likelihoods of its next token are not finite"):
        decode(learner.model, requests, learner.vocabulary.stops, config)


# --- pictures ---


def test_pictures_whose_features_are_no_numbers_are_named() -> None:
    def function(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.where(np.arange(len(images))[:, None] % 2 == 1, NAN, np.ones((len(images), 3)))

    extractor = Extractor(name="x", resize="none", weights_sha256="0" * 64, function=function)
    images = [np.zeros((2, 2, 3), np.uint8)] * 4
    with pytest.raises(UserError, match="extractor x: features of b.png, d.png are not finite"):
        extractor(images, ["a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(UserError, match="features of 2 of 4 images"):
        extractor(images)
    assert extractor(images[:1]).shape == (1, 3)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_pixels_that_are_no_numbers_are_no_image(bad: float, tmp_path: Path) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = bad
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match=r"a\.tiff: holds floats from"):
        load_image(tmp_path / "a.tiff")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of half-precision numbers whose VAE leaves float16's range inside, and comes back to it, as SDXL's does."""
    base = make_pipeline(tmp_path_factory.mktemp("overflowing") / "base", "sd1")
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("encoder.conv_in", "decoder.conv_in"):
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] *= 5e4 / tensors[f"{name}.weight"].abs().max()
    save_file({name: tensor.half().float() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return base


def test_half_precision_decodes_and_encodes_as_float32_does(overflowing: Path, tmp_path: Path) -> None:
    """To the last bit, where the plain VAE in float16 gives black pictures and latents that are no numbers."""
    half, wide = (DiffusionLearner.load(overflowing, dtype=dtype) for dtype in (torch.float16, torch.float32))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    example = Example(id="a", concept="a", caption="a", path=tmp_path / "a.png", split="train")
    (encoded,), (expected,) = (learner.targets([example]) for learner in (half, wide))
    assert torch.equal(encoded, expected)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for picture, truth in zip(half._codec.decode(latents), wide._codec.decode(latents), strict=True):
        np.testing.assert_array_equal(picture, truth)
    vae = DiffusionLearner.load(overflowing).pipeline.vae.half()
    with torch.no_grad():
        assert torch.isnan(vae.decode(latents.half()).sample).any()


def test_a_picture_of_no_numbers_is_told_by_its_prompt_and_not_shown_black(tmp_path: Path) -> None:
    learner = DiffusionLearner.load(make_pipeline(tmp_path / "base", "sd1"))
    plain, calls = learner.pipeline.vae.decode, [0]

    def spoilt(latents: torch.Tensor, **options: Any) -> Any:
        (pixels,) = plain(latents, **options)
        calls[0] += 1
        return (pixels * (NAN if calls[0] == 2 else 1.0),)

    learner.pipeline.vae.decode = spoilt
    cues = [Cue(prompt=f"a photo of a {name}", seed=1) for name in ("wug", "dax", "fep")]
    with pytest.raises(NotFinite, match=r"generated pixels are not finite \(1 of 3: 'a photo of a dax'\); the VAE"):
        learner.generate(cues, num_inference_steps=1, guidance_scale=1.0, batch_size=3)
    with torch.no_grad():
        learner.pipeline.unet.conv_out.bias.fill_(NAN)
    with pytest.raises(NotFinite, match=r"generated latents are not finite \(3 of 3: 'a photo of a wug'.*bfloat16"):
        learner.generate(cues, num_inference_steps=1, guidance_scale=1.0, batch_size=3)


# --- training ---


class Scaled(Accelerator):
    """An accelerator with the loss scaling of fp16, which there is none of on a CPU."""

    first_scale = 2.0**24

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.first_scale, growth_interval=10**6)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        for one in self._optimizers:
            self.scaler.unscale_(one.optimizer)


def as_in_fp16(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    """Gradients of the loss beyond `largest` become infinite."""
    plain = ExactLearner.loss

    def loss(self: ExactLearner, batch: Any) -> torch.Tensor:
        losses = plain(self, batch)
        losses.register_hook(lambda gradient: torch.where(gradient.abs() > largest, INF, gradient))
        return losses

    monkeypatch.setattr(ExactLearner, "loss", loss)
    monkeypatch.setattr("diffusion_sft.finetune.acceleration.Accelerator", Scaled)


def test_a_loss_scale_that_overflows_is_lowered_until_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2²⁴ over 8 items is 2²¹: six updates until the scale's share of an item is below 65504."""
    config = replace(
        EXACT, max_train_steps=10, validation_steps=0, checkpointing_steps=1, checkpoints_total_limit=None
    )
    as_in_fp16(monkeypatch, 65504.0)
    summary, _ = run_exact(replace(config, use_ema=True), tmp_path / "run", UNKNOWN_MIX)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["grad_norm"] is None] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) and "skipped" not in line for line in lines)
    assert summary["skipped_updates"] == 0
    first, sixth, seventh = (
        load_file(tmp_path / "run" / f"checkpoint-{n}" / "weights.safetensors") for n in (1, 6, 7)
    )
    assert all(torch.equal(first[name], sixth[name]) for name in first)
    assert any(not torch.equal(sixth[name], seventh[name]) for name in first)
    state = json.loads((tmp_path / "run" / "checkpoint-10" / "state.json").read_text())
    assert state["scaler"]["scale"] == 2.0**18
    assert state["average_count"] == 4


def test_a_gradient_that_is_none_at_any_scale_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaled, "first_scale", 4 * LOWEST_SCALE)
    as_in_fp16(monkeypatch, 0.0)
    config = replace(EXACT, max_nonfinite_steps=3, validation_steps=0, checkpointing_steps=2)
    told = r"the gradient of update 5 and of the 2 before it is not finite; .*nonfinite\.json has its examples"
    with pytest.raises(UserError, match=told):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)


def test_weights_that_run_away_are_told_of_by_run_update_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an evaluation too, where the advice for a base whose numbers are none would be wrong."""
    plain = ExactLearner.answer
    config = replace(EXACT, max_train_steps=6, validation_steps=3, checkpointing_steps=2)

    def diverged(self: ExactLearner, questions: Any, draws: Draws, *, batch_size: int) -> Any:
        if (tmp_path / "run" / "checkpoint-2").is_dir():
            raise NotFinite("dax/heldout-0: the network's prediction is not finite")
        return plain(self, questions, draws, batch_size=batch_size)

    monkeypatch.setattr(ExactLearner, "answer", diverged)
    told = r"run: evaluation after update 3: dax/heldout-0: .* not finite; checkpoint-2 is the last good one; lower"
    with pytest.raises(UserError, match=told) as caught:
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    assert "dtype" not in str(caught.value)
