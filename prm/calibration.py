"""Calibrations: step score → probability that the step is right, per PRM version and policy.

    models/<name>/calibration/<version>/<policy>.json

A PRM's score says which step is better; how often a step of that score is right depends on who
wrote the steps. So a calibration belongs to one version and one policy. A version's folder never
changes, so its calibrations lie beside it and name the weights that they were fitted to. Besides,
a calibration may hold a fitted aggregation: step scores → probability that the whole response is
right. How they are fitted: `prm/evaluation/fits.py`.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import fsum, log, log1p
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from prm.aggregation import PlainAggregation
from prm.errors import ModelFolderError
from prm.evaluation.reliability import Comparison
from prm.families.base import sigmoid
from prm.files import read_json, write_durably
from prm.manifest import CALIBRATION_FOLDER, Finite, ModelRef, ModelVersion

# A score of 0 or 1 has no logit; ±13.8 is as far as a probability that means anything goes.
MIN_PROBABILITY = 1e-6

# A policy server's names hold slashes; `file_of` escapes what a file name must not hold.
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
        """The probability for a score in [0, 1]."""
        _check_score(score)
        return sigmoid(self.slope * logit(score) + self.intercept)


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


def file_of(version: ModelVersion, policy: str) -> Path:
    """Where the calibration of this version for this policy lies."""
    return _folder(version) / f"{quote(policy, safe='@+')}.json"


def save(version: ModelVersion, calibration: Calibration) -> Path:
    """Write it where `load` finds it, in place of an older one for the same policy, at once."""
    assert _is_of(calibration, version)
    path = file_of(version, calibration.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{os.getpid()}.draft"
    write_durably(draft, calibration.model_dump_json(indent=2) + "\n")
    draft.rename(path)
    return path


def load(version: ModelVersion) -> dict[str, Calibration]:
    """The calibrations of a version by policy. Raises ModelFolderError naming a bad file."""
    paths = sorted(_folder(version).glob("[!.]*.json"))
    calibrations = [_read(path, version) for path in paths]
    return {calibration.policy: calibration for calibration in calibrations}


def _read(path: Path, version: ModelVersion) -> Calibration:
    try:
        calibration = Calibration.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ModelFolderError(path, f"field {field}: {first['msg']}; {_REMEDY}") from error
    if not _is_of(calibration, version):
        pinned = calibration.prm
        raise ModelFolderError(
            path,
            f"was fitted to {pinned.key} with the weights {pinned.weights_sha256[:12]}…, and "
            f"{version.key} has {version.weights_sha256[:12]}…; {_REMEDY}",
        )
    if file_of(version, calibration.policy) != path:
        raise ModelFolderError(
            path, f"holds the calibration for policy {calibration.policy!r}; {_REMEDY}"
        )
    return calibration


_REMEDY = "remove it, or fit anew with `rung eval calibrate`"


def _is_of(calibration: Calibration, version: ModelVersion) -> bool:
    return calibration.prm == version.ref


def _folder(version: ModelVersion) -> Path:
    return version.folder.parent / CALIBRATION_FOLDER / version.folder.name


def _check_score(score: float) -> None:
    assert 0 <= score <= 1, f"a step score of {score} is outside of [0, 1]"
