"""The report of the language model's half and of the dynamics: what it shows is the tables', published stays apart."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_language import MIXES, SEEDS, SUBJECTS, language_run
from synthetic_run import MIXES as PICTURE_MIXES
from synthetic_run import NAMES, synthetic_run
from test_report import HOSTILE, Page, check_whole

from diffusion_sft.files import read_json, read_table, write_json, write_table
from diffusion_sft.records import CATEGORIES, ConceptSet
from diffusion_sft.reference import load_reference
from diffusion_sft.report.changes import learning_change
from diffusion_sft.report.dynamics_tables import by_share, treatments
from diffusion_sft.report.dynamics_words import dynamics_sentences, model_sentences
from diffusion_sft.report.figures import POINTS, drawn_concepts
from diffusion_sft.report.language import relation_table
from diffusion_sft.report.page import write_report
from diffusion_sft.report.run import learners_of, read_run
from diffusion_sft.report.wording import share

NOTHING = ConceptSet(concepts=(), examples=())
FRAME = ["answer", "terms", "methods"]
LANGUAGE = [*FRAME, "language", "dynamics"]
PICTURES = ["buckets", "exposure", "learning", "fid", "accuracy", "samples"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the language model alone; no test changes it."""
    folder = tmp_path_factory.mktemp("study")
    language_run(folder)
    return folder


@pytest.fixture(scope="module")
def alone(study: Path) -> Page:
    """Its report."""
    return check_whole(write_report(study, NOTHING, title="Facts alone"), LANGUAGE)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a study with both halves."""
    run, concept_set = synthetic_run(tmp_path_factory.mktemp("both"), names=NAMES[:12])
    language_run(run, seeds=SEEDS[:1])
    return check_whole(write_report(run, concept_set, title="Pictures and facts"), [*LANGUAGE, *PICTURES])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small study of the language model, to take things away from."""
    language_run(tmp_path, subjects=SUBJECTS[:4], seeds=(0, 1))
    return tmp_path


