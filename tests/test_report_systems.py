"""The report's section on systems of equations: what it shows is the tables', and what was not solved is named.

python tests/test_report_systems.py FOLDER     writes a study of both halves, and its report, to look at
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from linear_systems import LinearNetwork, concept_set_of
from scipy import stats
from synthetic_language import SUBJECTS, language_run
from synthetic_run import MIXES, NAMES, synthetic_run
from test_report import HOSTILE, Page, check_whole
from test_report_language import NOTHING, cells
from test_solve import tuned_run

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.files import read_table, write_json, write_table
from diffusion_sft.records import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN
from diffusion_sft.report.page import write_report
from diffusion_sft.report.run import SOLVED, read_run
from diffusion_sft.report.systems import half_systems, round_residuals
from diffusion_sft.report.systems_figures import _drawable, _power
from diffusion_sft.report.systems_words import (
    SYSTEMS,
    association_sentence,
    category_of,
    linearisation_sentence,
    shown_roles,
    trend_sentence,
)
from diffusion_sft.solve.config import GenerationConfig, TextSolveConfig, TextWeightsConfig
from diffusion_sft.solve.run import Task, solve

COUNTS = np.array([[6, 1, 0], [2, 4, 1], [0, 3, 4], [0, 1, 6]])
"""Concepts of each category with solution class one, many, none."""
STEPS = {"diffusion": 20, "llm": 4}
ROLES = {"diffusion": ("trained", "heldout", "untouched"), "llm": ("trained", "heldout", "development", "test")}
RUNS = tuple(f"mix-{place}-seed{seed}" for place in range(5) for seed in range(2))


def solved_tables(learner: str, runs: Sequence[str] = RUNS) -> dict[str, pd.DataFrame]:
    """Hand-made tables of everything, with the columns of real ones."""
    generator = np.random.default_rng(len(learner))
    of_class = [
        (f"{category}-{name}-{number}", category, name)
        for category, row in zip(CATEGORIES, COUNTS, strict=True)
        for name, count in zip(("one", "many", "none"), row, strict=True)
        for number in range(count)
    ]
    concepts = pd.DataFrame(of_class, columns=["concept", "category", "solution_class"])
    place = concepts["category"].map({c: n for n, c in enumerate(CATEGORIES)})
    tables = {
        "systems": concepts[["concept", "category"]].assign(measure="rounds"),
        "classes": concepts[["concept", "solution_class"]].assign(num_draws=8),
        "generations": pd.DataFrame(
            [
                {"concept": name, "num_steps": STEPS[learner], "residuals": _residuals(STEPS[learner], n, generator)}
                for name, n in zip(concepts["concept"], place, strict=True)
            ]
        ),
        "residuals": pd.DataFrame(
            [
                (category, number, tenth, 10.0 ** ((tenth - 2 * number) / 3 + n / 4))
                for n, category in enumerate(CATEGORIES)
                for number in range(9)
                for tenth in range(10)
            ],
            columns=["category", "round", "place", "residual"],
        ),
        "inputs": pd.DataFrame({"kind": ["soft_prompt" if learner == "llm" else "textual_inversion"]}),
        "categories": _means(learner, generator),
        "trends": _trends(learner),
        "forecasts": _forecasts(learner, runs, generator),
    }
    tables["correlations"] = _correlations(tables["forecasts"])
    return tables | _weight_tables()


def _residuals(num_steps: int, hardness: int, generator: np.random.Generator) -> list[float]:
    """Of 3 + hardness rounds, flat: the first equations are solved before the second round."""
    rounds = 3 + hardness
    falling = 10.0 ** (-np.arange(rounds)[:, None] / 2 + 0.2 * generator.random(num_steps))
    falling[1:, 0] = np.nan
    return falling.ravel().tolist()


def _means(learner: str, generator: np.random.Generator) -> pd.DataFrame:
    rows = [
        (learner, system, measure, category, value := n + generator.random(), value - 0.25, value + 0.5, 7 - n)
        for system, about in SYSTEMS.items()
        for measure in about.measures
        for n, category in enumerate(CATEGORIES)
        if measure != "inversion_residual" or learner == "diffusion"
    ]
    return pd.DataFrame(
        rows, columns=["learner", "system", "measure", "category", "value", "low", "high", "num_concepts"]
    )


def _trends(learner: str) -> pd.DataFrame:
    rows = []
    for system, about in SYSTEMS.items():
        for place, measure in enumerate(about.measures):
            if measure == "inversion_residual" and learner == "llm":
                continue
            value = (-1) ** place * 0.5
            reach = 0.25 if place % 3 else 0.75
            rows.append((system, measure, value, value - reach, value + reach))
    return pd.DataFrame(rows, columns=["system", "measure", "value", "low", "high"])


def _weight_tables() -> dict[str, pd.DataFrame]:
    names = [*CATEGORIES, "shuffled"]
    curves = [
        (name, step, (0.9 - 0.1 * place) ** step, (1 + place) * (1 - 0.5**step))
        for place, name in enumerate(names)
        for step in range(21)
    ]
    spectra = [
        (name, index, 10.0 ** (2 - index / 4), 10.0 ** (1 - index / (2 + place)))
        for place, name in enumerate(names)
        for index in range(12)
    ]
    sets = pd.DataFrame({"concept": names, "num_examples": 16, "rhs_rms": 1.0 + np.arange(5)})
    sets = sets.assign(residual_10=0.125, solution_norm=0.5, effective_rank=9.5, picard_slope=0.75, side_effect=1.5)
    return {
        "curves": pd.DataFrame(curves, columns=["category", "step", "relative_residual", "solution_norm"]),
        "spectra": pd.DataFrame(spectra, columns=["category", "index", "ritz", "coefficient"]),
        "sets": sets,
    }


def _forecasts(learner: str, runs: Sequence[str], generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for run in runs:
        for steps in (1, 10):
            errors = {"step_error": steps / 20, "real_step_error": 2.0, "cosine": 0.25}
            for role in ROLES[learner]:
                for category in ("all", HIGHLY_KNOWN, UNKNOWN):
                    about = {"run": run, "krylov_steps": steps, "role": role, "category": category}
                    change = generator.normal(0.4 if role == "trained" else -0.05, 0.1)
                    last = 0.5 + change + generator.normal(0, 0.05)
                    change += 0.5
                    own = {"base": 0.5, "forecast": change, "before": 0.5, "last": last}
                    nats = {f"{name}_error_nats": 4 - 3 * value**2 for name, value in own.items()}
                    rows.append(about | errors | own | nats)
    return pd.DataFrame(rows)


def _correlations(forecasts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (steps, role, category), own in forecasts.groupby(["krylov_steps", "role", "category"]):
        value = float(stats.spearmanr(own["forecast"], own["last"]).statistic)
        kinds = (("accuracy", "forecast", 0.0), ("error_nats", "forecast", 0.03125), ("error_nats", "start", 0.0625))
        for outcome, (measure, predictor, less) in itertools.product(("early", "last"), kinds):
            found = value - less - (0.25 if outcome == "early" else 0.0)
            ends = (max(-1.0, found - 0.125), min(1.0, found + 0.0625))
            rows.append((steps, role, category, outcome, measure, predictor, len(own), found, *ends, found / 2))
    columns = [
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
    return pd.DataFrame(rows, columns=[*columns, "within_seeds"])


def write_solved(half: Path, learner: str, runs: Sequence[str] = RUNS) -> Path:
    """Write the hand-made tables to a half's folder; returns theirs."""
    for name, table in solved_tables(learner, runs).items():
        write_table(half / "solve" / f"{name}.parquet", table)
    budgets = {"generation": {"num_renderings": 4, "num_starts": 2}, "inputs": {"num_starts": 3}}
    write_json(half / "solve" / "solve.json", {"config": {"seed": 3, "num_permutations": 499, **budgets}})
    return half / "solve"


