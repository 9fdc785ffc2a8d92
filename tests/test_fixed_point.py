"""Solvers of triangular systems against closed forms, against the sequential trajectory, and against their theory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusion_sft.numerics.fixed_point import Anderson, Parareal, Picard, Sequential, Solver, triangular_weights
from diffusion_sft.numerics.sensitivity import lyapunov_exponents
from diffusion_sft.numerics.triangular import Solution, TriangularSystem

Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""f of steps (m,) and states (m, *shape)."""
NUM_STEPS, SHAPE = 24, (3, 2)
RNG = np.random.default_rng(7)
LEVELS = np.linspace(1.0, 0.05, NUM_STEPS + 1)


def system(
    field: Field,
    *,
    num_steps: int = NUM_STEPS,
    batch: int = 3,
    noisy: bool = True,
    unit: float = 1.0,
    gain: float = 1.0,
) -> TriangularSystem:
    """Random starts and offsets, a_n a little above 1 as DDIM's, b_n of N steps that sum to -gain."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    offsets = torch.randn(num_steps, batch, *SHAPE, generator=generator, dtype=torch.float64) / num_steps

    def evaluate(members: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        assert len(members) == len(steps) == len(states)
        return unit * field(steps, states / unit)

    return TriangularSystem(
        start=unit * starts,
        decay=1.0 + 1.0 / num_steps * np.linspace(0.5, 1.5, num_steps),
        gain=-gain / num_steps * np.linspace(1.5, 0.5, num_steps),
        offsets=unit * offsets if noisy else None,
        evaluate=evaluate,
        scale=unit * np.linspace(1.0, 0.1, num_steps),
    )


def curved(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Elementwise and between neighbours, so that no row's bits depend on other rows."""
    phase = steps.double().reshape(-1, 1, 1) / NUM_STEPS
    return torch.sin(1.5 * states + states.roll(1, dims=1)) + phase * states


