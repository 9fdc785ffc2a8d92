"""Precision, recall, density, coverage, Vendi and copies against their definitions and exact cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from diffusion_sft.numerics.neighbours import (
    is_copy,
    neighbour_replicates,
    precision_recall_density_coverage,
    squared_distances,
    vendi_score,
)
from diffusion_sft.numerics.resampling import replicate, split_groups


def with_sklearn(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """The definitions once more, neighbours by scikit-learn."""

    def radii(side: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k).fit(side).kneighbors()[0][:, -1]

    distances = np.linalg.norm(real[:, None] - generated[None], axis=-1)
    real_radii, generated_radii = radii(real), radii(generated)
    held = distances <= real_radii[:, None]
    return {
        "precision": float(np.mean([column.any() for column in held.T])),
        "recall": float(np.mean([(row <= generated_radii).any() for row in distances])),
        "density": float(held.sum(axis=0).mean() / k),
        "coverage": float(np.mean([row.any() for row in held])),
    }


def test_equals_the_definitions() -> None:
    generator = np.random.default_rng(0)
    real, generated = generator.normal(size=(70, 4)), generator.normal(size=(55, 4)) * 0.7 + 0.6
    for k in (1, 3, 5):
        ours = precision_recall_density_coverage(real, generated, k)
        assert ours == pytest.approx(with_sklearn(real, generated, k), abs=1e-12)


def test_identical_and_far_apart_sets() -> None:
    features = np.random.default_rng(1).normal(size=(40, 6)) + 50
    same = precision_recall_density_coverage(features, features)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert set(precision_recall_density_coverage(features, features + 1e3).values()) == {0.0}
    # Rows that occur twice have distance 0, not rounding.
    doubled = np.concatenate([features, features])
    assert precision_recall_density_coverage(doubled, doubled, k=1)["coverage"] == 1


def test_equal_populations_have_the_expected_density_and_coverage() -> None:
    generator, k, n, m = np.random.default_rng(2), 5, 120, 80
    results = [
        precision_recall_density_coverage(generator.normal(size=(n, 3)), generator.normal(size=(m, 3)), k)
        for _ in range(60)
    ]
    expected = 1 - np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    assert np.mean([result["density"] for result in results]) == pytest.approx(1, abs=0.03)
    assert np.mean([result["coverage"] for result in results]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("num_groups", [2, 3, 9])
def test_leave_outs_equal_leaving_rows_out(num_groups: int) -> None:
    # With two groups a row may lose every neighbour that was kept in order, and must search again.
    generator = np.random.default_rng(3)
    real, generated = generator.normal(size=(60, 2)), generator.normal(size=(60, 2)) + 0.5
    groups = split_groups(np.zeros(60), num_groups, 0)
    if num_groups == 2:
        order = np.argsort(real[:, 0])
        groups = [np.sort(order[10:40]), np.sort(np.concatenate([order[:10], order[40:]]))]
    for name, fast in neighbour_replicates(real, generated, groups, k=3).items():
        slow = replicate(
            lambda rows, name=name: precision_recall_density_coverage(real[rows], generated[rows], 3)[name], groups
        )
        assert fast.value == slow.value
        np.testing.assert_array_equal(fast.leave_outs, slow.leave_outs)


def test_jackknife_standard_errors_cover() -> None:
    generator = np.random.default_rng(4)
    values: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for seed in range(60):
        real, generated = generator.normal(size=(100, 5)), generator.normal(size=(100, 5)) * 1.1 + 0.8
        groups = split_groups(np.zeros(100), 20, seed)
        results = neighbour_replicates(real, generated, groups)
        vendi = replicate(lambda rows, features=generated: vendi_score(features[rows]), groups)
        for name, result in (results | {"vendi": vendi}).items():
            values.setdefault(name, []).append(result.value)
            errors.setdefault(name, []).append(result.standard_error)
    for name in values:
        covered = np.abs(np.array(values[name]) - np.mean(values[name])) < 1.96 * np.array(errors[name])
        assert covered.mean() >= 0.9, name
        assert np.mean(errors[name]) < 2 * np.std(values[name], ddof=1), name


def test_vendi_counts_different_rows() -> None:
    basis = np.eye(7)
    assert vendi_score(basis) == pytest.approx(7, rel=1e-12)
    assert vendi_score(np.ones((9, 4))) == pytest.approx(1, abs=1e-12)
    assert vendi_score(np.repeat(3 * basis[:2], 5, axis=0)) == pytest.approx(2, rel=1e-12)
    # Rows of two lengths: more rows than dimensions and the other way round are the same spectrum.
    features = np.random.default_rng(5).normal(size=(6, 30))
    assert vendi_score(np.pad(features, ((0, 0), (0, 20)))) == pytest.approx(vendi_score(features), rel=1e-12)
    assert vendi_score(np.repeat(features, 8, axis=0)) == pytest.approx(vendi_score(features), rel=1e-10)
    with pytest.raises(ValueError, match="points nowhere"):
        vendi_score(np.zeros((3, 2)))


def test_copies_are_found_and_fresh_draws_are_mostly_not() -> None:
    generator = np.random.default_rng(6)
    train, fresh = generator.normal(size=(50, 8)), generator.normal(size=(200, 8))
    assert is_copy(train + 1e-3, train).all()
    assert is_copy(train, train).all()
    # A fresh draw is nearer to its nearest training row than that row's nearest other: on average less than half.
    assert 0.1 < is_copy(fresh, train).mean() < 0.6
    assert not is_copy(fresh + 100, train).any()
    with pytest.raises(ValueError, match="at least two training rows"):
        is_copy(fresh, train[:1])


def test_copies_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(8)
    train = generator.normal(size=(40, 3))
    train[25] = train[3]  # two training rows of distance 0, in different blocks
    features = np.concatenate([generator.normal(size=(60, 3)), train[[3, 25, 7]]])
    among = squared_distances(train, train)
    np.fill_diagonal(among, np.inf)
    distances = squared_distances(features, train)
    expected = distances.min(axis=1) <= among.min(axis=1)[distances.argmin(axis=1)]
    assert 0 < expected.sum() < 63
    np.testing.assert_array_equal(is_copy(features, train), expected)
    monkeypatch.setattr("diffusion_sft.numerics.neighbours.BLOCK_ROWS", 7)
    np.testing.assert_array_equal(is_copy(features, train), expected)


def test_squared_distances() -> None:
    generator = np.random.default_rng(7)
    first, second = generator.normal(size=(5, 3)) + 1e3, generator.normal(size=(4, 3)) + 1e3
    expected = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(first, second), expected, rtol=1e-9)
    assert (np.diag(squared_distances(first, first)) == 0).all()


def test_too_few_rows_for_a_neighbour_are_refused() -> None:
    with pytest.raises(ValueError, match="5-th neighbour needs more than 5 rows, not 5"):
        precision_recall_density_coverage(np.eye(5), np.eye(6, 5))
