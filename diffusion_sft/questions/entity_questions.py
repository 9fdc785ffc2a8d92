"""EntityQuestions (Sciavolino et al., 2021): one file of questions and answers for each relation and part.

The files do not say what a question is about; its subject is what stands in the place of the relation's template.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..parsing import Problem, confined, few, first_line, json_value, shortened, text_bytes
from .config import QuestionsConfig
from .rows import SPLIT_WORDS, Listing, Row, answers_of, check_columns, required_text
from .templates import Template, common_template, published

_FILE = re.compile(r"(?P<relation>[^./][^.]*)\.(?P<part>train|dev|test)\.json")
_PARTS = ("train", "dev", "test")
_Record = tuple[str, str, dict[str, Any]]
"""Where an item stands, its part, and its cells."""


def find_files(root: Path) -> dict[tuple[str, str], Path]:
    """The files by relation and part, in the folder itself and in its folders train, dev and test.

    Raises:
        UserError: two files for the same relation and part, a file in the folder of another part, or a name that cannot
            be printed.
    """
    found: dict[tuple[str, str], Path] = {}
    for folder in (root, *(root / part for part in _PARTS)):
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            match = _FILE.fullmatch(file.name)
            if not match or not file.is_file():
                continue
            name = few([file.relative_to(root).as_posix()])
            relation, part = match["relation"], match["part"]
            if not file.name.isprintable():
                raise UserError(f"{root}: the name of {name} is not printable text; rename it")
            if folder != root and folder.name != part:
                raise UserError(f"{root}: {name} lies in the folder of another part; move it to {part}/")
            if (relation, part) in found:
                raise UserError(f"{root}: {name} is there twice, in the folder itself too; keep one of them")
            found[relation, part] = file
    return found


def read_entity_questions(root: Path, config: QuestionsConfig) -> Listing:
    """Read the files of all relations that are to be read, and find every question's subject.

    Raises:
        UserError: a file that cannot be opened, or that has no column of questions or of answers.
    """
    files = find_files(root)
    relations = tuple(sorted({relation for relation, _ in files}))
    listing = Listing(rows=[], problems=[], notes=[], relations=relations)
    for relation in relations:
        if config.relations and relation not in config.relations:
            continue
        records: list[_Record] = []
        for part in _PARTS:
            if (relation, part) in files:
                file = files[relation, part]
                records += _records(root, confined(root, file), part, listing.problems)
        _read_relation(listing, relation, records, config.null_subject)
    return listing


def _records(root: Path, file: Path, part: str, problems: list[Problem]) -> list[_Record]:
    """The items of one file; what is wrong with it or with any of them goes to `problems`."""
    name = file.relative_to(root).as_posix()
    try:
        items = json_value(text_bytes(file))
    except UnicodeDecodeError:
        problems.append(Problem(where=name, reason="is not UTF-8 text"))
        return []
    except (ValueError, RecursionError) as error:
        problems.append(Problem(where=name, reason=f"is not valid JSON ({shortened(first_line(error), 200)})"))
        return []
    example = '{"question": ..., "answers": [...]}'
    if not isinstance(items, list):
        problems.append(Problem(where=name, reason=f"is JSON but not a list of objects {example}"))
        return []
    records = []
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            records.append((f"{name} item {number}", part, item))
        else:
            problems.append(Problem(where=f"{name} item {number}", reason=f"is not an object {example}"))
    if records:
        columns = list(dict.fromkeys(column for _, _, item in records for column in item))
        check_columns(str(file), columns, [("question",), ("answers", "answer")])
    return records


def _read_relation(listing: Listing, relation: str, records: list[_Record], null_subject: str) -> None:
    """Add the relation's rows, problems and remarks to what was read."""
    usable: list[tuple[str, str, str, tuple[str, ...]]] = []
    for where, part, item in records:
        try:
            usable.append((where, part, required_text(item, "question"), answers_of(item)))
        except ValueError as error:
            listing.problems.append(Problem(where=where, reason=str(error)))
    templates = published(relation)
    if usable and not templates:
        templates = _found(
            listing, relation, usable[0][0].partition(" item ")[0], [question for _, _, question, _ in usable]
        )
        if not templates:
            return
    wanted = " or ".join(f'"{template}"' for template in templates)
    for where, part, question, answers in usable:
        template = next((template for template in templates if template.subject(question)), None)
        if template is None:
            reason = f'question "{shortened(question)}" does not fit the template {wanted}'
            listing.problems.append(Problem(where=where, reason=reason))
            continue
        row = Row(
            where=where,
            question=question,
            relation=relation,
            subject=template.subject(question),
            answers=answers,
            null_question=template.filled(null_subject),
            split=SPLIT_WORDS[part],
        )
        listing.rows.append(row)


def _found(listing: Listing, relation: str, file: str, questions: list[str]) -> list[Template]:
    """The template that the questions have in common, with a remark on it; a problem where there is none."""
    template = common_template(questions)
    if template is None:
        reason = "its questions have no words in common, so that what each is about is unknown"
        listing.problems.append(Problem(where=file, reason=reason))
        return []
    listing.notes.append(f"{relation}: no published template; its questions have in common {few([str(template)])}")
    return [template]
