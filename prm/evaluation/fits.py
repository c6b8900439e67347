"""How calibrations are fitted: isotonic and logistic regression, cross-validated over problems.

Deterministic: the same data in the same order give the same fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prm.calibration import (
    FEATURES,
    FittedAggregation,
    IsotonicMap,
    PlattMap,
    Term,
    logit,
)

# Penalties per response that cross-validation chooses from.
L2_GRID = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
NUM_FOLDS = 5

Floats = NDArray[np.float64]


def pool_adjacent_violators(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted least squares.

    Ayer et al. 1955: neighbours that decrease are pooled into their weighted mean until none do.

    >>> pool_adjacent_violators([1.0, 3.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        block = (float(value), float(weight), 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            pooled = (mean * mass + block[0] * block[1]) / total
            block = (pooled, total, length + block[2])
        blocks.append(block)
    return [mean for mean, _, length in blocks for _ in range(length)]


def fit_isotonic(scores: Sequence[float], labels: Sequence[bool]) -> IsotonicMap:
    """Zadrozny and Elkan 2002 §3: the best monotone map, linear between its blocks.

    n labels cannot tell a probability from 1 by less than 1/(n+2) (Laplace's rule of succession):
    the map keeps that far from 0 and from 1. Raises ValueError unless both labels occur.
    """
    found, truth = _checked(scores, labels)
    knots, place, counts = np.unique(found, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=truth) / counts
    margin = 1 / (len(found) + 2)
    heights = np.clip(pool_adjacent_violators(means.tolist(), counts.tolist()), margin, 1 - margin)
    # Of a block only its ends are knots: between them the map is flat anyway.
    is_end = np.ones(len(knots), dtype=bool)
    is_end[1:-1] = (heights[1:-1] != heights[:-2]) | (heights[1:-1] != heights[2:])
    return IsotonicMap(
        scores=tuple(knots[is_end].tolist()), probabilities=tuple(heights[is_end].tolist())
    )


def fit_platt(scores: Sequence[float], labels: Sequence[bool]) -> PlattMap:
    """Platt 1999, by Newton's method as in Lin, Lin and Weng, Machine Learning 68 (2007), §2.

    Their targets, (N₊+1)/(N₊+2) and 1/(N₋+2), keep the fit finite where the labels separate. Where
    higher scores are wrong more often the best monotone fit is the constant one, slope 0. Raises
    ValueError unless both labels occur.
    """
    found, truth = _checked(scores, labels)
    positives = truth.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
    targets = np.where(truth == 1, high, low)
    logits = np.array([logit(score) for score in found])
    center, scale = logits.mean(), logits.std()
    weight = 0.0
    if scale > 1e-9:
        weights, intercept = fit_logistic(((logits - center) / scale)[:, None], targets, l2=0.0)
        weight = float(weights[0])
    if weight <= 0:
        # The loss is convex: with a slope bound to be ≥ 0, its minimum lies on the bound.
        return PlattMap(slope=0.0, intercept=logit(float(targets.mean())))
    return PlattMap(slope=weight / scale, intercept=intercept - weight * center / scale)


def fit_logistic(features: Floats, targets: Floats, *, l2: float) -> tuple[Floats, float]:
    """Weights and intercept that minimise mean cross-entropy + l2/2·|weights|².

    `features` is [example, feature], `targets` are in [0, 1]. Newton's method with a step halved
    until the loss falls, a Hessian kept positive and log-sum-exp (Lin, Lin and Weng 2007 §2-3).
    """
    design = np.column_stack([features, np.ones(len(features))])
    penalty = np.append(np.full(features.shape[1], l2), 0.0)
    beta = np.zeros(design.shape[1])

    def loss_of(beta: Floats) -> float:
        z = design @ beta
        return float(np.mean(np.logaddexp(0, z) - targets * z) + 0.5 * (penalty * beta**2).sum())

    loss = loss_of(beta)
    for _ in range(100):
        predicted = 0.5 * (1 + np.tanh(0.5 * (design @ beta)))
        gradient = design.T @ (predicted - targets) / len(targets) + penalty * beta
        if np.abs(gradient).max() < 1e-10:
            break
        curvature = predicted * (1 - predicted) / len(targets)
        hessian = (design * curvature[:, None]).T @ design + np.diag(penalty + 1e-12)
        direction = -np.linalg.solve(hessian, gradient)
        descent, step = float(gradient @ direction), 1.0
        while (tried := loss_of(beta + step * direction)) > loss + 1e-4 * step * descent:
            step /= 2
            if step < 1e-10:  # no descent left that float64 can tell
                return beta[:-1], float(beta[-1])
        beta, loss = beta + step * direction, tried
    return beta[:-1], float(beta[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A response's step scores, whether it is right, and the problem that it answers."""

    problem: str
    scores: tuple[float, ...]
    is_correct: bool


def fit_aggregation(responses: Sequence[Graded], *, seed: int = 0) -> FittedAggregation:
    """Logistic regression on `prm.calibration.FEATURES`, standardised.

    The penalty is the one of the lowest log loss in cross-validation over these problems; of equals
    the strongest. Raises ValueError unless both labels and two problems occur.
    """
    if len({response.problem for response in responses}) < 2:
        raise ValueError("one problem; cross-validation takes at least two")
    _check_labels(np.array([float(response.is_correct) for response in responses]))
    best = min(L2_GRID, key=lambda l2: _validation_loss(responses, l2, seed))
    return _fit_aggregation(responses, best)


def folds_of(problems: Sequence[str], count: int, seed: int) -> list[set[str]]:
    """The different problems, shuffled into `count` parts, or as many as there are problems."""
    names = sorted(set(problems))
    order = np.random.default_rng(seed).permutation(len(names))
    return [{names[i] for i in part} for part in np.array_split(order, min(count, len(names)))]


def cross_predict(
    responses: Sequence[Graded],
    fit: Callable[[Sequence[Graded]], FittedAggregation],
    *,
    folds: int = NUM_FOLDS,
    seed: int = 0,
) -> list[float]:
    """Of each response, the probability by a fit that saw no response to its problem."""
    predictions = [0.0] * len(responses)
    for fold in folds_of([r.problem for r in responses], folds, seed):
        fitted = fit([r for r in responses if r.problem not in fold])
        for index, response in enumerate(responses):
            if response.problem in fold:
                predictions[index] = fitted.probability(response.scores)
    return predictions


def _validation_loss(responses: Sequence[Graded], l2: float, seed: int) -> float:
    predictions = cross_predict(responses, lambda seen: _fit_aggregation(seen, l2), seed=seed)
    bounded = np.clip(predictions, 1e-12, 1 - 1e-12)
    labels = np.array([response.is_correct for response in responses])
    return float(-np.mean(np.where(labels, np.log(bounded), np.log1p(-bounded))))


def _fit_aggregation(responses: Sequence[Graded], l2: float) -> FittedAggregation:
    labels = np.array([float(response.is_correct) for response in responses])
    raw = np.array([_features(response.scores) for response in responses])
    means, scales = raw.mean(axis=0), raw.std(axis=0)
    # A feature that does not vary tells nothing: its standardised value is 0 in these data.
    scales[scales < 1e-9] = 1.0
    weights, intercept = fit_logistic((raw - means) / scales, labels, l2=l2)
    return FittedAggregation(
        intercept=intercept,
        terms=tuple(
            Term(feature=name, mean=mean, scale=scale, weight=weight)
            for name, mean, scale, weight in zip(
                FEATURES, means.tolist(), scales.tolist(), weights.tolist(), strict=True
            )
        ),
        l2=l2,
    )


@lru_cache(maxsize=1 << 16)
def _features(scores: tuple[float, ...]) -> tuple[float, ...]:
    """Asked for again with every fold and penalty."""
    return tuple(feature(scores) for feature in FEATURES.values())


def _checked(scores: Sequence[float], labels: Sequence[bool]) -> tuple[Floats, Floats]:
    found, truth = np.asarray(scores, float), np.asarray(labels, float)
    if len(found) != len(truth):
        raise ValueError(f"{len(found)} scores for {len(truth)} labels")
    if not np.all((found >= 0) & (found <= 1)):
        raise ValueError("a score is not in [0, 1]")
    _check_labels(truth)
    return found, truth


def _check_labels(labels: Floats) -> None:
    if not 0 < labels.sum() < len(labels):
        raise ValueError(f"all {len(labels)} labels are alike; a fit needs right and wrong ones")
