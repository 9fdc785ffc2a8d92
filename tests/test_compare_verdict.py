"""The verdict follows its numbers, also against the hypothesis: every outcome from a table made for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_compare import Comparison, compared_with, concepts_of, write_half, write_measures

from diffusion_sft.compare.estimates import Draws
from diffusion_sft.compare.half import Half
from diffusion_sft.compare.verdict import (
    AGAINST,
    CLASSES,
    FAILS,
    HOLDS,
    IN_PART,
    OPEN,
    SUPPORTED,
    UNDECIDED,
    association,
)
from diffusion_sft.compare.verdict_words import answer, association_sentences, headline
from diffusion_sft.files import read_table, write_table
from diffusion_sft.numerics.association import permutation_p
from diffusion_sft.numerics.statistics import wilson
from diffusion_sft.records import CATEGORIES, DIFFUSION, LLM

DRAWS = Draws(num_resamples=99, num_permutations=999, seed=0)
AS_SAID = [[20, 0, 0], [0, 20, 0], [0, 20, 0], [0, 0, 20]]
IN_SOME = [[20, 0, 0], [0, 20, 0], [0, 0, 20], [0, 0, 20]]
REVERSED = [[0, 0, 20], [20, 0, 0], [20, 0, 0], [0, 20, 0]]
EVEN = [[10, 10, 10]] * 4
FEW = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
ALL_NONE = [[0, 0, 20]] * 4


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Both halves."""
    folder = tmp_path_factory.mktemp("verdict")
    write_half(folder / "study", DIFFUSION)
    write_half(folder / "study", LLM)
    return compared_with(folder / "out", str(folder / "study"))


def half_of(folder: Path, counts: list[list[int]], label: str = "run") -> Half:
    """A half with so many concepts of each category (rows) and class (one, many, none)."""
    rows = [
        (f"{category}-{name}-{number}", category, name)
        for category, row in zip(CATEGORIES, counts, strict=True)
        for name, count in zip(CLASSES, row, strict=True)
        for number in range(count)
    ]
    table = pd.DataFrame(rows, columns=["concept", "category", "solution_class"])
    write_table(folder / "buckets" / "concepts.parquet", table[["concept", "category"]])
    write_table(folder / "solve" / "classes.parquet", table[["concept", "solution_class"]])
    return Half(LLM, label, folder)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [(AS_SAID, SUPPORTED), (IN_SOME, IN_PART), (REVERSED, AGAINST), (EVEN, AGAINST), (FEW, OPEN), (ALL_NONE, OPEN)],
)
def test_the_word_follows_the_table(counts: list[list[int]], verdict: str, tmp_path: Path) -> None:
    found = association([half_of(tmp_path, counts)], DRAWS)
    assert found["verdict"] == verdict
    assert [[found["table"][c][name] for name in CLASSES] for c in CATEGORIES] == counts
    assert found["num_concepts"] == np.sum(counts)


def test_the_numbers_are_cramers_and_wilsons(tmp_path: Path) -> None:
    counts = np.array([[9, 2, 1], [3, 5, 4], [1, 3, 8], [0, 1, 11]])
    found = association([half_of(tmp_path, counts.tolist())], DRAWS)
    chi = stats.chi2_contingency(counts, correction=False).statistic
    n, v = counts.sum(), math.sqrt(chi / (counts.sum() * 2))
    assert found["cramers_v"] == pytest.approx(v)
    assert found["cramers_v"] == pytest.approx(stats.contingency.association(counts, method="cramer"))
    # Bergsma (2013), equation by equation.
    phi = max(0, chi / n - 3 * 2 / (n - 1))
    rows, columns = 4 - 9 / (n - 1), 3 - 4 / (n - 1)
    assert found["cramers_v_corrected"] == pytest.approx(math.sqrt(phi / (min(rows, columns) - 1)))
    categories = [c for c, row in zip(CATEGORIES, counts, strict=True) for _ in range(row.sum())]
    classes = [name for row in counts for name, count in zip(CLASSES, row, strict=True) for _ in range(count)]
    assert found["permutation_p"] == pytest.approx(permutation_p(categories, classes, 999, 0), abs=0.005)
    claims = {claim["claim"]: claim for claim in found["claims"]}
    assert len(claims) == 7
    forward, backward = claims["Unknown is 'none'"], claims["'none' is Unknown"]
    assert (forward["count"], forward["of"], forward["outcome"]) == (11, 12, HOLDS)
    assert (backward["count"], backward["of"], backward["outcome"]) == (11, 24, UNDECIDED)
    assert claims["WeaklyKnown is 'many'"]["outcome"] == UNDECIDED
    assert claims["'many' is MaybeKnown or WeaklyKnown"]["count"] == 8
    wanted = wilson(11, 12)
    assert (forward["low"], forward["high"]) == pytest.approx((wanted.low, wanted.high))
    assert found["as_predicted"]["count"] == 9 + 5 + 3 + 11


