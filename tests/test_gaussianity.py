"""Figures of normality on true normal draws and on planted deviations; inversion against a Gaussian's linear map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from test_reconstruction import LAWS, QUERIES, TARGETS, linear_map
from test_schedule import stable_diffusion

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Query, Reconstruction
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner, Mixture
from diffusion_sft.learners.inversion import invert
from diffusion_sft.learners.reconstruction import read_reconstruction, trajectory, travel
from diffusion_sft.numerics.gaussianity import Gaussianity, gaussianity
from diffusion_sft.records import Draws, Example

SHAPE = (4, 16, 16)


def scores(found: Gaussianity) -> np.ndarray:
    """How many standard deviations each figure lies from that of N(0, 1)."""
    return np.array(
        [
            (found.mean_square - 1) / found.mean_square_error,
            found.mean / found.mean_error,
            found.excess_kurtosis / found.excess_kurtosis_error,
            found.neighbour_correlation / found.neighbour_correlation_error,
        ]
    )


def test_normal_draws_have_the_errors_that_are_said() -> None:
    generator = np.random.default_rng(0)
    found = [gaussianity(generator.normal(size=SHAPE)) for _ in range(600)]
    standard = np.stack([scores(one) for one in found])
    # Of 600 means ±4/√600 = 0.16, of standard deviations 4/√1200 = 0.12 and a little for their own kurtosis.
    assert np.abs(standard.mean(axis=0)).max() < 0.16
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=0.14)
    uniform = stats.kstest([one.kolmogorov_smirnov_p for one in found], "uniform").pvalue
    assert uniform > 0.01


def test_kurtosis_error_is_exact_for_few_numbers() -> None:
    """The approximation √(24/d) would be 1.10 at d = 20, where the true value is 0.99."""
    generator = np.random.default_rng(1)
    draws = generator.normal(size=(20000, 20))
    values = stats.kurtosis(draws, axis=1, bias=False)
    assert gaussianity(draws[0]).excess_kurtosis == pytest.approx(values[0])
    error = gaussianity(draws[0]).excess_kurtosis_error
    assert np.std(values) == pytest.approx(error, rel=0.05)
    assert np.mean(values) == pytest.approx(0, abs=4 * error / np.sqrt(20000))


def smooth(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    """N(0, 1) each, with that share of correlation from pixel to pixel along rows alone (an AR(1) process)."""
    noise = np.random.default_rng(seed).normal(size=shape)
    field = np.empty(shape)
    field[..., 0] = noise[..., 0]
    for place in range(1, shape[-1]):
        field[..., place] = share * field[..., place - 1] + np.sqrt(1 - share**2) * noise[..., place]
    return field


def test_planted_deviations_show_where_they_are_planted() -> None:
    generator = np.random.default_rng(2)
    normal = generator.normal(size=SHAPE)
    small = gaussianity(0.5 * normal)
    assert small.mean_square == pytest.approx(0.25 * gaussianity(normal).mean_square)
    assert small.excess_kurtosis == pytest.approx(gaussianity(normal).excess_kurtosis)
    assert small.kolmogorov_smirnov_p < 1e-6
    shifted = gaussianity(normal + 0.5)
    assert shifted.mean == pytest.approx(normal.mean() + 0.5)
    assert shifted.neighbour_correlation == pytest.approx(gaussianity(normal).neighbour_correlation)
    heavy = gaussianity(generator.laplace(scale=np.sqrt(0.5), size=(4, 64, 64)))
    assert heavy.excess_kurtosis == pytest.approx(3, abs=0.7)
    assert abs(heavy.neighbour_correlation) < 4 * heavy.neighbour_correlation_error
    along = gaussianity(smooth((4, 64, 64), 0.6, 3))
    assert along.neighbour_correlation == pytest.approx(0.3, abs=0.03)  # rows 0.6, columns 0
    flat = gaussianity(smooth((5000,), 0.6, 3))
    assert flat.neighbour_correlation == pytest.approx(0.6, abs=0.04)


def test_what_has_no_figures() -> None:
    constant = gaussianity(np.full((1, 3, 3), 0.7))
    assert np.isnan([constant.excess_kurtosis, constant.neighbour_correlation]).all()
    assert np.isnan(gaussianity(np.arange(8.0).reshape(8, 1, 1)).neighbour_correlation)
    with pytest.raises(ValueError, match="finite"):
        gaussianity(np.array([1.0, 2.0, 3.0, np.inf]))


# --- inversion ---

STEPS = 20


@pytest.fixture(scope="module")
def exact() -> ExactLearner:
    laws = {cue: Mixture.gaussian(*law) for cue, law in LAWS.items()}
    return ExactLearner(laws, TARGETS, stable_diffusion())


def test_inversion_is_the_gaussians_linear_map_under_the_caption(exact: ExactLearner) -> None:
    path = np.rint(np.linspace(0, 999, STEPS + 1)).astype(int)
    found = invert(exact, QUERIES, STEPS, batch_size=3)
    assert [one.example_id for one in found] == [query.example.id for query in QUERIES]
    for query, one in zip(QUERIES, found, strict=True):
        target = TARGETS[query.example.id]
        noise = linear_map(exact.schedule, "wug", path, target)
        back = linear_map(exact.schedule, "wug", path[::-1], noise)
        assert one.residual == pytest.approx(np.mean((back - target) ** 2), rel=1e-3)
        expected = gaussianity(noise)
        assert one.gaussianity.mean_square == pytest.approx(expected.mean_square, rel=1e-4)
        assert one.gaussianity.mean == pytest.approx(expected.mean, abs=1e-4)
        assert one.concept == "wug"


def test_the_residual_is_the_inversion_error_and_the_noise_the_samplers(tiny_pipeline: Path, tiny_set: Path) -> None:
    learner = DiffusionLearner.load(tiny_pipeline)
    queries = []
    for number in range(3):
        file = f"heldout/wug-{number}.png"
        caption = "a photo of a wug"
        example = Example(id=file, concept="wug", caption=caption, path=tiny_set / file, split="heldout")
        queries.append(Query(example=example, cues=(caption,)))
    how = Reconstruction(kind="inversion", num_inference_steps=9)
    errors = read_reconstruction(learner, queries, how, Draws(seed=0, count=1), batch_size=2)
    found = invert(learner, queries, 9, batch_size=2)
    np.testing.assert_allclose([one.residual for one in found], [own[1, 0] for own in errors], rtol=1e-4)
    clean = torch.stack(learner.targets([query.example for query in queries]))
    with torch.no_grad():
        noise = travel(learner, clean, trajectory(learner.schedule, how), ["a photo of a wug"] * 3)
    squares = noise.flatten(1).square().mean(dim=1).numpy()
    np.testing.assert_allclose([one.gaussianity.mean_square for one in found], squares, rtol=1e-4)
    assert not learner.network.training


def test_impossible_inversions_are_refused(exact: ExactLearner) -> None:
    with pytest.raises(UserError, match="num_inference_steps=1000"):
        invert(exact, QUERIES, 1000, batch_size=2)
    broken = ExactLearner({"": Mixture.gaussian(*LAWS[""])}, {**TARGETS, "0": np.full(6, np.nan)}, stable_diffusion())
    with pytest.raises(UserError, match="0: its inversion is not finite"):
        invert(broken, QUERIES, STEPS, batch_size=2)
