"""Intervals and p-values against the libraries and formulas that they are taken from, and against simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from diffusion_sft.compare.agreement import PLACES, corrected, trends_of
from diffusion_sft.compare.estimates import (
    Draws,
    Estimate,
    Trend,
    difference_of,
    exact_p,
    mean_of,
    median_of,
    over_runs,
    robust_interval,
    trend_of,
    within,
)
from diffusion_sft.numerics.linear_model import least_squares
from diffusion_sft.records import CATEGORIES

DRAWS = Draws(num_resamples=500, num_permutations=999, seed=3)


def readings(values: list[float], concepts: list[str] | None = None, runs: list[str] | None = None) -> pd.DataFrame:
    """One reading each; concepts of their own and one run unless told."""
    names = concepts or [f"c{number}" for number in range(len(values))]
    return pd.DataFrame({"value": values, "concept": names, "run": runs or ["r"] * len(values)})


def crossed(
    num_concepts: int, num_runs: int, generator: np.random.Generator, spread: tuple[float, float, float]
) -> pd.DataFrame:
    """Every concept in every run: value = concept's effect + run's effect + noise, of these standard deviations."""
    concept, run = spread[0] * generator.normal(size=num_concepts), spread[1] * generator.normal(size=num_runs)
    rows = [
        (f"c{i}", f"r{j}", concept[i] + run[j] + spread[2] * generator.normal())
        for i in range(num_concepts)
        for j in range(num_runs)
    ]
    return pd.DataFrame(rows, columns=["concept", "run", "value"])


def test_independent_concepts_have_scipys_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    found = mean_of(readings(list(values)), DRAWS)
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), wanted.low, wanted.high))
    assert (found.num_concepts, found.num_runs, found.interval) == (40, 1, "bootstrap over concepts")


def test_shares_have_wilsons_interval_and_changes_that_all_agree_too() -> None:
    found = mean_of(readings([1.0, 1.0, 0.0, 1.0]), DRAWS, "share")
    wanted = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    # Six readings of three concepts, all right: three concepts, not six.
    repeated = readings([1.0] * 6, concepts=["a", "b", "c"] * 2)
    wanted = stats.binomtest(3, 3).proportion_ci(method="wilson")
    for kind in ("share", "change"):
        found = mean_of(repeated, DRAWS, kind)
        assert (found.value, found.low, found.high) == pytest.approx((1, wanted.low, wanted.high))
    lost = mean_of(repeated.assign(value=-1.0), DRAWS, "change")
    assert (lost.low, lost.high, lost.sign) == pytest.approx((-wanted.high, -wanted.low, -1))
    still = mean_of(repeated.assign(value=0.0), DRAWS, "change")
    assert (still.low, still.high, still.sign) == pytest.approx((-(1 - wanted.low), 1 - wanted.low, 0))


def test_values_without_a_spread_and_single_concepts_have_no_interval() -> None:
    for table in (readings([2.0, 2.0, 2.0]), readings([1.0]), readings([1.0, 2.0], concepts=["a", "a"])):
        found = mean_of(table, DRAWS)
        assert math.isnan(found.low)
        assert found.interval == ""
        assert found.sign is None


def test_repeated_concepts_have_statsmodels_cluster_robust_interval() -> None:
    table = crossed(12, 2, np.random.default_rng(1), (1, 0, 0.5)).sample(frac=0.8, random_state=1)
    found = mean_of(table, DRAWS)
    fit = sm.OLS.from_formula("value ~ 1", table).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(table["concept"])[0]}, use_t=True
    )
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int().to_numpy()[0]))
    assert found.interval == "cluster-robust by concept"
    # The project's own CR1, which knows nothing of statsmodels, says the same.
    own = least_squares(np.ones((len(table), 1)), table["value"].to_numpy(), clusters=table["concept"].to_numpy(str))
    assert (found.low, found.high) == pytest.approx((own.at((1,)).low, own.at((1,)).high))


def test_from_three_runs_on_their_spread_is_part_of_the_interval() -> None:
    table = crossed(20, 4, np.random.default_rng(2), (1, 1, 0.5))
    found = mean_of(table, DRAWS)
    errors = (table["value"] - table["value"].mean()).to_numpy()

    def variance(groups: pd.Series) -> float:
        sums = pd.Series(errors).groupby(groups.to_numpy()).sum()
        count = len(sums)
        return count / (count - 1) * float((sums**2).sum()) / len(table) ** 2

    both = table["concept"] + table["run"]
    total = variance(table["concept"]) + variance(table["run"]) - variance(both)
    reach = stats.t.ppf(0.975, 3) * math.sqrt(total)
    assert found.interval == "cluster-robust by concept and run"
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), rel=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    held = {"ours": 0, "independent": 0}
    count = 200
    for _ in range(count):
        table = crossed(15, 6, generator, (1, 0.7, 0.5))
        low, high, _ = robust_interval(np.ones((len(table), 1)), table, 0)
        held["ours"] += low <= 0 <= high
        naive = stats.bootstrap(
            (table["value"].to_numpy(),), np.mean, n_resamples=99, method="percentile", rng=generator
        )
        held["independent"] += naive.confidence_interval.low <= 0 <= naive.confidence_interval.high
    assert held["ours"] > 0.88 * count
    assert held["independent"] < 0.6 * count


def test_the_median_is_over_readings_and_its_bootstrap_over_concepts() -> None:
    values = [0.0, 10.0, 20.0, 20.0, 30.0, np.inf]
    found = median_of(readings(values), DRAWS)
    assert found.value == 20
    assert 0 <= found.low <= 20 <= found.high
    assert median_of(readings(values[:4]), DRAWS).value == 15
    assert math.isinf(median_of(readings([0.0, np.inf]), DRAWS).value)
    # Ten readings of one concept are one: whichever of the two is drawn twice decides.
    table = readings([0.0] * 10 + [50.0] * 9, concepts=["a"] * 10 + ["b"] * 9)
    found = median_of(table, DRAWS)
    assert (found.value, found.low, found.high) == (0, 0, 50)
    resampled = []
    generator = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])
    table = readings([1.0, 5.0, 2.0, 7.0, 3.0], concepts=["a", "a", "b", "b", "c"])
    for _ in range(4000):
        drawn = [table[table["concept"] == name]["value"] for name in generator.choice(names, 3)]
        resampled.append(float(np.median(np.concatenate(drawn))))
    many = median_of(table, Draws(num_resamples=4000, num_permutations=99, seed=1))
    wanted = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    assert [many.low, many.high] == list(wanted)


def test_a_difference_is_the_regression_on_which_runs_it_is() -> None:
    table = crossed(10, 2, np.random.default_rng(4), (3, 0, 0.5))
    first, second = table[table["run"] == "r0"], table[table["run"] == "r1"]
    found = difference_of(first, second)
    assert found.value == pytest.approx(first["value"].mean() - second["value"].mean())
    data = pd.concat([first, second]).assign(inside=lambda t: (t["run"] == "r0").astype(float))
    fit = sm.OLS.from_formula("value ~ inside", data).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(data["concept"])[0]}, use_t=True
    )
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int().loc["inside"]))
    # Concepts differ much more than runs do, and each is on both sides: pairing is what keeps the interval short.
    apart = difference_of(first, second.assign(concept=[f"other{n}" for n in range(10)]))
    assert found.high - found.low < 0.4 * (apart.high - apart.low)


def test_over_runs_needs_three_of_them() -> None:
    found = over_runs([1.0, 2.0, 4.0])
    wanted = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert math.isnan(over_runs([1.0, 2.0]).low)
    assert over_runs([1.0, 2.0]).value == 1.5


def test_intervals_are_cut_to_what_can_be() -> None:
    found = within(Estimate(value=0.9, low=0.5, high=1.3), (0.0, 1.0))
    assert (found.low, found.high) == (0.5, 1.0)
    assert math.isnan(within(Estimate(value=0.9), (0.0, 1.0)).low)


def test_trends_are_over_concepts_each_once() -> None:
    rows = [(f"{c}-{n}", c, PLACES[c] + 0.1 * n, run) for c in CATEGORIES for n in range(5) for run in ("r", "s")]
    table = pd.DataFrame(rows, columns=["concept", "category", "value", "run"])
    found = trend_of(table, PLACES, DRAWS)
    place, value = np.repeat(range(4), 5), [PLACES[c] + 0.1 * n for c in CATEGORIES for n in range(5)]
    assert found.value == pytest.approx(stats.spearmanr(place, value).statistic)
    assert found.num_concepts == 20
    assert found.p == pytest.approx(2 / 1000)
    down = trend_of(table.assign(value=-table["value"]), PLACES, DRAWS)
    assert (down.value, down.sign) == (pytest.approx(-found.value), -1)
    # What was never reached is later than all that was.
    never = trend_of(table.assign(value=table["value"].where(table["category"] != "Unknown", np.inf)), PLACES, DRAWS)
    assert 0.9 < never.value <= 1


def test_p_of_a_trend_is_uniform_where_there_is_none() -> None:
    generator = np.random.default_rng(0)
    few = Draws(num_resamples=99, num_permutations=199, seed=0)
    ps = []
    for _ in range(100):
        rows = [(f"{c}-{n}", c, generator.normal(), "r") for c in CATEGORIES for n in range(5)]
        ps.append(trend_of(pd.DataFrame(rows, columns=["concept", "category", "value", "run"]), PLACES, few).p)
    assert stats.kstest(ps, "uniform").pvalue > 0.01


@pytest.mark.parametrize("size", [2, 3, 4])
def test_exact_p_counts_all_orders(size: int) -> None:
    first = np.arange(size, dtype=float)
    for second in itertools.permutations(range(size)):
        values = np.array(second, float)
        all_of_them = [stats.spearmanr(first, order).statistic for order in itertools.permutations(values)]
        rho = stats.spearmanr(first, values).statistic
        sides = [
            np.mean([other <= rho + 1e-9 for other in all_of_them]),
            np.mean([other >= rho - 1e-9 for other in all_of_them]),
        ]
        assert exact_p(first, values) == pytest.approx(min(1.0, 2 * min(sides)))


def test_many_measures_are_corrected_by_holm_for_each_learner_apart() -> None:
    ps = {("a", "gain"): 0.01, ("a", "recovery"): 0.04, ("a", "slope"): 0.03, ("b", "gain"): 0.04}
    trends = {key: Trend(value=0.5, low=0.1, high=0.9, num_concepts=9, p=p) for key, p in ps.items()}
    trends["b", "slope"] = Trend(value=math.nan, low=math.nan, high=math.nan, num_concepts=9, p=math.nan)
    found = corrected(trends)
    wanted = multipletests([0.01, 0.04, 0.03], method="holm")[1]
    assert [found[key] for key in list(ps)[:3]] == pytest.approx(list(wanted))
    assert found["b", "gain"] == 0.04
    assert math.isnan(found["b", "slope"])


def test_shares_of_categories_have_no_trend() -> None:
    table = pd.DataFrame(
        {"metric": ["category_share", "gain"] * 4, "run": "r", "concept": list("aabbccdd"), "value": 1.0}
    )
    table["category"] = [CATEGORIES[place // 2] for place in range(8)]
    assert set(trends_of({"llm": table}, DRAWS)) == {("llm", "gain")}
