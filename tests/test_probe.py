"""The probe's tables: complete, resumable, the same for any order and batch size, and right where truth is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_answers import NAMES, concept_set, exact_learner

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.errors import UserError
from diffusion_sft.learner import Query, Reconstruction
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.numerics.quadrature import ESTIMATORS
from diffusion_sft.plan import StudyConfig
from diffusion_sft.planning.counting import network_evaluations
from diffusion_sft.probe import SAMPLE_COLUMNS, SCORE_COLUMNS, ProbeConfig, SampleConfig, picture_samples, probe
from diffusion_sft.probe.config import ReconstructionConfig
from diffusion_sft.probe.run import num_evaluations
from diffusion_sft.probe.scores import own_caption
from diffusion_sft.records import HELDOUT, TRAIN, Concept, ConceptSet, Draws, Example
from diffusion_sft.settings import load_settings

ASKED = AnswerConfig(num_renderings=4, num_candidates=5, num_invented=2, num_draws=8, templates=["a {}", "{} there"])
DRAWN = SampleConfig(num_samples=4, num_inference_steps=2)
CONFIG = ProbeConfig(num_draws=16, batch_size=64, answers=ASKED, samples=DRAWN)


def read_as(concept: str):  # type: ignore[no-untyped-def]
    def read_labels(images: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
        assert len(asked) == len(images)
        assert set(asked) <= set(NAMES)
        return [concept if index % 2 else "" for index in range(len(images))]

    return read_labels


def real_set(tiny_set: Path) -> ConceptSet:
    names = ("blorp", "wug", "dax", "fep")
    files = {f"{HELDOUT}/{name}-{index}.png": name for name in names for index in range(2)}
    examples = [
        Example(id=file, concept=name, caption=f"a photo of a {name}", path=tiny_set / file, split=HELDOUT)
        for file, name in files.items()
    ]
    return ConceptSet(concepts=tuple(Concept(name=n, words=n) for n in names), examples=tuple(examples))


def test_known_concepts_gain_and_unknown_ones_do_not(tmp_path: Path) -> None:
    learner = exact_learner(known=NAMES[:3])
    result = probe(learner, concept_set(), CONFIG, tmp_path, picture_samples(learner, CONFIG, read_as("fep")))
    scores, answers, samples = result.scores, result.answers, result.samples
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert scores.example_id.tolist() == sorted(example.id for example in concept_set().examples)
    known = scores.concept.isin(NAMES[:3])
    assert (scores.gain_nats[known] > scores.gain_se_nats[known]).all()
    assert (scores.gain_nats[~known] == 0).all()
    assert (scores.opinion_nats[~known] == 0).all()
    np.testing.assert_allclose(scores.gap_nats, scores.opinion_nats - scores.gain_nats)
    np.testing.assert_allclose(scores.gain_nats, scores.null_error_nats - scores.error_nats)
    np.testing.assert_allclose(scores.relative_error, scores.error_nats / scores.null_error_nats)
    np.testing.assert_allclose(scores.error_per_dim, scores.error_nats / 8)
    assert ((scores.uniform_mse < scores.uniform_null_mse) == known).all()
    assert answers.groupby("concept").correct.mean().to_dict() == {n: float(n in NAMES[:3]) for n in NAMES}
    # Only what no greedy answer got right is drawn, and each picture's label is what the reader said.
    assert tuple(samples.columns) == SAMPLE_COLUMNS
    assert set(samples.concept) == {"fep", "zorp"}
    assert samples.groupby("concept")["sample"].apply(list).to_dict() == {"fep": [0, 1, 2, 3], "zorp": [0, 1, 2, 3]}
    assert samples.correct.tolist() == [label == c for label, c in zip(samples.answer, samples.concept, strict=True)]
    assert samples[samples.correct].concept.unique().tolist() == ["fep"]
    assert samples.seed.is_unique


def test_tables_are_files_that_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = exact_learner(known=NAMES[:3])
    first = probe(learner, concept_set(), CONFIG, tmp_path)
    assert first.samples.empty
    for name in ("scores", "answers", "samples"):
        stored = pd.read_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(stored, getattr(first, name))
        assert (tmp_path / f"{name}.csv").exists()
    assert not (tmp_path / "parts").exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished probe must not be computed again")

    monkeypatch.setattr(ExactLearner, "surprise", refuse)
    again = probe(learner, concept_set(), replace(CONFIG, batch_size=3), tmp_path)
    pd.testing.assert_frame_equal(again.scores, first.scores)
    with pytest.raises(AssertionError, match="again"):
        probe(learner, concept_set(), replace(CONFIG, seed=1), tmp_path)
    with pytest.raises(AssertionError, match="again"):
        probe(exact_learner(known=NAMES[:2]), concept_set(), CONFIG, tmp_path)
    with pytest.raises(AssertionError, match="again"):
        probe(learner, concept_set(num_examples=2), CONFIG, tmp_path)


def test_a_stopped_probe_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe(exact_learner(known=NAMES[:3]), concept_set(), CONFIG, tmp_path / "whole")
    read: list[str] = []
    surprise = ExactLearner.surprise

    def counting(self: ExactLearner, queries: list[Query], *args: object, **kwargs: object) -> object:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(f"{queries[0].example.concept} {queries[0].stream}")
        return surprise(self, queries, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ExactLearner, "surprise", counting)
        with pytest.raises(KeyboardInterrupt):
            probe(exact_learner(known=NAMES[:3]), concept_set(), CONFIG, tmp_path / "cut")
    assert len(list((tmp_path / "cut" / "parts").rglob("*.parquet"))) == 3
    done = list(read)
    with monkeypatch.context() as patch:
        read.clear()
        patch.setattr(ExactLearner, "surprise", counting)
        resumed = probe(exact_learner(known=NAMES[:3]), concept_set(), CONFIG, tmp_path / "cut")
    assert not set(done) & set(read)
    for name in ("scores", "answers"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(whole, name))


def test_a_real_pipelines_tables_do_not_depend_on_order_or_batch_size(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gains to 1e-3 nats and errors to a relative 1e-5, the rounding of float32 sums; answers exactly."""
    learner, concepts = DiffusionLearner.load(tiny_pipeline), real_set(tiny_set)
    turned = ConceptSet(concepts=concepts.concepts[::-1], examples=concepts.examples[::-1])
    config = replace(CONFIG, num_draws=6, answers=replace(CONFIG.answers, num_renderings=2, num_draws=4))
    first = probe(learner, concepts, config, tmp_path / "first")
    second = probe(learner, turned, replace(config, batch_size=7), tmp_path / "second")
    pd.testing.assert_frame_equal(first.scores, second.scores, rtol=1e-5, atol=1e-3)
    pd.testing.assert_frame_equal(first.answers, second.answers, rtol=1e-5, atol=1e-3)
    assert first.scores.num_dims.unique().tolist() == [256]
    assert (first.scores.null_error_se_nats > 0).all()
    # 8 examples × (∅, caption) × 6 draws, and 8 questions × 5 candidates (∅ among them) × 4 draws.
    assert "256 network evaluations" in capsys.readouterr().err


