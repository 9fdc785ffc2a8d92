"""Malformed sets of questions, with what is said of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_sets import Write, asked_by_probe, cases, lines, question, questions


def rows(*last: Any) -> Write:
    """Good questions, and these rows or lines behind them."""
    text = lines(questions()) + "".join(x + "\n" if isinstance(x, str) else lines([x]) for x in last)
    return file("questions.jsonl", text)


def file(name: str, content: str | bytes) -> Write:
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def items(content: Any) -> Write:
    """A file of EntityQuestions."""
    return file("P17.train.json", content if isinstance(content, str) else json.dumps(content))


def popqa(*cells: str) -> Write:
    return file("popqa.tsv", "subj\tprop\tquestion\tpossible_answers\n" + "\t".join(cells) + "\n")


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in question().items() if name != column}


def link_out(root: Path) -> None:
    rows()(root.parent)
    (root / "questions.jsonl").symlink_to(root.parent / "questions.jsonl")


def nothing(root: Path) -> None:
    """Leaves the set's folder empty."""


AT = r"questions\.jsonl line 11: "
QUESTIONS: dict[str, tuple[Any, ...]] = {
    "no such file": (nothing, ["llm.questions.path=FOLDER/facts"], "facts: no such file or folder of questions"),
    "an empty folder": (nothing, "set: no questions here, which may be EntityQuestions"),
    "a file of another kind": (
        file("facts.txt", "x"),
        ["llm.questions.path=FOLDER/set/facts.txt"],
        r"facts\.txt: is neither \.jsonl nor \.tsv",
    ),
    "two files": (lambda root: (rows()(root), file("more.jsonl", "")(root)), r"found more\.jsonl, questions\.jsonl"),
    "broken JSON": (rows("{"), AT + "is not valid JSON"),
    "a list for a row": (rows("[]"), AT + "is JSON but not an object"),
    "a key twice in a row": (rows('{"answer": "a", "answer": "b"}'), AT + r".*the key 'answer' occurs twice"),
    "no answer": (rows(without("answer")), AT + "answer is empty or missing"),
    "no answers among them": (rows({**without("answer"), "answers": []}), AT + "answers is empty or missing"),
    "a text for several answers": (
        rows({**without("answer"), "answers": "red"}),
        AT + "answers is not a list of texts but 'red'",
    ),
    "an answer and answers": (rows(question(answers=["red"])), AT + "has both answer and answers"),
    "a number for an answer": (rows(question(answer=7)), AT + "answer is not text but 7"),
    "a number for a question": (rows(question(question=7)), AT + "question is not text but 7"),
    "a question of 100,000 characters": (
        rows(question(question="x" * 100_000)),
        AT + "question has 100000 characters",
    ),
    "a question that is not about its subject": (
        rows(question(question="What colour is it?")),
        AT + "question does not contain its subject 'blorp' as a word",
    ),
    "a relation that cannot be one": (rows(question(relation="a/b")), AT + "relation 'a/b' contains '/'"),
    "a split that there is not": (rows(question(split="trian")), AT + "split 'trian' is none of train, dev"),
    "an exposure that is no count": (rows(question(exposure="often")), AT + "exposure 'often' is not a count"),
    "no column of subjects": (file("questions.jsonl", lines([without("subject")])), "no column 'subject'; found"),
    "a relation that the set does not have": (
        rows(),
        ["llm.questions.relations=[color]"],
        "relations has 'color', which the set does not have; did you mean 'colour'?",
    ),
    "too few questions to show in prompts": (
        file("questions.jsonl", lines([question(split="dev"), question("dax", split="test")])),
        "few-shot prompts need at least 5 development facts of each relation; colour has 1",
    ),
    "nothing in it": (file("questions.jsonl", ""), "set: no question is left of 0 usable rows"),
    "UTF-16": (file("questions.jsonl", lines(questions()).encode("utf-16")), "is UTF-16; save it as UTF-8"),
    "a link out of the folder": (link_out, r"questions\.jsonl: is a symbolic link to a place outside"),
    "EntityQuestions that are no list": (items({}), r"P17\.train\.json: is JSON but not a list of objects"),
    "EntityQuestions that are broken": (items("["), r"P17\.train\.json: is not valid JSON"),
    "EntityQuestions of another template": (
        items([{"question": "Who is he?", "answers": ["x"]}]),
        r'P17\.train\.json item 1: question "Who is he\?" does not fit the template',
    ),
    "PopQA whose answers are no JSON": (
        popqa("x", "colour", "What colour is x?", "red"),
        ["llm.questions.path=FOLDER/set/popqa.tsv"],
        r"popqa\.tsv line 2: possible_answers is not valid JSON",
    ),
}
CASES = cases("Questions", QUESTIONS, asked_by_probe)
