"""Buckets from constructed tables whose labels, confidences and summary are known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from diffusion_sft.buckets import BucketConfig, bucket, write_buckets
from diffusion_sft.buckets.rules import ranking_score
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_table
from diffusion_sft.records import HIGHLY_KNOWN, MAYBE_KNOWN, RULES, UNKNOWN, WEAKLY_KNOWN, Concept, ConceptSet
from diffusion_sft.settings import load_settings

ANSWER_COLUMNS = ["concept", "rendering", "num_candidates", "correct"]
SAMPLE_COLUMNS = ["concept", "rendering", "sample", "correct"]


def scores_of(
    gains: Mapping[str, list[float]], se: float = 0.1, opinion: float = 1.0, null: float = 100.0
) -> pd.DataFrame:
    """Scores with these gains per example; the error is what is left of the null error."""
    rows = [
        {
            "example_id": f"{concept}/{i}.png",
            "concept": concept,
            "split": "heldout",
            "error_nats": null - gain,
            "error_se_nats": se,
            "null_error_nats": null,
            "gain_nats": gain,
            "gain_se_nats": se,
            "opinion_nats": opinion,
            "opinion_se_nats": se,
            "gap_nats": opinion - gain,
            "error_per_dim": (null - gain) / 10,
            "uniform_mse": (null - gain) / 20,
        }
        for concept, values in gains.items()
        for i, gain in enumerate(values)
    ]
    return pd.DataFrame(rows)


def answers_of(right: Mapping[str, int], num_renderings: int = 10) -> pd.DataFrame:
    rows = [(c, i, 10, i < count) for c, count in right.items() for i in range(num_renderings)]
    return pd.DataFrame(rows, columns=ANSWER_COLUMNS)


def samples_of(right: Mapping[str, list[int]], num_samples: int = 4) -> pd.DataFrame:
    """For each rendering the number of right samples."""
    rows = [(c, r, s, s < n) for c, counts in right.items() for r, n in enumerate(counts) for s in range(num_samples)]
    return pd.DataFrame(rows, columns=SAMPLE_COLUMNS)


def table_of(exposures: Mapping[str, int | None], **attributes: str) -> pd.DataFrame:
    concepts = tuple(Concept(name=n, words=n, exposure=e, attributes=attributes) for n, e in exposures.items())
    return ConceptSet(concepts=concepts, examples=()).table()


NO_SAMPLES = pd.DataFrame(columns=SAMPLE_COLUMNS)


def run(gains: Mapping[str, list[float]], right: Mapping[str, int] | None = None, **settings: Any) -> pd.DataFrame:
    right = right or dict.fromkeys(gains, 10)
    result = bucket(
        scores_of(gains), answers_of(right), NO_SAMPLES, table_of(dict.fromkeys(gains)), BucketConfig(**settings)
    )
    return result.concepts.set_index("concept")


def example_tables(seed: int = 0, count: int = 30) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """A set in which exposure raises the gain and the greedy share, with noise."""
    generator = np.random.default_rng(seed)
    exposures = {f"c{i:02}": (0 if i % 3 == 0 else int(10 ** generator.uniform(0, 3.5))) for i in range(count)}
    strength = {name: math.log1p(exposure) for name, exposure in exposures.items()}
    gains = {name: list(generator.normal(value - 2, 2, 5)) for name, value in strength.items()}
    right = {name: int(generator.binomial(10, min(1, value / 8))) for name, value in strength.items()}
    samples = {name: list(generator.integers(0, 2, 10)) for name, number in right.items() if number == 0}
    return scores_of(gains, se=0.5), answers_of(right), samples_of(samples), table_of(exposures, shape="star")


def test_columns_are_the_stated_ones() -> None:
    result = bucket(*example_tables(), BucketConfig())
    assert list(result.concepts.columns) == [
        *["concept", "words", "exposure", "shape", "num_examples", "error_nats", "error_se_nats", "null_error_nats"],
        *["gain_nats", "gain_se_nats", "opinion_nats", "gap_nats", "relative_error", "error_per_dim", "uniform_mse"],
        *["greedy_share", "sampled_share", "category", "category_confidence", "misknown"],
        *["known_error", "known_relative", "known_gain", "known_slick"],
        *["confidence_error", "confidence_relative", "confidence_gain", "confidence_slick", "bucket"],
    ]
    assert all(result.concepts[f"known_{rule}"].dtype == bool for rule in RULES)
    assert result.concepts[[f"confidence_{rule}" for rule in RULES]].to_numpy().min() >= 0
    assert result.concepts[[f"confidence_{rule}" for rule in RULES]].to_numpy().max() <= 1


def test_means_and_standard_errors() -> None:
    concepts = run({"a": [1.0, 3.0, 8.0], "b": [5.0]})
    a = concepts.loc["a"]
    assert (a["num_examples"], a["gain_nats"], a["error_nats"], a["null_error_nats"]) == (3, 4, 96, 100)
    assert a["relative_error"] == pytest.approx(0.96)
    assert (a["error_per_dim"], a["uniform_mse"]) == (pytest.approx(9.6), pytest.approx(4.8))
    assert a["gain_se_nats"] == pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3))
    assert a["gap_nats"] == -3
    assert concepts.loc["b", "gain_se_nats"] == pytest.approx(0.1)


def test_error_and_relative_by_quantile_and_threshold() -> None:
    gains = {"a": [40.0] * 3, "b": [30.0] * 3, "c": [20.0] * 3, "d": [10.0] * 3}
    for rule in ("error", "relative"):
        assert run(gains)[f"known_{rule}"].to_dict() == {"a": True, "b": True, "c": False, "d": False}
        assert run(gains, **{f"{rule}_quantile": 0.25})[f"known_{rule}"].sum() == 1
    assert run(gains, error_threshold=85.0)["known_error"].sum() == 3
    assert run(gains, relative_threshold=0.65)["known_relative"].sum() == 1


def test_error_and_relative_differ_where_images_differ_in_complexity() -> None:
    """A plain image of an unknown concept has the lower error, a busy image of a known one the lower ratio."""
    plain, busy = scores_of({"plain": [0.0] * 4}, null=50), scores_of({"busy": [60.0] * 4}, null=200)
    tables = answers_of({"plain": 0, "busy": 10}), NO_SAMPLES, table_of({"plain": 0, "busy": 500})
    concepts = bucket(pd.concat([plain, busy]), *tables, BucketConfig()).concepts.set_index("concept")
    assert concepts["known_error"].to_dict() == {"plain": True, "busy": False}
    assert concepts["known_relative"].to_dict() == {"plain": False, "busy": True}


def test_gain_is_decided_by_its_interval() -> None:
    concepts = run({"clear": [5.0, 6, 7, 5], "wide": [9.0, -7, 8, -6], "wrong": [-5.0, -6, -7, -5]})
    assert concepts["known_gain"].to_dict() == {"clear": True, "wide": False, "wrong": False}
    assert concepts["bucket"].to_dict() == {"clear": "known", "wide": "unknown", "wrong": "unknown"}


@pytest.mark.parametrize(("mean", "known"), [(2.2, True), (1.7, False)])
def test_single_example_is_decided_by_its_own_error(mean: float, known: bool) -> None:
    """One example with se 1: the 95 % interval excludes 0 from 1.96 on."""
    scores = scores_of({"a": [mean]}, se=1.0)
    config = BucketConfig(num_bootstrap=20_000)
    result = bucket(scores, answers_of({"a": 10}), NO_SAMPLES, table_of({"a": None}), config)
    assert result.concepts["known_gain"].tolist() == [known]
    assert any("fewer than 5 held-out examples of 1 concept" in warning for warning in result.summary["warnings"])


def test_confidence_is_one_for_clear_cases_and_half_at_the_threshold() -> None:
    gains = {"far": [50.0, 51, 49, 50], "low": [-50.0, -51, -49, -50], "edge": [-1.0, 1, -1, 1]}
    concepts = run(gains, error_threshold=100.0, relative_threshold=1.0, num_bootstrap=4000)
    for rule in ("error", "relative", "gain"):
        assert concepts.loc["far", f"confidence_{rule}"] == 1
        assert concepts.loc["low", f"confidence_{rule}"] == 1
    # noise makes ties improbable, so both labels of a concept at the threshold are equally likely
    assert concepts.loc["edge", "confidence_error"] == pytest.approx(0.5, abs=0.05)
    assert concepts.loc["edge", "confidence_relative"] == pytest.approx(0.5, abs=0.05)
    half_width = 1.96 * 0.1
    edge = bucket(
        scores_of({"edge": [half_width]}),
        answers_of({"edge": 10}),
        NO_SAMPLES,
        table_of({"edge": None}),
        BucketConfig(num_bootstrap=20_000),
    )
    assert edge.concepts.loc[0, "confidence_gain"] == pytest.approx(0.5, abs=0.05)


def test_gain_confidence_follows_the_normal_law() -> None:
    """One example with gain g and se s: P(resample above its half-width 1.96 s) = Φ(g/s - 1.96)."""
    gains = {name: [value] for name, value in {"a": 0.25, "b": 0.3, "c": 0.1}.items()}
    concepts = run(gains, num_bootstrap=20_000)
    for name, (gain,) in gains.items():
        above = 0.5 * math.erfc(-(gain / 0.1 - 1.96) / math.sqrt(2))
        expected = above if concepts.loc[name, "known_gain"] else 1 - above
        assert concepts.loc[name, "confidence_gain"] == pytest.approx(expected, abs=0.03)


def test_categories_and_their_confidence_against_simulation() -> None:
    right = {"high": 10, "maybe": 3, "weak": 0, "unknown": 0, "unsampled": 0}
    drawn = {"weak": [0, 3, 0, 0, 1, 0, 0, 0, 0, 0], "unknown": [0] * 10}
    gains = {name: [0.0, 1.0] for name in right}
    tables = answers_of(right), samples_of(drawn), table_of(dict.fromkeys(right))
    result = bucket(scores_of(gains), *tables, BucketConfig(rule="slick"))
    concepts = result.concepts.set_index("concept")
    assert concepts["category"].to_dict() == {
        "high": HIGHLY_KNOWN,
        "maybe": MAYBE_KNOWN,
        "weak": WEAKLY_KNOWN,
        "unknown": UNKNOWN,
        "unsampled": UNKNOWN,
    }
    assert concepts["greedy_share"].tolist() == [1, 0.3, 0, 0, 0]
    assert concepts.loc["weak", "sampled_share"] == pytest.approx(4 / 40)
    assert concepts["sampled_share"].isna().tolist() == [True, True, False, False, True]
    assert concepts["bucket"].tolist() == ["known", "known", "unknown", "unknown", "unknown"]
    assert result.summary["categories"] == {HIGHLY_KNOWN: 1, MAYBE_KNOWN: 1, WEAKLY_KNOWN: 1, UNKNOWN: 2}
    assert any("no sampled reading of 1 concept" in warning for warning in result.summary["warnings"])

    generator = np.random.default_rng(0)
    renderings = generator.integers(0, 10, (200_000, 10))
    maybe = (np.arange(10) < 3)[renderings].mean(axis=1)
    weak = (np.array(drawn["weak"]) > 0)[renderings].any(axis=1)
    assert concepts.loc["maybe", "category_confidence"] == pytest.approx(
        ((maybe > 0) & (maybe < 1)).mean(), abs=0.005
    )
    assert concepts.loc["maybe", "confidence_slick"] == pytest.approx((maybe > 0).mean(), abs=0.005)
    assert concepts.loc["weak", "category_confidence"] == pytest.approx(weak.mean(), abs=0.005)
    assert concepts.loc[["high", "unknown"], "category_confidence"].tolist() == [1, 1]
    assert concepts.loc[["weak", "unknown"], "confidence_slick"].tolist() == [1, 1]


def test_misknown_is_unknown_with_a_strong_wrong_opinion() -> None:
    """Inert level: median opinion of the Unknown concepts whose gain may be 0, here 1 nat."""
    parts = [
        scores_of({"inert1": [0.1, -0.1], "inert2": [0.2, -0.2]}, opinion=1.0),
        scores_of({"wrong": [-20.0, -21], "answered": [-20.0, -21]}, opinion=30.0),
        scores_of({"quiet": [-20.0, -21]}, opinion=1.1),  # not clearly above 1 with a standard error of 0.07
        scores_of({"right": [20.0, 21]}, opinion=30.0),
    ]
    scores = pd.concat(parts)
    names = list(dict.fromkeys(scores["concept"]))
    right = dict.fromkeys(names, 0) | {"answered": 1}
    result = bucket(scores, answers_of(right), NO_SAMPLES, table_of(dict.fromkeys(names)), BucketConfig())
    assert result.concepts.set_index("concept")["misknown"].to_dict() == {n: n == "wrong" for n in names}
    assert result.summary["thresholds"]["inert_opinion_nats"] == 1.0
    assert result.summary["num_misknown"] == 1
    # estimators without a noise shared with ∅ have no opinion
    silent = scores.assign(opinion_nats=np.nan, opinion_se_nats=np.nan, gap_nats=np.nan)
    result = bucket(silent, answers_of(right), NO_SAMPLES, table_of(dict.fromkeys(names)), BucketConfig())
    assert not result.concepts["misknown"].any()
    assert result.concepts["opinion_nats"].isna().all()


def test_order_of_rows_and_other_concepts_change_nothing() -> None:
    scores, answers, samples, table = example_tables()
    config = BucketConfig()
    one = bucket(scores, answers, samples, table, config)
    shuffled = [t.sample(frac=1, random_state=5) for t in (scores, answers, samples)]
    other = bucket(shuffled[0], shuffled[1], shuffled[2], table, config)
    pd.testing.assert_frame_equal(one.concepts, other.concepts, check_exact=True)
    assert one.summary == other.summary
    turned = bucket(scores, answers, samples, table[::-1], config)
    pd.testing.assert_frame_equal(one.concepts[::-1].reset_index(drop=True), turned.concepts, check_exact=True)
    config = BucketConfig(error_threshold=99.0, relative_threshold=0.99)
    whole = bucket(scores, answers, samples, table, config)
    part = bucket(scores[scores["concept"].isin(table["concept"][:7])], answers, samples, table, config)
    columns = ["gain_nats", "confidence_gain", "confidence_error", "confidence_relative", "known_gain"]
    pd.testing.assert_frame_equal(whole.concepts[columns][:7], part.concepts[columns], check_exact=True)
    assert "concepts of the set without scores were left out: 23" in part.summary["warnings"]


def test_other_seed_changes_confidences_only() -> None:
    one, other = (bucket(*example_tables(), BucketConfig(seed=seed)).concepts for seed in (0, 1))
    pd.testing.assert_series_equal(one["gain_se_nats"], other["gain_se_nats"])
    assert not one["confidence_gain"].equals(other["confidence_gain"])
    np.testing.assert_allclose(one["confidence_gain"], other["confidence_gain"], atol=0.15)


def test_summary_against_scikit_learn() -> None:
    scores, answers, samples, table = example_tables(count=90)
    result = bucket(scores, answers, samples, table, BucketConfig())
    concepts, summary = result.concepts, result.summary
    pairs = {(entry["first"], entry["second"]): entry for entry in summary["agreement"]}
    assert len(pairs) == 6
    for (first, second), entry in pairs.items():
        one, other = concepts[f"known_{first}"], concepts[f"known_{second}"]
        assert entry["share"] == pytest.approx((one == other).mean())
        assert entry["kappa"] == pytest.approx(cohen_kappa_score(one, other))
    exposure = concepts["exposure"].astype(int).to_numpy()
    chosen = (exposure >= 200) | (exposure == 0)
    assert summary["exposure"]["num_unseen"] == 30
    for rule in RULES:
        found = summary["exposure"]["auroc"][rule]
        score = ranking_score(concepts, rule, 10)
        assert found["value"] == pytest.approx(roc_auc_score(exposure[chosen] >= 200, score[chosen]))
        assert found["low"] < found["value"] <= found["high"]
        seen = exposure > 0
        ranks = pd.Series(score[seen]).corr(pd.Series(exposure[seen]), method="spearman")
        assert summary["exposure"]["spearman_with_log_exposure"][rule]["value"] == pytest.approx(ranks)
    assert summary["exposure"]["auroc"]["gain"]["value"] > 0.9
    assert summary["buckets"]["known"] == summary["known_by_rule"]["gain"] == concepts["known_gain"].sum()
    assert summary["chance_of_greedy_reading"] == pytest.approx(0.1)
    assert summary["stability"]["gain"]["mean_confidence"] == pytest.approx(concepts["confidence_gain"].mean())


def test_slick_score_breaks_ties_at_zero_by_the_sampled_share() -> None:
    table = pd.DataFrame({"greedy_share": [1, 0.1, 0, 0, 0], "sampled_share": [np.nan, 0.9, 1.0, 0.5, np.nan]})
    score = ranking_score(table, "slick", 10)
    assert (np.diff(score) < 0).all()
    assert score[:2].tolist() == [1, 0.1]


def test_without_exposures_or_without_a_side() -> None:
    result = bucket(*example_tables()[:3], table_of(dict.fromkeys(example_tables()[3]["concept"])), BucketConfig())
    assert result.summary["exposure"] is None
    gains = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    tables = answers_of(dict.fromkeys(gains, 10)), NO_SAMPLES, table_of({"a": 0, "b": 20})
    summary = bucket(scores_of(gains), *tables, BucketConfig()).summary
    assert summary["exposure"]["auroc"]["gain"] == {"value": None, "low": None, "high": None}
    assert "bucket known holds only 2 concepts: figures for it say little beyond these" in summary["warnings"]
    assert "bucket unknown is empty: no mix can draw from it and it has no FID" in summary["warnings"]
    pairs = [(e["first"], e["second"], e["kappa"]) for e in summary["agreement"]]
    assert ("gain", "slick", None) in pairs  # both call everything known: agreement beyond chance is undefined


def test_columns_of_the_set_never_hide_those_of_the_result() -> None:
    gains = {"a": [1.0, 2.0]}
    table = table_of({"a": 3}, category="animal", bucket="red")
    result = bucket(scores_of(gains), answers_of({"a": 10}), NO_SAMPLES, table, BucketConfig())
    row = result.concepts.iloc[0]
    assert (row["attribute_category"], row["attribute_bucket"]) == ("animal", "red")
    assert (row["category"], row["bucket"]) == (HIGHLY_KNOWN, "known")


def test_written_files_are_read_back(tmp_path: Path) -> None:
    result = bucket(*example_tables(), BucketConfig())
    write_buckets(result, tmp_path)
    pd.testing.assert_frame_equal(read_table(tmp_path / "concepts.parquet"), result.concepts, check_dtype=False)
    assert len(pd.read_csv(tmp_path / "concepts.csv")) == 30
    text = (tmp_path / "buckets.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert json.loads(text) == result.summary


def test_only_heldout_rows_count() -> None:
    scores, answers, samples, table = example_tables()
    trained = scores.assign(split="train", gain_nats=1e6, example_id="t" + scores["example_id"])
    one = bucket(scores, answers, samples, table, BucketConfig())
    other = bucket(pd.concat([trained, scores]), answers, samples, table, BucketConfig())
    pd.testing.assert_frame_equal(one.concepts, other.concepts)
    with pytest.raises(UserError, match="no held-out example"):
        bucket(trained, answers, samples, table, BucketConfig())


def test_broken_tables_are_refused() -> None:
    scores, answers, samples, table = example_tables()
    config = BucketConfig()
    with pytest.raises(UserError, match="scores: no column 'gain_nats'"):
        bucket(scores.drop(columns="gain_nats"), answers, samples, table, config)
    with pytest.raises(UserError, match=r"scores: more than one row for \{'concept': 'c00'"):
        bucket(pd.concat([scores, scores]), answers, samples, table, config)
    broken = scores.assign(error_nats=np.where(scores["example_id"] == "c01/0.png", np.nan, scores["error_nats"]))
    with pytest.raises(UserError, match=r"scores: error_nats of c01/0\.png is not finite \(1 such"):
        bucket(broken, answers, samples, table, config)
    with pytest.raises(UserError, match=r"answers: no row for concept 'c03', which has scores \(and 0 more\)"):
        bucket(scores, answers[answers["concept"] != "c03"], samples, table, config)
    with pytest.raises(UserError, match="concept table: no row for concept 'c00'"):
        bucket(scores, answers, samples, table[2:], config)
    with pytest.raises(UserError, match="answers: more than one row"):
        bucket(scores, pd.concat([answers, answers]), samples, table, config)


def test_settings() -> None:
    config = load_settings(BucketConfig, None, ["rule=slick", "error_threshold=12.5"])
    assert (config.rule, config.error_threshold) == ("slick", 12.5)
    for override in ("rule=fid", "gain_confidence=1", "error_quantile=0", "num_bootstrap=3", "seen_at_least=0"):
        with pytest.raises(UserError):
            load_settings(BucketConfig, None, [override])


def reconstructed(gains: Mapping[str, list[float]], se: float = 0.0, kind: str = "inversion") -> pd.DataFrame:
    """Scores whose reconstruction says the opposite of their denoising error."""
    scores = scores_of(gains)
    error = 0.5 + scores["gain_nats"] / 100
    return scores.assign(
        error_kind=kind,
        reconstruction_error=error,
        reconstruction_error_se=se,
        null_reconstruction_error=0.5,
        reconstruction_gain=0.5 - error,
        reconstruction_gain_se=se,
        reconstruction_relative=error / 0.5,
    )


@pytest.mark.parametrize("kind", ["inversion", "sdedit"])
def test_rules_go_by_the_error_that_was_probed_for(kind: str) -> None:
    gains = {"a": [4.0, 5.0, 6.0], "b": [2.0, 3.0, 4.0], "c": [-2.0, -3.0, -2.5], "d": [-6.0, -5.0, -5.5]}
    scores = reconstructed(gains, 0.001 if kind == "sdedit" else 0.0, kind)
    right = dict.fromkeys(gains, 0)
    tables = answers_of(right), NO_SAMPLES, table_of(dict(zip(gains, (900, 400, 0, 0), strict=True)))
    result = bucket(scores, *tables, BucketConfig())
    denoised = bucket(scores.assign(error_kind="denoise"), *tables, BucketConfig())
    concepts = result.concepts.set_index("concept")
    for rule in ("error", "relative", "gain"):
        assert concepts[f"known_{rule}"].to_dict() == {"a": False, "b": False, "c": True, "d": True}, rule
        assert (denoised.concepts[f"known_{rule}"] == ~concepts[f"known_{rule}"].to_numpy()).all(), rule
        assert concepts[f"confidence_{rule}"].min() > 0.5
        assert result.summary["exposure"]["auroc"][rule]["value"] == 0
        assert denoised.summary["exposure"]["auroc"][rule]["value"] == 1
    assert concepts["bucket"].tolist() == ["unknown", "unknown", "known", "known"]
    # Confident and wrong is a matter of nats, whatever the rules go by: of the words' gain and opinion.
    assert concepts["misknown"].tolist() == denoised.concepts["misknown"].tolist() == [False, False, True, True]
    same = [name for name in denoised.concepts.columns if not name.startswith(("known", "confidence", "bucket"))]
    pd.testing.assert_frame_equal(result.concepts[same], denoised.concepts[same])
    a = concepts.loc["a"]
    assert a["reconstruction_error"] == pytest.approx(0.55)
    assert a["reconstruction_gain"] == pytest.approx(-0.05)
    assert a["reconstruction_relative"] == pytest.approx(1.1)
    assert a["reconstruction_error_se"] == pytest.approx(0.01 / math.sqrt(3))
    assert "reconstruction_error" not in denoised.concepts
    assert result.summary["thresholds"].keys() == {
        "reconstruction_error",
        "reconstruction_relative",
        "inert_opinion_nats",
    }
    given = bucket(scores, *tables, BucketConfig(rule="error", error_threshold=0.46)).concepts
    assert given["bucket"].tolist() == ["unknown", "unknown", "unknown", "known"]


def test_scores_of_more_than_one_error_kind_are_refused() -> None:
    scores, right = reconstructed({"a": [1.0, 2.0], "b": [3.0, 4.0]}), {"a": 1, "b": 1}
    tables = answers_of(right), NO_SAMPLES, table_of({"a": None, "b": None})
    for kinds in (["inversion", "denoise"] * 2, ["other"] * 4):
        with pytest.raises(UserError, match="error_kind"):
            bucket(scores.assign(error_kind=kinds), *tables, BucketConfig())
    with pytest.raises(UserError, match="no column 'reconstruction_gain_se'"):
        bucket(scores.drop(columns="reconstruction_gain_se"), *tables, BucketConfig())
    broken = scores.assign(reconstruction_error=[0.1, math.nan, 0.2, 0.3])
    with pytest.raises(UserError, match="reconstruction_error of a/1.png is not finite"):
        bucket(broken, *tables, BucketConfig())