def test_two_levels_tell_no_standard_error() -> None:
    with pytest.raises(ValueError, match="at least 6"):
        ProbeConfig(num_draws=4)


def test_naive_readings_have_no_opinion(tmp_path: Path) -> None:
    result = probe(exact_learner(known=NAMES), concept_set(), replace(CONFIG, estimator="naive"), tmp_path)
    assert result.scores.opinion_nats.isna().all()
    assert (result.scores.gain_se_nats > 0).all()


def test_evaluations_are_counted_without_repeats() -> None:
    example = concept_set().examples[0]
    assert num_evaluations([Query(example=example, cues=("a", "", "a", "b"))], 8) == 24


def test_sets_without_held_out_examples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = [replace(example, split="train") for example in concept_set().examples]
    bare = ConceptSet(concepts=concept_set().concepts, examples=tuple(examples))
    with pytest.raises(UserError, match="heldout"):
        probe(exact_learner(known=NAMES), bare, CONFIG, tmp_path)
    assert "'wug' has no held-out example" in capsys.readouterr().err


def test_at_most_so_many_examples_are_read(tmp_path: Path) -> None:
    config = replace(CONFIG, max_examples_per_concept=1)
    result = probe(exact_learner(known=NAMES), concept_set(), config, tmp_path)
    assert result.scores.example_id.tolist() == sorted(f"{name}-0" for name in NAMES)
    assert set(result.answers.example_id) == set(result.scores.example_id)


def test_settings_load_and_are_checked() -> None:
    config = load_settings(ProbeConfig, None, ["num_draws=8", "answers.num_candidates=6", "samples.num_samples=0"])
    assert (config.num_draws, config.answers.num_candidates, config.samples.num_samples) == (8, 6, 0)
    for override in ("num_draws=7", "answers.num_draws=3", "estimator=best", "batch_size=0", "error_kind=invert"):
        with pytest.raises(UserError):
            load_settings(ProbeConfig, None, [override])


