"""The Fréchet distance against closed forms, the bias law, clean-fid, and populations of known distance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from diffusion_sft.numerics.frechet import (
    FrechetPoints,
    PairedPoints,
    frechet_distance,
    frechet_infinity,
    half_against_half,
    principal_directions,
)
from diffusion_sft.numerics.resampling import Replicates, replicate, split_groups

EXACT = {"rel": 1e-10, "abs": 1e-10}


def features_with(mean: np.ndarray, root: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Rows whose sample mean and sample covariance (rootᵀ root) are exactly the given ones."""
    white = np.random.default_rng(seed).normal(size=(rows, root.shape[0]))
    white -= white.mean(axis=0)
    left, _, right = np.linalg.svd(white, full_matrices=False)
    return mean + (left @ right) * np.sqrt(rows - 1) @ root


def rotation(dims: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dims, dims)))[0]


def both_routes(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The distance from features, and between subsets of one cloud of points."""
    points = FrechetPoints(np.concatenate([first, second]))
    rows = np.arange(len(first) + len(second))
    return [frechet_distance(first, second), points.distance(rows[: len(first)], rows[len(first) :])]


# --- closed forms (reference/evaluation.md, E.2) ---


def test_equal_covariances_leave_the_means() -> None:
    root = np.random.default_rng(0).normal(size=(6, 6))
    first = features_with(np.zeros(6), root, 20, seed=1)
    second = features_with(np.ones(6), root, 33, seed=2)
    for value in both_routes(first, second):
        assert value == pytest.approx(6, **EXACT)


def test_one_dimension_and_commuting_covariances() -> None:
    for dims in (1, 5):
        generator = np.random.default_rng(dims)
        one, two = generator.uniform(0.1, 3, size=(2, dims))
        mean = generator.normal(size=dims)
        basis = rotation(dims, 4)
        first = features_with(np.zeros(dims), np.diag(one) @ basis, 40, seed=1)
        second = features_with(mean, np.diag(two) @ basis, 25, seed=2)
        for value in both_routes(first, second):
            assert value == pytest.approx(mean @ mean + np.sum((one - two) ** 2), **EXACT)


@pytest.mark.parametrize(("rows", "dims"), [(12, 40), (40, 40), (90, 40), (2, 300)])
def test_scaled_shifted_and_rotated_data_of_any_rank(rows: int, dims: int) -> None:
    features = np.random.default_rng(rows).gamma(2.0, size=(rows, dims))
    mean, total = features.mean(axis=0), features.var(axis=0, ddof=1).sum()
    shift, basis = np.linspace(-1, 1, dims), rotation(dims, 5)
    other = np.random.default_rng(8).normal(size=(rows + 3, dims))
    for value in both_routes(features, 1.7 * features):
        assert value == pytest.approx(0.7**2 * (mean @ mean + total), **EXACT)
    for value in both_routes(features, features + shift):
        assert value == pytest.approx(shift @ shift, **EXACT)
    for value in both_routes(features, features):
        assert abs(value) < 1e-10
    reference = frechet_distance(features, other)
    assert frechet_distance(other, features) == pytest.approx(reference, **EXACT)
    assert frechet_distance(features @ basis, other @ basis) == pytest.approx(reference, **EXACT)
    for value in both_routes(features, other):
        assert value == pytest.approx(reference, **EXACT)


def test_two_rows_a_side_are_rank_one() -> None:
    centre, other, u, v = np.random.default_rng(3).normal(size=(4, 30))
    first, second = np.stack([centre + u, centre - u]), np.stack([other + v, other - v])
    expected = np.sum((centre - other) ** 2) + 2 * u @ u + 2 * v @ v - 4 * abs(u @ v)
    for value in both_routes(first, second):
        assert value == pytest.approx(expected, **EXACT)


def test_non_commuting_blocks_of_two() -> None:
    blocks, rows = 12, 60
    generator = np.random.default_rng(6)
    one, two = np.zeros((2, 2 * blocks, 2 * blocks))
    root_trace = 0.0
    for block in range(blocks):
        place = slice(2 * block, 2 * block + 2)
        a, b = generator.normal(size=(2, 2, 2))
        one[place, place], two[place, place] = a, b
        first, second = a.T @ a, b.T @ b
        root_trace += np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first) * np.linalg.det(second)))
    basis = rotation(2 * blocks, 7)
    expected = np.trace(one.T @ one) + np.trace(two.T @ two) - 2 * root_trace
    first_rows = features_with(np.zeros(2 * blocks), one @ basis, rows, seed=1)
    second_rows = features_with(np.zeros(2 * blocks), two @ basis, rows + 9, seed=2)
    for value in both_routes(first_rows, second_rows):
        assert value == pytest.approx(expected, **EXACT)


def test_disjoint_supports_add_up() -> None:
    generator = np.random.default_rng(9)
    first, second = np.zeros((2, 15, 50))
    first[:, :20], second[:, 30:] = generator.normal(size=(15, 20)), generator.normal(size=(15, 20))
    means = first.mean(axis=0) - second.mean(axis=0)
    expected = means @ means + first.var(axis=0, ddof=1).sum() + second.var(axis=0, ddof=1).sum()
    for value in both_routes(first, second):
        assert value == pytest.approx(expected, **EXACT)


def test_a_far_origin_and_subsets_of_a_cloud() -> None:
    generator = np.random.default_rng(10)
    cloud = generator.normal(size=(60, 25)) + 1e3
    points = FrechetPoints(cloud)
    for first, second in ((12, 18), (20, 40), (30, 30)):
        one, two = generator.permutation(60)[:first], generator.permutation(60)[:second]
        assert points.distance(one, two) == pytest.approx(frechet_distance(cloud[one], cloud[two]), rel=1e-9)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(np.zeros((1, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="at least two rows"):
        FrechetPoints(np.zeros((5, 4))).distance(np.arange(1), np.arange(5))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full((3, 4), np.nan), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="4 and of 5 dimensions"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))


# --- against clean-fid, on the same features ---


@pytest.mark.parametrize(("rows", "tolerance"), [(300, 1e-9), (90, 1e-4)])
def test_equals_clean_fids_function_to_its_rounding(rows: int, tolerance: float) -> None:
    from cleanfid.fid import frechet_distance as clean_fids

    generator = np.random.default_rng(rows)
    scale = np.sqrt(150 / 128)
    first = np.maximum(generator.normal(size=(rows, 128)) * scale, 0)
    second = np.maximum(generator.normal(size=(rows, 128)) * scale * 1.2 + 0.1, 0)
    moments = [part for side in (first, second) for part in (side.mean(axis=0), np.cov(side, rowvar=False))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scipy's sqrtm(disp=False)
        theirs = clean_fids(*moments)
    assert frechet_distance(first, second) == pytest.approx(float(theirs), abs=tolerance)


# --- small samples of populations whose true distance is known (reference/evaluation.md, B, B.1, B.2, smaller) ---


class Populations:
    """Two Gaussians with commuting covariances in d dimensions, power spectrum, total variance 150."""

    def __init__(self, dims: int, shift: float, seed: int = 0) -> None:
        variances = np.arange(1, dims + 1) ** -0.9
        self.deviations = np.sqrt(150 * variances / variances.sum())
        generator = np.random.default_rng(seed)
        self.mean = shift * self.deviations * generator.normal(size=dims)
        self.scale = np.exp(0.25 * np.sign(shift) * generator.normal(size=dims))

    def truth(self, dims: int | None = None) -> float:
        gap = self.deviations * (self.scale - 1)
        return float(np.sum(self.mean[:dims] ** 2 + gap[:dims] ** 2))

    def draw(self, rows: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        white = generator.normal(size=(2, rows, len(self.deviations)))
        return white[0] * self.deviations, white[1] * self.deviations * self.scale + self.mean


def bias_law(variances: np.ndarray, rows: int) -> float:
    """E[F] of equal populations to first order in 1/n: (2/n)(5/4 Σ l_i + 1/2 Σ_ij l_i l_j/(l_i + l_j))."""
    pairs = variances[:, None] * variances / (variances[:, None] + variances)
    return 2 / rows * float(1.25 * variances.sum() + 0.5 * pairs.sum())


def test_bias_law_of_equal_populations() -> None:
    same, generator = Populations(64, shift=0.0), np.random.default_rng(0)
    # The law and the measured means at d = 64 of reference/evaluation.md, B.
    for rows, law, measured, draws in ((200, 16.89, 17.17, 12), (1000, 3.38, 3.31, 8), (4000, 0.844, 0.848, 6)):
        assert bias_law(same.deviations**2, rows) == pytest.approx(law, rel=1e-3)
        values = [frechet_distance(*same.draw(rows, generator)) for _ in range(draws)]
        assert np.mean(values) == pytest.approx(measured, rel=0.05)
    # Equal variances: (2/n) s² d (d + 5)/4.
    assert bias_law(np.full(64, 1.7), 500) == pytest.approx(2 / 500 * 1.7 * 64 * 69 / 4, rel=1e-12)


def paired(real: np.ndarray, generated: np.ndarray, strata: np.ndarray | None = None) -> PairedPoints:
    return PairedPoints.stack(real, generated, np.zeros(len(real)) if strata is None else strata)


def jackknifed(pairs: PairedPoints, seed: int) -> Replicates:
    return replicate(pairs.distance, split_groups(pairs.strata, 20, seed))


def test_floor_explains_the_bias_and_excess_is_most_of_the_truth() -> None:
    populations = Populations(256, shift=0.2)
    truth, generator = populations.truth(), np.random.default_rng(1)
    plug_in, floors, excesses, errors = [], [], [], []
    for seed in range(24):
        pairs = paired(*populations.draw(200, generator))
        floor, distance = half_against_half(pairs, 10, seed)
        plug_in.append(pairs.distance(np.arange(200)))
        floors.append(floor.mean())
        excesses.append((distance - floor).mean())
        errors.append((distance - floor).std(ddof=1))
    assert np.mean(plug_in) > 3 * truth
    assert np.mean(floors) > 3 * truth
    assert 0.5 * truth < np.mean(excesses) < 1.1 * truth
    # The half-sampling error is the right size: not below, and not twice, the spread over fresh data.
    assert 0.7 * np.std(excesses, ddof=1) < np.mean(errors) < 2 * np.std(excesses, ddof=1)


@pytest.mark.parametrize(("dims", "rows"), [(16, 100), (64, 100), (64, 200)])
def test_few_fixed_directions_with_the_jackknife_are_on_the_truth(dims: int, rows: int) -> None:
    populations, generator = Populations(256, shift=0.2), np.random.default_rng(dims + rows)
    results = []
    for seed in range(8):
        real, generated = populations.draw(rows, generator)
        results.append(jackknifed(paired(real[:, :dims], generated[:, :dims]), seed))
    corrected = np.array([result.bias_corrected for result in results])
    plug_in, truth = np.mean([result.value for result in results]), populations.truth(dims)
    assert abs(corrected.mean() - truth) < 3 * corrected.std(ddof=1) / np.sqrt(8) + 0.03 * truth
    assert plug_in > 1.3 * truth


@pytest.mark.parametrize(("concepts", "images"), [(12, 10), (40, 4), (120, 1)])
def test_concepts_on_both_sides_leave_the_correction_and_the_error_right(concepts: int, images: int) -> None:
    """Concepts far apart, equally many images of each on both sides: the truth is that of the mixtures."""
    generator, dims = np.random.default_rng(concepts), 24
    centres = 1.7 * generator.normal(size=(concepts, dims))
    strata = np.repeat(np.arange(concepts), images)
    results = []
    for seed in range(16):
        real = centres[strata] + generator.normal(size=(len(strata), dims))
        generated = centres[strata] + 0.3 + 1.1 * generator.normal(size=(len(strata), dims))
        results.append(jackknifed(paired(real, generated, strata), seed))
    between = np.cov(centres, rowvar=False, bias=True)
    roots = [np.linalg.cholesky(between + within * np.eye(dims)) for within in (1, 1.21)]
    traces = 2 * np.trace(between) + 2.21 * dims
    truth = dims * 0.3**2 + traces - 2 * np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    corrected = np.array([result.bias_corrected for result in results])
    assert corrected.mean() == pytest.approx(truth, rel=0.12)
    assert np.mean([result.value for result in results]) > 2 * truth
    spread = np.std([result.value for result in results], ddof=1)
    assert 0.7 < np.mean([result.standard_error for result in results]) / spread < 2


def test_directions_must_not_come_from_the_compared_rows() -> None:
    same, generator = Populations(256, shift=0.0), np.random.default_rng(5)
    within, apart = [], []
    for seed in range(5):
        real, generated = same.draw(150, generator)
        for pool, found in ((real, within), (same.draw(150, generator)[0], apart)):
            directions = principal_directions(pool, 40)
            found.append(jackknifed(paired(real @ directions, generated @ directions), seed).bias_corrected)
    assert abs(np.mean(apart)) < 1
    assert np.mean(within) > np.mean(apart) + 1


def test_principal_directions_are_the_leading_eigenvectors() -> None:
    features = np.random.default_rng(2).normal(size=(50, 8)) * np.arange(8, 0, -1)
    directions = principal_directions(features, 3)
    values, vectors = np.linalg.eigh(np.cov(features, rowvar=False))
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.diag(vectors[:, ::-1][:, :3].T @ directions)), 1, atol=1e-9)
    np.testing.assert_allclose((features @ directions).var(axis=0, ddof=1), values[::-1][:3], rtol=1e-9)
    with pytest.raises(ValueError, match="9 directions from 50 rows of 8 dimensions"):
        principal_directions(features, 9)


def test_jackknife_standard_error_covers() -> None:
    # B.2: intervals of ± 1.96 SE hold the statistic's own expectation about 98 % of the time, never fewer than 90 %.
    populations, generator = Populations(96, shift=0.2), np.random.default_rng(3)
    results = [jackknifed(paired(*populations.draw(60, generator)), seed) for seed in range(60)]
    values, errors = np.array([[result.value, result.standard_error] for result in results]).T
    assert (np.abs(values - values.mean()) < 1.96 * errors).mean() >= 0.9
    assert 0.9 < errors.mean() / values.std(ddof=1) < 1.8


def test_paired_change_is_sharper_than_unpaired() -> None:
    populations, generator = Populations(96, shift=0.2), np.random.default_rng(4)
    together, apart, errors = [], [], []
    for seed in range(24):
        real, base = populations.draw(60, generator)
        # The tuned model makes, from the same start noise, the image half-way back to the real distribution.
        tuned, other = base - 0.5 * populations.mean, populations.draw(60, generator)[1] - 0.5 * populations.mean
        change = jackknifed(paired(real, tuned), seed).minus(jackknifed(paired(real, base), seed))
        together.append(change.value)
        errors.append(change.standard_error)
        apart.append(frechet_distance(real, other) - frechet_distance(real, base))
    assert np.mean(together) < 0
    assert np.std(together, ddof=1) < 0.8 * np.std(apart, ddof=1)
    assert 0.8 < np.mean(errors) / np.std(together, ddof=1) < 2


def test_infinity_is_refused_below_and_right_above_two_and_a_half_rows_per_dimension() -> None:
    populations, generator = Populations(24, shift=0.3), np.random.default_rng(7)
    results = [frechet_infinity(paired(*populations.draw(120, generator)), seed) for seed in range(8)]
    values, errors = np.array(results).T
    assert values.mean() == pytest.approx(populations.truth(), rel=0.15)
    assert errors.min() > 0
    with pytest.raises(ValueError, match="59 images are fewer than 60"):
        frechet_infinity(paired(*populations.draw(59, generator)), 0)
