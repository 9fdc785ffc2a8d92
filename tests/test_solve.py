"""The solve stage on a linear network, where solution classes, steps, side effects and forecasts are known beforehand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from linear_systems import LinearNetwork, concept_set_of

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.files import read_json, read_table
from diffusion_sft.learner import Question
from diffusion_sft.records import HIGHLY_KNOWN, MAYBE_KNOWN, TRAIN, UNKNOWN, ConceptSet, Draws, Example
from diffusion_sft.solve.choose import choose, questions_of, shuffled
from diffusion_sft.solve.config import GenerationConfig, TextSolveConfig, TextWeightsConfig
from diffusion_sft.solve.forecast import forecast_run, rank_correlations
from diffusion_sft.solve.generation import MANY, NONE, ONE, effective_answers, residual_profile, slope, solution_class
from diffusion_sft.solve.run import Task, solve
from diffusion_sft.solve.weights import SHUFFLED, EquationSet, KnownSide, solve_examples, solve_sets
from diffusion_sft.systems import ForecastRun

SIZE = 8
"""Weights: the first of them is what the base knows by."""
WEIGHTS = TextWeightsConfig(examples_per_category=2, num_known=2, num_steps=8, forecast_steps=[1, 8])


def unit(place: int, value: float = 1.0) -> np.ndarray:
    vector = np.zeros(SIZE)
    vector[place] = value
    return vector


@pytest.fixture
def network() -> LinearNetwork:
    # θ0 = 2 e_0. Known concepts lean on e_0 with 1, so that they are right in every rendering; wavering ones with 1/4,
    # so that the second rendering, which takes 1/2 of e_0 away, is wrong; unknown ones do not lean on it at all, and
    # the renderings leave them at or below zero.
    features = {
        "known-a": unit(0),
        "known-b": unit(0) + unit(1),
        "known-c": unit(0) + unit(2),
        "known-d": unit(0) + unit(3),
        "waver-a": unit(0, 0.25) + unit(4),
        "waver-b": unit(0, 0.25) + unit(5),
        "apart": unit(6),
        "alike": unit(0, -0.5) + unit(7),
    }
    return LinearNetwork(features, unit(0, 2.0), np.stack([unit(0, 0.0), unit(0, -0.5)]))


@pytest.fixture
def labels() -> pd.DataFrame:
    categories = {"known": HIGHLY_KNOWN, "waver": MAYBE_KNOWN}
    names = ["known-a", "known-b", "known-c", "known-d", "waver-a", "waver-b", "apart", "alike"]
    return pd.DataFrame({"concept": names, "category": [categories.get(n.split("-")[0], UNKNOWN) for n in names]})


@pytest.fixture
def concept_set(labels: pd.DataFrame) -> ConceptSet:
    return concept_set_of(labels.concept.tolist())


def config(**changes: object) -> TextSolveConfig:
    return TextSolveConfig(
        concepts_per_category=None,
        generation=GenerationConfig(num_renderings=4, num_starts=2),
        weights=WEIGHTS,
        num_permutations=999,
        **changes,  # type: ignore[arg-type]
    )


def examples_of(concept_set: ConceptSet, *names: str) -> tuple[Example, ...]:
    return tuple(example for name in names for example in concept_set.only([name]).split(TRAIN))


def test_planted_solution_classes_and_all_tables(
    network: LinearNetwork, labels: pd.DataFrame, concept_set: ConceptSet, tmp_path: Path
) -> None:
    task = Task(learner="llm", concept_set=concept_set, labels=labels, answers=AnswerConfig())
    tables = solve(network.systems(), task, config(), tmp_path, concepts_per_part=3)
    classes = tables["classes"].set_index("concept").solution_class
    assert {name: classes[name] for name in labels.concept} == {
        **dict.fromkeys(["known-a", "known-b", "known-c", "known-d"], ONE),
        **dict.fromkeys(["waver-a", "waver-b"], MANY),
        **dict.fromkeys(["apart", "alike"], NONE),
    }
    text = (tmp_path / "summary.txt").read_text()
    assert "Cramér's V = 1.00" in text  # category and class are one to one here
    systems = tables["systems"]
    assert not systems.duplicated(["learner", "concept", "measure"]).any()
    waver = systems[(systems.concept == "waver-a")].set_index("measure").value
    assert waver["share_correct"] == 0.5
    assert waver["recovery"] == 0.5
    assert waver["effective_answers"] == pytest.approx(2.0)
    assert waver["solved_per_round"] == 2.0
    means = tables["categories"].set_index(["measure", "category"]).value
    assert means["recovery", HIGHLY_KNOWN] == 0.0
    assert means["recovery", UNKNOWN] == 1.0


def test_finished_work_is_read_back_and_other_settings_are_solved_anew(
    network: LinearNetwork, labels: pd.DataFrame, concept_set: ConceptSet, tmp_path: Path
) -> None:
    task = Task(learner="llm", concept_set=concept_set, labels=labels, answers=AnswerConfig())
    first = solve(network.systems(), task, config(), tmp_path, concepts_per_part=3)
    key = read_json(tmp_path / "solve.json")["key"]

    def forbidden(examples: object) -> None:
        raise AssertionError("solved again")

    systems = network.systems()
    again = solve(
        type(systems)(identity=systems.identity, generations=forbidden, weights=None),  # type: ignore[arg-type]
        task,
        config(),
        tmp_path,
        concepts_per_part=1,
    )
    pd.testing.assert_frame_equal(again["systems"], first["systems"])
    assert not (tmp_path / "parts").exists()
    solve(network.systems(), task, config(seed=1), tmp_path, concepts_per_part=3)
    assert read_json(tmp_path / "solve.json")["key"] != key
    assert set(read_table(tmp_path / "systems.parquet").concept) == set(labels.concept)


def test_planted_interference(network: LinearNetwork, concept_set: ConceptSet) -> None:
    weights = network.systems().weights
    assert weights is not None
    known = KnownSide(weights=weights, examples=examples_of(concept_set, "known-a"), num_steps=8)  # J_K = e_0
    names = ("apart", "alike")
    sets = [EquationSet(concept=name, examples=examples_of(concept_set, name)) for name in names]
    singles = solve_examples(weights, known, sets, WEIGHTS).set_index("concept")
    # apart: orthogonal to what is known. alike: −e_0/2 + e_7, of whose square 1/4 of 5/4 lies along e_0.
    assert singles.solvable_share["apart"] == pytest.approx(1.0)
    assert singles.solvable_share["alike"] == pytest.approx(math.sqrt(1 / 1.25))
    together = solve_sets(weights, known, sets, WEIGHTS).set_index("concept")
    assert together.side_effect["apart"] == pytest.approx(0.0, abs=1e-12)
    # alike: f0 = −1, r = 2, δ = r x / ‖x‖², so that e_0 · δ = −2 · 0.5 / 1.25 = −0.8, beside x · δ = 2.
    assert together.side_effect["alike"] == pytest.approx(0.4)
    assert together.known_shift["alike"] == pytest.approx(-0.8)
    assert together.solution_norm["alike"] == pytest.approx(2 / math.sqrt(1.25))
    # μ = 1: min (x·δ − 2)² + (δ_0)²; in e_0 and e_7 the normal equations give δ_7 = 2 and δ_0 = 0.
    assert together.constrained_residual["alike"] == pytest.approx(0.0, abs=1e-9)
    assert together.constrained_side_effect["alike"] == pytest.approx(0.0, abs=1e-9)


def test_sets_of_known_examples_leave_nothing_and_their_shuffled_twins_do(
    network: LinearNetwork, concept_set: ConceptSet
) -> None:
    own = examples_of(concept_set, "known-a", "known-b")
    sets = [EquationSet(concept=HIGHLY_KNOWN, examples=own), EquationSet(concept=SHUFFLED, examples=shuffled(own))]
    weights = network.systems().weights
    assert weights is not None
    found = solve_sets(weights, KnownSide(weights=weights, examples=(), num_steps=8), sets, WEIGHTS).set_index(
        "concept"
    )
    assert found.rhs_norm[HIGHLY_KNOWN] == 0.0
    assert math.isnan(found.residual_10[HIGHLY_KNOWN])
    # Shuffled, both should say −1 and say 2: r = −3 each, solved by δ = −3 e_0 alone.
    assert found.rhs_norm[SHUFFLED] == pytest.approx(3 * math.sqrt(2))
    assert found.solution_norm[SHUFFLED] == pytest.approx(3.0)
    assert found.residual_10[SHUFFLED] == pytest.approx(0.0, abs=1e-9)


def tuned_run(
    network: LinearNetwork, concept_set: ConceptSet, labels: pd.DataFrame, name: str, trained: tuple[str, ...]
) -> ForecastRun:
    """Gradient descent on the squared error of a linear model until it has converged: the real thing."""
    examples = examples_of(concept_set, *trained)
    matrix = network.matrix(trained)
    weights = torch.from_numpy(network.weights).clone()
    wanted = torch.maximum(matrix @ weights, torch.ones(len(trained)).double())
    for _ in range(20000):
        weights -= 0.05 * matrix.T @ (matrix @ weights - wanted)
    questions = {"untouched": questions_of(concept_set, labels.concept.tolist(), 1, AnswerConfig(), 0)}
    categories = dict(zip(labels.concept, labels.category, strict=True))
    rows = []
    for update, theta in ((0, torch.from_numpy(network.weights)), (9, weights)):
        values = network.matrix([q.concept for q in questions["untouched"]]) @ theta
        for category in dict.fromkeys(labels.category):
            places = [p for p, q in enumerate(questions["untouched"]) if categories[q.concept] == category]
            own = values[places]
            rows.append((update, "untouched", category, len(own), int((own > 0).sum()), -float(own.mean())))
    columns = ["update", "role", "category", "num_examples", "num_correct", "error_nats"]
    evaluations = pd.DataFrame(rows, columns=columns)
    return ForecastRun(
        concept=name,
        examples=examples,
        questions=questions,
        categories=categories,
        draws=Draws(seed=0, count=1),
        evaluations=evaluations,
        early_update=9,
        real_step=lambda parameters: weights - parameters["theta"],
    )


def test_forecast_of_a_linear_model_is_what_happens(
    network: LinearNetwork, concept_set: ConceptSet, labels: pd.DataFrame
) -> None:
    weights = network.systems().weights
    assert weights is not None
    mixes = (("apart",), ("waver-a", "apart"), ("alike",), ("alike", "apart"))
    runs = [tuned_run(network, concept_set, labels, f"mix-{place}", own) for place, own in enumerate(mixes)]
    table = pd.concat([forecast_run(weights, run, WEIGHTS, seed=0) for run in runs])
    table = table[table.krylov_steps == 8]
    np.testing.assert_allclose(table.forecast, table["last"])
    np.testing.assert_allclose(table.base, table.before)
    np.testing.assert_allclose(table.forecast_error_nats, table.last_error_nats, atol=1e-9)
    np.testing.assert_allclose(table.base_error_nats, table.before_error_nats, atol=1e-9)
    np.testing.assert_allclose(table.early_error_nats, table.last_error_nats)
    np.testing.assert_allclose(table.cosine, 1.0, atol=1e-9)
    np.testing.assert_allclose(table.relative_residual, 0.0, atol=1e-9)
    np.testing.assert_allclose(table.step_norm, table.real_step_norm, rtol=1e-9)
    assert table[table.category == "all"].forecast.nunique() > 1
    ranks = rank_correlations(table)
    pooled = ranks[(ranks.category == "all") & (ranks.outcome == "last")].set_index(["measure", "predictor"])
    for measure in ("accuracy", "error_nats"):
        assert pooled.loc[(measure, "forecast"), "value"] == pytest.approx(1.0)
        # Every run starts from the same base, which tells none from another.
        assert math.isnan(pooled.loc[(measure, "start"), "value"])
    assert set(pooled.num_runs) == {4}


def test_ranks_within_seeds_do_not_take_the_seeds_for_a_forecast() -> None:
    # Within each seed what is foretold falls as the change rises; between seeds both rise.
    table = pd.DataFrame({"run": [*"abcdef"], "seed": [0, 0, 0, 1, 1, 1], "krylov_steps": 5, "role": "test"})
    table = table.assign(category="all", base=0.0, before=0.0, early=math.nan, early_error_nats=math.nan)
    table["forecast"] = [0.3, 0.2, 0.1, 10.3, 10.2, 10.1]
    table["last"] = [0.1, 0.2, 0.3, 10.1, 10.2, 10.3]
    for name in ("base", "before", "forecast", "last"):
        table[f"{name}_error_nats"] = table[name]
    ranks = rank_correlations(table).set_index(["outcome", "measure", "predictor"])
    own = ranks.loc[("last", "accuracy", "forecast")]
    assert own["value"] == pytest.approx(1 - 6 * 16 / (6 * 35))
    assert own.within_seeds == pytest.approx(-1.0)
    assert math.isnan(ranks.loc[("last", "accuracy", "start"), "within_seeds"])
    assert ranks.loc[("early", "accuracy", "forecast"), "num_runs"] == 0


def test_choice_is_the_same_for_any_order_of_rows(labels: pd.DataFrame, concept_set: ConceptSet) -> None:
    def chosen(table: pd.DataFrame) -> object:
        return choose(table, concept_set, concepts_per_category=1, examples_per_category=2, num_known=3, seed=0)

    assert chosen(labels) == chosen(labels.iloc[::-1])
    found = choose(labels, concept_set, concepts_per_category=1, examples_per_category=2, num_known=3, seed=0)
    assert sorted(found.categories.values()) == sorted({HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN})
    solved = {example.concept for own in found.training.values() for example in own}
    assert len(found.known) == 3
    # Two known concepts are left over; only the third must stand on both sides.
    assert len({example.concept for example in found.known} - solved) == 2


def test_questions_are_on_renderings_of_their_own(concept_set: ConceptSet) -> None:
    questions: list[Question] = questions_of(concept_set, ["apart"], 3, AnswerConfig(), 0)
    assert [q.rendering for q in questions] == [1000, 1001, 1002]


def test_solution_class() -> None:
    assert solution_class([True, True]) == ONE
    assert solution_class([True, False]) == MANY
    assert solution_class([False, False]) == NONE


def test_slope_of_a_geometric_residual() -> None:
    rounds = np.array([[10.0**-k] * 3 for k in range(6)])
    assert slope(rounds) == pytest.approx(-1.0)
    assert math.isnan(slope(rounds[:1]))
    late = rounds.copy()
    late[4:] = 0.0  # what comes after the first half says nothing
    assert slope(late) == pytest.approx(-1.0)


def test_effective_answers_is_the_exponential_of_the_entropy() -> None:
    assert effective_answers(["a"] * 5) == pytest.approx(1.0)
    assert effective_answers(["a", "b", "c", "d"]) == pytest.approx(4.0)
    assert effective_answers(["a", "a", "a", "b"]) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_profile_is_over_the_generations_that_have_an_equation_in_a_place() -> None:
    rows = [
        {"concept": "long", "num_steps": 4, "residuals": [1.0, 1.0, 1.0, 1.0, math.nan, 0.5, 0.5, 0.5]},
        {"concept": "short", "num_steps": 1, "residuals": [3.0]},
    ]
    found = residual_profile(pd.DataFrame(rows), {"long": UNKNOWN, "short": UNKNOWN})
    by_place = found.set_index(["round", "place"]).residual
    assert by_place[0, 0] == 2.0  # both have a first equation
    assert by_place[1, 0] == 0.0  # solved in the long one, ended in the short one
    assert by_place[0, 7] == 1.0  # the long one's alone
    assert by_place[1, 7] == 0.5