def test_the_benchmark_compares_all_estimators(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[1] / "scripts" / "bench" / "probe.py"
    spec = importlib.util.spec_from_file_location("bench_probe", script)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_probe", bench)
    spec.loader.exec_module(bench)
    sizes = [
        "--num-examples",
        "2",
        "--num-draws",
        "8",
        "--num-repeats",
        "3",
        "--reference-draws",
        "64",
        "--device",
        "cpu",
    ]
    files = ["--base", str(tiny_pipeline), "--concepts", str(tiny_set), "--output", str(tmp_path / "bench.json")]
    monkeypatch.setattr(sys, "argv", ["probe.py", *files, *sizes])
    bench.main()
    rows = {row["estimator"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert set(rows) == set(ESTIMATORS) == set(bench.WHAT)
    assert rows["default"]["evaluations_for_equal_rmse"] == 1
    assert rows["naive"]["evaluations_for_equal_sd"] > 5
    # A control variate that all cues share moves their errors and leaves their difference alone.
    assert rows["common"]["sd_nats"] == pytest.approx(rows["common_control"]["sd_nats"])


@pytest.mark.parametrize("kind", ["inversion", "sdedit"])
def test_reconstructions_are_measured_beside_and_counted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"error_kind={kind}", "reconstruction.num_inference_steps=10", "reconstruction.num_draws=4"]
    settings += ["num_draws=16", "answers.num_draws=8", "answers.num_renderings=2", "samples.num_samples=0"]
    config = load_settings(ProbeConfig, None, settings)
    learner = exact_learner(known=NAMES[:3])
    plain = probe(learner, concept_set(), replace(config, error_kind="denoise"), tmp_path / "plain").scores
    num_rows = []
    predict = ExactLearner.predict

    def counting(self: ExactLearner, noisy: Any, *args: Any) -> Any:
        num_rows.append(len(noisy))
        return predict(self, noisy, *args)

    monkeypatch.setattr(ExactLearner, "predict", counting)
    scores = probe(learner, concept_set(), config, tmp_path / "probe").scores
    recorded = json.loads((tmp_path / "probe" / "probe.json").read_text())["num_evaluations"]
    assert recorded == sum(num_rows)
    study = StudyConfig(probe=config)
    assert recorded == network_evaluations(study, concept_set())["probe"]
    assert set(plain.error_kind) == {"denoise"}
    measured = [name for name in SCORE_COLUMNS if "reconstruction" in name]
    assert plain[measured].isna().all(axis=None)
    assert np.isfinite(scores[measured]).all(axis=None)
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert set(scores.error_kind) == {kind}
    pd.testing.assert_frame_equal(
        scores.drop(columns=[*measured, "error_kind"]), plain.drop(columns=[*measured, "error_kind"])
    )
    known = scores.concept.isin(NAMES[:3])
    assert (scores.reconstruction_gain[~known] == 0).all()
    assert (scores.reconstruction_gain[known] != 0).all()
    assert ((scores.reconstruction_error_se == 0) == (kind == "inversion")).all()
    read = Reconstruction(kind=kind, num_inference_steps=10, strength=1.0 if kind == "inversion" else 0.8)  # type: ignore[arg-type]
    example = concept_set().examples[4]
    (errors,) = learner.reconstruct([own_caption(example)], read, Draws(seed=0, count=4), batch_size=64)
    row = scores.set_index("example_id").loc[example.id]
    assert row.reconstruction_error == errors[1].mean()
    assert row.null_reconstruction_error == errors[0].mean()
    assert row.reconstruction_gain == pytest.approx((errors[0] - errors[1]).mean())
    assert row.reconstruction_relative == pytest.approx(errors[1].mean() / errors[0].mean())
    if kind == "sdedit":
        assert row.reconstruction_error_se == pytest.approx(errors[1].std(ddof=1) / 2)
        assert row.reconstruction_gain_se == pytest.approx((errors[0] - errors[1]).std(ddof=1) / 2)


def test_only_the_settings_of_the_chosen_error_make_a_probe_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = exact_learner(known=NAMES)
    steps = ReconstructionConfig(num_inference_steps=3)
    plain, inverted = (
        replace(CONFIG, reconstruction=steps),
        replace(CONFIG, reconstruction=steps, error_kind="inversion"),
    )
    probe(learner, concept_set(), plain, tmp_path / "plain")
    probe(learner, concept_set(), inverted, tmp_path / "inverted")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("again")

    monkeypatch.setattr(ExactLearner, "surprise", refuse)
    probe(learner, concept_set(), CONFIG, tmp_path / "plain")
    probe(
        learner, concept_set(), replace(inverted, reconstruction=replace(steps, num_draws=4)), tmp_path / "inverted"
    )
    for changed in (plain, replace(inverted, reconstruction=replace(steps, num_inference_steps=4))):
        with pytest.raises(AssertionError, match="again"):
            probe(learner, concept_set(), changed, tmp_path / "inverted")


@pytest.mark.parametrize(
    "override",
    [
        "reconstruction.num_inference_steps=0",
        "reconstruction.strength=0",
        "reconstruction.strength=1.1",
        "reconstruction.strength=0.01",
        "reconstruction.num_draws=1",
        "error_kind=sdedit reconstruction.num_inference_steps=1",
    ],
)
def test_reconstruction_settings_are_checked(override: str) -> None:
    with pytest.raises(UserError, match=r"num_inference_steps|strength|num_draws"):
        load_settings(ProbeConfig, None, override.split())


def test_pictures_that_are_not_probed_change_nothing_about_a_finished_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, plain = exact_learner(known=NAMES[:3]), concept_set()
    first = probe(learner, plain, CONFIG, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(ExactLearner, "surprise", refuse)
    held_out = plain.split(HELDOUT)
    more = [replace(e, id=f"more-{e.id}", caption="another", split=TRAIN) for e in held_out]
    again = probe(learner, replace(plain, examples=(*plain.examples, *more)), CONFIG, tmp_path)
    pd.testing.assert_frame_equal(first.scores, again.scores)
    other = [replace(e, caption=f"{e.caption} there") for e in held_out]
    with pytest.raises(AssertionError, match="read again"):
        probe(learner, replace(plain, examples=tuple(other)), CONFIG, tmp_path)
