"""What a policy, and a PRM that ranks its rollouts, are worth: with 95 % bootstrap intervals.

Every figure is a mean over problems, and the bootstrap draws problems with replacement (Efron and
Tibshirani 1993), because the samples of one problem are not independent. The step figures are
ProcessBench's (arXiv 2412.06559 §4): a solution's first step below a threshold is what the scorer
calls the first error; F1 is the harmonic mean of the accuracies on erroneous and on right ones.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from prm.aggregation import predicted_error
from training.tasks import arithmetic
from training.types import Rollout

NUM_RESAMPLES = 2000

Group = Sequence[Rollout]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded, for a report."""
        return {name: round(number, 4) for name, number in asdict(self).items()}


def bootstrap(
    columns: Sequence[Floats], statistic: Callable[..., float], *, seed: int = 0
) -> Estimate:
    """`statistic(*columns)` on the problems as they are, and its percentile interval.

    Each column has one number per problem; a resample takes the same problems from all of them.
    """
    rng = np.random.default_rng(seed)
    count = len(columns[0])
    draws = [
        statistic(*(column[rows] for column in columns))
        for rows in (rng.integers(0, count, count) for _ in range(NUM_RESAMPLES))
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(mean=float(statistic(*columns)), low=float(low), high=float(high))


def mean_with_interval(values: Sequence[float]) -> Estimate:
    """The mean over problems."""
    return bootstrap([np.asarray(values, dtype=float)], lambda column: float(column.mean()))


def pass_at_1(group: Group) -> float:
    """Share of a problem's samples that are right."""
    return sum(rollout.is_correct for rollout in group) / len(group)


def oracle(group: Group) -> float:
    """1 if any sample is right: what a perfect ranking would reach."""
    return float(any(rollout.is_correct for rollout in group))


def majority(group: Group) -> float:
    """Chance that the most frequent answer is right, ties broken evenly."""
    return weighted_vote(group, [1.0] * len(group))


def weighted_vote(group: Group, weights: Sequence[float]) -> float:
    """Chance that the answer with the largest summed weight is right, ties broken evenly."""
    totals: defaultdict[str, float] = defaultdict(float)
    for rollout, weight in zip(group, weights, strict=True):
        answer = arithmetic.answer_of(arithmetic.SEPARATOR.join(rollout.steps))
        if answer is not None:
            totals[answer] += weight
    best = max(totals.values(), default=0.0)
    tied = [answer for answer, total in totals.items() if total == best]
    return sum(answer == group[0].problem.answer for answer in tied) / max(1, len(tied))


def best_of_n(group: Group, scores: Sequence[float]) -> float:
    """1 if the sample with the highest score is right; the first of equals is taken."""
    return float(group[int(np.argmax(scores))].is_correct)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAccuracy:
    """How well first errors are found: ProcessBench's three numbers."""

    erroneous: Estimate
    correct: Estimate
    f1: Estimate


def step_accuracy(
    groups: Sequence[Group], hits: Sequence[Sequence[float]], *, seed: int = 0
) -> StepAccuracy:
    """`hits` says, per problem and rollout, whether (or how likely) the prediction was right."""
    totals = np.zeros((4, len(groups)))
    for place, (group, group_hits) in enumerate(zip(groups, hits, strict=True)):
        for rollout, hit in zip(group, group_hits, strict=True):
            row = 0 if rollout.first_error is not None else 2
            totals[row, place] += hit
            totals[row + 1, place] += 1
    found, erroneous, cleared, correct = totals
    return StepAccuracy(
        erroneous=bootstrap([found, erroneous], _ratio, seed=seed),
        correct=bootstrap([cleared, correct], _ratio, seed=seed),
        f1=bootstrap([found, erroneous, cleared, correct], _f1, seed=seed),
    )


def threshold_hits(
    groups: Sequence[Group], scores: Sequence[Sequence[Sequence[float]]], threshold: float
) -> list[list[float]]:
    """1 where the first step below the threshold is the first error, or both are none."""
    return [
        [
            float(predicted_error(steps, threshold) == rollout.first_error)
            for rollout, steps in zip(group, group_scores, strict=True)
        ]
        for group, group_scores in zip(groups, scores, strict=True)
    ]


def chance_hits(groups: Sequence[Group]) -> list[list[float]]:
    """How likely a uniform guess among all steps and "none" is right."""
    return [[1 / (len(rollout.steps) + 1) for rollout in group] for group in groups]


def fit_threshold(
    groups: Sequence[Group], scores: Sequence[Sequence[Sequence[float]]], *, candidates: int = 200
) -> tuple[float, float]:
    """The threshold of the highest F1, among quantiles of the scores, and that F1."""
    flat = [score for group in scores for steps in group for score in steps]
    rollouts = [rollout for group in groups for rollout in group]
    is_error = np.array([rollout.first_error is not None for rollout in rollouts])
    best = (0.0, -1.0)
    for threshold in np.unique(np.quantile(flat, np.linspace(0, 1, candidates))):
        hits = threshold_hits(groups, scores, float(threshold))
        right = np.array([hit for group in hits for hit in group])
        f1 = harmonic_mean(right[is_error].mean(), right[~is_error].mean())
        best = max(best, (float(threshold), f1), key=lambda pair: pair[1])
    return best


def _ratio(part: Floats, whole: Floats) -> float:
    return float(part.sum() / max(1.0, whole.sum()))


def _f1(found: Floats, erroneous: Floats, cleared: Floats, correct: Floats) -> float:
    return harmonic_mean(_ratio(found, erroneous), _ratio(cleared, correct))


def harmonic_mean(a: float, b: float) -> float:
    """2ab/(a + b); 0 where both are."""
    return float(2 * a * b / (a + b)) if a + b > 0 else 0.0
