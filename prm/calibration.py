"""Calibrations: step score → probability that the step is right, per PRM version and policy.

A PRM's score says which step is better; how often a step of that score is right depends on who
wrote the steps. So a calibration belongs to one version and one policy. Besides, it may hold a
fitted aggregation: step scores → probability that the whole response is right. How they are fitted:
`prm/evaluation/fits.py`; where they lie: `prm/calibration_files.py`.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import fsum, log, log1p
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from prm.aggregation import PlainAggregation
from prm.evaluation.reliability import Comparison
from prm.families.base import sigmoid
from prm.manifest import Finite, ModelRef

# A score of 0 or 1 has no logit; ±13.8 is as far as a probability that means anything goes.
MIN_PROBABILITY = 1e-6

# A policy server's names hold slashes; `calibration_files` escapes what a file name must not hold.
PolicyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,79}$")]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IsotonicMap(_Record):
    """A non-decreasing piecewise linear map through knots; constant outside of them."""

    method: Literal["isotonic"] = "isotonic"
    scores: tuple[Probability, ...] = Field(min_length=1)
    probabilities: tuple[Probability, ...]

    @model_validator(mode="after")
    def _is_a_monotone_map(self) -> Self:
        if len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"{len(self.scores)} scores and {len(self.probabilities)} probabilities"
            )
        if any(low >= high for low, high in pairwise(self.scores)):
            raise ValueError("scores must increase")
        if any(low > high for low, high in pairwise(self.probabilities)):
            raise ValueError("probabilities must not decrease")
        return self

    def probability(self, score: float) -> float:
        """The probability for a score in [0, 1]."""
        _check_score(score)
        at = bisect_left(self.scores, score)
        if at == 0:
            return self.probabilities[0]
        if at == len(self.scores):
            return self.probabilities[-1]
        (low, high), (start, end) = (
            self.scores[at - 1 : at + 1],
            self.probabilities[at - 1 : at + 1],
        )
        # The bound keeps the map monotone where rounding would go an ulp beyond the knot.
        return min(end, start + (end - start) * ((score - low) / (high - low)))


class PlattMap(_Record):
    """σ(slope · logit(score) + intercept): Platt 1999, §2.

    The logit of the score is the family's raw number, within ±13.8.
    """

    method: Literal["platt"] = "platt"
    slope: Annotated[Finite, Field(ge=0)]
    intercept: Finite

    def probability(self, score: float) -> float:
        """The probability for a score in [0, 1]; never so near to 0 or 1 as to be rounded to it."""
        _check_score(score)
        probability = sigmoid(self.slope * logit(score) + self.intercept)
        return min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)


StepMap = Annotated[IsotonicMap | PlattMap, Field(discriminator="method")]

FeatureName = Literal["logit_min", "logit_last", "logit_mean", "mean_log", "log_steps"]
FEATURES: Mapping[FeatureName, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "logit_min": lambda scores: logit(min(scores)),
        "logit_last": lambda scores: logit(scores[-1]),
        "logit_mean": lambda scores: logit(fsum(scores) / len(scores)),
        # The product without its liking for short responses, which has a weight of its own.
        "mean_log": lambda scores: fsum(log(max(s, MIN_PROBABILITY)) for s in scores) / len(scores),
        "log_steps": lambda scores: log(len(scores)),
    }
)


class Term(_Record):
    """One feature of the step scores: standardised by `mean` and `scale`, times `weight`."""

    feature: FeatureName
    mean: Finite
    scale: Annotated[Finite, Field(gt=0)]
    weight: Finite


class FittedAggregation(_Record):
    """σ(intercept + Σ weight · (feature − mean) / scale): L2-regularised logistic regression.

    `l2` is the penalty that cross-validation inside the fitted problems chose.
    """

    intercept: Finite
    terms: tuple[Term, ...] = Field(min_length=1)
    l2: Annotated[Finite, Field(gt=0)]

    def probability(self, scores: Sequence[float]) -> float:
        """The probability that a response with these step scores, at least one, is right."""
        for score in scores:
            _check_score(score)
        return sigmoid(
            self.intercept
            + fsum(t.weight * (FEATURES[t.feature](scores) - t.mean) / t.scale for t in self.terms)
        )


class SampleCounts(_Record):
    """What a part of the data held: steps and responses are counted where they have a label."""

    problems: int = Field(ge=1)
    steps: int = Field(ge=0)
    responses: int = Field(ge=0)


class HeldOut(_Record):
    """How the calibration did on problems that it was not fitted to.

    Before it, a step's probability was its score, and a response's its plain `aggregation`.
    """

    counts: SampleCounts
    aggregation: PlainAggregation
    steps: Comparison | None = None
    responses: Comparison | None = None


class Calibration(_Record):
    """One calibration as it lies on disk: of which weights, for which policy, from what, how good.

    `steps` is there where steps had labels, `response` where whole responses had.
    """

    schema_version: Literal[1] = 1
    prm: ModelRef
    policy: PolicyName
    created: int
    command: str
    steps: StepMap | None = None
    response: FittedAggregation | None = None
    fitted: SampleCounts
    held_out: HeldOut

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.steps is None and self.response is None:
            raise ValueError("neither steps nor response is fitted")
        return self


def logit(probability: float) -> float:
    """log p/(1−p), p kept away from 0 and 1 by `MIN_PROBABILITY`."""
    probability = min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    return log(probability) - log1p(-probability)


def _check_score(score: float) -> None:
    assert 0 <= score <= 1, f"a step score of {score} is outside of [0, 1]"
