"""The data of the concept explorer: every number is the tables', every text stays text, what is left out is counted."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_language import SUBJECTS, language_run
from synthetic_run import MIXES, NAMES, synthetic_run
from test_report import HOSTILE, check_whole
from test_report_systems import write_solved

from diffusion_sft.files import read_table, write_table
from diffusion_sft.records import CATEGORIES, HELDOUT, ConceptSet
from diffusion_sft.report import concept_frames
from diffusion_sft.report.embedded import TEXT_LENGTH, column_of, script_json
from diffusion_sft.report.explorer import Explorer, concept_numbers, explorer
from diffusion_sft.report.page import write_report
from diffusion_sft.report.run import Run, learners_of, read_run
from diffusion_sft.report.scripts import content_policy, inside_script, page_scripts


def data_of(text: str, identity: str = "explorer-data") -> Any:
    """The JSON that a page embeds under an id."""
    found = re.search(rf'<script type="application/json" id="{identity}">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def table_of(columns: dict[str, Any]) -> pd.DataFrame:
    """An embedded table as a table again."""
    decoded = {}
    for name, column in columns.items():
        if isinstance(column, dict):
            column = [column["levels"][code] if code >= 0 else None for code in column["codes"]]
        decoded[name] = column
    return pd.DataFrame(decoded, dtype=object)


def check_same(shown: pd.DataFrame, table: pd.DataFrame, columns: list[str]) -> None:
    """Every cell of these columns is the table's, bit for bit; null where that has none."""
    assert len(shown) == len(table) > 0
    for column in columns:
        for found, cell in zip(shown[column], table[column], strict=True):
            if pd.isna(cell):
                assert found is None, column
            else:
                assert found == cell, column
                assert isinstance(found, bool) == isinstance(cell, bool | np.bool_)


def with_answers(half: Path, concepts: list[str]) -> None:
    """Write what the runs of a half answered at two evaluations."""
    for place, folder in enumerate(sorted((half / "finetune").iterdir())):
        rows = [
            {"update": update, "role": role, "concept": concept, "answer": f"{concept} {update}"}
            | {"correct": (number + update + place) % 3 == 0}
            for update in (0, 40)
            for role in ("trained", "heldout")
            for number, concept in enumerate(concepts)
        ]
        write_table(folder / "answers.parquet", pd.DataFrame(rows))


def with_systems(half: Path, concepts: list[str]) -> None:
    """Write what was solved for these concepts."""
    rows = [
        ("generation", concept, measure, number + place / 7, number - 0.5, number + 2.5, 4)
        for number, concept in enumerate(concepts)
        for place, measure in enumerate(("rounds", "recovery", "slope", "a_new_one"))
    ]
    columns = ["system", "concept", "measure", "value", "low", "high", "num_draws"]
    table = pd.DataFrame(rows, columns=columns).assign(category="Unknown")
    write_table(half / "solve/systems.parquet", table)
    classes = pd.DataFrame(
        {"concept": concepts, "solution_class": [("one", "many", "none")[n % 3] for n in range(len(concepts))]}
    )
    write_table(half / "solve/classes.parquet", classes.assign(num_draws=4, num_correct=2, num_answers=3))


KEPT = ("natural-seed0", "unknown-100-seed0")


def few_runs(run: Path) -> Path:
    """A language half with two fine-tuning runs left, so that its page is soon drawn."""
    for folder in (run / "finetune").iterdir():
        if folder.name not in KEPT:
            shutil.rmtree(folder)
    shutil.rmtree(run / "dynamics")
    return run


