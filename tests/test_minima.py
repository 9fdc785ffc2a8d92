"""Distinct minima on planted clusters, and Adam from many starts against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_sft.numerics.descent import Evaluation, descend, steps_to_floor
from diffusion_sft.numerics.minima import SAME_SOLUTION, num_distinct


def clusters(num: int, each: int, spread: float, num_dims: int = 40, seed: int = 0) -> np.ndarray:
    """So many random unit centres, and solutions around each at this distance."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num, 1, num_dims))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    steps = generator.normal(size=(num, each, num_dims))
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    return (centres + spread * steps).reshape(-1, num_dims)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_planted_clusters_are_counted_in_any_unit_and_order(num: int) -> None:
    solutions = clusters(num, 4, 0.02)
    order = np.random.default_rng(1).permutation(len(solutions))
    for scale in (1e-6, 1.0, 1e9):
        assert num_distinct(scale * solutions) == num
        assert num_distinct(scale * solutions[order]) == num


def test_solutions_of_a_set_of_some_dimension_are_all_different() -> None:
    assert num_distinct(clusters(1, 6, 0.5)) == 6
    assert num_distinct(np.random.default_rng(2).normal(size=(5, 100))) == 5


def test_chains_are_one_and_the_threshold_is_where_it_is_said_to_be() -> None:
    """Single linkage: the ends of a chain are as far apart as one likes."""
    chain = np.stack([np.full(10, 0.95 * SAME_SOLUTION * np.arange(10)), np.full(10, 1.0)])[::-1].T
    norms = np.linalg.norm(chain, axis=1)
    steps = 2 * np.linalg.norm(np.diff(chain, axis=0), axis=1) / (norms[1:] + norms[:-1])
    assert steps.max() < SAME_SOLUTION < np.linalg.norm(chain[-1] - chain[0]) / norms[-1]
    # Every solution is the same here but the last step, which is doubled.
    assert num_distinct(np.array([[1.0, 0.0], [1.0, 0.99 * SAME_SOLUTION]])) == 1
    assert num_distinct(np.array([[1.0, 0.0], [1.0, 1.02 * SAME_SOLUTION]])) == 2
    ladder = np.array([[1.0, 0.95 * SAME_SOLUTION * place] for place in range(8)])
    assert num_distinct(ladder) == 1
    assert num_distinct(ladder[[0, 1, 4, 5]]) == 2


def test_solutions_of_no_length_are_one() -> None:
    assert num_distinct(np.zeros((3, 4))) == 1
    assert num_distinct(np.zeros((3, 0))) == 1
    assert num_distinct(np.ones((1, 4))) == 1
    assert num_distinct(np.array([[0.0, 0.0], [1.0, 0.0]])) == 2


# --- Adam ---

CENTRES = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)


def bowls(points: torch.Tensor, rows: torch.Tensor) -> Evaluation:
    """Each start in a bowl of its own; solved below one."""
    difference = points - CENTRES[rows]
    values = (WEIGHTS * difference.square()).sum(dim=1)
    return Evaluation(values=values, gradients=2 * WEIGHTS * difference, solved=values < 1)


def test_every_start_takes_the_steps_of_torchs_adam() -> None:
    starts = torch.tensor([[4.0, 4.0, 4.0], [-3.0, 0.0, 2.0]], dtype=torch.float64)
    found = descend(bowls, starts, num_steps=30, learning_rate=0.3)
    for number, start in enumerate(starts):
        point = start.clone().requires_grad_()
        adam = torch.optim.Adam([point], lr=0.3)
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 30)
        values, points = [], []
        for _ in range(31):
            adam.zero_grad()
            value = (WEIGHTS * (point - CENTRES[number]).square()).sum()
            values.append(float(value.detach()))
            points.append(point.detach().clone())
            value.backward()
            adam.step()
            decay.step()
        np.testing.assert_allclose(found[number].history, values, rtol=1e-9)
        assert found[number].residual == pytest.approx(min(values), rel=1e-9)
        torch.testing.assert_close(found[number].solution, points[int(np.argmin(values))])
        below = [step for step, value in enumerate(values) if value < 1]
        assert found[number].first_solved == (below[0] if below else None)
    assert [one.first_solved is None for one in found] == [True, False]


def test_a_start_that_has_enough_is_left_and_the_others_do_not_notice() -> None:
    starts = torch.tensor([[1.2, -2.0, 0.5], [-3.0, 0.0, 2.0]], dtype=torch.float64)
    alone = descend(bowls, starts, num_steps=40, learning_rate=0.3)
    enough = torch.tensor([0.05, 0.0], dtype=torch.float64)
    asked: list[list[int]] = []

    def watched(points: torch.Tensor, rows: torch.Tensor) -> Evaluation:
        asked.append(rows.tolist())
        return bowls(points, rows)

    found = descend(watched, starts, num_steps=40, learning_rate=0.3, enough=enough)
    assert asked == [[0, 1], *[[1]] * 40]
    assert len(found[0].history) == 1
    assert (found[0].residual, found[0].num_steps) == (pytest.approx(0.04), 0)
    np.testing.assert_array_equal(found[1].history, alone[1].history)
    torch.testing.assert_close(found[1].solution, alone[1].solution, rtol=0, atol=0)


def test_never_solved_and_never_a_number() -> None:
    def hopeless(points: torch.Tensor, rows: torch.Tensor) -> Evaluation:
        return Evaluation(
            values=torch.full((len(points),), torch.nan), gradients=points, solved=torch.zeros(len(points)).bool()
        )

    (found,) = descend(hopeless, torch.ones(1, 2), num_steps=3, learning_rate=0.1)
    assert (found.residual, found.first_solved, found.num_steps) == (float("inf"), None, 0)


def test_the_floor_is_reached_where_nine_tenths_of_the_way_are_gone() -> None:
    assert steps_to_floor(np.array([10.0, 5.0, 1.1, 0.9, 0.0, 2.0])) == 3
    assert steps_to_floor(np.array([3.0])) == 0
    assert steps_to_floor(np.array([3.0, 4.0, 5.0])) == 0
