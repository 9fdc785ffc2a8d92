"""The comparison from end to end, on small folders whose numbers are known; the builders are used by the other tests too.

python tests/test_compare.py FOLDER     writes a study of both halves and its comparison, to look at
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffusion_sft.cli import main
from diffusion_sft.compare import CompareConfig, Comparison, compare
from diffusion_sft.compare.metrics import FAMILIES, METRICS
from diffusion_sft.compare.rows import COLUMNS
from diffusion_sft.dynamics import TunedRun, summarise_runs
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_json, read_table, write_json, write_table
from diffusion_sft.records import CATEGORIES, DIFFUSION, LLM
from diffusion_sft.reference import load_reference

QUICK = {"num_resamples": 200, "num_permutations": 499}
MIXES: Mapping[str, Mapping[str, int]] = {
    "known": {"HighlyKnown": 3, "MaybeKnown": 3},
    "half": {"HighlyKnown": 2, "Unknown": 2},
    "unknown": {"Unknown": 4},
    "natural": dict.fromkeys(CATEGORIES, 1),
}
FITTED_AT = {"HighlyKnown": 0, "MaybeKnown": 10, "WeaklyKnown": 20, "Unknown": 30}
"""From which update on a trained example is answered rightly."""
UPDATES = (0, 10, 20, 30)
ROLE = {DIFFUSION: "untouched", LLM: "test"}
OUTSIDE_BEFORE = {"HighlyKnown": 1.0, "MaybeKnown": 0.5, "WeaklyKnown": 0.0, "Unknown": 0.0}
CLASS_OF = {"HighlyKnown": "one", "MaybeKnown": "many", "WeaklyKnown": "none", "Unknown": "none"}


def concepts_of(learner: str, per_category: int = 8, error_sign: int = 1) -> pd.DataFrame:
    """As many concepts of each category; the error rises (or falls) by 10 a category, the gain always falls."""
    rows = []
    for place, category in enumerate(CATEGORIES):
        for number in range(per_category):
            error = 100 + 10 * error_sign * place + number % 4
            row = {"concept": f"{category}-{number}", "category": category, "error_nats": error}
            row |= {"error_per_dim": error / 64, "relative_error": 0.5 + place / 8, "gain_nats": 9.0 - place}
            rows.append(row | ({"relation": "colour", "answer": "red"} if learner == LLM else {}))
    return pd.DataFrame(rows)


def write_solve(half: Path, learner: str, concepts: pd.DataFrame, num_steps: int = 20) -> None:
    """Systems whose measures rise with the category's place; classes as CLASS_OF has them."""
    measures = {
        "generation": ("rounds_per_step", "slope", "effective_answers", "recovery"),
        "inputs": ("residual_floor", "block_residual_floor", "inversion_residual", "distance"),
        "weights": ("residual_10", "solution_norm", "solvable_share"),
    }
    rows = [
        (learner, system, row.concept, row.category, measure, CATEGORIES.index(row.category) / 4 + number % 3 / 64)
        for system, names in measures.items()
        for measure in names
        for number, row in enumerate(concepts.itertuples())
        if measure != ("inversion_residual" if learner == LLM else "block_residual_floor")
    ]
    columns = ["learner", "system", "concept", "category", "measure", "value"]
    write_table(half / "solve" / "systems.parquet", pd.DataFrame(rows, columns=columns))
    classes = concepts[["concept"]].assign(solution_class=concepts["category"].map(CLASS_OF))
    write_table(half / "solve" / "classes.parquet", classes)
    sets = pd.DataFrame({"concept": [*CATEGORIES, "shuffled"], "num_examples": 5, "residual_10": np.arange(5) / 8})
    sets = sets.assign(side_effect=0.5, constrained_residual=0.75)
    write_table(half / "solve" / "sets.parquet", sets)
    correlations = [
        (steps, role, "all", outcome, measure, predictor, 12, 0.5 if predictor == "forecast" else 0.25, 0.125, 0.75)
        for steps in (5, 10)
        for role in ("trained", "heldout", ROLE[learner])
        for outcome in ("early", "last")
        for measure in ("accuracy", "error_nats")
        for predictor in ("forecast", "start")
    ]
    names = [
        "krylov_steps",
        "role",
        "category",
        "outcome",
        "measure",
        "predictor",
        "num_runs",
        "value",
        "low",
        "high",
    ]
    write_table(half / "solve" / "correlations.parquet", pd.DataFrame(correlations, columns=names))
    write_json(half / "solve" / "solve.json", {"config": {"weights": {"num_steps": num_steps}}})


