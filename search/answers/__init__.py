"""Final answers: out of a text, compared, and voted on. Nothing here imports sympy: see `maths`."""

from search.answers.equivalence import Equivalence, ExactAnswers, Outcome
from search.answers.extraction import MAX_ANSWER_CHARS, Extraction, extract_answer
from search.answers.maths import MathAnswers, MathRules
from search.answers.normal import normalise
from search.answers.votes import answer_of, count_votes

__all__ = [
    "MAX_ANSWER_CHARS",
    "Equivalence",
    "ExactAnswers",
    "Extraction",
    "MathAnswers",
    "MathRules",
    "Outcome",
    "answer_of",
    "count_votes",
    "extract_answer",
    "normalise",
]
