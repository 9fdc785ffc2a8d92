"""Cramér's V against closed forms and scipy's; permutation p-values against Fisher's exact test and the uniform law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_sft.numerics.association import contingency_table, cramers_v, permutation_p


def labels_of(table: list[list[int]]) -> tuple[list[int], list[int]]:
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in pairs], [j for _, j in pairs]


@pytest.mark.parametrize("table", [[[7, 3], [2, 9]], [[5, 1, 0], [2, 4, 4]], [[1, 2, 3], [4, 5, 6], [9, 1, 1]]])
def test_v_is_scipys(table: list[list[int]]) -> None:
    expected = stats.contingency.association(np.array(table), method="cramer", correction=False)
    assert cramers_v(np.array(table)) == pytest.approx(expected, rel=1e-12)
    first, second = labels_of(table)
    assert contingency_table(first, second).tolist() == table


def test_v_of_two_by_two_is_the_phi_coefficient() -> None:
    a, b, c, d = 7, 3, 2, 9
    phi = (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    assert cramers_v(np.array([[a, b], [c, d]])) == pytest.approx(phi)


def test_perfect_association_none_and_nothing_to_associate() -> None:
    assert cramers_v(np.diag([4, 2, 9])) == pytest.approx(1)
    assert cramers_v(np.array([[4, 0, 0], [0, 2, 7]])) == pytest.approx(1)
    assert cramers_v(np.outer([1, 2, 3], [2, 5])) == pytest.approx(0, abs=1e-12)
    assert cramers_v(np.array([[3, 0, 4], [0, 0, 0], [1, 0, 6]])) == cramers_v(np.array([[3, 4], [1, 6]]))
    assert math.isnan(cramers_v(np.array([[3, 4]])))
    assert math.isnan(cramers_v(np.zeros((2, 2))))
    with pytest.raises(ValueError, match="3 and 2"):
        contingency_table("aab", "ab")


def test_p_is_that_of_the_exact_test() -> None:
    """Of a table with equal margins χ² orders tables as their probabilities do, so that Fisher's test is its limit."""
    table = [[9, 3], [3, 9]]
    exact = stats.fisher_exact(table).pvalue
    number = 20_000
    found = permutation_p(*labels_of(table), num_permutations=number, seed=1)
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / number))


def test_p_of_perfect_association_is_the_smallest_there_is() -> None:
    labels = list("aaaabbbbccccdddd")
    assert permutation_p(labels, labels, 999, seed=0) == 1 / 1000
    assert permutation_p(labels, ["x"] * 16, 999, seed=0) == 1
    assert permutation_p(labels, labels[::-1], 99, seed=3) == permutation_p(labels, labels[::-1], 99, seed=3)


def test_p_of_independent_labels_is_uniform() -> None:
    generator = np.random.default_rng(0)
    found = [
        permutation_p(generator.integers(0, 4, 200).tolist(), generator.integers(0, 5, 200).tolist(), 199, seed)
        for seed in range(300)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 300))


def test_p_does_not_depend_on_how_many_orders_fit_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = labels_of([[6, 3, 1], [3, 4, 6]])
    whole = permutation_p(first, second, 500, seed=2)
    monkeypatch.setattr("diffusion_sft.numerics.association.CHUNK", 23 * 7)
    assert permutation_p(first, second, 500, seed=2) == whole