def write_run(folder: Path, learner: str, mix: str, seed: int, shares: Mapping[str, int]) -> TunedRun:
    """A run: trained and held-out examples fitted from FITTED_AT on; outside the mix HighlyKnown is lost at update 30
    by as many of eight questions as there are Unknown concepts in the mix."""
    rows = []
    lost = shares.get("Unknown", 0)
    for update in UPDATES:
        for category, count in shares.items():
            for number in range(count):
                for role, example in (("trained", "a"), ("heldout", "b")):
                    right = update >= FITTED_AT[category]
                    rows.append(
                        (update, role, category, f"{category}-{number}", f"{category}-{number}/{example}", right)
                    )
        for category, level in OUTSIDE_BEFORE.items():
            for number in range(8):
                right = number < 8 * level and not (category == "HighlyKnown" and update == 30 and number < lost)
                name = f"{category}-{number}"
                rows.append((update, ROLE[learner], category, name, f"{name}/out", right))
    answers = pd.DataFrame(rows, columns=["update", "role", "category", "concept", "example_id", "correct"])
    counts = answers.groupby(["update", "role", "category"], as_index=False)["correct"].agg(["size", "sum"])
    counts = counts.rename(columns={"size": "num_examples", "sum": "num_correct"})
    place = folder / "finetune" / f"{mix}-seed{seed}"
    write_table(place / "answers.parquet", answers)
    write_table(place / "evaluations.parquet", counts)
    chosen = {category: [f"{category}-{number}" for number in range(count)] for category, count in shares.items()}
    summary = {"early_stop_update": 20, "converged_update": None, "examples_per_update": 2}
    write_json(place / "finetune.json", summary | {"concepts": chosen, "num_examples": sum(shares.values())})
    return TunedRun(mix=mix, seed=seed, folder=place)


def write_half(study: Path, learner: str, *, seeds: Sequence[int] = (0, 1), error_sign: int = 1) -> Path:
    """One learner's half with every stage; returns its folder."""
    half = study / (LLM if learner == LLM else "")
    concepts = concepts_of(learner, error_sign=error_sign)
    write_table(half / "buckets" / "concepts.parquet", concepts)
    write_solve(half, learner, concepts)
    runs = [write_run(half, learner, mix, seed, shares) for mix, shares in MIXES.items() for seed in seeds]
    summarise_runs(runs, learner, half / "dynamics")
    if learner == DIFFUSION:
        write_measures(half, {f"unknown-seed{seed}": 10.0 + seed for seed in seeds})
    return half


