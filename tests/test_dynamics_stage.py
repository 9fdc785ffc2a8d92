"""The tables of finished runs, by arithmetic on hand-made ones; both learners' have the same columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diffusion_sft.dynamics import DynamicsResult, TunedRun, dynamics_text, summarise_runs
from diffusion_sft.dynamics.agreement import agreement
from diffusion_sft.dynamics.runs import ALL
from diffusion_sft.errors import UserError
from diffusion_sft.finetune import evaluations as finetune_evaluations
from diffusion_sft.finetune import mixes as finetune_mixes
from diffusion_sft.finetune.dynamics import dynamics_points
from diffusion_sft.records import TRAINED, UNTOUCHED
from diffusion_sft.reference import load_reference

Counts = Mapping[tuple[int, str, str], tuple[int, ...]]
PAPER = load_reference()
HALF = {"HighlyKnown": ["a", "b"], "Unknown": ["u", "v"]}


def a_run(
    folder: Path,
    counts: Counts,
    *,
    mix: str = "half",
    seed: int = 0,
    early: int | None = 10,
    concepts: Mapping[str, list[str]] = HALF,
    answers: pd.DataFrame | None = None,
) -> TunedRun:
    """A run's folder. `counts` has, for each update, role and category, (asked, correct) or (asked, correct, answered)."""
    place = folder / f"{mix}-{seed}"
    place.mkdir(parents=True)
    rows = []
    for (update, role, category), (asked, correct, *answered) in counts.items():
        row = {"update": update, "role": role, "category": category, "num_examples": asked, "num_correct": correct}
        row |= {"accuracy": correct / asked, "accuracy_low": 0.0, "accuracy_high": 1.0}
        rows.append(row | {"gain_nats": 0.0, "error_nats": 1.0} | ({"num_answered": answered[0]} if answered else {}))
    pd.DataFrame(rows).to_parquet(place / "evaluations.parquet", index=False)
    summary = {
        "early_stop_update": early,
        "updates": max(update for update, _, _ in counts),
        "converged_update": None,
        "concepts": concepts,
        "examples_per_update": 2,
        "num_examples": 8,
    }
    (place / "finetune.json").write_text(json.dumps(summary), encoding="utf-8")
    if answers is not None:
        answers.to_parquet(place / "answers.parquet", index=False)
    return TunedRun(mix, seed, place)


def trained(points: Mapping[int, tuple[int, int]]) -> dict[tuple[int, str, str], tuple[int, ...]]:
    """Fitted HighlyKnown and Unknown examples of four each, by update."""
    found: dict[tuple[int, str, str], tuple[int, ...]] = {}
    for update, (known, unknown) in points.items():
        found[update, "trained", "HighlyKnown"] = (4, known)
        found[update, "trained", "Unknown"] = (4, unknown)
    return found


def diffusion_runs(folder: Path) -> list[TunedRun]:
    """Three seeds whose untouched accuracy is 8, 7, 7 of 10 at update 10 and 6, 6, 3 of 10 at update 20."""
    runs = []
    for seed, (early, late) in enumerate([(8, 6), (7, 6), (7, 3)]):
        counts = trained({0: (2, 0), 10: (4, 1), 20: (4, 4)})
        counts |= {(0, "untouched", "HighlyKnown"): (5, 5), (0, "untouched", "MaybeKnown"): (5, 2)}
        counts |= {(10, "untouched", "HighlyKnown"): (5, 5), (10, "untouched", "MaybeKnown"): (5, early - 5)}
        counts |= {(20, "untouched", "HighlyKnown"): (5, 3), (20, "untouched", "MaybeKnown"): (5, late - 3)}
        runs.append(a_run(folder, counts, seed=seed))
    return runs