def test_bias_is_taken_out_where_there_is_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    plain, corrected = [], []
    for number in range(20):
        counts = generator.multinomial(40, np.full(12, 1 / 12)).reshape(4, 3)
        found = association([half_of(tmp_path / str(number), counts.tolist())], DRAWS)
        plain.append(found["cramers_v"])
        corrected.append(found["cramers_v_corrected"])
    assert np.mean(plain) > 0.2
    assert np.mean(corrected) < 0.6 * np.mean(plain)


def test_sentences_say_what_holds_and_what_does_not(tmp_path: Path) -> None:
    found = association([half_of(tmp_path, IN_SOME)], DRAWS)
    sentences = association_sentences(LLM, found)
    assert "category and solution class go together" in sentences[0]
    assert "permutation p = 0.0010; 80 facts" in sentences[0]
    assert sentences[1].startswith("Holds: HighlyKnown is 'one' (20 of 20, 100 % [84, 100]);")
    assert sentences[2] == "Does not hold: WeaklyKnown is 'many' (0 of 20, 0 % [0, 16])."
    assert sentences[3] == "Undecided: 'none' is Unknown (20 of 40, 50 % [35, 65])."
    even = association([half_of(tmp_path / "even", EVEN)], DRAWS)
    assert "do not go together beyond chance" in association_sentences(LLM, even)[0]
    alone = association([half_of(tmp_path / "alone", ALL_NONE)], DRAWS)
    assert "of one category or of one class" in association_sentences(LLM, alone)[0]


def test_the_headline_is_of_both() -> None:
    assert headline({DIFFUSION: IN_PART, LLM: IN_PART}).endswith("is supported in part in both learners.")
    mixed = headline({DIFFUSION: AGAINST, LLM: SUPPORTED})
    assert mixed.endswith("is not supported in the diffusion model and supported in the language model.")
    assert headline({DIFFUSION: OPEN, LLM: AGAINST}).endswith(
        "is not supported in the language model; of the diffusion model it stays open."
    )
    assert headline({DIFFUSION: OPEN, LLM: OPEN}).startswith("The hypothesis stays open")
    assert headline({}).startswith("The hypothesis stays open")


def test_what_was_taught_and_what_it_cost_by_hand(compared: Comparison) -> None:
    for learner, noun in ((DIFFUSION, "concepts"), (LLM, "facts")):
        own = compared.verdict["learners"][learner]
        taught = own["taught"]
        assert (taught["mixes"], taught["unknown_share"], taught["num_runs"]) == (["unknown"], [1.0, 1.0], 2)
        for group in ("unknown", "none"):  # of this study the same concepts
            learnt = taught[group]
            assert [learnt[f"fitted_{s}"]["value"] for s in ("before", "early_stop", "convergence")] == [0, 0, 1]
            assert learnt["fitted_change_convergence"]["sign"] == 1
            assert learnt["transfer_convergence"]["value"] == 1
            assert learnt["fitted_convergence"]["num_concepts"] == 4
        cost = taught["cost"]
        # Four of the 24 known questions outside the mix are lost, and none after the mix of known alone.
        assert cost["known_change_convergence"]["value"] == pytest.approx(-4 / 24)
        assert cost["highly_known_change_convergence"]["value"] == -0.5
        assert cost["beyond_control_convergence"]["value"] == pytest.approx(-4 / 24)
        assert cost["known_change_early_stop"]["value"] == 0
        assert own["association"]["noun"] == noun
        assert own["answer"].startswith(
            "Fine-tuning taught what had no solution, beyond the examples it was trained on"
        )
    images = compared.verdict["learners"][DIFFUSION]["taught"]["images"]
    assert (images["fid_change"]["value"], images["fid_change"]["num_runs"]) == (10.5, 2)
    assert images["fid_change"]["low"] is None  # two runs
    assert "images" not in compared.verdict["learners"][LLM]["taught"]


