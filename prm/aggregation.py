"""Step scores → one trajectory score. One function each, all reported side by side.

Which one decides is the version's choice (`aggregation` in its manifest), because no single one
is right for every PRM: min is what the implicit PRM paper ranks with (arXiv 2412.01981 §4.1),
product is prm800k's and favours short solutions, last is search-and-learn's for value-like PRMs.
One more, "fitted", is no function but a regression, and there where a calibration holds one
(`prm/calibration.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

PlainAggregation = Literal["min", "last", "mean", "product", "max", "sum"]
AggregationName = Literal[PlainAggregation, "fitted"]
Aggregate = Callable[[Sequence[float]], float]

AGGREGATIONS: Mapping[PlainAggregation, Aggregate] = MappingProxyType(
    {
        "min": min,
        "last": lambda scores: scores[-1],
        "mean": lambda scores: math.fsum(scores) / len(scores),
        "product": math.prod,
        "max": max,
        "sum": math.fsum,
    }
)


def predicted_error(scores: Sequence[float], threshold: float) -> int | None:
    """The first step below the threshold: what the scorer calls the first error; else None."""
    return next((place for place, score in enumerate(scores) if score < threshold), None)


def aggregate_all(scores: Sequence[float]) -> dict[AggregationName, float]:
    """Every plain aggregate of a non-empty list of step scores, by name."""
    assert scores, "a trajectory without steps has no score"
    return {name: float(aggregate(scores)) for name, aggregate in AGGREGATIONS.items()}