def study_of_both(root: Path) -> tuple[Path, ConceptSet]:
    """Both halves with everything that a concept's page shows."""
    run, concept_set = synthetic_run(root, names=NAMES[:12], mixes=MIXES[:2])
    few_runs(language_run(run, subjects=SUBJECTS[:4], seeds=(0,)))
    for half, learner in ((run, "diffusion"), (run / "llm", "llm")):
        concepts = read_table(half / "buckets/concepts.parquet")["concept"].tolist()
        solved = write_solved(half, learner)
        for name in ("forecasts", "correlations", "spectra"):
            (solved / f"{name}.parquet").unlink()
        with_answers(half, concepts[:5])
        with_systems(half, concepts[2:7])
    return run, concept_set


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConceptSet]:
    """Both halves; no test changes it."""
    return study_of_both(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def text(study: tuple[Path, ConceptSet]) -> str:
    """Its page."""
    path = write_report(*study, title="Pictures and facts")
    check_whole(path, ["explorer", "charts", "concept-page"])
    return path.read_text(encoding="utf-8")


def runs_of(folder: Path) -> dict[str, Run]:
    """The halves of a study."""
    return {learner: read_run(folder, learner) for learner in learners_of(folder)}


def made(folder: Path, concept_set: ConceptSet, missing: list[str] | None = None, **given: int) -> Explorer:
    """The explorer of a study."""
    found = explorer(runs_of(folder), concept_set, [] if missing is None else missing, **given)
    assert found is not None
    return found


def test_every_cell_of_the_concepts_is_the_tables(text: str, study: tuple[Path, ConceptSet]) -> None:
    halves = data_of(text)["halves"]
    assert [half["learner"] for half in halves] == ["diffusion", "llm"]
    for half, folder in zip(halves, (study[0], study[0] / "llm"), strict=True):
        table = read_table(folder / "buckets/concepts.parquet")
        shown = table_of(half["concepts"])
        assert list(shown) == list(table)
        check_same(shown, table, list(table))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("scores", "probe/scores"),
        ("answers", "probe/answers"),
        ("systems", "solve/systems"),
        ("classes", "solve/classes"),
        ("accuracy", "evaluate/concept_accuracy"),
    ],
)
def test_every_cell_of_the_records_is_the_tables(
    text: str, study: tuple[Path, ConceptSet], name: str, file: str
) -> None:
    for half, folder in zip(data_of(text)["halves"], (study[0], study[0] / "llm"), strict=True):
        if name == "accuracy" and half["learner"] == "llm":
            assert half[name] == {}
            continue
        table = read_table(folder / f"{file}.parquet")
        shown = table_of(half[name])
        names = table_of(half["concepts"])["concept"]
        assert [names[place] for place in shown["place"]] == table["concept"].tolist()
        columns = [column for column in shown if column != "place"]
        assert len(columns) >= 2
        check_same(shown, table, columns)


def test_every_answer_over_fine_tuning_is_the_tables(text: str, study: tuple[Path, ConceptSet]) -> None:
    for half, folder in zip(data_of(text)["halves"], (study[0], study[0] / "llm"), strict=True):
        shown, names = table_of(half["asked"]), table_of(half["concepts"])["concept"]
        assert set(shown["run"]) == {path.name for path in (folder / "finetune").iterdir()}
        for run, rows in shown.groupby("run"):
            table = read_table(folder / f"finetune/{run}/answers.parquet")
            assert [names[place] for place in rows["place"]] == table["concept"].tolist()
            check_same(rows, table, ["update", "role", "answer", "correct"])


def test_the_list_shows_what_other_tables_say(text: str, study: tuple[Path, ConceptSet]) -> None:
    pictures, facts = data_of(text)["halves"]
    shown, names = table_of(pictures["shown"]), table_of(pictures["concepts"])["concept"]
    assert shown["caption"].tolist() == [f"a photo of a {name}" for name in names]
    assert shown["rounds"].tolist() == [None, None, 0.0, 1.0, 2.0, 3.0, 4.0, *[None] * 5]
    assert shown["recovery"][3] == 1 + 1 / 7
    assert shown["solution_class"].tolist()[:6] == [None, None, "one", "many", "none", "one"]
    assert shown["num_asked"].tolist() == [10] * 12
    asked = table_of(facts["shown"])
    assert asked["caption"][0] == "What colour is a barp?"
    assert (asked["said"][1], asked["said_count"][1]) == ("green", 6)
    assert (asked["said"][2], asked["said_count"][2]) == ("not green", 10)
    samples = table_of(facts["samples"])
    drawn = read_table(study[0] / "llm/probe/samples.parquet")
    assert samples["count"].sum() == len(drawn)
    assert samples[samples["correct"] == True]["count"].sum() == drawn["correct"].sum()  # noqa: E712


def test_pages_are_numbered_through_both_halves(study: tuple[Path, ConceptSet]) -> None:
    runs = runs_of(study[0])
    numbers = concept_numbers(runs)
    tables = {learner: read_run(study[0], learner).concepts for learner in runs}
    names = [(learner, name) for learner, table in tables.items() if table is not None for name in table["concept"]]
    assert [numbers[name] for name in names] == list(range(24))


def test_pictures_are_real_ones_and_those_of_every_model(text: str, study: tuple[Path, ConceptSet]) -> None:
    shown = data_of(text)["halves"][0]["pictures"]
    assert shown["models"] == ["base", *(f"mix {mix}" for mix in MIXES[:2])]
    assert [len(places) for places in shown["real"]] == [4] * 12
    for rows in shown["drawn"]:
        assert [noise for noise, _ in rows] == [0, 1]
        assert all(len(places) == 3 and None not in places for _, places in rows)
    used = [place for places in shown["real"] for place in places]
    used += [place for rows in shown["drawn"] for _, row in rows for place in row]
    assert sorted(used) == list(range(len(shown["bank"])))
    assert all(uri.startswith("data:image/webp;base64,") for uri, *_ in shown["bank"])