def exploding(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """With decay 1 and gain 1 the logistic map at 4 from [0, 1], and overflow from anywhere else."""
    return 4 * states * (1 - states) - states


def chaotic() -> TriangularSystem:
    generator = torch.Generator().manual_seed(3)
    count = 40
    return TriangularSystem(
        start=torch.rand(2, 5, generator=generator, dtype=torch.float64),
        decay=np.ones(count),
        gain=np.ones(count),
        evaluate=lambda members, steps, states: exploding(steps, states),
        scale=np.ones(count),
    )


def errors(solutions: list[Solution], reference: list[Solution]) -> np.ndarray:
    """Relative error of the final states, (B,)."""
    pairs = zip(solutions, reference, strict=True)
    return np.array([float((a.states[-1] - b.states[-1]).norm() / b.states[-1].norm()) for a, b in pairs])


ALL: dict[str, Callable[[float], Solver]] = {
    "picard": lambda tolerance: Picard(tolerance=tolerance),
    "picard_window": lambda tolerance: Picard(tolerance=tolerance, window=7),
    "picard_narrow": lambda tolerance: Picard(tolerance=tolerance, window=2),
    "jacobi": lambda tolerance: Picard(tolerance=tolerance, order=1),
    "order_4": lambda tolerance: Picard(tolerance=tolerance, order=4, window=9),
    "anderson": lambda tolerance: Anderson(tolerance=tolerance),
    "anderson_window": lambda tolerance: Anderson(tolerance=tolerance, window=7, memory=3),
    "anderson_order": lambda tolerance: Anderson(tolerance=tolerance, order=3, memory=1),
    "parareal": lambda tolerance: Parareal(tolerance=tolerance),
    "parareal_uneven": lambda tolerance: Parareal(tolerance=tolerance, block=7),
    "parareal_single": lambda tolerance: Parareal(tolerance=tolerance, block=1),
    "parareal_whole": lambda tolerance: Parareal(tolerance=tolerance, block=100),
}


@pytest.mark.parametrize("name", ["sequential", *ALL])
def test_a_linear_system_has_the_product_of_its_matrices(name: str) -> None:
    matrices = torch.from_numpy(RNG.normal(0, 0.6, (NUM_STEPS, 6, 6)))

    def linear(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.einsum("mij,mj->mi", matrices[steps], states.flatten(1)).reshape(states.shape)

    equations = system(linear)
    assert equations.offsets is not None
    solutions = (Sequential() if name == "sequential" else ALL[name](1e-9))(equations)
    for b, solution in enumerate(solutions):
        state = equations.start[b].flatten()
        for n in range(NUM_STEPS):
            step = equations.decay[n] * torch.eye(6, dtype=torch.float64) + equations.gain[n] * matrices[n]
            state = step @ state + equations.offsets[n, b].flatten()
            torch.testing.assert_close(solution.states[n + 1].flatten(), state, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_all_solvers_find_the_sequential_trajectory(name: str, noisy: bool) -> None:
    equations = system(curved, noisy=noisy, gain=3.0)
    reference = Sequential()(equations)
    for tolerance, promised in ((1e-3, 1e-3), (1e-6, 1e-5), (1e-6, 1e-6)):
        solutions = ALL[name](tolerance)(equations)
        assert errors(solutions, reference).max() <= promised
        assert all(solution.rounds <= NUM_STEPS for solution in solutions)
    exact = ALL[name](0.0)(equations)
    assert errors(exact, reference).max() < 1e-13
    assert {solution.stopped for solution in exact} == {"exact"}


def test_the_sequential_solver_is_the_sampler_itself() -> None:
    equations = system(curved)
    states = equations.start
    solutions = Sequential()(equations)
    for n in range(NUM_STEPS):
        states = equations.step(n, states)
        found = torch.stack([solution.states[n + 1] for solution in solutions])
        torch.testing.assert_close(found, states, rtol=1e-13, atol=1e-14)
        assert torch.equal(torch.stack([solution.finals[n] for solution in solutions]), found)
    for solution in solutions:
        assert solution.rounds == solution.depth == solution.num_evaluations == NUM_STEPS
        assert solution.frontiers.tolist() == list(range(1, NUM_STEPS + 1))
        assert (np.isfinite(solution.residuals) == np.eye(NUM_STEPS, dtype=bool)).all()
        assert solution.stopped == "exact"


@pytest.mark.parametrize("order", [1, 3, None])
def test_after_k_sweeps_the_first_k_states_are_exact_and_later_ones_are_not(order: int | None) -> None:
    equations = system(curved, gain=3.0)
    reference = Sequential()(equations)
    for k in (1, 5, 11):
        for solution, truth in zip(
            Picard(order=order, tolerance=0.0, max_rounds=k)(equations), reference, strict=True
        ):
            torch.testing.assert_close(solution.states[: k + 1], truth.states[: k + 1], rtol=1e-13, atol=1e-13)
            assert float((solution.states[k + 1] - truth.states[k + 1]).abs().max()) > 1e-10
            assert solution.frontiers.tolist() == list(range(1, k + 1))
            assert solution.stopped == "max_rounds"


@pytest.mark.parametrize("name", ALL)
def test_chaos_and_overflow_take_at_most_as_many_rounds_as_steps(name: str) -> None:
    equations = chaotic()
    reference = Sequential()(equations)
    assert bool((reference[0].states >= 0).all())
    for solution, truth in zip(ALL[name](1e-12)(equations), reference, strict=True):
        assert solution.rounds <= equations.num_steps
        assert (np.diff(solution.frontiers, prepend=0) >= 1).all()
        assert bool(torch.isfinite(solution.states).all())
        # Rounding grows by 2 in every step of this map: only the early states can be compared.
        torch.testing.assert_close(solution.states[:15], truth.states[:15], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["sequential", *ALL])
def test_a_value_that_is_no_number_is_not_hushed_up(name: str) -> None:
    def broken(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.where(steps.reshape(-1, 1, 1) == 9, torch.nan, curved(steps, states))

    equations = system(broken)
    whole = Sequential()(system(curved))
    for solution, truth in zip(
        (Sequential() if name == "sequential" else ALL[name](1e-6))(equations), whole, strict=True
    ):
        torch.testing.assert_close(solution.states[:10], truth.states[:10], rtol=1e-5, atol=1e-6)
        assert bool(torch.isnan(solution.states[10:]).all())
        assert solution.rounds <= NUM_STEPS


@pytest.mark.parametrize("name", ALL)
def test_no_trajectory_knows_its_company(name: str) -> None:
    equations = system(curved, batch=4, gain=3.0)
    assert equations.offsets is not None
    together = ALL[name](1e-4)(equations)
    for b in (0, 2):
        (alone,) = ALL[name](1e-4)(
            TriangularSystem(
                start=equations.start[b : b + 1],
                decay=equations.decay,
                gain=equations.gain,
                offsets=equations.offsets[:, b : b + 1],
                evaluate=equations.evaluate,
                scale=equations.scale,
            )
        )
        assert torch.equal(alone.states, together[b].states)
        np.testing.assert_array_equal(alone.residuals, together[b].residuals)
        assert (alone.rounds, alone.depth, alone.num_evaluations) == (
            together[b].rounds,
            together[b].depth,
            together[b].num_evaluations,
        )


@pytest.mark.parametrize("name", ["picard", "jacobi", "anderson", "parareal", "parareal_uneven"])
def test_the_solution_as_a_start_takes_one_round(name: str) -> None:
    equations = system(curved, gain=3.0)
    solution = torch.stack([truth.states for truth in Sequential()(equations)])
    for again in ALL[name](1e-6)(equations, solution):
        assert again.rounds == 1
        assert np.nanmax(again.residuals) < 1e-12
        if name in ("picard", "anderson"):
            assert again.num_evaluations == NUM_STEPS


@pytest.mark.parametrize("name", ["picard", "anderson"])
def test_a_near_start_takes_fewer_rounds(name: str) -> None:
    equations = system(curved, gain=3.0)
    near = torch.stack([truth.states for truth in Sequential()(equations)]) + 1e-5
    cold = [found.rounds for found in ALL[name](1e-6)(equations)]
    warm = [found.rounds for found in ALL[name](1e-6)(equations, near)]
    assert all(w < c - 2 for w, c in zip(warm, cold, strict=True))


def test_residuals_are_the_defects_that_a_round_starts_from() -> None:
    equations = system(curved)
    assert equations.offsets is not None
    solution = Picard(tolerance=1e-4, window=10)(equations)[1]
    start = equations.start[1]
    values = equations.evaluate(torch.ones(10).long(), torch.arange(10), start.expand(10, *SHAPE))
    for n in range(10):
        defect = equations.decay[n] * start + equations.gain[n] * values[n] + equations.offsets[n, 1] - start
        expected = math.sqrt(float((defect**2).mean())) / equations.scale[n]
        assert solution.residuals[0, n] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(solution.residuals[0, 10:]).all()
    for before, row in zip([0, *solution.frontiers], solution.residuals, strict=False):
        seen = np.flatnonzero(np.isfinite(row))
        assert (seen[0], seen[-1]) == (before, min(before + 10, NUM_STEPS) - 1)
    assert solution.frontiers[-1] == NUM_STEPS
    assert torch.equal(solution.finals[-1], solution.states[-1])
    assert solution.stopped == "tolerance"


def test_all_residuals_together_amount_to_the_tolerance_at_most() -> None:
    """Steps that do not expand hand every accepted defect on unchanged at worst: the error is at most their sum."""
    count = 100

    def turning(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.stack([-states[..., 1], states[..., 0]], dim=-1) - 0.02 * torch.tanh(states)

    for solver in (Picard(tolerance=1e-2), Anderson(tolerance=1e-2), Parareal(tolerance=1e-2)):
        equations = TriangularSystem(
            start=torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
            decay=np.full(count, 0.998),
            gain=np.full(count, 0.06),
            evaluate=lambda members, steps, states: turning(steps, states),
            scale=np.ones(count),
        )
        for solution, truth in zip(solver(equations), Sequential()(equations), strict=True):
            rms = (solution.states - truth.states).square().mean(dim=(1, 2)).sqrt()
            assert float(rms.max()) <= 1e-2
            assert solution.rounds < count / 2


def test_the_rounding_of_f_is_not_asked_to_close() -> None:
    def coarse(steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Rounded in a way that changes with every bit of the state, as a network's in half precision."""
        return curved(steps, states) + 1e-3 * torch.sin(1e9 * states)

    equations = system(coarse)
    known = TriangularSystem(
        start=equations.start,
        decay=equations.decay,
        gain=equations.gain,
        offsets=equations.offsets,
        evaluate=equations.evaluate,
        scale=equations.scale,
        rounding=2e-3 * np.abs(equations.gain) / equations.scale,
    )
    reference = Sequential()(equations)
    assert all(solution.rounds == NUM_STEPS for solution in Picard(tolerance=1e-5)(equations))
    solutions = Picard(tolerance=1e-5)(known)
    assert all(solution.rounds < NUM_STEPS / 2 for solution in solutions)
    assert errors(solutions, reference).max() < 3e-3
    assert all(solution.rounds == NUM_STEPS for solution in Picard(tolerance=0.0)(known))


def test_triangular_weights_are_those_of_dense_least_squares_over_earlier_states() -> None:
    memory, width, dims, ridge = 3, 6, 5, 1e-2
    differences, residuals = RNG.normal(size=(memory, width, dims)), RNG.normal(size=(width, dims))
    weights = triangular_weights(torch.from_numpy(differences), torch.from_numpy(residuals), ridge).numpy()
    for i in range(width):
        columns = differences[:, : i + 1].reshape(memory, -1).T
        level = ridge * np.trace(columns.T @ columns) / memory
        stacked = np.vstack([columns, math.sqrt(level) * np.eye(memory)])
        target = np.concatenate([residuals[: i + 1].ravel(), np.zeros(memory)])
        np.testing.assert_allclose(weights[i], np.linalg.lstsq(stacked, target, rcond=None)[0], rtol=1e-9)
    empty = triangular_weights(torch.zeros(memory, width, dims), torch.ones(width, dims), ridge)
    assert bool((empty == 0).all())


@pytest.mark.parametrize("unit", [1e-9, 1e7])
def test_anderson_does_not_know_the_unit_of_the_data(unit: float) -> None:
    plain = Anderson(tolerance=1e-6)(system(curved, gain=3.0))
    scaled = Anderson(tolerance=1e-6)(system(curved, gain=3.0, unit=unit))
    for first, second in zip(plain, scaled, strict=True):
        assert first.rounds == second.rounds
        torch.testing.assert_close(second.states / unit, first.states, rtol=1e-9, atol=1e-12)


def test_anderson_takes_fewer_rounds_than_picard_and_picard_than_jacobi() -> None:
    equations = system(curved, gain=3.0)
    rounds = [
        np.mean([solution.rounds for solution in ALL[name](1e-6)(equations)])
        for name in ("anderson", "picard", "jacobi")
    ]
    assert rounds[0] < rounds[1] < rounds[2]


def test_picard_closes_in_one_round_what_does_not_depend_on_the_state() -> None:
    equations = system(lambda steps, states: torch.sin(steps.double()).reshape(-1, 1, 1).expand_as(states))
    for solution in (*Picard(tolerance=1e-9)(equations), *Anderson(tolerance=1e-9)(equations)):
        assert solution.rounds == 2
        assert np.nanmax(solution.residuals[1]) < 1e-12


@pytest.mark.parametrize("block", [5, 6, 24])
def test_parareal_is_exact_after_as_many_sweeps_as_blocks(block: int) -> None:
    equations = system(curved, gain=3.0)
    starts = list(range(0, NUM_STEPS, block))
    for solution, truth in zip(Parareal(block=block, tolerance=0.0)(equations), Sequential()(equations), strict=True):
        assert solution.rounds == len(starts)
        assert solution.stopped == "exact"
        assert solution.frontiers.tolist() == [*starts[1:], NUM_STEPS]
        torch.testing.assert_close(solution.states, truth.states, rtol=1e-13, atol=1e-13)
        # Jumps in turn; then in each sweep the steps of the longest block, but for its first, and the jumps left.
        steps = [min(block, NUM_STEPS - start) - 1 for start in starts]
        assert solution.depth == len(starts) + sum(steps) + sum(range(len(starts)))


def test_parareals_jumps_over_single_steps_are_the_sequential_trajectory() -> None:
    equations = system(curved, gain=3.0)
    for solution, truth in zip(Parareal(block=1, tolerance=0.0)(equations), Sequential()(equations), strict=True):
        assert solution.rounds == 1
        assert solution.depth == NUM_STEPS
        torch.testing.assert_close(solution.states, truth.states, rtol=1e-13, atol=1e-13)


def test_parareal_needs_one_sweep_where_a_jump_is_as_good_as_its_steps() -> None:
    """f the same at all states and steps: frozen f is f."""
    equations = system(lambda steps, states: torch.ones_like(states))
    for solution in Parareal(tolerance=1e-9)(equations):
        assert solution.rounds == 1


def test_wrong_settings_and_systems_are_named() -> None:
    for make in (
        lambda: Picard(window=0),
        lambda: Picard(order=0),
        lambda: Picard(tolerance=-1.0),
        lambda: Picard(tolerance=float("nan")),
        lambda: Anderson(memory=0),
        lambda: Anderson(ridge=0.0),
        lambda: Anderson(max_rounds=0),
        lambda: Parareal(block=0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    equations = system(curved)
    with pytest.raises(ValueError, match="initial states"):
        Picard()(equations, torch.zeros(3, NUM_STEPS, *SHAPE))
    parts = {"start": equations.start, "gain": equations.gain, "evaluate": equations.evaluate}
    with pytest.raises(ValueError, match="one length"):
        TriangularSystem(**parts, decay=equations.decay[1:], scale=equations.scale)
    with pytest.raises(ValueError, match="positive"):
        TriangularSystem(**parts, decay=equations.decay, scale=0 * equations.scale)
    with pytest.raises(ValueError, match="offsets"):
        TriangularSystem(**parts, decay=equations.decay, scale=equations.scale, offsets=torch.zeros(2, 3, *SHAPE))


def test_the_exponent_of_linear_steps_is_that_of_their_product() -> None:
    generator = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    start = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found = lyapunov_exponents(lambda n, x: 1.3 * x @ turn, start, 9, perturbation=1e-2, seed=4)
    np.testing.assert_allclose(found, math.log(1.3), rtol=1e-9)
    growth = torch.tensor([0.5, 0.7, 0.6, 0.95, 0.1, 0.9], dtype=torch.float64)
    found = lyapunov_exponents(lambda n, x: growth * x + 3.0, start, 400, perturbation=1e-2, seed=4)
    np.testing.assert_allclose(found, math.log(0.95), atol=5e-3)
    assert np.isneginf(lyapunov_exponents(lambda n, x: torch.zeros_like(x), start, 3, 1e-2, seed=4)).all()


def test_the_exponent_of_curved_steps_is_that_of_their_jacobians() -> None:
    equations = system(curved, gain=3.0)
    members = torch.arange(3).repeat(2)

    def step(number: int, states: torch.Tensor) -> torch.Tensor:
        return equations.step(number, states, members)

    found = lyapunov_exponents(step, equations.start, NUM_STEPS, perturbation=1e-7, seed=4)
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    states, tangent = equations.start, drawn.expand(3, *SHAPE)
    first = tangent.flatten(1).norm(dim=1)
    for n in range(NUM_STEPS):
        states, tangent = torch.func.jvp(lambda x, n=n: equations.step(n, x), (states,), (tangent,))
    expected = torch.log(tangent.flatten(1).norm(dim=1) / first) / NUM_STEPS
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert np.ptp(found) > 1e-3


def test_the_exponent_of_the_logistic_map_is_log_two() -> None:
    """At 4 it is log 2 for almost every start."""
    start = torch.rand(8, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = lyapunov_exponents(lambda n, x: 4 * x * (1 - x), start, 4000, perturbation=1e-10, seed=0)
    np.testing.assert_allclose(found, math.log(2), atol=0.02)