def language_runs(folder: Path) -> list[TunedRun]:
    """A mix at each of five Unknown shares whose accuracies follow the published models exactly, in 1/10000."""
    runs = []
    for unknown in (0, 2, 4, 6, 8):
        counts: dict[tuple[int, str, str], tuple[int, ...]] = {}
        known = 8 - unknown
        for update, part in ((0, 0.0), (10, 0.5), (20, 1.0)):
            fitted = {"HighlyKnown": math.ceil(part * known), "Unknown": math.floor(part**2 * unknown)}
            sizes = {"HighlyKnown": known, "Unknown": unknown}
            counts |= {(update, "trained", name): (size, fitted[name]) for name, size in sizes.items() if size}
            shares = fitted["HighlyKnown"] / 8, fitted["Unknown"] / 8
            for role, (b0, b_known, b_unknown) in {
                "test": (3690, 730, -830),
                "other_relations": (3620, 320, -300),
                "development": (4000, 100, -100),
            }.items():
                right = b0 + b_known * shares[0] + b_unknown * shares[1] + (100 if update == 0 else 0)
                counts[update, role, "HighlyKnown"] = (8000, 2 * round(right / 2), 8000)
                counts[update, role, "Unknown"] = (2000, round(right) - 2 * round(right / 2) + 10, 500)
        concepts = {"HighlyKnown": [f"k{i}" for i in range(known)], "Unknown": [f"u{i}" for i in range(unknown)]}
        runs.append(a_run(folder, counts, mix=f"unknown{100 * unknown // 8}", concepts=concepts))
    return runs


def one(table: pd.DataFrame, **where: object) -> pd.Series:
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_accuracies_at_both_stoppings(tmp_path: Path) -> None:
    result = summarise_runs(diffusion_runs(tmp_path), "diffusion", tmp_path / "out")
    row = one(result.accuracy, seed=0, stopping="early_stop", role="untouched", category="MaybeKnown")
    assert (row["update"], row.num_examples, row.num_correct, row.num_answered, row.accuracy) == (10, 5, 3, 5, 0.6)
    assert (row.unknown_share, row.num_concepts, row.accuracy_answered, row.answered_share) == (0.5, 4, 0.6, 1.0)
    row = one(result.accuracy, seed=2, stopping="convergence", role="untouched", category="Full")
    assert (row["update"], row.num_examples, row.num_correct, row.accuracy) == (20, 10, 3, 0.3)
    assert set(result.accuracy.role) == {"trained", "untouched"}
    # no row for a category that was not asked
    assert set(result.accuracy[result.accuracy.role == "untouched"].category) == {"Full", "HighlyKnown", "MaybeKnown"}


def test_over_seeds_the_interval_is_students_and_the_change_is_paired(tmp_path: Path) -> None:
    result = summarise_runs(diffusion_runs(tmp_path), "diffusion", tmp_path / "out")
    late = one(result.accuracy_by_mix, stopping="convergence", role="untouched", category="Full")
    values, changes = np.array([0.6, 0.6, 0.3]), np.array([-0.2, -0.1, -0.4])
    for found, expected in (
        ((late.accuracy, late.low, late.high), values),
        ((late.change, late.change_low, late.change_high), changes),
    ):
        ends = stats.ttest_1samp(expected, 0.0).confidence_interval(0.95)
        low, high = (ends.low, ends.high) if expected is changes else (max(ends.low, 0.0), ends.high)
        assert found == pytest.approx((expected.mean(), low, high))
    assert (late.num_seeds, late.num_examples, late.num_correct) == (3, 30, 15)
    assert late.interval == "seeds (t, n=3)"
    early = one(result.accuracy_by_mix, stopping="early_stop", role="untouched", category="Full")
    assert math.isnan(early.change)
    # All seeds answer 5 of 5: no spread to see, so the questions of one seed say how sure that is.
    agreeing = one(result.accuracy_by_mix, stopping="early_stop", role="untouched", category="HighlyKnown")
    wilson = stats.binomtest(5, 5).proportion_ci(0.95, method="wilson")
    assert (agreeing.accuracy, agreeing.low, agreeing.high) == pytest.approx((1.0, wilson.low, wilson.high))
    assert agreeing.interval == "questions (Wilson)"