def cells(page: Page, identity: str) -> list[list[str]]:
    """The words of a table's cells, row by row, headings included."""
    body = re.search(rf'<table id="table-{identity}">(.*?)</table>', page.text, re.DOTALL)
    assert body, identity
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body[1], re.DOTALL)
    return [
        [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in (row.replace("\n", " ") for row in rows)
    ]


def percent(value: float, low: float = np.nan, high: float = np.nan, signed: bool = False) -> str:
    """A share as the page has it, written another way than the page writes it."""
    if np.isnan(value):
        return "–"
    unit = "points" if signed else "%"

    def one(number: float) -> str:
        rounded = round(100 * number, 1) or 0.0
        return f"{rounded:+.1f}" if signed and rounded else f"{rounded:.1f}"

    ends = "" if np.isnan(low) else f" [{one(low)}, {one(high)}]"
    return f"{one(value)} {unit}{ends}".replace("-", "−")


def test_a_study_of_the_language_model_alone_has_its_page(alone: Page) -> None:
    assert not set(PICTURES) & set(alone.ids)
    assert not alone.images
    assert "Missing" not in alone.prose
    assert "What is missing" not in alone.prose
    for words in (
        "Fine-tuning a language model on what it knows",
        "facts 48",
        "mixes fine-tuned 8",
        "runs of them 24",
    ):
        assert words in alone.prose
    for word in ("FID", "picture", "image"):
        assert word not in alone.prose.replace("FIDs", "FID"), word


def test_both_halves_share_one_page(both: Page) -> None:
    for words in ("Fine-tuning a diffusion model and a language model on what they know", "concepts 12", "facts 48"):
        assert words in both.prose
    assert "Missing:" not in both.prose.replace("Missing: two single-category mixes", "")
    for heading in ("Diffusion model", "Language model"):
        assert both.prose.count(heading) >= 5


def test_which_halves_are_shown(tmp_path: Path) -> None:
    assert learners_of(tmp_path) == ["diffusion"]
    write_json(tmp_path / "study.json", {"settings": {"learners": ["diffusion", "llm"]}})
    assert learners_of(tmp_path) == ["diffusion", "llm"]
    write_json(tmp_path / "study.json", {"settings": {}})
    assert learners_of(tmp_path) == ["diffusion"]
    write_json(tmp_path / "llm" / "study.json", {"settings": {"learners": ["llm"]}})
    assert learners_of(tmp_path) == ["diffusion", "llm"]
    (tmp_path / "study.json").unlink()
    assert learners_of(tmp_path) == ["llm"]


def test_shares_and_chances_are_the_tables(alone: Page, study: Path) -> None:
    concepts = read_table(study / "llm/buckets/concepts.parquet")
    answers = read_table(study / "llm/probe/answers.parquet")
    chance = (1 / answers.num_candidates).groupby(answers.concept.str.split("/").str[0]).mean()
    rows = {row[0]: row for row in cells(alone, "llm-relations")}
    for relation, here in concepts.groupby("relation"):
        counts = [f"{(here.category == c).sum()} {percent((here.category == c).mean())}" for c in CATEGORIES]
        assert rows[relation] == [relation, str(len(here)), "", *counts, percent(chance[relation])]
    assert rows["all relations"][-1] == percent(float((1 / answers.num_candidates).mean()))
    assert alone.text.count('class="stack"') == len(rows) - 1
    assert 'aria-label="HighlyKnown 25.0 %, MaybeKnown 25.0 %' in alone.text


def test_what_the_model_said_stands_with_its_counts(alone: Page) -> None:
    assert "right green said green × 10 ✓ sampled not sampled" in alone.prose
    assert "right green said green × 6 ✓ not green × 4 sampled not sampled" in alone.prose
    assert "said not green × 10 sampled right in 2 of 8 samples" in alone.prose
    assert "said not green × 10 sampled right in 0 of 8 samples exposure never seen in pretraining" in alone.prose


def test_single_categories_are_the_tables(alone: Page, study: Path) -> None:
    table = read_table(study / "llm/dynamics/accuracy_by_mix.parquet").set_index(
        ["stopping", "mix", "role", "category"]
    )
    rows = cells(alone, "llm-single-test")
    mixes = ("only-HighlyKnown", "only-MaybeKnown", "unknown-100", "natural")
    late = next(place for place, row in enumerate(rows) if row == ["convergence"])
    for stopping, shown in (("early_stop", rows[2:late]), ("convergence", rows[late + 1 :])):
        assert len(shown) == len(mixes)
        for mix, row in zip(mixes, shown, strict=True):
            found = [table.loc[(stopping, mix, "test", category)] for category in ("Full", *CATEGORIES)]
            assert row[1:] == [*(percent(f.accuracy, f.low, f.high) for f in found), "3"]
    assert "Not run: WeaklyKnown." in alone.prose


def test_shares_of_unknown_are_the_tables(alone: Page, study: Path) -> None:
    table = read_table(study / "llm/dynamics/accuracy_by_mix.parquet").query("role == 'test' and category == 'Full'")
    rows = cells(alone, "llm-shares-test")[1:]
    named = {row[0].split()[0]: row for row in rows}
    assert set(named) == {mix for mix in MIXES if mix.startswith("unknown")}
    for mix, row in named.items():
        early, late = (
            table[(table.mix == mix) & (table.stopping == stop)].iloc[0] for stop in ("early_stop", "convergence")
        )
        change = percent(late.change, late.change_low, late.change_high, signed=True)
        readings = [percent(f.accuracy, f.low, f.high) for f in (early, late)]
        answered = [f"{percent(f.accuracy_answered)} {percent(f.answered_share)} answered" for f in (early, late)]
        assert row[1:] == [
            f"{100 * late.unknown_share:.0f} %",
            f"{late.num_concepts:.0f}",
            *readings,
            change,
            *answered,
            "3",
        ]
    assert "relabelled" in named["unknown-050-relabel"][0]
    assert "removed" in named["unknown-050-remove"][0]


def test_the_linear_model_is_the_tables(alone: Page, study: Path) -> None:
    table = read_table(study / "llm/dynamics/linear_model.parquet").set_index(["role", "term"])
    rows = {row[0]: row for row in cells(alone, "llm-model")}
    for role, heading in (("test", "test facts"), ("other_relations", "facts of other relations")):
        found = [
            percent(f.estimate, f.low, f.high, signed=term in ("b_known", "b_unknown"))
            for term, f in table.loc[role].iterrows()
        ]
        first = table.loc[(role, "b0")]
        assert rows[heading][1:] == [*found, f"{first.r2:.2f}", f"{first.num_points:.0f}", f"{first.num_runs:.0f}"]


def test_published_figures_stand_apart_under_their_citation(both: Page) -> None:
    paper = load_reference()
    blocks = re.findall(r'<div class="published">(.*?)</div>\s*(?=<h3|<p class="cite")', both.text, re.DOTALL)
    assert len(blocks) == 4
    assert all("Published: Gekhman et al., 2024" in block for block in blocks)
    rows = cells(both, "published-single")
    expected = [
        [kind, *(f"{row[asked]:.1f} %" for asked in ("Full", *CATEGORIES))]
        for table in paper.single_category.values()
        for kind, row in table.items()
    ]
    assert [row for row in rows if len(row) == 6][1:] == expected
    model = {row[0]: row[1:] for row in cells(both, "published-model")}
    assert model["test questions, same relations"][:3] == ["36.9 %", "+7.3 points", "−8.3 points"]
    measured = "".join(re.findall(r'<table id="table-(?!published).*?</table>', both.text, re.DOTALL))
    assert "published" not in measured
    assert paper.citation.title in both.prose
    for text in re.findall(r"<title>(published[^<]*)</title>", both.text):
        assert re.search(r"43\.0|38\.8|37\.5|25\.8|\+7\.3|−8\.3|\+3\.2|−3\.0", text.replace("00", "0")), text


def test_only_the_first_seed_of_a_mix_has_learning_curves(alone: Page, study: Path) -> None:
    run = read_run(study, "llm")
    assert [mix.seed for mix in run.first_runs] == [0] * len(MIXES)
    assert {mix.mix for mix in run.mixes} == set(MIXES)
    assert "llm-learning-0-test" in alone.text
    assert "mix natural-seed0" in alone.prose
    assert "After the mix natural-seed1" not in alone.prose
    assert "Of a mix with several seeds the first is shown; 16 further runs left out here." in alone.prose
    assert "seed 0, the first of 3" in alone.prose


def test_a_mix_named_like_a_seed_is_its_own(small: Path) -> None:
    path = small / "llm/finetune/natural-seed1/finetune.json"
    write_json(path, read_json(path) | {"record": {"seed": 7}})
    mixes = {mix.name: mix.mix for mix in read_run(small, "llm").mixes}
    assert mixes["natural-seed1"] == "natural-seed1"
    assert mixes["natural-seed0"] == "natural"


@pytest.mark.parametrize("role", ["development", "test", "other_relations", "trained", "heldout", "new_role"])
def test_every_role_has_its_sentence(small: Path, role: str) -> None:
    path = small / "llm/finetune/unknown-100-seed0/evaluations.parquet"
    table = read_table(path)
    write_table(path, table.replace({"role": {"development": role}}) if role == "new_role" else table)
    mix = next(mix for mix in read_run(small, "llm").mixes if mix.name == "unknown-100-seed0")
    change = learning_change(mix, role, "Unknown")
    assert change is not None
    assert "picture" not in change.sentence
    assert "fact" in change.sentence


def test_missing_tables_are_named(small: Path) -> None:
    (small / "llm/probe/answers.parquet").unlink()
    (small / "llm/dynamics/fit_curves.parquet").write_bytes(b"no")
    (small / "llm/dynamics/linear_model.parquet").unlink()
    text = check_whole(write_report(small, NOTHING, title="t"), LANGUAGE).prose
    for words in (
        "llm/probe/answers.parquet: not written by this run",
        "llm/dynamics/fit_curves.parquet: is not a readable table",
        "Missing: dynamics/fit_curves.",
        "Missing: dynamics/linear_model.",
        "Missing: llm/probe/answers, and with it the chances.",
    ):
        assert words in text
    assert "evaluate/measures" not in text
    shutil.rmtree(small / "llm/dynamics")
    shutil.rmtree(small / "llm/buckets")
    text = check_whole(write_report(small, NOTHING, title="t"), [*FRAME, "language"]).prose
    assert "llm/dynamics: the fine-tuning runs were not summarised" in text
    assert "Missing: llm/buckets/concepts.parquet: not written by this run" in text


def test_a_half_that_was_asked_for_and_left_nothing_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", {"settings": {"learners": ["llm"]}})
    text = check_whole(write_report(tmp_path, NOTHING, title="t"), [*FRAME, "language"]).prose
    assert "llm/buckets/concepts.parquet: not written by this run" in text
    assert "evaluate/measures" not in text


def test_hostile_questions_and_answers_stay_text(tmp_path: Path) -> None:
    subjects = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    answer = HOSTILE[1] + "y" * 5_000
    run = language_run(tmp_path, subjects=subjects, seeds=(0,), answer=answer)
    concepts = read_table(run / "buckets/concepts.parquet")
    concepts["relation"] = concepts["relation"].replace({"shape": HOSTILE[0], "colour": HOSTILE[2]})
    write_table(run / "buckets/concepts.parquet", concepts)
    answers = read_table(run / "probe/answers.parquet")
    write_table(run / "probe/answers.parquet", answers.assign(template=HOSTILE[7] + "{} {{ 7*7 }}"))
    dynamics = read_table(run / "dynamics/runs.parquet").assign(mix=HOSTILE[0])
    write_table(run / "dynamics/runs.parquet", dynamics)
    for name in ("accuracy_by_mix", "fit_curves"):
        table = read_table(run / f"dynamics/{name}.parquet").assign(mix=HOSTILE[0])
        write_table(run / f"dynamics/{name}.parquet", table)
    read = check_whole(write_report(tmp_path, NOTHING, title=HOSTILE[0]), LANGUAGE)
    assert "y" * 200 not in read.prose
    assert "y" * 2_100 not in read.text
    assert "x" * 2_100 not in read.text
    assert HOSTILE[0] in read.prose
    assert "https://example.org" not in "".join(read.links)


def test_sentences_follow_the_intervals(small: Path) -> None:
    path = small / "llm/dynamics/linear_model.parquet"
    table = read_table(path)
    numbers = {"b_known": (0.1, 0.02, 0.18), "b_unknown": (-0.1, -0.3, 0.1)}
    for term, (estimate, low, high) in numbers.items():
        here = (table.role == "test") & (table.term == term)
        table.loc[here, ["estimate", "low", "high"]] = [estimate, low, high]
    write_table(path, table)
    said = [text.replace("\u00a0", " ") for text in model_sentences(read_run(small, "llm"))]
    assert said[0].endswith("goes with higher accuracy on test facts in the linear model (+10 points [+2, +18]).")
    assert (
        said[1]
        == "Fitting Unknown examples has no effect on accuracy on test facts beyond its interval (−10 points [−30, +10])."
    )
    table.loc[table.term == "b_known", ["low", "high"]] = np.nan
    table.loc[table.term == "b_unknown", ["estimate", "low", "high"]] = np.nan
    write_table(path, table)
    said = model_sentences(read_run(small, "llm"))
    assert "without an interval, so there is no verdict" in said[0]
    assert "could not be estimated from these runs" in said[1]


def test_what_cannot_be_compared_is_said_to_be_missing(small: Path) -> None:
    for name in ("runs", "accuracy_by_mix"):
        path = small / f"llm/dynamics/{name}.parquet"
        write_table(path, read_table(path).query("mix == 'unknown-100'"))
    said = dynamics_sentences(read_run(small, "llm"))
    assert sum(text.startswith("Missing:") for text in said) == 3


def test_changed_mixes_are_not_in_the_line_of_shares(study: Path) -> None:
    run = read_run(study, "llm")
    assert set(treatments(run)) == {"unknown-050-relabel", "unknown-050-remove"}
    assert set(treatments(run)) <= set(by_share(run, "test")["mix"])
    assert not treatments(read_run(study))


def test_many_concepts_are_drawn_as_a_sample(study: Path) -> None:
    many = pd.DataFrame({"concept": [f"c{place}" for place in range(POINTS + 500)]})
    drawn = drawn_concepts(many)
    assert len(drawn) == POINTS
    assert set(drawn["concept"]) == set(drawn_concepts(many.sample(frac=1, random_state=0))["concept"])
    assert drawn_concepts(many.head(10)).equals(many.head(10))


def test_a_relation_without_answers_has_no_chance(study: Path) -> None:
    run = read_run(study, "llm")
    table = relation_table(run)
    assert table is not None
    assert table.groups[0].rows[0][-1].text == share(1 / 10, decimals=1)


def test_pictures_have_dynamics_too(both: Page) -> None:
    rows = cells(both, "single-untouched")
    assert any(row[0] == "Unknown mix unknown-100" for row in rows)
    assert "fit-0" in both.text
    assert both.text.count('aria-label="fitted share of trained examples') == len(PICTURE_MIXES) + len(MIXES)