def write_measures(half: Path, changes: Mapping[str, float]) -> None:
    """FID of the known bucket after these models less before."""
    rows = [
        (model, bucket, metric, change, change - 2, change + 2)
        for model, change in changes.items()
        for bucket in ("known", "unknown")
        for metric in ("fid_change", "kid_change")
    ]
    columns = ["model", "bucket", "metric", "value", "low", "high"]
    write_table(half / "evaluate" / "measures.parquet", pd.DataFrame(rows, columns=columns))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves; the error rises with the category in one and falls in the other."""
    folder = tmp_path_factory.mktemp("compared") / "study"
    write_half(folder, DIFFUSION, error_sign=-1)
    write_half(folder, LLM)
    return folder


@pytest.fixture(scope="session")
def compared(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """What is said of it."""
    return compared_with(tmp_path_factory.mktemp("out"), str(study))


def compared_with(out: Path, *runs: str, external: Sequence[str] = ()) -> Comparison:
    """The comparison of these folders and files."""
    return compare(CompareConfig(runs=list(runs), external=list(external), output_dir=str(out), **QUICK))


def one(found: Comparison, learner: str, metric: str, category: str = "", source: str = "measured") -> pd.Series:
    """The row of one number."""
    table = found.table
    wanted = {"learner": learner, "metric": metric, "category": category, "source": source}
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1, wanted
    return table.iloc[0]


def test_every_metric_is_there_for_both_learners_and_has_its_n(compared: Comparison) -> None:
    table = compared.table
    assert tuple(table.columns) == COLUMNS
    measured = table[table["source"] == "measured"]
    for learner in (DIFFUSION, LLM):
        assert set(measured[measured["learner"] == learner]["metric"]) >= set(METRICS) - {
            "b_known_other_relations",
            "b_unknown_other_relations",
            "r2_other_relations",
        }
    told = measured[measured["value"].notna()]
    assert (told["n"] > 0).all()
    assert set(told["n_of"]) == {"concepts", "facts", "examples", "runs"}
    assert (told[told["learner"] == LLM]["n_of"] != "concepts").all()
    assert told["unit"].ne("").all()
    gone = table[table["value"].isna()]
    assert list(dict.fromkeys(table["family"])) == list(FAMILIES)
    assert gone.empty


def test_a_name_and_its_unit_fit_a_heading() -> None:
    for about in METRICS.values():
        assert len(f"{about.name} ({about.unit})") <= 60, about.name


def test_readings_of_the_base_by_hand(compared: Comparison) -> None:
    for learner, sign in ((DIFFUSION, -1), (LLM, 1)):
        for place, category in enumerate(CATEGORIES):
            row = one(compared, learner, "prior_error", category)
            assert row["value"] == pytest.approx(100 + 10 * sign * place + 1.5)
            assert row["low"] < row["value"] < row["high"]
            assert (row["n"], row["num_runs"], row["interval"]) == (8, 1, "bootstrap over concepts")
            # All alike: nothing shows how far they spread.
            gain = one(compared, learner, "gain", category)
            assert gain["value"] == 9 - place
            assert math.isnan(gain["low"])
            share = one(compared, learner, "category_share", category)
            assert (share["value"], share["n"], share["interval"]) == (0.25, 32, "Wilson over concepts")
            assert one(compared, learner, f"class_{CLASS_OF[category]}", category)["value"] == 1
    # The answer's own block of a picture is the start noise that it is inverted to.
    for learner in (DIFFUSION, LLM):
        found = [one(compared, learner, "block_residual", category)["value"] for category in CATEGORIES]
        assert np.all(np.diff(found) > 0)


def test_learning_by_hand(compared: Comparison) -> None:
    for learner in (DIFFUSION, LLM):
        for category, update in FITTED_AT.items():
            assert one(compared, learner, "updates_to_fit", category)["value"] == update
            early = one(compared, learner, "fitted_share_early_stop", category)
            assert early["value"] == (1.0 if update <= 20 else 0.0)
            assert early["interval"] == "Wilson over concepts"
            assert one(compared, learner, "fitted_share_convergence", category)["value"] == 1
            change = one(compared, learner, "heldout_change_convergence", category)
            assert change["value"] == (0.0 if update == 0 else 1.0)
        # After the mix of four Unknown concepts four of eight HighlyKnown questions are lost by the end, none before.
        lost = one(compared, learner, "outside_change_convergence", "HighlyKnown")
        assert (lost["value"], lost["n"], lost["num_runs"]) == (-0.5, 8, 2)
        assert one(compared, learner, "outside_change_early_stop", "HighlyKnown")["value"] == 0
        assert one(compared, learner, "outside_change_known_convergence", "HighlyKnown")["value"] == 0
        assert one(compared, learner, "late_change", "HighlyKnown")["value"] == -0.5
        natural = one(compared, learner, "natural_accuracy_convergence", "HighlyKnown")
        assert natural["value"] == 7 / 8
    # One pass over the four concepts of the mix `unknown` is two updates.
    passes = one(compared, LLM, "passes_to_fit", "Unknown")["value"]
    assert passes == pytest.approx(np.median([30 * 2 / n for n in [4] * 4 + [4] * 8 + [4] * 2]))
    assert "unknown, 100 % Unknown" in one(compared, LLM, "outside_change_convergence", "HighlyKnown")["note"]


def test_one_half_has_the_coefficients_that_its_dynamics_table_has(study: Path, compared: Comparison) -> None:
    for learner, half in ((DIFFUSION, study), (LLM, study / LLM)):
        table = read_table(half / "dynamics" / "linear_model.parquet")
        table = table[table["role"] == ROLE[learner]].set_index("term")
        for term in ("b_known", "b_unknown"):
            row = one(compared, learner, term)
            numbers = [row["value"], row["low"], row["high"]]
            np.testing.assert_allclose(
                numbers, table.loc[term, ["estimate", "low", "high"]].to_numpy(float), atol=1e-9
            )
            assert (row["n"], row["n_of"]) == (8, "runs")
        explained = one(compared, learner, "r2")
        assert explained["value"] == pytest.approx(table.loc["b_known", "r2"])
        assert explained["low"] <= explained["value"] <= explained["high"]


def test_the_two_learners_agree_where_they_were_made_to(compared: Comparison) -> None:
    found = compared.agreement[(compared.agreement["first"] == DIFFUSION) & (compared.agreement["second"] == LLM)]
    found = found.set_index("metric")
    for metric, spearman, same in (("prior_error", -1, False), ("gain", 1, True), ("recovery", 1, True)):
        row = found.loc[metric]
        assert row["spearman"] == pytest.approx(spearman)
        assert bool(row["same_sign"]) is same
        assert bool(row["same_order"]) is same
        assert bool(row["both_exclude_zero"]) is same
        # Of 24 orders one is as they are and one is its reverse.
        assert row["p_exact"] == pytest.approx(2 / 24)
        assert row["smallest_p"] == pytest.approx(2 / 24)
        assert row["num_categories"] == 4
        assert "of 4 categories no order has an exact p below 0.083" in row["note"]
    assert found.loc["gain", "first_rho"] == pytest.approx(-1)
    assert found.loc["b_unknown", "num_categories"] == 0
    assert bool(found.loc["b_unknown", "same_sign"])
    assert "r2" not in found.index
    assert (found["first_p_holm"].dropna() >= found["first_p"].dropna()).all()
    published = compared.agreement[compared.agreement["second"] == "llm (published)"].set_index(["metric", "first"])
    # One of each category has been trained on in the natural mix; what is asked stands in the published order or ties.
    assert published.loc[("natural_accuracy_convergence", LLM), "spearman"] == pytest.approx(0.9486833)


def test_published_figures_are_the_papers_in_our_units(compared: Comparison) -> None:
    paper = load_reference()
    own = compared.table[compared.table["source"] == "published"]
    assert set(own["learner"]) == {LLM}
    shares = own[own["metric"] == "category_share"].set_index("category")["value"]
    assert shares.to_dict() == dict(paper.category_shares)
    model = own.set_index("metric")["value"]
    assert model["b_unknown"] == pytest.approx(paper.linear_model["in_distribution"].b_unknown_points / 100)
    assert model["r2_other_relations"] == paper.linear_model["out_of_distribution"].r2
    late = own[own["metric"] == "late_change"].set_index("category")["value"]
    assert late["HighlyKnown"] == pytest.approx((55.8 - 95.6) / 100)
    assert own["low"].isna().all()


def test_the_language_half_by_itself(study: Path, tmp_path: Path) -> None:
    found = compared_with(tmp_path, str(study / LLM))
    assert set(found.table[found.table["source"] == "measured"]["learner"]) == {LLM}
    with pytest.raises(UserError, match="given twice, by itself and with its study"):
        compared_with(tmp_path, str(study), str(study / LLM))


def test_the_command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    quick = ["num_resamples=99", "num_permutations=99"]
    assert main(["compare", f"runs=[{study}]", *quick, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert read_json(out / "verdict.json")["headline"] in printed
    for name in ("comparison.parquet", "comparison.csv", "comparison.md", "comparison.tex", "verdict.json"):
        assert str(out / name) in printed
        assert (out / name).is_file()
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "comparison.csv")[["metric", "value"]],
        read_table(out / "comparison.parquet")[["metric", "value"]],
    )
    assert main(["compare", "--settings"]) == 0
    assert "num_resamples=2000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "runs is empty: give the output folders of studies"),
        (["runs=[{root}/nowhere]"], "nowhere: no such run folder"),
        (["runs=[{root}/empty]"], "empty: no finished stage"),
        (["runs=[{root}/empty,{root}/empty]"], "given twice"),
        (["external=[{root}/none.csv]"], "none.csv: no such file"),
        (["num_resamples=3", "runs=[{root}/empty]"], "num_resamples must be at least 99, not 3"),
        (["rnus=[a]"], "did you mean runs?"),
    ],
)
def test_mistakes_end_with_one_line(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "solve").mkdir(parents=True)
    given = [text.format(root=tmp_path) for text in settings]
    assert main(["compare", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_half(folder, DIFFUSION, error_sign=-1)
    write_half(folder, LLM)
    print(compared_with(folder / "compare", str(folder)).folder)
