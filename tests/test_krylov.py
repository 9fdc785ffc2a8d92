"""LSMR against scipy's, iterate by iterate; spectra and projections against dense algebra; planted interference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator, lsmr

from diffusion_sft.numerics.interference import RowSpan, constrained, solvable_share
from diffusion_sft.numerics.krylov import effective_rank, least_squares, picard_slope
from diffusion_sft.numerics.linear_map import DenseMap, Transposed

CASES = ["consistent", "inconsistent", "deficient", "square", "tall_consistent"]


def system(case: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with singular values from 1 to about 1/30, and a right side."""
    generator = np.random.default_rng(CASES.index(case))
    rows, columns = {"consistent": (12, 40), "deficient": (15, 40), "square": (14, 14)}.get(case, (40, 12))
    rank = min(rows, columns) - (5 if case == "deficient" else 0)
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    matrix = left * np.geomspace(1, 1 / 30, rank) @ right.T
    if case == "tall_consistent":
        return matrix, matrix @ generator.normal(size=columns)
    return matrix, generator.normal(size=rows)


def as_map(matrix: np.ndarray) -> DenseMap:
    return DenseMap(torch.from_numpy(matrix))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_iterates_are_those_of_scipy(case: str, damping: float, reorthogonalise: bool) -> None:
    matrix, rhs = system(case)
    steps = range(8)
    found = least_squares(
        as_map(matrix),
        torch.from_numpy(rhs),
        num_steps=7,
        damping=damping,
        reorthogonalise=reorthogonalise,
        tolerance=0.0,
        keep=steps,
    )
    assert (found.num_steps, found.stopped) == (7, "budget")
    for step in steps:
        theirs = np.zeros(matrix.shape[1])
        if step:
            options = {"damp": damping, "atol": 0, "btol": 0, "conlim": 0, "maxiter": step}
            theirs = lsmr(aslinearoperator(matrix), rhs, **options)[0]
        np.testing.assert_allclose(found.kept[step].numpy(), theirs, rtol=0, atol=1e-8 * np.linalg.norm(theirs))
        left = rhs - matrix @ theirs
        np.testing.assert_allclose(found.kept_residuals[step].numpy(), left, rtol=0, atol=1e-9)
        assert found.residual_norms[step] == pytest.approx(np.linalg.norm(left), rel=1e-7)
        assert found.solution_norms[step] == pytest.approx(np.linalg.norm(theirs), rel=1e-7)
    assert torch.equal(found.solution, found.kept[7])


@pytest.mark.parametrize("case", CASES)
def test_in_the_end_it_is_the_solution_of_smallest_norm(case: str) -> None:
    matrix, rhs = system(case)
    found = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, tolerance=0.0)
    expected, rank = np.linalg.lstsq(matrix, rhs, rcond=1e-10)[::2]
    np.testing.assert_allclose(found.solution.numpy(), expected, atol=1e-9 * np.linalg.norm(expected))
    assert found.stopped == "exhausted"
    assert found.num_steps == rank
    damped = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, damping=0.2, tolerance=1e-13)
    normal = matrix.T @ matrix + 0.04 * np.eye(matrix.shape[1])
    np.testing.assert_allclose(damped.solution.numpy(), np.linalg.solve(normal, matrix.T @ rhs), atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_after_as_many_steps_as_ranks_the_spectrum_is_there(case: str) -> None:
    matrix, rhs = system(case)
    found = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, tolerance=0.0)
    left, sigma, _ = np.linalg.svd(matrix)
    there = sigma > 1e-9
    np.testing.assert_allclose(found.ritz, sigma[there], rtol=1e-9)
    along = np.abs(left.T @ rhs)[: there.sum()]
    np.testing.assert_allclose(found.coefficients, along, rtol=1e-7)
    np.testing.assert_allclose(found.picard, along / sigma[there], rtol=1e-7)
    # Each direction's ratio is its share of the solution.
    assert found.solution_norms[-1] == pytest.approx(np.linalg.norm(found.picard), rel=1e-9)


