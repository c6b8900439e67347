"""Figures of a policy from how many of n samples of each problem are right."""

from collections.abc import Sequence
from math import comb, fsum


def average_at_n(is_correct: Sequence[Sequence[bool]]) -> float:
    """avg@n: the mean share of right samples over problems.

    >>> average_at_n([[True, False], [False, False]])
    0.25
    """
    return fsum(sum(row) / len(row) for row in is_correct) / len(is_correct)


def pass_at_n(is_correct: Sequence[Sequence[bool]]) -> float:
    """pass@n: the share of problems with any right sample."""
    return sum(any(row) for row in is_correct) / len(is_correct)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that any of k samples is right, from n with c right: 1 − C(n−c, k)/C(n, k).

    Unbiased, unlike 1 − (1 − c/n)^k: Chen et al., arXiv 2107.03374 Eq. 1. In whole numbers, so
    that no n is too large.

    >>> pass_at_k(16, 4, 8)
    0.9615384615384616
    """
    assert 0 <= correct <= samples, f"{correct} of {samples} samples right"
    assert 1 <= k <= samples, f"pass@{k} from {samples} samples"
    return 1 - comb(samples - correct, k) / comb(samples, k)


def weighted_by_size(scores: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean over data sets of unlike size, each counted by its items.

    PRL's "5 Avg" is this one (arXiv 2601.10201 Tables 1 to 3), while its code's is unweighted.
    """
    assert len(scores) == len(sizes), f"{len(scores)} scores for {len(sizes)} data sets"
    products = (score * size for score, size in zip(scores, sizes, strict=True))
    return fsum(products) / sum(sizes)
