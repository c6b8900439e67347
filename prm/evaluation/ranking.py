"""Which aggregation tells right responses from wrong ones, and picks the right one of several.

AUROC is over all responses: the chance that a right one ranks above a wrong one, ties counting
half. Best-of-n is within a problem: the chance that its highest-ranked response is right, where the
first of equals is drawn. The fitted aggregation is cross-fitted: every response is ranked by a fit
that saw no response to its problem, so its figures stand beside those of rules that fit nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from prm.aggregation import AGGREGATIONS, AggregationName
from prm.errors import InvalidInput
from prm.evaluation.fits import Graded, cross_predict, fit_aggregation
from prm.evaluation.reliability import Interval, Resamples

Floats = NDArray[np.float64]


class Ranking(BaseModel):
    """One aggregation's figures, and by how much the fitted one exceeds them on the same draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    aggregation: AggregationName
    auroc: Interval
    best_of_n: Interval
    fitted_gains_auroc: Interval
    fitted_gains_best_of_n: Interval


def compare_aggregations(
    responses: Sequence[Graded], *, folds: int = 5, seed: int = 0
) -> list[Ranking]:
    """Every plain aggregation and the fitted one, on the same responses.

    Raises InvalidInput unless every fold leaves two problems and both labels.
    """
    labels = np.array([response.is_correct for response in responses], float)
    if not 0 < labels.sum() < len(labels):
        raise InvalidInput(f"all {len(labels)} responses are labelled alike; nothing to rank")
    try:
        fitted = cross_predict(
            responses, lambda seen: fit_aggregation(seen, seed=seed), folds=folds, seed=seed
        )
    except ValueError as error:
        raise InvalidInput(f"{folds} folds: {error}; give more problems") from error
    ranks: dict[AggregationName, Floats] = {
        name: np.array([aggregate(response.scores) for response in responses])
        for name, aggregate in AGGREGATIONS.items()
    }
    ranks["fitted"] = np.array(fitted)
    resamples = Resamples([response.problem for response in responses])
    figures = {name: ranking_figures(rank, labels, resamples) for name, rank in ranks.items()}
    best = figures["fitted"]
    return [
        Ranking(
            aggregation=name,
            auroc=resamples.interval(*own[0]),
            best_of_n=resamples.interval(*own[1]),
            fitted_gains_auroc=_gain(resamples, best[0], own[0]),
            fitted_gains_best_of_n=_gain(resamples, best[1], own[1]),
        )
        for name, own in figures.items()
    ]


def auroc(ranks: Floats, labels: Floats, weights: Floats) -> float:
    """The weighted chance that a right one ranks above a wrong one; NaN where either is missing.

    The Mann-Whitney statistic (Hanley and McNeil 1982): one sort, ties counted half.
    """
    _, place = np.unique(ranks, return_inverse=True)
    right = np.bincount(place, weights=weights * labels)
    wrong = np.bincount(place, weights=weights * (1 - labels))
    pairs = right.sum() * wrong.sum()
    below = np.cumsum(wrong) - wrong / 2
    return float((right * below).sum() / pairs) if pairs else float("nan")


Figure = tuple[float, Floats]


def ranking_figures(ranks: Floats, labels: Floats, resamples: Resamples) -> tuple[Figure, Figure]:
    """AUROC and best-of-n, on the data as they are and on every resample."""
    problem_of = resamples.problem_of
    areas = np.array([auroc(ranks, labels, draw[problem_of]) for draw in resamples.weights])
    picked = np.array(
        [
            labels[rows][ranks[rows] == ranks[rows].max()].mean()
            for rows in _rows_of_problems(problem_of)
        ]
    )
    shares = resamples.weights @ picked / resamples.weights.sum(axis=1)
    return (auroc(ranks, labels, np.ones(len(labels))), areas), (float(picked.mean()), shares)


def _rows_of_problems(problem_of: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(problem_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(problem_of[order])) + 1)


def _gain(resamples: Resamples, ours: Figure, theirs: Figure) -> Interval:
    return resamples.interval(ours[0] - theirs[0], ours[1] - theirs[1])