def test_one_seed_has_wilsons_interval_and_answers_are_counted(tmp_path: Path) -> None:
    counts = {
        (10, "trained", "Unknown"): (4, 1, 4),
        (10, "test", "HighlyKnown"): (10, 6, 8),
        (10, "test", "Unknown"): (10, 0, 0),
    }
    run = a_run(tmp_path, counts, mix="unknown", concepts={"HighlyKnown": [], "Unknown": ["u"]})
    result = summarise_runs([run], "llm", tmp_path / "out")
    row = one(result.accuracy_by_mix, stopping="early_stop", role="test", category="HighlyKnown")
    wilson = stats.binomtest(6, 10).proportion_ci(0.95, method="wilson")
    assert (row.accuracy, row.low, row.high) == pytest.approx((0.6, wilson.low, wilson.high))
    assert (row.interval, row.accuracy_answered, row.answered_share) == ("questions (Wilson)", 0.75, 0.8)
    full = one(result.accuracy_by_mix, stopping="convergence", role="test", category="Full")
    assert (full.accuracy, full.accuracy_answered, full.answered_share) == pytest.approx((0.3, 0.75, 0.4))
    assert full.change == 0.0
    assert math.isnan(full.change_low)
    silent = one(result.accuracy, stopping="early_stop", role="test", category="Unknown")
    assert math.isnan(silent.accuracy_answered)
    assert one(result.runs).kind == "Unknown"
    text = dynamics_text(result, PAPER)
    assert "75.0, 40.0" in text
    assert "not run: HighlyKnown, MaybeKnown, WeaklyKnown, Natural" in text
    assert "not asked of test: MaybeKnown, WeaklyKnown" in text


def test_the_update_at_which_half_were_fitted(tmp_path: Path) -> None:
    """Four known examples: right from 0, 0, 10 and 10; four Unknown ones: from 10, 20, never, never."""
    first = {"k0": 0, "k1": 0, "k2": 10, "k3": 10, "u0": 10, "u1": 20, "u2": None, "u3": None}
    rows = [
        {
            "update": update,
            "role": "trained",
            "category": "HighlyKnown" if name[0] == "k" else "Unknown",
            "concept": name,
            "example_id": name,
            "answer": "",
            "correct": at is not None and update >= at and not (name == "k0" and update == 20),
            "answered": True,
            "gain_nats": 0.0,
            "error_nats": 1.0,
        }
        for update in (0, 10, 20)
        for name, at in first.items()
    ]
    counts = trained({0: (2, 0), 10: (4, 1), 20: (3, 2)})
    kept = summarise_runs([a_run(tmp_path / "a", counts, answers=pd.DataFrame(rows))], "llm", tmp_path / "a-out")
    known = one(kept.fit_speed, category="HighlyKnown")
    assert (known.num_examples, known.median_update_to_fit, known.median_passes_to_fit) == (4, 5.0, 1.25)
    assert (known.fitted_share_early_stop, known.fitted_share_convergence) == (1.0, 0.75)
    unknown = one(kept.fit_speed, category="Unknown")
    assert math.isnan(unknown.median_update_to_fit)  # 10, 20, never, never
    assert (unknown.fitted_share_early_stop, unknown.fitted_share_convergence) == (0.25, 0.5)
    assert one(kept.fit_speed, category="Full").median_update_to_fit == 10.0  # 0 0 10 10 | 10 20 never never
    assert set(kept.fit_speed.measured_from) == {"answers"}

    shares = summarise_runs([a_run(tmp_path / "b", counts)], "llm", tmp_path / "b-out")
    assert set(shares.fit_speed.measured_from) == {"shares"}
    same = ["category", "num_examples", "median_update_to_fit", "fitted_share_early_stop", "fitted_share_convergence"]
    pd.testing.assert_frame_equal(shares.fit_speed[same], kept.fit_speed[same])
    assert "half never fitted (1 of 1 seeds)" in dynamics_text(kept, PAPER)


def test_fit_curves_are_means_over_seeds(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path, trained({0: (0, 0), 10: (4, known)}) | {(10, "test", "Unknown"): (4, 0)}, seed=known)
        for known in (1, 2, 4)
    ]
    curves = summarise_runs(runs, "llm", tmp_path / "out").fit_curves
    row = one(curves, category="Unknown", update=10)
    ends = stats.ttest_1samp([0.25, 0.5, 1.0], 0.0).confidence_interval(0.95)
    assert (row.fitted_share, row.num_seeds) == (pytest.approx(7 / 12), 3)
    assert (row.low, row.high) == (max(ends.low, 0.0), 1.0)
    assert one(curves, category="Full", update=10).fitted_share == pytest.approx((5 + 6 + 8) / 24)
    assert list(dict.fromkeys(curves.category)) == ["Full", "HighlyKnown", "Unknown"]


