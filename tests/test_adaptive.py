"""Adaptive probing: the labels of the whole budget for fewer evaluations, the same numbers wherever all draws are read."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_answers import NAMES, concept_set, exact_learner

from diffusion_sft.answers import AnswerConfig, judge, make_questions
from diffusion_sft.errors import UserError
from diffusion_sft.learner import NULL_CUE, Query, Question, Reading
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.probe import (
    AdaptiveConfig,
    LanguageProbeConfig,
    ProbeConfig,
    SampleConfig,
    Sampling,
    adaptive,
    picture_samples,
    probe,
    text_samples,
)
from diffusion_sft.probe.adaptive import adaptive_answers, adaptive_readings
from diffusion_sft.probe.config import LanguageSampleConfig
from diffusion_sft.probe.scores import own_caption
from diffusion_sft.records import Draws, Example
from diffusion_sft.settings import load_settings

ASKED = AnswerConfig(num_renderings=6, num_candidates=5, num_invented=2, num_draws=16, templates=["a {}", "{} there"])
WHOLE = ProbeConfig(
    num_draws=32, batch_size=64, answers=ASKED, samples=SampleConfig(num_samples=8, num_inference_steps=2)
)
ADAPTIVE = replace(WHOLE, adaptive=AdaptiveConfig(enabled=True))


def never(images: Sequence[np.ndarray], asked: Sequence[str]) -> list[str]:
    return [""] * len(images)


# --- parts of a reading are parts of the whole ---


@pytest.mark.parametrize("estimator", ["default", "classifier", "naive"])
def test_chosen_draws_are_columns_of_the_whole_reading(estimator: str) -> None:
    learner, example = exact_learner(known=NAMES[:3]), concept_set().examples[0]
    whole_query = Query(example=example, cues=("a wug", "a blorp", "a fep"), stream="s")
    draws = Draws(seed=0, count=16, estimator=estimator)
    (whole,) = learner.surprise([whole_query], draws, batch_size=7)
    chosen = (2, 3, 10, 11)
    (part,) = learner.surprise(
        [replace(whole_query, cues=("a fep", "a wug"))], replace(draws, chosen=chosen), batch_size=64
    )
    for name in ("squared_error", "weights", "uniform_weights", "control", "uniform_control", "opinion", "log_snr"):
        expected = getattr(whole, name)[[0, 3, 1]][:, list(chosen)]
        np.testing.assert_array_equal(getattr(part, name), expected)


def test_a_real_pipelines_draws_do_not_depend_on_their_company(tiny_pipeline: Path, tiny_set: Path) -> None:
    learner = DiffusionLearner.load(tiny_pipeline)
    file = "heldout/wug-0.png"
    example = Example(id=file, concept="wug", caption="a wug", path=tiny_set / file, split="heldout")
    query, draws = Query(example=example, cues=("a wug", "a dax")), Draws(seed=0, count=8)
    (whole,) = learner.surprise([query], draws, batch_size=5)
    (part,) = learner.surprise([query], replace(draws, chosen=(4, 5)), batch_size=64)
    assert (part.weights == whole.weights[:, 4:6]).all()
    np.testing.assert_allclose(part.squared_error, whole.squared_error[:, 4:6], rtol=1e-5)
    # The last bits are those of the batch, where it is the same one.
    (whole,), (part,) = (
        learner.surprise([query], some, batch_size=1) for some in (draws, replace(draws, chosen=(4, 5)))
    )
    np.testing.assert_array_equal(part.squared_error, whole.squared_error[:, 4:6])


# --- against the whole budget ---


@lru_cache
def both_probes(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    learner = exact_learner(known=NAMES[:3])
    whole = probe(learner, concept_set(), WHOLE, folder / "whole", picture_samples(learner, WHOLE, never))
    settled = probe(learner, concept_set(), ADAPTIVE, folder / "adaptive", picture_samples(learner, ADAPTIVE, never))
    return whole, settled, json.loads((folder / "adaptive" / "probe.json").read_text())


@pytest.fixture
def probes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any]]:
    return both_probes(tmp_path_factory.getbasetemp() / "adaptive")


def test_known_and_unknown_concepts_are_told_apart_for_less(probes: tuple[Any, Any, dict[str, Any]]) -> None:
    whole, settled, record = probes
    assert settled.answers.columns.tolist() == whole.answers.columns.tolist()
    assert settled.scores.columns.tolist() == whole.scores.columns.tolist()
    shares = settled.answers.groupby("concept").correct.mean()
    assert shares.to_dict() == whole.answers.groupby("concept").correct.mean().to_dict()
    assert len(settled.answers) == len(whole.answers)  # all renderings are asked
    assert ((settled.scores.gain_nats > 0) == (whole.scores.gain_nats > 0)).all()
    assert (settled.scores.num_draws < 32).any()
    assert (whole.scores.num_draws == 32).all()
    assert (whole.answers.num_draws == 16).all()
    assert (whole.answers.num_evaluations == 16 * 5).all()
    assert record["num_evaluations_of_budget"] > 2 * record["num_evaluations"]
    # Inert words: nothing is to be found out after the first level.
    assert set(settled.answers[settled.answers.concept.isin(NAMES[3:])].num_draws) == {2}


def test_a_probe_that_settles_nothing_is_the_whole_one_to_the_last_bit(
    probes: tuple[Any, Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = probes
    monkeypatch.setattr(adaptive, "gain_is_settled", lambda *_, **__: False)
    monkeypatch.setattr(adaptive, "category_is_settled", lambda *_: False)
    monkeypatch.setattr(adaptive, "chance_of_winning", lambda wins: 0.5)
    monkeypatch.setattr(adaptive, "needed_rivals", lambda wins, *_: np.arange(len(wins)))
    learner = exact_learner(known=NAMES[:3])
    found = probe(learner, concept_set(), ADAPTIVE, tmp_path, picture_samples(learner, ADAPTIVE, never))
    for name in ("scores", "answers", "samples"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(whole, name), check_exact=True)
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["num_evaluations"] == record["num_evaluations_of_budget"]


def test_evaluations_are_counted_as_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    predict = ExactLearner.predict

    def counting(self: ExactLearner, noisy: Any, *args: Any) -> Any:
        rows.append(len(noisy))
        return predict(self, noisy, *args)

    monkeypatch.setattr(ExactLearner, "predict", counting)
    probe(exact_learner(known=NAMES[:3]), concept_set(), ADAPTIVE, tmp_path)
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["num_evaluations"] == sum(rows)
    assert record["num_evaluations_of_budget"] == 15 * 2 * 32 + 30 * 5 * 16
    assert sum(found["used"] for found in record["adaptive"].values()) == sum(rows)


def test_nothing_depends_on_batches_or_company(probes: tuple[Any, Any, dict[str, Any]]) -> None:
    _, settled, _ = probes
    learner = exact_learner(known=NAMES[:3])
    questions = make_questions(concept_set(), concept_set().examples, ASKED, 0)
    for concept in NAMES:
        own = [question for question in questions if question.concept == concept]
        alone = adaptive_answers(learner, own, replace(ADAPTIVE, batch_size=7))
        expected = settled.answers[settled.answers.concept == concept].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected, check_exact=True)
    queries = [own_caption(example) for example in concept_set().examples]
    (together, apart) = (adaptive_readings(learner, some, ADAPTIVE) for some in (queries, queries[::-1]))
    for one, other in zip(together, apart[::-1], strict=True):
        np.testing.assert_array_equal(one.error_nats, other.error_nats)


def test_a_stopped_adaptive_probe_goes_on_where_it_was(
    probes: tuple[Any, Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settled, record = probes
    monkeypatch.setattr(ProbeConfig, "concepts_per_part", 2)
    calls = 0
    surprise = ExactLearner.surprise

    def failing(self: ExactLearner, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return surprise(self, *args, **kwargs)

    learner = exact_learner(known=NAMES[:3])
    sampling = picture_samples(learner, ADAPTIVE, never)
    monkeypatch.setattr(ExactLearner, "surprise", failing)
    with pytest.raises(KeyboardInterrupt):
        probe(learner, concept_set(), ADAPTIVE, tmp_path, sampling)
    assert list((tmp_path / "parts").rglob("*.parquet"))
    resumed = probe(learner, concept_set(), ADAPTIVE, tmp_path, sampling)
    for name in ("scores", "answers", "samples"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(settled, name), check_exact=True)
    assert json.loads((tmp_path / "probe.json").read_text())["num_evaluations"] == record["num_evaluations"]


# --- how often it is wrong, where it can be ---


class Simulated:
    """Readings by the law that `settling` assumes: residuals of the noise, and what each candidate's words move."""

    num_dims = 48

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        return [self._read(query, list(draws.numbers), draws.count) for query in queries]

    def _read(self, query: Query, numbers: list[int], count: int) -> Reading:
        generator = np.random.default_rng([self.seed, int(query.example.id)])
        size = generator.choice([0.03, 0.1, 0.3])  # inert to outspoken words
        moved = {f"c{place}": size * generator.normal(size=self.num_dims) for place in range(6)}
        moved[NULL_CUE] = np.zeros(self.num_dims)
        lean = generator.choice([0.0, 0.5, 1.0])  # how much of the true words' move is called for
        residual = lean * moved["c5"] + 0.5 * generator.normal(size=(count // 2, self.num_dims))
        residual = np.repeat(residual, 2, axis=0)[numbers]
        rows = np.stack([moved[cue] for cue in (NULL_CUE, *query.cues)])
        squared = ((residual[None] - rows[:, None]) ** 2).sum(axis=2)
        weights, zeros = np.full_like(squared, 3.0), np.zeros_like(squared)
        opinion = np.repeat((rows**2).sum(axis=1)[:, None], len(numbers), axis=1)
        return Reading(
            squared_error=squared,
            weights=weights,
            uniform_weights=weights,
            control=zeros,
            uniform_control=zeros,
            opinion=opinion,
            log_snr=zeros,
            num_dims=self.num_dims,
        )


def simulated_questions(num_concepts: int, num_renderings: int) -> list[Question]:
    candidates = (NULL_CUE, *(f"c{place}" for place in range(6)))
    return [
        Question(
            concept=f"concept {number}",
            words="c5",
            rendering=rendering,
            template="{}",
            example=Example(
                id=str(100 * number + rendering), concept=f"concept {number}", caption="", split="heldout"
            ),
            candidates=candidates,
            num_candidates=len(candidates),
        )
        for number in range(num_concepts)
        for rendering in range(num_renderings)
    ]


def categories(concepts: pd.Series, correct: np.ndarray) -> np.ndarray:
    shares = pd.Series(correct).groupby(concepts.to_numpy(), sort=False).mean()
    return np.select([shares == 1, shares > 0], ["all", "some"], "none")


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_no_more_categories_are_wrong_than_are_allowed(confidence: float) -> None:
    learner, questions = Simulated(seed=5), simulated_questions(num_concepts=300, num_renderings=3)
    config = replace(ADAPTIVE, adaptive=AdaptiveConfig(enabled=True, confidence=confidence))
    draws = Draws(seed=0, count=16)
    whole = judge(questions, learner.surprise([q.query for q in questions], draws, batch_size=1))
    settled = adaptive_answers(learner, questions, config)  # type: ignore[arg-type]
    expected = categories(settled.concept, np.array([answer.correct for answer in whole]))
    wrong = (categories(settled.concept, settled.correct.to_numpy()) != expected).mean()
    assert len(set(expected)) == 3
    assert wrong <= 1 - confidence
    assert settled.num_evaluations.sum() < 0.7 * 16 * 7 * len(questions)
    assert (settled.num_draws == 16).any()


def test_candidates_that_cannot_win_are_read_no_more() -> None:
    learner, questions = Simulated(seed=6), simulated_questions(40, 3)
    settled = adaptive_answers(learner, questions, ADAPTIVE)  # type: ignore[arg-type]
    ended = settled[settled.num_draws == 16]
    # What was read to the end is what the whole budget reads.
    readings = learner.surprise([q.query for q in questions], Draws(seed=0, count=16), batch_size=1)
    whole = [judge(questions, readings)[place] for place in ended.index]
    assert ended.true_gain_nats.tolist() == [answer.true_gain_nats for answer in whole]
    assert ended.answer.tolist() == [answer.text for answer in whole]
    assert (ended.num_evaluations <= 16 * 7).all()
    assert (ended.num_evaluations < 16 * 7).any()


# --- samples ---


def test_samples_end_with_the_quarter_that_holds_a_right_one(tmp_path: Path) -> None:
    learner = exact_learner(known=NAMES[:3])
    asked: list[str] = []

    def third_time(images: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        """Names the concept fep right from its third picture on."""
        labels = []
        for name in names:
            asked.append(name)
            labels.append(name if name == "fep" and asked.count("fep") >= 3 else "")
        return labels

    sampling = picture_samples(learner, ADAPTIVE, third_time)
    samples = probe(learner, concept_set(), ADAPTIVE, tmp_path, sampling).samples
    assert samples.groupby("concept")["sample"].apply(list).to_dict() == {"fep": [0, 1, 2, 3], "zorp": list(range(8))}
    assert samples.groupby("concept").correct.sum().to_dict() == {"fep": 2, "zorp": 0}
    stages = json.loads((tmp_path / "probe.json").read_text())["adaptive"]["samples"]
    assert stages == {"used": 12 * 2 * 2, "budget": 16 * 2 * 2}


def test_sampled_texts_end_with_the_rendering_that_holds_a_right_one() -> None:
    class Speaker:
        asked: list[tuple[str, int]] = []

        def sample(
            self, questions: Sequence[Question], *, num_samples: int, **_: object
        ) -> list[list[tuple[str, bool]]]:
            self.asked += [(question.concept, question.rendering) for question in questions]
            right = [(q.concept, q.rendering) == ("concept 0", 1) for q in questions]
            return [[("text", one and number == 1) for number in range(num_samples)] for one in right]

    samples = LanguageSampleConfig(num_samples=6)
    config = LanguageProbeConfig(
        samples=samples, answers=AnswerConfig(num_renderings=3, num_draws=1), adaptive=AdaptiveConfig(enabled=True)
    )
    speaker, questions = Speaker(), simulated_questions(num_concepts=2, num_renderings=3)
    sampling: Sampling = text_samples(speaker, config)
    drawn = sampling.draw(questions)
    assert speaker.asked == [("concept 0", 0), ("concept 1", 0), ("concept 0", 1), ("concept 1", 1), ("concept 1", 2)]
    assert drawn.groupby("concept").size().to_dict() == {"concept 0": 4, "concept 1": 6}
    whole = text_samples(Speaker(), replace(config, adaptive=AdaptiveConfig())).draw(questions)
    together = whole.merge(drawn, how="inner")
    assert len(together) == len(drawn)


# --- settings ---


def test_settings_are_checked() -> None:
    config = load_settings(ProbeConfig, None, ["adaptive.enabled=true", "adaptive.confidence=0.9"])
    assert config.adaptive == AdaptiveConfig(enabled=True, confidence=0.9)
    for override in ("adaptive.confidence=1", "adaptive.confidence=0.5"):
        with pytest.raises(UserError, match="confidence"):
            load_settings(ProbeConfig, None, [override])
    with pytest.raises(UserError, match="common noise"):
        load_settings(ProbeConfig, None, ["adaptive.enabled=true", "estimator=naive"])


def test_a_setting_that_is_off_makes_no_probe_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = exact_learner(known=NAMES[:3])
    probe(learner, concept_set(), WHOLE, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("again")

    monkeypatch.setattr(ExactLearner, "surprise", refuse)
    probe(learner, concept_set(), replace(WHOLE, adaptive=AdaptiveConfig(confidence=0.9)), tmp_path)
    with pytest.raises(AssertionError, match="again"):
        probe(learner, concept_set(), ADAPTIVE, tmp_path)


@pytest.mark.slow
def test_the_benchmark_compares_three_probes(
    tiny_pipeline: Path,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Path(__file__).parents[1] / "scripts" / "bench" / "adaptive.py"
    spec = importlib.util.spec_from_file_location("bench_adaptive", script)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_adaptive", bench)
    spec.loader.exec_module(bench)
    sizes = ["probe.num_draws=6", "probe.answers.num_draws=6", "probe.answers.num_renderings=2"]
    sizes += ["probe.samples.num_samples=4", "probe.samples.num_inference_steps=1"]
    files = ["--base", str(tiny_pipeline), "--concepts", str(tiny_set), "--folder", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["adaptive.py", *sizes, *files, "--output", str(tmp_path / "bench.json")])
    bench.main()
    report = json.loads((tmp_path / "bench.json").read_text())
    assert set(report["evaluations"]) == {"scores", "answers", "samples", "all"}
    assert report["evaluations"]["all"]["used"] <= report["evaluations"]["all"]["budget"]
    for agreement in report["agreement"].values():
        assert set(agreement) == set(bench.LABELS)
        assert all(0 <= share["value"] <= 1 for share in agreement.values())
    differing = {one["label"] for one in report["disagreeing"]}
    assert differing == {name for name, share in report["agreement"]["adaptive"].items() if share["value"] < 1}
    assert "times fewer" in capsys.readouterr().out