def test_the_cost_in_pictures_is_the_known_buckets(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", DIFFUSION, seeds=(0,))
    found = compared_with(tmp_path / "one", str(tmp_path / "study")).verdict["learners"][DIFFUSION]["taught"][
        "images"
    ]
    assert [found["fid_change"][end] for end in ("value", "low", "high")] == [10, 8, 12]
    assert found["fid_change"]["sign"] == 1
    table = read_table(half / "evaluate" / "measures.parquet")
    write_table(half / "evaluate" / "measures.parquet", table[table["bucket"] != "known"])
    verdict = compared_with(tmp_path / "two", str(tmp_path / "study")).verdict
    found = verdict["learners"][DIFFUSION]["taught"]["images"]
    assert found["missing"]["fid_change"] == "evaluate/measures.parquet: no fid_change of the bucket known"
    assert any(text.startswith("Cost in pictures: missing (fid_change: ") for text in verdict["sentences"])
    write_measures(half, {"unknown-seed0": -3.0})
    verdict = compared_with(tmp_path / "three", str(tmp_path / "study")).verdict
    assert "Cost in pictures: FID of the known bucket −3.00 [−5.00, −1.00] (better)." in verdict["sentences"]


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ((1, 1, -1), "Fine-tuning taught what was Unknown, beyond the examples it was trained on; it cost accuracy"),
        (
            (1, 0, 0),
            "fitted the examples of what was Unknown; that this carried over does not show; a cost in accuracy",
        ),
        ((1, -1, 1), "that this carried over does not show; accuracy on what was known rose."),
        ((0, 0, None), "No fit of what was Unknown shows beyond the interval; what it cost was not measured."),
        ((-1, 1, -1), "No fit of what was Unknown shows beyond the interval; it cost accuracy"),
    ],
)
def test_the_answer_follows_the_signs(signs: tuple[int | None, ...], words: str) -> None:
    fitted, carried, cost = ({"sign": sign} for sign in signs)
    found: dict[str, Any] = {
        "none": None,
        "unknown": {"fitted_change_convergence": fitted, "transfer_convergence": carried},
        "cost": {"known_change_convergence": cost},
    }
    assert words in answer(found)
    found["none"] = found["unknown"]
    assert words.replace("was Unknown", "had no solution") in answer(found)


def test_without_unknown_or_classes_it_stays_open(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    (half / "solve" / "classes.parquet").unlink()
    runs = read_table(half / "dynamics" / "runs.parquet")
    write_table(half / "dynamics" / "runs.parquet", runs[runs["unknown_share"] == 0])
    verdict = compared_with(tmp_path / "out", str(tmp_path / "study")).verdict
    assert verdict["verdicts"] == {LLM: OPEN}
    text = " ".join(verdict["sentences"])
    assert "missing, no solution classes were read (study: solve/classes.parquet: not written by this run)" in text
    assert "missing, no run on Unknown to read (study: no run on a mix with Unknown in it)" in text


def test_claims_of_nothing_are_undecided(tmp_path: Path) -> None:
    found = association([half_of(tmp_path, [[20, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 20]])], DRAWS)
    outcomes = {claim["claim"]: claim["outcome"] for claim in found["claims"]}
    assert outcomes["MaybeKnown is 'many'"] == UNDECIDED
    assert FAILS not in outcomes.values()
    assert found["verdict"] == IN_PART
    assert not any("of 0" in text for text in association_sentences(LLM, found))


def test_concepts_of_hostile_names_are_counted_like_any(tmp_path: Path) -> None:
    half = write_half(tmp_path / "study", LLM, seeds=(0,))
    names = {name: f"<script>{name}\u202e|$&" for name in concepts_of(LLM)["concept"]}
    for file in half.rglob("*.parquet"):
        table = read_table(file)
        if "concept" in table:
            write_table(file, table.assign(concept=table["concept"].map(lambda name: names.get(name, name))))
    plain = write_half(tmp_path / "plain", LLM, seeds=(0,))
    found = compared_with(tmp_path / "a", str(tmp_path / "study")).verdict["learners"][LLM]
    wanted = compared_with(tmp_path / "b", str(plain)).verdict["learners"][LLM]
    assert found == wanted
