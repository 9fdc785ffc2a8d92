"""Sweeps over triangular systems whose solutions, and the ways there, are known on paper."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_sft.numerics.sweeps import gauss_seidel_jacobi, jacobi

MODULUS, LENGTH, ROWS = 7, 12, 9


class Sums:
    """y_i = (c_i + Σ_j<i A_ij y_j) mod 7, an own system for every row; remembers whom it was asked about."""

    def __init__(self, seed: int = 0, rows: int = ROWS, length: int = LENGTH, density: float = 0.2) -> None:
        generator = np.random.default_rng(seed)
        weights = generator.integers(1, MODULUS, (rows, length, length))
        keep = generator.random((rows, length, length)) < density
        self.matrix = np.tril(weights * keep, k=-1)
        self.offsets = generator.integers(0, MODULUS, (rows, length))
        self.asked: list[list[int]] = []

    def __call__(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        self.asked.append(rows.tolist())
        return (np.einsum("bij,bj->bi", self.matrix[rows], tokens) + self.offsets[rows]) % MODULUS

    def one_by_one(self, row: int) -> np.ndarray:
        """Forward substitution."""
        values = np.zeros(self.offsets.shape[1], dtype=np.int64)
        for place in range(len(values)):
            values[place] = (self.offsets[row, place] + self.matrix[row, place, :place] @ values[:place]) % MODULUS
        return values


def starts(seed: int = 1, rows: int = ROWS, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, MODULUS, (rows, length))


def test_the_solution_is_that_of_forward_substitution_from_any_start() -> None:
    for seed in range(5):
        for row, found in enumerate(jacobi(Sums(), starts(seed))):
            assert found.solved
            np.testing.assert_array_equal(found.values, Sums().one_by_one(row))
            assert 1 <= found.rounds <= LENGTH


def test_each_round_is_one_sweep_and_residuals_are_its_defects() -> None:
    start, rounds = starts(), set()
    for row, found in enumerate(jacobi(Sums(), start)):
        np.testing.assert_array_equal(found.history[0], start[row])
        assert found.history.shape == (found.rounds + 1, LENGTH)
        assert found.num_evaluations == found.rounds * LENGTH
        for before, after, residual in zip(found.history, found.history[1:], found.residuals, strict=False):
            (asked,) = Sums()(np.array([row]), before[None])
            np.testing.assert_array_equal(after, asked)
            np.testing.assert_array_equal(residual, before != asked)
        np.testing.assert_array_equal(found.history[-1], found.values)
        rounds.add(found.rounds)
    assert len(rounds) > 2


def test_after_j_sweeps_the_first_j_values_stand() -> None:
    for row, found in enumerate(jacobi(Sums(density=1.0), starts())):
        solution = Sums(density=1.0).one_by_one(row)
        for number, values in enumerate(found.history):
            np.testing.assert_array_equal(values[:number], solution[:number])
        passage = max(
            n for n, values in enumerate(found.history) if n == 0 or (found.history[n - 1] != solution).any()
        )
        assert found.first_passage == passage


def test_rounds_that_are_known_on_paper() -> None:
    def successors(_: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1] + 1], axis=1)

    def constant(_: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(LENGTH), tokens.shape)

    def first_passages(sweep, start: list[int]) -> tuple[int, int]:
        (found,) = jacobi(sweep, np.array([start]))
        np.testing.assert_array_equal(found.values, np.arange(LENGTH))
        return found.rounds, found.first_passage

    # Each value waits for the one before it; a first value that is right saves one round. The last needs no confirming.
    assert first_passages(successors, [50] * LENGTH) == (LENGTH, LENGTH)
    assert first_passages(successors, [0] * LENGTH) == (LENGTH - 1, LENGTH - 1)
    # From the solution itself one sweep says so.
    assert first_passages(successors, list(range(LENGTH))) == (1, 0)
    # Right but for the last value: the sweep that changes it knows all before it.
    assert first_passages(successors, [*range(LENGTH - 1), 50]) == (1, 1)
    # Values that wait for nothing are right at once, and the next sweep says so.
    assert first_passages(constant, [50] * LENGTH) == (2, 1)


def test_rows_do_not_depend_on_each_other_nor_on_their_order() -> None:
    start = starts()
    together = jacobi(Sums(), start)
    order = np.random.default_rng(2).permutation(ROWS)
    turned = jacobi(lambda rows, tokens: Sums()(order[rows], tokens), start[order])
    for place, row in enumerate(order):
        np.testing.assert_array_equal(turned[place].history, together[row].history)
    for row in range(ROWS):
        (alone,) = jacobi(lambda _, tokens, row=row: Sums()(np.array([row]), tokens), start[row : row + 1])
        np.testing.assert_array_equal(alone.history, together[row].history)


def test_solved_rows_are_not_evaluated_any_more() -> None:
    sums = Sums()
    found = jacobi(sums, starts())
    asked = np.bincount([row for rows in sums.asked for row in rows], minlength=ROWS)
    assert asked.tolist() == [row.rounds for row in found]
    assert len(sums.asked) == max(row.rounds for row in found)


@pytest.mark.parametrize("block", [1, 3, 5, LENGTH, LENGTH + 4])
def test_blocks_end_at_the_same_solution(block: int) -> None:
    start = starts()
    for row, found in enumerate(gauss_seidel_jacobi(Sums(), start, block)):
        assert found.solved
        np.testing.assert_array_equal(found.values, Sums().one_by_one(row))
        assert found.rounds <= LENGTH
        assert found.num_evaluations == np.isfinite(found.residuals).sum()
        # Blocks are solved in their order: what lies behind the round's block is as it was in the beginning.
        for values, residual in zip(found.history, found.residuals, strict=False):
            evaluated = np.flatnonzero(np.isfinite(residual))
            assert evaluated[0] % block == 0
            assert evaluated.tolist() == list(range(evaluated[0], min(evaluated[0] + block, LENGTH)))
            np.testing.assert_array_equal(values[: evaluated[0]], found.values[: evaluated[0]])
            np.testing.assert_array_equal(values[evaluated[-1] + 1 :], start[row, evaluated[-1] + 1 :])


def test_one_block_is_jacobi_and_blocks_of_one_are_one_value_after_the_other() -> None:
    start = starts()
    for whole, plain in zip(gauss_seidel_jacobi(Sums(), start, LENGTH), jacobi(Sums(), start), strict=True):
        np.testing.assert_array_equal(whole.history, plain.history)
        np.testing.assert_array_equal(whole.residuals, plain.residuals)
    for row, found in enumerate(gauss_seidel_jacobi(Sums(), start, 1)):
        assert (found.rounds, found.num_evaluations) == (LENGTH, LENGTH)
        for place in range(LENGTH):
            np.testing.assert_array_equal(found.history[place + 1, : place + 1], Sums().one_by_one(row)[: place + 1])


def test_a_block_s_rounds_are_those_of_its_own_system() -> None:
    """Given the blocks before it, a block is a triangular system of its own."""
    start, block = starts(), 5
    for row, found in enumerate(gauss_seidel_jacobi(Sums(density=0.5), start, block)):
        solution, rounds = Sums(density=0.5).one_by_one(row), 0
        for begin in range(0, LENGTH, block):
            end = min(begin + block, LENGTH)

            def inner(
                _: np.ndarray, tokens: np.ndarray, begin=begin, end=end, row=row, solution=solution
            ) -> np.ndarray:
                values = solution.copy()
                values[begin:end] = tokens[0]
                return Sums(density=0.5)(np.array([row]), values[None])[:, begin:end]

            rounds += jacobi(inner, start[row : row + 1, begin:end])[0].rounds
        assert found.rounds == rounds


def test_rows_of_different_lengths_are_solved_as_if_alone() -> None:
    start, lengths = starts(), [1, 4, 12, 7, 2, 12, 3, 9, 5]
    for row, found in enumerate(jacobi(Sums(), start, lengths=lengths)):
        length = lengths[row]

        def alone(_: np.ndarray, tokens: np.ndarray, row: int = row) -> np.ndarray:
            padded = np.zeros((1, LENGTH), dtype=np.int64)
            padded[:, : tokens.shape[1]] = tokens
            return Sums()(np.array([row]), padded)[:, : tokens.shape[1]]

        (expected,) = jacobi(alone, start[row : row + 1, :length])
        np.testing.assert_array_equal(found.history, expected.history)
        assert found.num_evaluations == expected.num_evaluations == expected.rounds * length


def test_what_is_not_solved_in_time_says_so() -> None:
    found = jacobi(Sums(density=1.0), starts(), max_rounds=3)
    whole = jacobi(Sums(density=1.0), starts())
    for cut, full in zip(found, whole, strict=True):
        assert cut.solved == (full.rounds <= 3)
        np.testing.assert_array_equal(cut.history, full.history[:4])
    assert not all(row.solved for row in found)


def test_blocks_and_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="block of 0"):
        gauss_seidel_jacobi(Sums(), starts(), 0)
    for length in (0, LENGTH + 1):
        with pytest.raises(ValueError, match=f"rows hold 1 to {LENGTH}"):
            jacobi(Sums(), starts(), lengths=[length, *[3] * (ROWS - 1)])
