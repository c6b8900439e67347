"""Final answers: out of a text, compared, and voted on. Nothing here imports sympy: see `maths`."""

from search.answers.equivalence import Equivalence, ExactAnswers, Outcome
from search.answers.extraction import MAX_ANSWER_CHARS, Extraction, extract_answer, last_match
from search.answers.maths import MathAnswers, MathRules
from search.answers.normal import normalise
from search.answers.task import StatedAnswers, TaskAnswers
from search.answers.votes import answer_of, count_votes, tests_passed

__all__ = [
    "MAX_ANSWER_CHARS",
    "Equivalence",
    "ExactAnswers",
    "Extraction",
    "MathAnswers",
    "MathRules",
    "Outcome",
    "StatedAnswers",
    "TaskAnswers",
    "answer_of",
    "count_votes",
    "extract_answer",
    "last_match",
    "normalise",
    "tests_passed",
]
