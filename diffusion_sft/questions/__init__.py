"""Sets of questions on disk, read into the same nouns as pictures: EntityQuestions, PopQA, or plain lines of JSON."""

from .config import FEWEST_EXEMPLARS, QuestionsConfig
from .read import QuestionSet, read_questions

__all__ = ["FEWEST_EXEMPLARS", "QuestionSet", "QuestionsConfig", "read_questions"]