def test_pictures_beyond_the_budget_are_counted(study: tuple[Path, ConceptSet]) -> None:
    whole = json.loads(made(*study).data)["halves"][0]["pictures"]["bank"]
    budget = sum(len(uri) for uri, *_ in whole[:20])
    small = made(*study, budget=budget)
    shown = json.loads(small.data)["halves"][0]["pictures"]
    assert shown["bank"] == whole[:20]
    assert small.left_out_pictures == len(whole) - 20
    assert all(places for places in shown["real"]), "the first real picture of every concept comes first"


def test_runs_beyond_the_limit_are_named(study: tuple[Path, ConceptSet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_frames, "ASKED_ROWS", 25)
    found = made(*study)
    halves = json.loads(found.data)["halves"]
    assert [len(set(table_of(half["asked"])["run"])) for half in halves] == [1, 1]
    assert found.left_out_runs == (MIXES[1], KEPT[1])
    assert found.num_concepts == 24


def test_answers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run, concept_set = synthetic_run(tmp_path, names=NAMES[:4], mixes=MIXES[:2])
    (run / f"finetune/{MIXES[0]}/answers.parquet").write_bytes(b"no")
    write_table(run / f"finetune/{MIXES[1]}/answers.parquet", pd.DataFrame({"concept": NAMES[:1]}))
    missing: list[str] = []
    assert json.loads(made(run, concept_set, missing).data)["halves"][0]["asked"] == {}
    assert missing == [f"finetune/{MIXES[0]}/answers.parquet: is not a readable table"]


def test_there_is_no_list_where_there_are_no_concepts(tmp_path: Path) -> None:
    nothing = ConceptSet(concepts=(), examples=())
    (tmp_path / "run").mkdir()
    assert explorer(runs_of(tmp_path / "run"), nothing, []) is None
    read = check_whole(write_report(tmp_path / "run", nothing, title="t"))
    assert "script" not in read.tags
    assert "script-src 'none'" in html.unescape(read.text)


@pytest.mark.parametrize("text", [*HOSTILE, "<!-- <script>", "\u2028\u2029 ]]> &amp;", "\\u003c/script>"])
def test_nothing_leaves_the_element_of_the_data(text: str) -> None:
    written = str(script_json({text: [text]}))
    assert json.loads(written) == {text: [text]}
    assert written.isascii()
    assert not set("<>&") & set(written)


def test_columns_of_every_kind() -> None:
    assert column_of(pd.Series([1, None, 3], dtype="Int64")) == [1, None, 3]
    assert column_of(pd.Series([0.1, np.nan, np.inf])) == [0.1, None, None]
    assert column_of(pd.Series([True, None], dtype="boolean")) == [True, None]
    assert column_of(pd.Series([True, False])) == [True, False]
    assert column_of(pd.Series(["b", None, "a", "b"])) == {"levels": ["b", "a"], "codes": [0, -1, 1, 0]}
    assert column_of(pd.Series([[1, 2], {"a": 1}])) == {"levels": ["[1, 2]", "{'a': 1}"], "codes": [0, 1]}
    assert len(column_of(pd.Series(["x" * 10_000]))["levels"][0]) == TEXT_LENGTH


def test_the_policy_allows_the_pages_own_scripts_alone(text: str) -> None:
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(digests) == 3
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    for word in ("unsafe-eval", "http", "*"):
        assert word not in re.sub(r"'sha256-[^']*'", "", policy)
    assert re.findall(r"'unsafe-inline'", policy.split("style-src")[0]) == []
    assert "default-src 'none'" in policy
    assert content_policy([]).count("script-src 'none'") == 1


def test_a_script_cannot_be_ended_from_inside() -> None:
    assert inside_script("a = '</script><!-- </SCRIPT';\r\n") == "a = '<\\/script><\\!-- <\\/SCRIPT';\n"
    for script in page_scripts(with_list=True, with_charts=True):
        assert not re.search(r"</script|<!--", script, re.IGNORECASE)
        assert "\r" not in script


def test_the_pages_own_scripts_make_no_markup_of_text() -> None:
    first, _, last = page_scripts(with_list=True, with_charts=True)
    for script in (first, last):
        assert script.startswith("/*")
        for name in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "fetch("):
            assert name not in script, name


def test_every_category_has_its_captions(study: tuple[Path, ConceptSet], text: str) -> None:
    data = data_of(text)
    assert data["categories"] == list(CATEGORIES)
    assert set(data["classes"]) == {"one", "many", "none"}
    captions = {example.caption for example in study[1].split(HELDOUT)}
    assert set(table_of(data["halves"][0]["shown"])["caption"]) == captions
