"""Labelled, scored responses → a calibration and what it is worth on problems that it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prm.aggregation import AGGREGATIONS, PlainAggregation
from prm.calibration import FittedAggregation, HeldOut, SampleCounts, StepMap
from prm.errors import InvalidInput
from prm.evaluation.fits import Graded, fit_aggregation, fit_isotonic, fit_platt
from prm.evaluation.labelled import Scored
from prm.evaluation.reliability import Resamples, compare

Method = Literal["isotonic", "platt"]
# Below this, a share held out says nothing, and cross-validation inside the rest has no folds.
MIN_PROBLEMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The two maps, each there if the data had its labels, and how they did on held-out data."""

    steps: StepMap | None
    response: FittedAggregation | None
    fitted: SampleCounts
    held_out: HeldOut


def calibrate(
    responses: Sequence[Scored],
    *,
    method: Method,
    holdout: float,
    seed: int,
    aggregation: PlainAggregation = "min",
) -> Fit:
    """Fit on a part of the problems, measure on the others.

    `aggregation` is what the fitted one is compared with. Raises InvalidInput when the labels do
    not suffice.
    """
    if not any(_has_step_labels(r) or r.is_correct is not None for r in responses):
        raise InvalidInput("no response has a label: give labels, first_error or correct")
    seen, unseen = split(responses, holdout, seed)
    steps, response = _fit_steps(seen, method), _fit_response(seen)
    return Fit(
        steps=steps,
        response=response,
        fitted=counts_of(seen),
        held_out=measure(unseen, steps, response, aggregation),
    )


def split(
    responses: Sequence[Scored], holdout: float, seed: int
) -> tuple[list[Scored], list[Scored]]:
    """The responses to 1 − `holdout` of the problems, drawn by `seed`, and to the others."""
    names = sorted({response.problem for response in responses})
    if len(names) < MIN_PROBLEMS:
        raise InvalidInput(
            f"{len(names)} different problems; a calibration takes at least {MIN_PROBLEMS}, and "
            "hundreds to be worth something"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(round(holdout * len(names)), 1), len(names) - 2)
    held_out = {names[place] for place in order[:count]}
    return (
        [response for response in responses if response.problem not in held_out],
        [response for response in responses if response.problem in held_out],
    )


def measure(
    responses: Sequence[Scored],
    steps: StepMap | None,
    response: FittedAggregation | None,
    aggregation: PlainAggregation,
) -> HeldOut:
    """How well both maps foretell these labels, beside the plain score and the plain aggregate."""
    labelled = _step_labels(responses) if steps else []
    graded = _graded(responses) if response else []
    return HeldOut(
        counts=counts_of(responses),
        aggregation=aggregation,
        steps=compare(
            [score for _, score, _ in labelled],
            [steps.probability(score) for _, score, _ in labelled],
            [label for _, _, label in labelled],
            Resamples([problem for problem, _, _ in labelled]),
        )
        if steps and labelled
        else None,
        responses=compare(
            [min(1.0, AGGREGATIONS[aggregation](item.scores)) for item in graded],
            [response.probability(item.scores) for item in graded],
            [item.is_correct for item in graded],
            Resamples([item.problem for item in graded]),
        )
        if response and graded
        else None,
    )


def counts_of(responses: Sequence[Scored]) -> SampleCounts:
    """What has a label."""
    return SampleCounts(
        problems=len({response.problem for response in responses}),
        steps=len(_step_labels(responses)),
        responses=len(_graded(responses)),
    )


def _fit_steps(responses: Sequence[Scored], method: Method) -> StepMap | None:
    labelled = _step_labels(responses)
    if not labelled:
        return None
    fit = fit_isotonic if method == "isotonic" else fit_platt
    try:
        return fit([score for _, score, _ in labelled], [label for _, _, label in labelled])
    except ValueError as error:
        raise InvalidInput(f"labels of steps: {error}") from error


def _fit_response(responses: Sequence[Scored]) -> FittedAggregation | None:
    graded = _graded(responses)
    if not graded:
        return None
    try:
        return fit_aggregation(graded)
    except ValueError as error:
        raise InvalidInput(f"labels of responses (correct): {error}") from error


def _has_step_labels(response: Scored) -> bool:
    return any(label is not None for label in response.labels)


def _step_labels(responses: Sequence[Scored]) -> list[tuple[str, float, bool]]:
    """Problem, score and label of every step that has one."""
    return [
        (response.problem, score, label)
        for response in responses
        for score, label in zip(response.scores, response.labels, strict=True)
        if label is not None
    ]


def _graded(responses: Sequence[Scored]) -> list[Graded]:
    return [
        Graded(problem=r.problem, scores=r.scores, is_correct=r.is_correct)
        for r in responses
        if r.is_correct is not None
    ]