def test_the_linear_model_finds_the_line_that_the_runs_follow(tmp_path: Path) -> None:
    result = summarise_runs(language_runs(tmp_path), "llm", tmp_path / "out")
    expected = {
        "test": (0.369, 0.073, -0.083, 0.442, 0.286),
        "other_relations": (0.362, 0.032, -0.030, 0.394, 0.332),
        "development": (0.4, 0.01, -0.01, 0.41, 0.39),
    }
    assert list(dict.fromkeys(result.linear_model.role)) == list(expected)
    for role, line in expected.items():
        here = result.linear_model[result.linear_model.role == role]
        assert list(here.term) == ["b0", "b_known", "b_unknown", "all_known_fitted", "all_unknown_fitted"]
        offset = np.array([0.001, 0, 0, 0.001, 0.001])  # the ten more right answers of Unknown
        assert here.estimate.to_numpy() == pytest.approx(np.array(line) + offset, abs=3e-4)
        assert (here.low <= here.estimate).all()
        assert (here.num_points == 10).all()  # the base's evaluations, a hundred higher, are left out
        assert (here.num_runs == 5).all()
        assert (here.r2 > 0.98).all()
    signs = agreement(result.linear_model, PAPER)
    assert signs[["role", "term"]].values.tolist() == [
        [role, term] for role in ("test", "other_relations") for term in ("b_known", "b_unknown")
    ]
    assert signs.sign_agrees.all()
    assert signs.excludes_zero.all()
    assert one(signs, role="test", term="b_unknown").published_points == -8.3


def test_the_points_are_those_that_a_run_logs(tmp_path: Path) -> None:
    """For every role, what `dynamics.parquet` of a run holds, without the base's evaluation."""
    runs = [*diffusion_runs(tmp_path), *language_runs(tmp_path)]
    points = summarise_runs(runs, "both", tmp_path / "out").linear_model_points
    for run in runs:
        evaluations = pd.read_parquet(run.folder / "evaluations.parquet")
        for role in set(evaluations.role) - {"trained"}:
            logged = dynamics_points(evaluations, role)
            here = points[(points.mix == run.mix) & (points.seed == run.seed) & (points.role == role)]
            assert here[logged.columns].to_numpy() == pytest.approx(logged[logged["update"] > 0].to_numpy())


def test_runs_on_other_answers_stay_out_of_the_linear_model(tmp_path: Path) -> None:
    runs = language_runs(tmp_path)
    counts = trained({10: (4, 4), 20: (4, 4)}) | {
        (10, "test", "Unknown"): (4, 0, 1),
        (20, "test", "Unknown"): (4, 0, 1),
    }
    relabelled = a_run(tmp_path, counts, mix="relabelled")
    left_out = TunedRun(relabelled.mix, relabelled.seed, relabelled.folder, in_linear_model=False)
    alone = summarise_runs(runs, "llm", tmp_path / "alone")
    together = summarise_runs([*runs, left_out], "llm", tmp_path / "together")
    pd.testing.assert_frame_equal(together.linear_model, alone.linear_model)
    assert "relabelled" in set(together.accuracy_by_mix.mix)
    assert "0.0, 25.0" in dynamics_text(together, PAPER)
    assert (
        one(summarise_runs([*runs, relabelled], "llm", tmp_path / "in").linear_model, role="test", term="b0").num_runs
        == 6
    )


def test_names_are_those_of_the_stage_that_trains() -> None:
    assert (TRAINED, UNTOUCHED) == (finetune_evaluations.TRAINED, finetune_evaluations.UNTOUCHED)
    assert ALL == finetune_mixes.ALL


def test_both_learners_have_the_same_columns_and_files(tmp_path: Path) -> None:
    pictures = summarise_runs(diffusion_runs(tmp_path), "diffusion", tmp_path / "pictures")
    words = summarise_runs(language_runs(tmp_path), "llm", tmp_path / "words")
    for field in fields(DynamicsResult):
        ours, theirs = getattr(pictures, field.name), getattr(words, field.name)
        assert list(ours.columns) == list(theirs.columns), field.name
        assert (ours.dtypes == theirs.dtypes).all(), field.name
        assert set(ours.learner) == {"diffusion"}
        stored = pd.read_parquet(tmp_path / "words" / f"{field.name}.parquet")
        pd.testing.assert_frame_equal(stored, theirs, check_dtype=False)
        assert (tmp_path / "words" / f"{field.name}.csv").is_file()


