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
    half = _t_975(len(values) - 1) * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def _t_975(degrees: int) -> float:
    return _T_975[degrees - 1] if degrees <= len(_T_975) else NormalDist().inv_cdf(0.975)


def paired_over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean difference of two arms that ran with the same seeds, with its t interval."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])


def paired_crossed(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Interval:
    """The mean difference of two arms on the same problems: other seeds and other problems.

    Both are [seeds, problems], row by row and column by column the same. The variance is that of
    the means of rows plus that of the means of columns, which counts what is left of both twice,
    with Student's t of Satterthwaite's degrees of freedom. A bootstrap of five rows would be three
    fifths as wide as five rows ask for.

    >>> str(paired_crossed([[1, 2], [3, 4]], [[0, 0], [0, 0]]))
    '2.500 (-11.706 to 16.706)'
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    assert difference.ndim == 2, f"expected [seeds, problems], got {difference.shape}"
    mean, variance, spread = float(difference.mean()), 0.0, 0.0
    for axis, count in enumerate(difference.shape):
        if count == 1:
            return Interval(mean, float("-inf"), float("inf"))
        part = float(difference.mean(1 - axis).var(ddof=1)) / count
        variance += part
        spread += part**2 / (count - 1)
    # Whole degrees may come out a rounding below.
    half = _t_975(int(variance**2 / spread + 1e-9)) * sqrt(variance) if spread else 0.0
    return Interval(mean, mean - half, mean + half)


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