def test_reorthogonalisation_is_what_finds_every_value_once() -> None:
    """A spectrum with one large value, which plain bidiagonalisation finds again and again."""
    generator = np.random.default_rng(5)
    left = np.linalg.qr(generator.normal(size=(30, 30)))[0]
    right = np.linalg.qr(generator.normal(size=(60, 30)))[0]
    sigma = np.concatenate([[1e4], np.geomspace(1, 0.1, 29)])
    matrix, rhs = left * sigma @ right.T, generator.normal(size=30)
    for kept, transposed in ((True, False), (False, False), (True, True)):
        map = Transposed(as_map(matrix.T.copy())) if transposed else as_map(matrix)
        found = least_squares(map, torch.from_numpy(rhs), num_steps=30, reorthogonalise=kept, tolerance=0.0)
        error = np.abs(found.ritz / sigma[: len(found.ritz)] - 1).max()
        assert (error < 1e-9) == kept, error


def test_it_ends_for_the_reason_that_it_says() -> None:
    generator = np.random.default_rng(0)
    matrix, rhs = generator.normal(size=(12, 400)), generator.normal(size=12)
    loose = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, tolerance=1e-2)
    assert loose.stopped == "tolerance"
    assert loose.residual_norms[-1] <= 1e-2 * np.linalg.norm(rhs) < loose.residual_norms[-2]
    matrix, rhs = system("inconsistent")
    best = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, tolerance=1e-3)
    slope = np.linalg.norm(matrix.T @ best.residual.numpy())
    assert best.stopped == "tolerance"
    assert slope <= 2e-3 * best.residual_norms[-1]
    assert best.num_steps < 12


def test_nothing_to_solve_and_nothing_to_solve_with() -> None:
    matrix, _ = system("consistent")
    nothing = least_squares(as_map(matrix), torch.zeros(12, dtype=torch.float64), num_steps=5, keep=(0, 3))
    assert (nothing.num_steps, nothing.stopped) == (0, "tolerance")
    assert not nothing.solution.any()
    assert len(nothing.ritz) == 0
    assert torch.equal(nothing.kept[3], nothing.solution)
    tall, _ = system("inconsistent")
    beside = np.linalg.svd(tall)[0][:, -1]  # outside the range of the matrix
    empty = least_squares(as_map(tall * 0), torch.from_numpy(beside), num_steps=5)
    assert (empty.num_steps, empty.stopped) == (0, "exhausted")
    assert empty.residual_norms.tolist() == pytest.approx([1.0])
    with pytest.raises(ValueError, match="right side"):
        least_squares(as_map(tall), torch.zeros(3), num_steps=5)


def test_steps_that_were_not_reached_are_the_last_one() -> None:
    matrix, rhs = system("deficient")
    found = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=60, keep=(2, 50))
    assert found.num_steps < 50
    assert torch.equal(found.kept[50], found.solution)
    assert torch.equal(found.kept_residuals[50], found.residual)
    short = least_squares(as_map(matrix), torch.from_numpy(rhs), num_steps=2)
    torch.testing.assert_close(found.kept[2], short.solution)


def test_effective_ranks() -> None:
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0
    p = 0.2
    assert effective_rank(np.array([1 - p, p])) == pytest.approx(1 / ((1 - p) ** (1 - p) * p**p))


def test_picard_slopes_are_the_difference_of_two_decays() -> None:
    places = np.arange(10)
    assert picard_slope(np.exp(-0.5 * places), 3 * np.exp(-0.8 * places)) == pytest.approx(-0.3)
    assert picard_slope(np.exp(-0.5 * places), np.ones(10)) == pytest.approx(0.5)
    holed = np.exp(-0.8 * places)
    holed[4] = 0
    assert picard_slope(np.exp(-0.5 * places), holed) == pytest.approx(-0.3)
    assert math.isnan(picard_slope(np.ones(1), np.ones(1)))


