"""The order in which candidates are preferred."""

import math
from collections.abc import Iterable

from search.types import Candidate


def by_score(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The highest score first; equals, and those without a score, in the order written."""
    return sorted(
        candidates, key=lambda c: (-(c.score if c.score is not None else -math.inf), c.index)
    )
