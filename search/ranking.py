"""The order in which candidates are preferred."""

import math
from collections.abc import Iterable

from search.answers import tests_passed
from search.types import Candidate


def by_score(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The highest score first; equals, and those without a score, in the order written."""
    return sorted(
        candidates, key=lambda c: (-(c.score if c.score is not None else -math.inf), c.index)
    )


def by_grade(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Whoever passed more of the problem's tests first; equals as they come.

    Filtering by the problem's own tests comes before every other choice, as in AlphaCode (Li et
    al., arXiv 2203.07814 §4.4). Without tests, nothing changes.
    """
    return sorted(candidates, key=lambda candidate: -tests_passed(candidate.grade))