def study_of_both(root: Path) -> Page:
    """Both halves, both solved."""
    run, concept_set = synthetic_run(root, names=NAMES[:12], mixes=MIXES[:1])
    write_solved(run, "diffusion")
    write_solved(language_run(run, subjects=SUBJECTS[:4], seeds=(0,)), "llm")
    return check_whole(write_report(run, concept_set, title="Both as equations"), ["systems", "dynamics"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of both halves; no test changes it."""
    root = tmp_path_factory.mktemp("both")
    study_of_both(root)
    return root / "run"


@pytest.fixture(scope="module")
def both(study: Path) -> Page:
    """Its report."""
    return Page((study / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A language half of which only the systems were written, to take tables away from; returns their folder."""
    return write_solved(tmp_path / "llm", "llm")


def shown(folder: Path) -> Page:
    """The page of the study that a folder of solved tables belongs to."""
    return check_whole(write_report(folder.parents[1], NOTHING, title="t"), ["answer", "terms", "methods"])


def section(page: Page) -> str:
    """The section's words, blanks made plain and single."""
    found = re.search(r'<section id="systems">.*?</section>', page.text, re.DOTALL)
    assert found
    return Page(found[0]).prose


def rounded(value: float, low: float, high: float, signed: bool = False) -> str:
    """A number and its interval to the decimals that give the interval's half two digits, written another way."""
    decimals = max(0, 1 - int(np.floor(np.log10((high - low) / 2))))
    texts = [f"{number:{'+' if signed else ''}.{decimals}f}".replace("-", "−") for number in (value, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def test_both_halves_show_every_part(both: Page) -> None:
    told = section(both)
    assert "Missing" not in told
    for identity in ("systems", "sets", "forecasts", "classes"):
        assert {f"table-{identity}", f"table-llm-{identity}"} <= set(both.ids)
    found = re.search(r'<section id="systems">.*?</section>', both.text, re.DOTALL)
    assert found
    drawings = found[0].count("<svg") - found[0].count('class="mark"')
    # Of each half: rounds, two of Krylov steps, five Picard plots, three roles twice; of pictures the noise levels too.
    assert drawings == 2 * (1 + 2 + 5 + 2 * 3) + 1
    assert found[0].count('aria-label="Picard plot of ') == 10
    assert 'href="#systems"' in both.text
    assert {"solve/classes.csv", "llm/solve/correlations.csv"} <= set(both.links)
    assert "num_permutations 499" in both.prose
    # What the settings do not say is not in the sentence: the steps of S2 and all of S3.
    assert both.prose.count("Systems: S1 in 4 renderings from 2 random starts each. ") == 2


def test_classes_are_counted(both: Page) -> None:
    for identity, noun in (("classes", "concepts"), ("llm-classes", "facts")):
        table = re.search(rf'<table class="heat" id="table-{identity}">(.*?)</table>', both.text, re.DOTALL)
        assert table
        rows = [
            Page(f"<table><tr>{row}</tr></table>").prose for row in re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
        ]
        assert rows[0] == f"{noun} one many none all"
        for row, category, counts in zip(rows[1:], CATEGORIES, COUNTS, strict=True):
            expected = " ".join(f"{n} {100 * n / counts.sum():.0f} %" for n in counts)
            assert row == f"{category} {expected} {counts.sum()}"
        heats = [int(text) for text in re.findall(r"--heat:(\d+)", table[1])]
        assert heats == np.rint(100 * COUNTS / COUNTS.sum(axis=1, keepdims=True)).astype(int).ravel().tolist()


def test_the_association_is_cramers_and_its_verdict_follows_p(bare: Path) -> None:
    def said() -> str:
        return association_sentence(read_run(bare.parents[1], "llm"))

    chi_squared = stats.chi2_contingency(COUNTS, correction=False).statistic
    v = float(np.sqrt(chi_squared / (COUNTS.sum() * 2)))
    assert (
        said() == f"Category and solution class go together (Cramér's V = {v:.2f}, permutation p = 0.0020, 28 facts)."
    )
    # One of each category and class: no order of them is less likely than another.
    table = read_table(bare / "classes.parquet")
    categories = category_of(read_run(bare.parents[1], "llm"))
    own = table["concept"].map(categories)
    even = table[own.isin([HIGHLY_KNOWN, UNKNOWN])].assign(solution_class=["one", "none"] * 7)
    write_table(bare / "classes.parquet", even)
    assert said().startswith("Category and solution class do not go together beyond chance (Cramér's V = 0.")
    write_table(bare / "classes.parquet", even.assign(solution_class="one"))
    assert (
        said() == "All concepts are of one category or of one solution class, so there is no association to measure."
    )


def test_means_and_trends_are_the_tables(both: Page, study: Path) -> None:
    for learner, folder, identity in (("diffusion", study, "systems"), ("llm", study / "llm", "llm-systems")):
        means = read_table(folder / "solve/categories.parquet").set_index(["system", "measure", "category"])
        trends = read_table(folder / "solve/trends.parquet").set_index(["system", "measure"])
        rows = cells(both, identity)
        own = [(s, m) for s, about in SYSTEMS.items() for m in about.measures if (s, m) in trends.index]
        shown_rows = [row for row in rows[1:] if len(row) > 1]
        assert len(shown_rows) == len(own) == (14 if learner == "llm" else 15)
        for row, (system, measure) in zip(shown_rows, own, strict=True):
            found = [means.loc[(system, measure, category)] for category in CATEGORIES]
            trend = trends.loc[(system, measure)]
            about = SYSTEMS[system].measures[measure]
            assert row == [
                f"{about.name} {about.remark(learner)}",
                *(rounded(*f[["value", "low", "high"]]) for f in found),
                rounded(*trend[["value", "low", "high"]], signed=True),
            ]
    headings = [row[0] for row in cells(both, "systems") if len(row) == 1]
    assert headings[1] == "S2, the input side (textual inversion): 4 to 7 concepts each"


def test_trends_in_words_follow_their_intervals(bare: Path) -> None:
    measures = ["recovery", "rounds", "slope", "sensitivity"]
    numbers = [(0.5, 0.25, 0.75), (-0.5, -0.75, -0.25), (0.5, -0.25, 0.75), (np.nan,) * 3]
    table = pd.DataFrame([("generation", m, *n) for m, n in zip(measures, numbers, strict=True)])
    write_table(bare / "trends.parquet", table.set_axis(["system", "measure", "value", "low", "high"], axis=1))
    run = read_run(bare.parents[1], "llm")
    assert trend_sentence(run, "generation").replace("\u00a0", " ") == (
        "S1, generation. From HighlyKnown to Unknown, higher: recovery (ρ +0.50 [+0.25, +0.75]);"
        " lower: rounds R (ρ −0.50 [−0.75, −0.25]); no trend beyond the interval: early slope."
    )
    assert trend_sentence(run, "weights") == ""


def test_residuals_of_short_and_long_answers_count_alike() -> None:
    generations = pd.DataFrame(
        {
            "concept": ["long", "short", "apart", "nobody's"],
            "num_steps": [4, 2, 1, 1],
            "residuals": [[1.0] * 4 + [np.nan, 0.5, 0.5, 1.0] + [0.0, 0.0, 0.0, 0.5], [1.0, 0.5], [0.25], [9.0]],
        }
    )
    categories = {"long": HIGHLY_KNOWN, "short": HIGHLY_KNOWN, "apart": UNKNOWN}
    found = round_residuals(generations, categories).set_index(["category", "round"])["residual"]
    # Means over equations: long 1, 0.5, 0.125; short 3/4 and then nothing.
    assert found.loc[HIGHLY_KNOWN].tolist() == [0.875, 0.25, 0.0625]
    assert found.loc[UNKNOWN].tolist() == [0.25]
    assert len(found) == 4


def test_forecasts_are_drawn_run_by_run(both: Page, study: Path) -> None:
    table = read_table(study / "solve/forecasts.parquet").query("krylov_steps == 10")
    ranks = read_table(study / "solve/correlations.parquet").query("krylov_steps == 10 and outcome == 'last'")
    ranks = ranks[ranks.predictor == "forecast"]

    def points(value: float) -> str:
        return f"{round(100 * value, 1):+.1f} points".replace("-", "−")

    def nats(value: float) -> str:
        decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
        return f"{value:+.{decimals}f} nats".replace("-", "−")

    roles = (("trained", ["all"]), ("heldout", ["all"]), ("untouched", ["all", HIGHLY_KNOWN]))
    measures = (("accuracy", "", "", points), ("error_nats", "-error", "_error_nats", nats))
    for (role, categories), (measure, identity, ending, text) in itertools.product(roles, measures):
        drawing = re.search(
            rf'<svg[^>]*>(?:(?!</svg>).)*id="forecast-{role}{identity}-runs-all".*?</svg>', both.text, re.DOTALL
        )
        assert drawing
        told = [text.replace("\u00a0", " ") for text in re.findall(r"<title>(.*?)</title>", drawing[0])]
        own = table[(table.role == role) & table.category.isin(categories)]
        foretold = own[f"forecast{ending}"] - own[f"base{ending}"]
        real = own[f"last{ending}"] - own[f"before{ending}"]
        assert sorted(told) == sorted(
            f"{run}, {category}: forecast {text(first)}, real {text(second)}"
            for run, category, first, second in zip(own.run, own.category, foretold, real, strict=True)
        )
        for f in ranks[
            (ranks.role == role) & ranks.category.isin(categories) & (ranks.measure == measure)
        ].itertuples():
            assert f"ρ {rounded(f.value, f.low, f.high, signed=True)}" in section(both)
    rows = [row for row in cells(both, "forecasts") if len(row) > 1][1:]
    assert [row[0] for row in rows[:3]] == ["trained pictures", "held-out pictures", "known concepts outside the mix"]
    assert len(rows) == 6
    last = ranks[(ranks.role == "untouched") & (ranks.category == "all")].set_index("measure")
    for place, measure in ((2, "accuracy"), (4, "error_nats")):
        assert rows[-1][place] == rounded(*last.loc[measure, ["value", "low", "high"]], signed=True)
    assert rows[-1][6:] == [f"{last.loc['error_nats', 'value'] / 2:+.2f}".replace("-", "−"), str(len(RUNS))]
    assert (
        "median of 10 runs: 0.50 at the forecast's own step, 2.0 at the step that fine-tuning took; at 1 it is as large as"
        " the change that the model says. The cosine of the two steps is 0.25." in section(both)
    )


def test_what_was_not_trained_on_is_test_facts_where_there_are_some(study: Path) -> None:
    assert shown_roles(read_run(study)) == ["trained", "heldout", "untouched"]
    assert shown_roles(read_run(study, "llm")) == ["trained", "heldout", "test"]


def test_a_step_in_other_weights_is_said_to_be_missing(bare: Path) -> None:
    table = read_table(bare / "forecasts.parquet").assign(real_step_error=np.nan, cosine=np.nan)
    write_table(bare / "forecasts.parquet", table)
    run = read_run(bare.parents[1], "llm")
    assert linearisation_sentence(run).endswith("Missing: the step that fine-tuning took in these weights.")


def test_systems_that_were_not_solved_are_named(bare: Path) -> None:
    for name in ("forecasts", "correlations", "inputs", "generations", "residuals", "classes"):
        (bare / f"{name}.parquet").unlink()
    (bare / "sets.parquet").write_bytes(b"no")
    write_table(bare / "spectra.parquet", pd.DataFrame({"category": ["Unknown"]}))
    means = read_table(bare / "categories.parquet")
    write_table(bare / "categories.parquet", means[means.system != "inputs"])
    page = shown(bare)
    told = section(page)
    for words in (
        "Missing: solve/forecasts, so no fine-tuning run was forecast.",
        "Missing: solve/generations.",
        "Missing: solve/classes.",
        "Missing: solve/spectra.",
        "Missing: solve/sets.",
        "Not solved for in this study: S2, the input side.",
    ):
        assert words in told
    assert "Missing: solve/correlations" not in told
    for words in (
        "llm/solve/sets.parquet: is not a readable table",
        "llm/solve/spectra.parquet: has no column index, ritz, coefficient",
    ):
        assert words in page.prose
    for path in bare.glob("*.parquet"):
        path.unlink()
    assert "systems" not in shown(bare).ids


def test_a_study_without_the_stage_has_no_section(tmp_path: Path) -> None:
    language_run(tmp_path, subjects=SUBJECTS[:2], seeds=(0,))
    page = check_whole(write_report(tmp_path, NOTHING, title="t"), ["language"])
    assert "systems" not in page.ids
    assert "solve" not in page.prose


def test_numbers_that_cannot_be_drawn_or_said_are_left_out(bare: Path) -> None:
    curves = read_table(bare / "curves.parquet")
    write_table(bare / "curves.parquet", curves.assign(relative_residual=np.nan, solution_norm=0.0))
    spectra = read_table(bare / "spectra.parquet")
    write_table(bare / "spectra.parquet", spectra.assign(ritz=0.0, coefficient=np.inf))
    for name in ("trends", "correlations", "categories"):
        table = read_table(bare / f"{name}.parquet")
        write_table(bare / f"{name}.parquet", table.assign(value=np.nan, low=np.nan, high=np.nan))
    forecasts = read_table(bare / "forecasts.parquet")
    write_table(bare / "forecasts.parquet", forecasts.assign(last=np.nan, last_error_nats=np.nan))
    write_json(bare / "solve.json", {"config": [], "seconds": None})
    told = section(shown(bare))
    assert "ρ not defined" in told
    assert "nan" not in told.lower().split()
    assert half_systems(read_run(bare.parents[1], "llm")).forecasts == ()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    folder = write_solved(tmp_path / "llm", "llm", runs=names)
    write_table(folder / "inputs.parquet", pd.DataFrame({"kind": names[:2]}))
    changes = dict(zip(["all", "trained", "shuffled", UNKNOWN], names, strict=False))
    for name in ("forecasts", "correlations"):
        table = read_table(folder / f"{name}.parquet")
        write_table(
            folder / f"{name}.parquet", pd.concat([table, table.replace({"role": changes, "category": changes})])
        )
    for name, column in (("curves", "category"), ("spectra", "category"), ("sets", "concept"), ("trends", "measure")):
        table = read_table(folder / f"{name}.parquet")
        write_table(folder / f"{name}.parquet", pd.concat([table, table.assign(**{column: names[0]})]))
    classes = read_table(folder / "classes.parquet")
    write_table(folder / "classes.parquet", pd.concat([classes, classes.assign(solution_class=names[1])]))
    write_json(folder / "solve.json", {"config": {"seed": names[0], "num_permutations": 10**9}, names[7]: names[1]})
    page = shown(folder)
    assert "<script>alert" not in page.text
    assert "x" * 2_100 not in page.text
    assert HOSTILE[0] in page.prose
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in page.text)


def test_logarithmic_axes() -> None:
    values = np.array([10.0, 1e-4, 1e-6, 0.0, np.nan, np.inf])
    np.testing.assert_array_equal(_drawable(values, True), [10.0, 1e-4, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(_drawable(values, False), [10.0, 1e-4, 1e-6, 0.0, np.nan, np.nan])
    assert [_power(10.0**n) for n in (-12, -3, -2, 0, 3, 4)] == ["10⁻¹²", "10⁻³", "0.01", "1", "1,000", "10⁴"]


def test_the_real_stages_tables_are_shown(tmp_path: Path) -> None:
    """The columns that the page reads are the ones that the stage writes, and the classes that it plants are counted."""
    size = 6
    axes = np.eye(size)
    features = {"known-a": axes[0], "known-b": axes[0] + axes[1], "waver": axes[0] / 4 + axes[4], "apart": axes[5]}
    network = LinearNetwork(features, 2 * axes[0], np.stack([0 * axes[0], -axes[0] / 2]))
    names = list(features)
    concept_set = concept_set_of(names)
    labels = pd.DataFrame({"concept": names, "category": [HIGHLY_KNOWN, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN]})
    weights = TextWeightsConfig(examples_per_category=2, num_known=2, num_steps=4, forecast_steps=[1, 4])
    generation = GenerationConfig(num_renderings=4, num_starts=2)
    config = TextSolveConfig(generation=generation, weights=weights, num_permutations=99)
    runs = [
        tuned_run(network, concept_set, labels, name, trained)
        for name, trained in (("one", ("apart",)), ("two", ("waver", "apart")), ("three", ("waver",)))
    ]
    task = Task(learner="llm", concept_set=concept_set, labels=labels, answers=AnswerConfig(), runs=runs)
    tables = solve(network.systems(), task, config, tmp_path / "llm/solve", concepts_per_part=3)
    run = read_run(tmp_path, "llm")
    assert [note for note in run.missing if "solve" in note] == []
    assert set(run.solved) == set(tables) & set(SOLVED) == set(SOLVED) - {"inputs"}
    page = shown(tmp_path / "llm/solve")
    rows = {row[0]: row for row in cells(page, "llm-systems")}
    assert "Not solved for in this study: S2, the input side." in section(page)
    recovery = next(row for name, row in rows.items() if name.startswith("recovery"))
    assert [text.split()[0] for text in recovery[1:5]] == ["0", "0.500", "–", "1.00"]
    v = re.search(r"Cramér's V = ([\d.]+)", (tmp_path / "llm/solve/summary.txt").read_text())
    assert v
    assert f"Cramér's V = {v[1]}, permutation p = " in section(page)
    p = re.search(r"permutation p = ([\d.]+)", (tmp_path / "llm/solve/summary.txt").read_text())
    assert p
    assert f"permutation p = {p[1]}, 4 facts" in section(page)
    # A linear network is its own linear model, so that all points lie on the diagonal.
    forecast = run.solved["forecasts"]
    told = re.findall(r"<title>(\w+), all: forecast (\S+)\spoints, real (\S+)\spoints</title>", page.text)
    assert len(told) == forecast["run"].nunique() == 3
    assert all(said == real for _, said, real in told)
    assert "0 at the forecast's own step" in section(page)


if __name__ == "__main__":
    study_of_both(Path(sys.argv[1]))
