"""Intervals and tests of experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, fsum, sqrt
from statistics import NormalDist, stdev

import numpy as np

# 97.5 % points of Student's t with 1, 2, … 30 degrees of freedom.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval. `str` writes it with three decimals."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def is_above_zero(self) -> bool:
        """Whether all of it is."""
        return self.low > 0


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over independent runs, with Student's t interval.

    >>> str(over_seeds([0.1, 0.2, 0.3]))
    '0.200 (-0.048 to 0.448)'
    """
    mean = fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, float("-inf"), float("inf"))
    degrees = len(values) - 1
    quantile = _T_975[degrees - 1] if degrees <= len(_T_975) else NormalDist().inv_cdf(0.975)
    half = quantile * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean difference of two arms that ran with the same seeds, with its t interval."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])


def paired_bootstrap(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean difference of two arms on the same problems, seeds and problems drawn again.

    Both are [seeds, problems], and row by row and column by column the same.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    assert difference.ndim == 2, f"expected [seeds, problems], got {difference.shape}"
    seeds, problems = difference.shape
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(seeds, size=seeds)
        columns = rng.integers(problems, size=problems)
        means[draw] = difference[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(difference.mean()), float(low), float(high))


def two_proportions(successes: tuple[int, int], trials: tuple[int, int]) -> float:
    """The two-sided p-value that two shares are the same: Fisher's exact test.

    >>> round(two_proportions((12, 20), (20, 20)), 4)
    0.0033
    """
    (a, b), (n, m) = successes, trials
    total, right = n + m, a + b
    ways = comb(total, right)

    def chance(of_first: int) -> float:
        return comb(n, of_first) * comb(m, right - of_first) / ways

    seen = chance(a)
    possible = range(max(0, right - m), min(n, right) + 1)
    # Rounding may not make an outcome as likely as the one seen count as likelier.
    return min(1.0, fsum(p for k in possible if (p := chance(k)) <= seen * (1 + 1e-9)))


def area_under(steps: Sequence[float], values: Sequence[float]) -> float:
    """The area under a curve, by trapezoids, over its width: the mean height.

    >>> area_under([0, 10, 20], [0.0, 1.0, 1.0])
    0.75
    """
    width = steps[-1] - steps[0]
    assert width > 0, "a curve needs two places"
    return float(np.trapezoid(values, steps)) / width
