"""Which problems are worth training on: neither always solved nor never, or of some levels.

A problem that the policy always, or never, solves has no reward variance and teaches an RL method
nothing; PRIME keeps pass rates of 0.2 to 0.8 (arXiv 2502.01456 §4.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prm.errors import InvalidInput
from training.types import Problem
from training.verifiers.base import Outcome

# Rounding: 1/5 measured as a mean of five rewards must pass a bound of 0.2.
_MARGIN = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What was kept, in order, and how many were below the bounds, above them, or not known."""

    problems: tuple[Problem, ...]
    below: int
    above: int
    unknown: int


def pass_rates(groups: Sequence[Sequence[Outcome]]) -> list[float | None]:
    """The mean reward of each problem's outcomes; errors count in none, and None is all errors."""
    rates: list[float | None] = []
    for group in groups:
        rewards = [outcome.reward for outcome in group if outcome.reward is not None]
        rates.append(sum(rewards) / len(rewards) if rewards else None)
    return rates


def by_pass_rate(
    problems: Sequence[Problem], rates: Sequence[float | None], bounds: tuple[float, float]
) -> Filtered:
    """Problems whose measured pass rate is within the bounds, both included.

    Raises InvalidInput when none is.
    """
    return _within(problems, rates, bounds, "a pass rate")


def by_level(problems: Sequence[Problem], bounds: tuple[float, float]) -> Filtered:
    """Problems whose level is within the bounds, both included. Raises InvalidInput for none."""
    return _within(problems, [problem.level for problem in problems], bounds, "a level")


def _within(
    problems: Sequence[Problem],
    values: Sequence[float | None],
    bounds: tuple[float, float],
    what: str,
) -> Filtered:
    low, high = bounds
    if low > high:
        raise InvalidInput(f"bounds [{low:g}, {high:g}]: the first is the least", param="bounds")

    def count(is_there: Callable[[float], bool]) -> int:
        return sum(value is not None and is_there(value) for value in values)

    kept = tuple(
        problem
        for problem, value in zip(problems, values, strict=True)
        if value is not None and low - _MARGIN <= value <= high + _MARGIN
    )
    below, above = count(lambda v: v < low - _MARGIN), count(lambda v: v > high + _MARGIN)
    unknown = sum(value is None for value in values)
    if not kept:
        raise InvalidInput(
            f"none of {len(problems)} problems has {what} in [{low:g}, {high:g}]: {below} are "
            f"below, {above} above, {unknown} have none; widen the bounds",
            param="bounds",
        )
    return Filtered(problems=kept, below=below, above=above, unknown=unknown)