def test_the_text_keeps_measured_and_published_apart_and_names_what_is_missing(tmp_path: Path) -> None:
    text = dynamics_text(summarise_runs(diffusion_runs(tmp_path), "diffusion", tmp_path / "pictures"), PAPER)
    blocks = text.split("\n\n")
    heading = "published (Gekhman et al., 2024, table 2; PaLM 2, EntityQuestions)"
    assert sum(block.startswith(f"{heading}: ") for block in blocks) == 2
    assert not any("measured" in block and "published" in block for block in blocks if "agreement" not in block)
    assert "not run: HighlyKnown, MaybeKnown, WeaklyKnown, Unknown, Natural" in text
    assert "not asked: test, other_relations" in text
    assert "untouched (beside in_distribution), b_unknown: not estimated" in text  # two points in (4, 1) and (4, 4)
    published = next(block for block in blocks if block.startswith(f"{heading}: early"))
    assert published.splitlines()[2].split() == ["HighlyKnown", "40.5", "98.7", "60.1", "9.0", "0.6"]
    mixes = next(block for block in blocks if block.startswith("measured: by the Unknown share"))
    row = mixes.splitlines()[2]
    assert row.split()[:2] == ["50.0", "half"]
    assert "73.3 [" in row
    assert "-23.3 [" in row

    words = dynamics_text(summarise_runs(language_runs(tmp_path), "llm", tmp_path / "words"), PAPER)
    assert "test (beside in_distribution), b_unknown: sign agrees, its interval excludes 0" in words
    assert "other_relations (beside out_of_distribution), b_known: sign agrees" in words
    assert "Unknown (mix unknown100)" in words
    assert "HighlyKnown (mix unknown0)" in words
    assert "not run: MaybeKnown, WeaklyKnown, Natural" in words
    assert "not asked: " not in words.replace("not asked of test", "")


def test_a_run_without_early_stop_or_categories_has_what_it_has(tmp_path: Path) -> None:
    counts = {(10, "trained", "all"): (4, 1), (20, "trained", "all"): (4, 4), (20, "heldout", "all"): (4, 2)}
    run = a_run(tmp_path, counts, mix="natural", early=None, concepts={"all": ["a", "b"]})
    result = summarise_runs([run], "diffusion", tmp_path / "out")
    assert set(result.accuracy.stopping) == {"convergence"}
    assert set(result.accuracy.category) == {"Full"}
    row = one(result.accuracy_by_mix, role="heldout")
    assert row.accuracy == 0.5
    assert math.isnan(row.unknown_share)
    assert math.isnan(row.change)
    speed = one(result.fit_speed)
    assert math.isnan(speed.fitted_share_early_stop)
    assert (speed.median_update_to_fit, speed.fitted_share_convergence) == (20.0, 1.0)
    assert result.linear_model.empty
    assert one(result.runs).kind == "Natural"
    text = dynamics_text(result, PAPER)
    assert "no early stop: natural" in text
    assert "not run: HighlyKnown, MaybeKnown, WeaklyKnown, Unknown" in text
    assert "none: no role with a published counterpart" in text


def test_files_that_lack_something_are_named(tmp_path: Path) -> None:
    good = a_run(tmp_path, trained({0: (0, 0), 10: (4, 4)}))
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no fine-tuning runs"):
        summarise_runs([], "llm", out)
    with pytest.raises(UserError, match="mix half, seed 0: given twice"):
        summarise_runs([good, good], "llm", out)
    with pytest.raises(UserError, match=r"finetune\.json: no such file"):
        summarise_runs([TunedRun("m", 0, tmp_path / "absent")], "llm", out)
    early = a_run(tmp_path, trained({0: (0, 0), 20: (4, 4)}), seed=1)
    with pytest.raises(UserError, match="no evaluation at update 10, where the early stop is"):
        summarise_runs([early], "llm", out)
    table = pd.read_parquet(good.folder / "evaluations.parquet")
    for broken, message in (
        (table.drop(columns="role"), "no column role"),
        (table.iloc[:0], "nothing was evaluated"),
        (pd.concat([table, table]), "stands in it twice"),
    ):
        broken.to_parquet(good.folder / "evaluations.parquet", index=False)
        with pytest.raises(UserError, match=message):
            summarise_runs([good], "llm", out)
    (good.folder / "finetune.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no early_stop_update, converged_update, concepts"):
        summarise_runs([good], "llm", out)