def test_projection_takes_out_the_rows_of_the_known() -> None:
    generator = np.random.default_rng(3)
    known, gradient = generator.normal(size=(9, 50)), generator.normal(size=50)
    expected = gradient - np.linalg.pinv(known) @ (known @ gradient)
    found = least_squares(Transposed(as_map(known)), torch.from_numpy(gradient), num_steps=9).residual
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    nothing = torch.zeros(50, dtype=torch.float64)
    assert not least_squares(Transposed(as_map(known)), nothing, num_steps=9).residual.any()


def test_side_effects_are_the_cross_kernel_times_the_inverse_kernel() -> None:
    generator = np.random.default_rng(4)
    new, known, residual = generator.normal(size=(6, 50)), generator.normal(size=(9, 50)), generator.normal(size=6)
    expected = known @ new.T @ np.linalg.solve(new @ new.T, residual)
    found = constrained(as_map(new), as_map(known), torch.from_numpy(residual), 0.0, num_steps=10).side_effect
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1e6])
def test_holding_the_known_is_penalised_least_squares(weight: float) -> None:
    generator = np.random.default_rng(4)
    new, known, residual = generator.normal(size=(6, 50)), generator.normal(size=(9, 50)), generator.normal(size=6)
    found = constrained(as_map(new), as_map(known), torch.from_numpy(residual), weight, num_steps=200)
    stacked = np.concatenate([new, math.sqrt(weight) * known])
    expected = np.linalg.pinv(stacked, rcond=1e-12) @ np.concatenate([residual, np.zeros(9)])
    np.testing.assert_allclose(found.solution.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.new_residual.numpy(), residual - new @ expected, atol=1e-6)
    np.testing.assert_allclose(found.side_effect.numpy(), known @ expected, atol=1e-6)
    if weight == 0.5:
        with pytest.raises(ValueError, match="weight"):
            constrained(as_map(new), as_map(known), torch.from_numpy(residual), -1.0, num_steps=2)


def test_planted_interference() -> None:
    """Rows that have nothing, everything, or a known angle in common."""
    basis = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    known, one = DenseMap(basis[:5]), torch.ones(1, dtype=torch.float64)
    apart = DenseMap(basis[5:6])
    assert solvable_share(apart, known, one, num_steps=5) == pytest.approx(1)
    assert constrained(apart, known, one, 0.0, num_steps=5).side_effect.norm() < 1e-12
    same = DenseMap(basis[2:3] * 3)
    assert solvable_share(same, known, one, num_steps=5) < 1e-12
    assert constrained(same, known, one, 0.0, num_steps=5).side_effect[2] == pytest.approx(1 / 3)
    for angle in (0.3, 1.2):
        mixed = DenseMap(math.cos(angle) * basis[5:6] + math.sin(angle) * basis[2:3])
        assert solvable_share(mixed, known, -2 * one, num_steps=5) == pytest.approx(math.cos(angle))
        assert constrained(mixed, known, one, 0.0, num_steps=5).side_effect.norm() == pytest.approx(math.sin(angle))
        # Both conditions at once, exactly: a step along the part that is free.
        held = constrained(mixed, known, one, 1e9, num_steps=5)
        assert held.solution.norm() == pytest.approx(1 / math.cos(angle), rel=1e-6)
    assert math.isnan(solvable_share(mixed, known, 0 * one, num_steps=5))


def test_the_span_of_few_rows_gives_what_projecting_gives() -> None:
    generator = np.random.default_rng(5)
    known = generator.normal(size=(6, 30))
    known[5] = known[0] - known[1]  # of rank five
    span = RowSpan.of(as_map(known), torch.zeros(1, dtype=torch.float64))
    for gradient in generator.normal(size=(4, 30)):
        outside = gradient - np.linalg.pinv(known) @ (known @ gradient)
        expected = np.linalg.norm(outside) / np.linalg.norm(gradient)
        assert span.share_outside(torch.from_numpy(gradient)) == pytest.approx(expected, rel=1e-10)
    inside = torch.from_numpy(known.T @ generator.normal(size=6))
    assert span.share_outside(inside) == pytest.approx(0.0, abs=1e-7)
    assert math.isnan(span.share_outside(torch.zeros(30, dtype=torch.float64)))
