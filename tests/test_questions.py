"""Sets of questions: every format is read into the same facts, every filter drops what it says, every error is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffusion_sft.errors import UserError
from diffusion_sft.questions import FEWEST_EXEMPLARS, QuestionsConfig, QuestionSet, read_questions
from diffusion_sft.questions.rows import LONGEST, nullified
from diffusion_sft.questions.templates import PUBLISHED, common_template, published
from diffusion_sft.records import DEVELOPMENT, EXEMPLAR, HELDOUT, OTHER_RELATIONS, TEST, TRAIN, Concept, Example
from diffusion_sft.settings import load_settings
from diffusion_sft.world.facts import question_rows
from diffusion_sft.world.population import WorldConfig, populate

Rows = list[dict[str, Any]]
ENTITIES = {"train": 6, "dev": 5, "test": 4}


def row(subject: str, split: str | None = "train", relation: str = "colour", /, **more: Any) -> dict[str, Any]:
    """A row of a plain set; a column given as None is left out."""
    cells = {"question": f"What {relation} is {subject}?", "answer": f"{relation} of {subject}", "subject": subject}
    cells |= {"relation": relation, "split": split, **more}
    return {column: value for column, value in cells.items() if value is not None}


def good_rows(relation: str = "colour", train: int = 3, test: int = 2) -> Rows:
    """A relation with its own subjects and answers, and as many development facts as prompts need."""
    numbers = {"train": train, "dev": FEWEST_EXEMPLARS, "test": test}
    return [
        row(f"{relation} {split}{i}", split, relation) for split, number in numbers.items() for i in range(number)
    ]


def write_lines(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(cells, ensure_ascii=False) + "\n" for cells in rows), encoding="utf-8")
    return path


def entity_questions(root: Path, relations: tuple[str, ...] = ("P19", "P36"), *, flat: bool = True) -> Path:
    for relation in relations:
        for part, number in ENTITIES.items():
            items = [
                {
                    "question": PUBLISHED[relation][0].replace("[X]", f"{part.title()} {relation} {i}"),
                    "answers": [f"place {relation} {part} {i}"],
                }
                for i in range(number)
            ]
            write_items(root if flat else root / part, relation, part, items)
    return root


def write_items(folder: Path, relation: str, part: str, items: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{relation}.{part}.json"
    file.write_text(json.dumps(items), encoding="utf-8")
    return file


def popqa(
    path: Path, rows: list[list[str]], header: str = "id subj prop obj s_pop question possible_answers"
) -> Path:
    lines = ["\t".join(header.split()), *("\t".join(cells) for cells in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> QuestionSet:
    return read_questions(QuestionsConfig(path=str(path), **settings))


def read_rows(folder: Path, rows: Rows, **settings: Any) -> QuestionSet:
    return read(write_lines(folder / "questions.jsonl", rows), **settings)


def error_of(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    return str(caught.value)


def facts(found: QuestionSet) -> dict[str, Concept]:
    return {concept.name: concept for concept in found.concept_set.concepts}


def parts(found: QuestionSet) -> dict[str, str]:
    return {concept.words: concept.attributes["part"] for concept in found.concept_set.concepts}


def splits(found: QuestionSet) -> Counter[str]:
    return Counter(example.split for example in found.concept_set.examples)


def examples(found: QuestionSet, concept: str) -> list[Example]:
    return [example for example in found.concept_set.examples if example.concept == concept]


# --- formats, as they should be ---


@pytest.mark.parametrize("flat", [True, False])
def test_entity_questions(tmp_path: Path, flat: bool) -> None:
    found = read(entity_questions(tmp_path, flat=flat))
    assert found.problems == ()
    assert found.notes == [f"{name}: 6 train, 5 development, 4 test" for name in ("P19", "P36")]
    assert splits(found) == {TRAIN: 12, HELDOUT: 12, DEVELOPMENT: 10, TEST: 8}
    concept = facts(found)["P36/Train P36 3"]
    assert concept.attributes == {
        "relation": "P36",
        "subject": "Train P36 3",
        "answer": "place P36 train 3",
        "part": TRAIN,
    }
    example = examples(found, concept.name)[0]
    assert example.caption == "What is the capital of Train P36 3?"
    assert example.fact is not None
    assert example.fact.null_question == "What is the capital of this?"
    assert example.fact.answers == ("place P36 train 3",)
    assert (example.path, concept.exposure, concept.words) == (Path(), None, "Train P36 3")


def test_a_template_that_repeats_its_subject_stays_whole(tmp_path: Path) -> None:
    entity_questions(tmp_path, ("P175",))
    write_items(tmp_path, "P175", "train", [{"question": "Who performed Who?", "answers": ["Ann"]}])
    (example, _) = examples(read(tmp_path), "P175/Who")
    assert example.fact is not None
    assert example.fact.null_question == "Who performed this?"


def test_published_paraphrases_name_the_same_subject(tmp_path: Path) -> None:
    entity_questions(tmp_path, ("P19",))
    both = ["Where was Ada born?", "What is the birthplace of Ada?"]
    write_items(tmp_path, "P19", "train", [{"question": text, "answers": ["London"]} for text in both])
    assert [(e.id, e.split, e.caption) for e in examples(read(tmp_path), "P19/Ada")] == [
        ("P19/Ada", TRAIN, both[0]),
        ("P19/Ada", HELDOUT, both[0]),
        ("P19/Ada/01", HELDOUT, both[1]),
    ]


def test_other_templates_are_found_in_the_questions(tmp_path: Path) -> None:
    for part in ENTITIES:
        items = [{"question": f"Who drew {part} {i}'s map?", "answers": [f"a{part}{i}"]} for i in range(5)]
        write_items(tmp_path, "maps", part, items)
    found = read(tmp_path)
    assert "maps/test 4" in facts(found)
    assert "maps: no published template; its questions have in common Who drew [X]'s map?" in found.notes


def test_templates() -> None:
    assert len(PUBLISHED) == 25
    for relation in PUBLISHED:
        for template in published(relation):
            assert template.subject(template.filled("a b")) == "a b"
            assert template.subject(template.filled("")) == ""
    assert str(common_template(["Who is Tom's child?", "Who is Tim's child?"])) == "Who is [X]'s child?"
    assert common_template(["Who?"]) is None
    assert common_template(["Who sings?", "When is it?"]) is None


def test_popqa(tmp_path: Path) -> None:
    answers = '"[""{0}"", ""the {0}"", ""{1}""]"'
    rows = [
        [str(i), f"Ann {i}", "job", f"smith {i}", "17", f"What is Ann {i}'s job?", answers.format(f"smith {i}", "x")]
        for i in range(120)
    ]
    found = read(popqa(tmp_path / "test.tsv", rows))
    assert found.problems == ()
    assert len(facts(found)) == 120
    example = examples(found, "job/Ann 7")[0]
    assert example.fact is not None
    assert example.fact.answers == ("smith 7", "the smith 7", "x")
    assert example.fact.null_question == "What is this's job?"
    concept = facts(found)["job/Ann 7"]
    assert (concept.exposure, concept.attributes["popularity"]) == (None, "17")


def test_plain_rows_and_their_attributes(tmp_path: Path) -> None:
    rows = [
        {**cells, "exposure": 3, "kind": "seen", "round": True, "size": 2.5, "tags": ["a"], "words": "w"}
        for cells in good_rows()
    ]
    found = read_rows(tmp_path, rows)
    concept = facts(found)["colour/colour train1"]
    assert concept.exposure == 3
    assert list(concept.attributes) == ["relation", "subject", "answer", "part", "kind", "round", "size"]
    assert [concept.attributes[name] for name in ("kind", "round", "size")] == ["seen", "true", "2.5"]
    assert any("columns of these names already: words" in note for note in found.notes)
    assert set(found.concept_set.table().concept) == set(facts(found))
    assert read(tmp_path).concept_set == found.concept_set  # the folder that holds the file


def test_the_order_of_facts_does_not_depend_on_the_file(tmp_path: Path) -> None:
    rows = [*good_rows("shape"), *good_rows("colour")]
    one = read_rows(tmp_path / "one", rows)
    other = read_rows(tmp_path / "other", rows[::-1])
    assert one.concept_set == other.concept_set
    names = [concept.name for concept in one.concept_set.concepts]
    assert names == sorted(names)


def test_split_words_in_any_case(tmp_path: Path) -> None:
    words = {
        "Train": TRAIN,
        "DEV": DEVELOPMENT,
        "development": DEVELOPMENT,
        "validation": DEVELOPMENT,
        "val": DEVELOPMENT,
    }
    found = read_rows(tmp_path, [*good_rows(), *(row(f"my {word}", word) for word in words)])
    assert {word: parts(found)[f"my {word}"] for word in words} == words


# --- questions of a fact ---


def test_paraphrases_are_asked_and_not_trained_on(tmp_path: Path) -> None:
    more = [
        row("colour train0", question=f"Colour of colour train0, {way}?", null_question=f"Which {way}?")
        for way in "ab"
    ]
    same = row("colour test0", "test", question="Tint of colour test0?")
    found = read_rows(tmp_path, [*good_rows(), *more, same])
    asked = examples(found, "colour/colour train0")
    assert [(example.id, example.split) for example in asked] == [
        ("colour/colour train0", TRAIN),
        ("colour/colour train0", HELDOUT),
        ("colour/colour train0/01", HELDOUT),
        ("colour/colour train0/02", HELDOUT),
    ]
    assert [e.fact.null_question for e in asked if e.fact][1:] == ["What colour is this?", "Which a?", "Which b?"]
    assert [(e.id, e.split) for e in examples(found, "colour/colour test0")] == [("colour/colour test0", TEST)]


@pytest.mark.parametrize(
    ("question", "subject", "expected"),
    [
        ("What is a Wug?", "wug", "What is a thing?"),
        ("Is AC/DC (band) as loud as ac/dc  (Band)?", "AC/DC (band)", "Is thing as loud as thing?"),
        ("What do wugs eat, wug?", "wug", "What do wugs eat, thing?"),
        (r"What is \1?", r"\1", "What is thing?"),
    ],
)
def test_null_questions(question: str, subject: str, expected: str) -> None:
    assert nullified(question, subject, "thing") == expected


def test_the_null_subject_is_a_setting(tmp_path: Path) -> None:
    found = read_rows(tmp_path, good_rows(), null_subject="a thing")
    assert {e.fact.null_question for e in found.concept_set.examples if e.fact} == {"What colour is a thing?"}


def test_columns_that_vary_within_a_fact_are_no_attributes(tmp_path: Path) -> None:
    more = row("colour train0", question="Tint of colour train0?", way="other", kind="seen")
    rows = [{**cells, "way": "main", "kind": "seen"} for cells in good_rows()]
    found = read_rows(tmp_path, [*rows, more])
    assert "way" not in found.concept_set.table().columns
    assert "columns that differ within a fact are no attributes of it: way" in found.notes


def test_equal_rows_are_merged(tmp_path: Path) -> None:
    found = read_rows(tmp_path, [*good_rows(), *good_rows()[:2]])
    assert found.notes[0] == "2 rows said the same as an earlier one; merged with it"
    assert found.concept_set == read_rows(tmp_path, good_rows()).concept_set


# --- parts ---


def test_parts_by_a_hash_of_the_subject(tmp_path: Path) -> None:
    subjects = [f"s{i}" for i in range(400)]
    rows = [row(name, None, relation) for name in subjects for relation in ("colour", "shape")]
    found = read_rows(tmp_path, rows)
    of_subject = {(concept.words, concept.attributes["part"]) for concept in found.concept_set.concepts}
    counts = Counter(part for _, part in of_subject)
    assert len(of_subject) == 400  # both facts of a subject are in the same part
    assert abs(counts[TEST] - 80) < 4 * (400 * 0.2 * 0.8) ** 0.5
    assert abs(counts[DEVELOPMENT] - 40) < 4 * (400 * 0.1 * 0.9) ** 0.5
    assert read_rows(tmp_path / "fewer", rows[:600]).notes[0].startswith("the set has no splits of its own: 20%")
    assert parts(found) != parts(read_rows(tmp_path, rows, seed=1))
    fewer = parts(read_rows(tmp_path / "fewer", rows[:600]))
    assert fewer == {name: part for name, part in parts(found).items() if name in fewer}


def test_heldout_relations_are_asked_and_shown_but_not_trained_on(tmp_path: Path) -> None:
    found = read_rows(tmp_path, [*good_rows(), *good_rows("shape")], heldout_relations=["shape"])
    assert splits(found) == {TRAIN: 3, HELDOUT: 3, DEVELOPMENT: 5, TEST: 2, OTHER_RELATIONS: 2, EXEMPLAR: 5}
    assert "relations that are never trained on: dropped 3 facts of train" in found.notes
    assert facts(found)["shape/shape test0"].attributes["part"] == OTHER_RELATIONS
    assert facts(found)["shape/shape dev0"].attributes["part"] == EXEMPLAR
    assert "shape: 2 test (never trained on), 5 exemplar (never trained on)" in found.notes


def test_relations_are_chosen(tmp_path: Path) -> None:
    rows = [*good_rows(), *good_rows("shape")]
    assert {c.attributes["relation"] for c in facts(read_rows(tmp_path, rows, relations=["shape"])).values()} == {
        "shape"
    }
    entity_questions(tmp_path / "entities")
    (tmp_path / "entities" / "P19.dev.json").write_text("broken")
    assert splits(read(tmp_path / "entities", relations=["P36"]))[TRAIN] == 6


def test_a_fact_in_several_parts_stays_in_the_strongest(tmp_path: Path) -> None:
    rows = [*good_rows(), row("colour test0", "train"), row("colour dev0", "train"), row("colour test1", "dev")]
    found = read_rows(tmp_path, rows)
    assert found.notes[0] == "3 facts in several parts; kept in test before development before train"
    assert splits(found) == {TRAIN: 3, HELDOUT: 3, DEVELOPMENT: 5, TEST: 2}


def test_a_set_may_be_for_the_test_alone(tmp_path: Path) -> None:
    assert read_rows(tmp_path, good_rows(train=0)).notes[-1] == "no fact to train on"
    assert read_rows(tmp_path, good_rows(test=0)).notes[-1] == "no fact for the test"


# --- filters ---


def test_several_answers_are_dropped_or_kept(tmp_path: Path) -> None:
    rows = [
        *good_rows(),
        row("two", answer=None, answers=["red", "Blue", "RED "]),
        row("apart", answer="red"),
        row("apart", answer="blue"),
        row("one", answer=None, answers=["Red", "red"]),
        row("asked", "test", answer=None, answers=["red", "blue"]),
    ]
    found = read_rows(tmp_path, rows)
    assert "several right answers: dropped 2 of 6 train facts (33.3%), 1 of 3 test facts (33.3%)" in found.notes
    assert {"two", "apart", "asked"}.isdisjoint(parts(found))
    kept = read_rows(tmp_path, rows, keep_several_answers=True)
    answers = {name: examples(kept, f"colour/{name}")[0].fact for name in ("two", "apart", "one")}
    assert {name: fact.answers for name, fact in answers.items() if fact} == {
        "two": ("red", "Blue"),
        "apart": ("red", "blue"),
        "one": ("Red",),
    }


def test_overlap_with_test_is_dropped(tmp_path: Path) -> None:
    rows = [
        *good_rows(train=6),
        *good_rows("shape"),
        row("SHAPE  test0", "train"),  # asked in test, in another relation
        row("colour of colour test0", "train"),  # an answer in test
        row("crossing", "train", answer="Colour Test1"),  # its answer is asked about in test
        row("shared", "train", answer="colour of colour test1"),  # the same answer: counted
    ]
    found = read_rows(tmp_path, rows, overlap_by_answers=True)
    assert "subject asked in test: dropped 1 of 13 train facts (7.7%)" in found.notes
    assert (
        "subject an answer in test, or answer a subject in test: dropped 2 of 12 train facts (16.7%)" in found.notes
    )
    assert "1 of 10 train facts (10.0%) have an answer that a test fact has too; kept" in found.notes
    assert splits(found)[TRAIN] == 10
    assert splits(read_rows(tmp_path, rows))[TRAIN] == 12
    assert splits(read_rows(tmp_path, rows, drop_overlap=False))[TRAIN] == 13


def test_overlap_with_a_test_fact_of_another_relation_or_of_several_answers(tmp_path: Path) -> None:
    several = row("colour train1", "test", "shape", answer=None, answers=["a", "b"])
    rows = [*good_rows(), *good_rows("shape"), row("colour train0", "test", "shape"), several]
    found = read_rows(tmp_path, rows, heldout_relations=["shape"])
    assert "subject asked in test: dropped 2 of 3 train facts (66.7%)" in found.notes


def test_most_facts_per_relation(tmp_path: Path) -> None:
    rows = [*good_rows(train=20, test=9), *good_rows("shape", train=4)]
    found = read_rows(tmp_path, rows, max_facts_per_relation=6)
    assert Counter((c.attributes["relation"], c.attributes["part"]) for c in facts(found).values()) == {
        ("colour", TRAIN): 6,
        ("colour", DEVELOPMENT): 5,
        ("colour", TEST): 6,
        ("shape", TRAIN): 4,
        ("shape", DEVELOPMENT): 5,
        ("shape", TEST): 2,
    }
    assert set(facts(found)) < set(facts(read_rows(tmp_path, rows, max_facts_per_relation=8)))
    assert found.concept_set == read_rows(tmp_path, rows[::-1], max_facts_per_relation=6).concept_set


# --- what can be wrong ---


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"question": " "}, "question is empty or missing"),
        ({"question": 3}, "question is not text but 3"),
        ({"question": "x" * (LONGEST + 1)}, f"question has {LONGEST + 1} characters; at most {LONGEST} are read"),
        ({"question": "What is\x00 it?"}, "is not text (it holds zero bytes)"),
        ({"subject": "\ud800"}, "is not valid UTF-8 text"),
        ({"subject": None}, "subject is empty or missing"),
        ({"answer": None}, "answer is empty or missing"),
        ({"answer": ["a"]}, "answer is not text but a list; call the column answers"),
        ({"answer": True}, "answer is not text but true"),
        ({"answers": ["a"]}, "has both answer and answers; keep one of them"),
        ({"answer": None, "answers": []}, "answers is empty or missing"),
        ({"answer": None, "answers": "a"}, "answers is not a list of texts but 'a'"),
        ({"answer": None, "answers": ["a", ""]}, "answers[1] is empty"),
        ({"answer": None, "answers": ["a", {}]}, "answers[1] is not text but an object"),
        ({"relation": "a/b"}, "relation 'a/b' contains '/', which parts it from the subject; rename it"),
        ({"split": "tset"}, "split 'tset' is none of train, dev, development, validation, val, test"),
        ({"split": None}, "split None is none of train"),
        ({"exposure": -1}, "exposure '-1' is not a count"),
        ({"exposure": 1e300}, "is not a count"),
        ({"exposure": [1]}, "exposure is not a count but a list"),
        ({"\ud800": 1}, "is not valid UTF-8 text"),
        ({"kind": "x" * (LONGEST + 1)}, "'kind' has 2001 characters"),
        (
            {"question": "What colour is it?"},
            "question does not contain its subject 'bad' as a word; give a null_question",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, cells: dict[str, Any], reason: str) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps(cells) for cells in [*good_rows(), row("bad", **cells)]]
    path.write_text("\n".join(lines), encoding="utf-8")
    (problem,) = read(path, on_bad="skip").problems
    assert problem.where == "questions.jsonl line 11"
    assert reason in problem.reason
    assert error_of(path).startswith(f"{path}: 1 problem; mend it, or set on_bad=skip")
    assert str(problem) in error_of(path)


def test_contradicting_exposures_are_a_problem(tmp_path: Path) -> None:
    rows = [row("twice", exposure=3), row("twice", exposure=5, question="Tint of twice?")]
    path = write_lines(tmp_path / "questions.jsonl", [*good_rows(), *rows])
    assert "questions.jsonl line 12: exposure 5, but 3 in questions.jsonl line 11 for this fact" in error_of(path)


def test_all_problems_are_shown_up_to_a_limit(tmp_path: Path) -> None:
    bad = [row("bad", question="\x1b[31m", answer="")] * 30
    path = write_lines(tmp_path / "questions.jsonl", [*good_rows(), *bad])
    message = error_of(path)
    assert ": 30 problems; " in message
    assert message.endswith("and 10 more")
    assert "\x1b" not in message


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "questions.jsonl", good_rows())
    with path.open("ab") as stream:
        stream.write(b'{"question": \n[1]\n\xff\n' + b"[" * 100_000 + b"\n")
    found = [problem.reason for problem in read(path, on_bad="skip").problems]
    assert "is not valid JSON" in found[0]
    assert found[1] == 'is JSON but not an object {"question": ...}'
    assert found[2] == "is not UTF-8 text"
    assert "is not valid JSON" in found[3]


def test_missing_columns_name_the_nearest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"qestion": "q", "answer": "a", "relation": "r", "subject": "s"}])
    assert error_of(path).endswith(
        "no column 'question'; found qestion, answer, relation, subject; rename 'qestion' if that is the one"
    )
    path = write_lines(tmp_path / "b.jsonl", [{"question": "q", "relation": "r", "subject": "s"}])
    assert "no column 'answer' or 'answers'; found" in error_of(path)
    file = write_items(tmp_path / "e", "P19", "dev", [{"question": "Where was A born?", "anwsers": ["b"]}])
    assert f"{file}: no column 'answers' or 'answer'" in error_of(tmp_path / "e")
    assert "no column 'prop'" in error_of(popqa(tmp_path / "p.tsv", [["a"] * 4], "id subj question possible_answers"))
    rows = [{**cells, "exposures": 3} for cells in good_rows()]
    assert "questions.jsonl: column 'exposures' is not read as 'exposure'; rename it if that is meant" in (
        read_rows(tmp_path, rows).notes
    )


def test_bad_entity_questions(tmp_path: Path) -> None:
    entity_questions(tmp_path)
    items = [
        "x",
        {"question": "Is Ada from London?", "answers": ["b"]},
        {"question": "Where was  born?", "answers": ["b"]},
    ]
    write_items(tmp_path, "P19", "train", items)
    write_items(tmp_path, "P36", "train", {"question": "q"})
    (tmp_path / "P40.dev.json").write_bytes(b'["\xff"]')
    (tmp_path / "P40.test.json").write_text("[" * 100_000)
    write_items(tmp_path, "odd", "train", [{"question": text, "answers": ["b"]} for text in ("Why?", "Who sings?")])
    found = {problem.where: problem.reason for problem in read(tmp_path, on_bad="skip").problems}
    wanted = 'does not fit the template "Where was [X] born?" or "What is the birthplace of [X]?"'
    assert found["P19.train.json item 1"] == 'is not an object {"question": ..., "answers": [...]}'
    assert found["P19.train.json item 2"] == f'question "Is Ada from London?" {wanted}'
    assert found["P19.train.json item 3"] == f'question "Where was born?" {wanted}'
    assert found["P36.train.json"].startswith("is JSON but not a list")
    assert found["P40.dev.json"] == "is not UTF-8 text"
    assert "is not valid JSON" in found["P40.test.json"]
    assert "no words in common" in found["odd.train.json"]
    assert len(found) == 7


def test_misplaced_entity_questions(tmp_path: Path) -> None:
    entity_questions(tmp_path / "inner" / "dataset", flat=False)
    assert "no questions here, but EntityQuestions in dataset; point the path there" in error_of(tmp_path / "inner")
    entity_questions(tmp_path / "both", flat=False)
    entity_questions(tmp_path / "both", ("P19",))
    assert "train/P19.train.json is there twice" in error_of(tmp_path / "both")
    write_items(tmp_path / "wrong" / "dev", "P19", "test", [])
    assert "dev/P19.test.json lies in the folder of another part; move it to test/" in error_of(tmp_path / "wrong")
    write_lines(entity_questions(tmp_path / "mixed") / "questions.jsonl", good_rows())
    assert "holds both EntityQuestions and questions.jsonl" in error_of(tmp_path / "mixed")


def test_bad_popqa(tmp_path: Path) -> None:
    rows = [[str(i), f"Ann {i}", "job", "a", "1", f"Who is Ann {i}?", '["a"]'] for i in range(100)]
    bad = [
        ["1", "Ann", "job", "a", "1", "Who is Ann?", "a, b"],
        ["1", "Ann", "job", "a", "1", "Who is Ann?", '"""a"""'],
        ["1", "Ann", "job", "a", "1", "Who is she?", '["a"]'],
        ["1", "Ann"],
    ]
    found = read(popqa(tmp_path / "test.tsv", rows + bad), on_bad="skip").problems
    assert {problem.where for problem in found} == {f"test.tsv line {number}" for number in range(102, 106)}
    text = "\n".join(problem.reason for problem in found)
    for reason in ("possible_answers is not valid JSON", "not a list of texts", "does not contain", "has 2 fields"):
        assert reason in text


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the path of the questions is empty"):
        read_questions(QuestionsConfig())
    assert not QuestionsConfig().given
    assert QuestionsConfig(path="x").given
    assert error_of(tmp_path / "gone").endswith("gone: no such file or folder of questions")
    assert "no questions here, which may be EntityQuestions" in error_of(tmp_path)
    write_lines(tmp_path / "qs.jsonl", good_rows())
    assert "found qs.jsonl, but a folder must hold exactly one .jsonl named questions.jsonl" in error_of(tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "a.txt: is neither .jsonl nor .tsv" in error_of(tmp_path / "a.txt")
    (tmp_path / "empty.jsonl").write_text("")
    assert "no question is left of 0 usable rows" in error_of(tmp_path / "empty.jsonl")
    (tmp_path / "wide.jsonl").write_bytes('{"a": 1}'.encode("utf-16"))
    assert "is UTF-16; save it as UTF-8" in error_of(tmp_path / "wide.jsonl")
    assert error_of(Path("a\x00b")) == r"a\x00b: no such file or folder of questions"


def test_no_such_relation(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "questions.jsonl", good_rows())
    assert error_of(path, relations=["color"]).endswith(
        "relations has 'color', which the set does not have; did you mean 'colour'?"
    )
    assert "heldout_relations has 'P19', which the set does not have; it has colour" in (
        error_of(path, heldout_relations=["P19"])
    )


def test_too_few_development_facts(tmp_path: Path) -> None:
    rows = [cells for cells in [*good_rows(), *good_rows("shape")] if cells["subject"] != "shape dev0"]
    rows += [row("lone", "test", "size")]
    path = write_lines(tmp_path / "questions.jsonl", rows)
    assert "need at least 5 development facts of each relation; shape has 4, size has 0; give more" in error_of(path)
    assert splits(read(path, relations=["colour"]))[TRAIN] == 3


def test_ids_never_collide(tmp_path: Path) -> None:
    twice = [row("X"), row("X", question="Tint of X?"), row("X/01")]
    path = write_lines(tmp_path / "questions.jsonl", [*good_rows(), *twice])
    assert "'colour/X/01' is a fact and a paraphrase of 'colour/X'; rename one" in error_of(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dev_share=0", "dev_share must be above 0 and below 1"),
        ("test_share=0.95", "dev_share + test_share must be below 1"),
        ("max_facts_per_relation=4", "max_facts_per_relation must be at least 5"),
        ("null_subject=''", "null_subject must be a word"),
        ("on_bad=go", "on_bad"),
    ],
)
def test_settings_are_checked(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        load_settings(QuestionsConfig, None, [override])


def test_heldout_relations_are_among_those_read() -> None:
    with pytest.raises(ValueError, match="heldout_relations has 'b'"):
        QuestionsConfig(relations=["a"], heldout_relations=["b"])


# --- the embedded world ---


def test_the_world_in_words(tmp_path: Path) -> None:
    people = populate(WorldConfig())
    rows = question_rows(people, 0)
    found = read_rows(tmp_path, rows)
    assert found.problems == ()
    wanted = Counter(str(cells["split"]) for cells in rows)
    assert splits(found) == {
        TRAIN: wanted["train"] // 3,
        HELDOUT: wanted["train"],
        DEVELOPMENT: wanted["dev"] // 3,
        TEST: wanted["test"] // 3,
    }
    of_subject = Counter(subject for subject, _ in {(c.words, c.attributes["part"]) for c in facts(found).values()})
    assert len(of_subject) == sum(person.kind != "described" for person in people)
    assert set(of_subject.values()) == {1}
    seen = next(person for person in people if person.kind == "seen")
    concept = facts(found)[f"colour/{seen.name}"]
    assert (concept.exposure, concept.attributes["kind"]) == (seen.exposure, "seen")
