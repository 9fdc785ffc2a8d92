"""PopQA (Mallen et al., 2023, arXiv 2212.10511): one table of questions with the page views of their subjects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..parsing import Problem, first_line, json_value, scalar, separated_lines, shortened, text_bytes
from .config import QuestionsConfig
from .rows import Listing, Row, check_columns, key, nullified, relation_of, required_text, text_of, texts_of

REQUIRED = ("subj", "prop", "question", "possible_answers")


def read_popqa(file: Path, config: QuestionsConfig) -> Listing:
    """Read PopQA's table; it has no splits of its own.

    Raises:
        UserError: the file cannot be opened, or a column is missing.
    """
    problems: list[Problem] = []
    records = []
    for item in separated_lines(file, text_bytes(file), delimiter="\t"):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            records.append(item)
    if records:
        check_columns(str(file), list(records[0][1]), [(name,) for name in REQUIRED])
    rows = []
    for where, record in records:
        try:
            rows.append(_row(where, record, config.null_subject))
        except ValueError as error:
            problems.append(Problem(where=where, reason=str(error)))
    return Listing(rows=rows, problems=problems, notes=[], relations=tuple(sorted({row.relation for row in rows})))


def _row(where: str, record: Mapping[str, Any], null_subject: str) -> Row:
    """One row; ValueError says what is wrong with it.

    `obj` is the answer, and the further possible answers are other words for it, not other answers.
    """
    possible = _possible_answers(record["possible_answers"])
    answer = text_of(record, "obj") or possible[0]
    subject, question = required_text(record, "subj"), required_text(record, "question")
    popularity = scalar(record.get("s_pop"))
    return Row(
        where=where,
        question=question,
        relation=relation_of(record, "prop"),
        subject=subject,
        answers=(answer,),
        aliases=tuple(alias for alias in possible if key(alias) != key(answer)),
        null_question=nullified(question, subject, null_subject),
        columns={"popularity": popularity} if "s_pop" in record else {},
    )


def _possible_answers(cell: str) -> tuple[str, ...]:
    try:
        possible = json_value(cell.encode("utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"possible_answers is not valid JSON ({shortened(first_line(error), 200)})") from None
    return texts_of(possible, "possible_answers")
