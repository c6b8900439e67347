"""From scores to shares of a budget or of a population."""

import math
from collections.abc import Sequence

from search.types import Candidate

# As far from 0 and 1 as a score is taken to be, so that no logit is infinite.
_MARGIN = 1e-7


def softmax(values: Sequence[float | None], temperature: float) -> list[float]:
    """Weights that add up to 1. Without a value no weight; all alike where none has one.

    >>> softmax([0.0, math.log(3), None], 1.0)
    [0.25, 0.75, 0.0]
    """
    known = [value for value in values if value is not None]
    if not known:
        return [1 / len(values)] * len(values)
    most = max(known)
    powers = [0.0 if v is None else math.exp((v - most) / temperature) for v in values]
    total = math.fsum(powers)
    return [power / total for power in powers]


def scores_of(candidates: Sequence[Candidate]) -> list[float | None]:
    """The scores as they are."""
    return [candidate.score for candidate in candidates]


def logits_of(candidates: Sequence[Candidate]) -> list[float | None]:
    """Scores in [0, 1] as log-odds: their softmax at temperature 1 is in proportion to the odds."""
    return [None if score is None else _logit(score) for score in scores_of(candidates)]


def apportion(weights: Sequence[float], places: int) -> list[int]:
    """Whole numbers in proportion to the weights (which add up to 1) that add up to `places`.

    By largest remainder: where rounding every share to the nearest would add up, it is the same.

    >>> apportion([0.6, 0.25, 0.15], 4), apportion([0.2] * 5, 3)
    ([2, 1, 1], [1, 1, 1, 0, 0])
    """
    shares = [weight * places for weight in weights]
    whole = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])
    for place in by_remainder[: places - sum(whole)]:
        whole[place] += 1
    return whole


def _logit(score: float) -> float:
    score = min(max(score, _MARGIN), 1 - _MARGIN)
    return math.log(score / (1 - score))
