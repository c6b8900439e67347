"""Fitting a selector to labelled candidates, and predicting each problem by a fit without it."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from prm.evaluation.fits import L2_GRID, fit_logistic, folds_of
from search.reranking.pool import Floats, PoolProblem
from search.selection import FEATURES, FeatureName, Selector, Term

ALL_FEATURES: tuple[FeatureName, ...] = tuple(FEATURES)
INNER_FOLDS = 5
Report = Callable[[], None]


def fit_selector(
    problems: Sequence[PoolProblem],
    *,
    features: Sequence[FeatureName] = ALL_FEATURES,
    seed: int = 0,
) -> Selector:
    """Logistic regression of right or wrong on the standardised features, with an L2 penalty.

    The penalty is that of the lowest log loss in cross-validation over these problems; of equals
    the strongest. Raises ValueError unless both labels and two problems occur.
    """
    labels = _labels(problems)
    if not 0 < labels.sum() < len(labels):
        raise ValueError(f"all {len(labels)} candidates are labelled alike")
    if len(problems) < 2:
        raise ValueError("one problem; cross-validation takes at least two")
    l2 = min(L2_GRID, key=lambda l2: _validation_loss(problems, features, l2, seed))
    return _fit(problems, features, l2)


def probabilities(selector: Selector, problems: Sequence[PoolProblem]) -> list[Floats]:
    """Of each problem, an array [candidate] of probabilities of being right."""
    names = [term.feature for term in selector.terms]
    means, scales, weights = (
        np.array([getattr(term, field) for term in selector.terms])
        for field in ("mean", "scale", "weight")
    )
    found = []
    for problem in problems:
        z = (_matrix(problem.scores, tuple(names)) - means) / scales @ weights + selector.intercept
        found.append(0.5 * (1 + np.tanh(0.5 * z)))
    return found


def cross_fit(
    problems: Sequence[PoolProblem],
    *,
    folds: int,
    seed: int,
    features: Sequence[FeatureName] = ALL_FEATURES,
    report: Report | None = None,
) -> list[Floats]:
    """Of each problem, the probabilities by a fit that saw no candidate of it."""
    found: list[Floats] = [np.zeros(0)] * len(problems)
    for held_out in fold_indices(problems, folds, seed):
        seen = [problem for index, problem in enumerate(problems) if index not in held_out]
        selector = fit_selector(seen, features=features, seed=seed)
        for index in held_out:
            (found[index],) = probabilities(selector, [problems[index]])
        if report is not None:
            report()
    return found


def fold_indices(problems: Sequence[PoolProblem], folds: int, seed: int) -> list[list[int]]:
    """The problems' indices in `folds` parts, at random by `seed`."""
    place = {problem.text: index for index, problem in enumerate(problems)}
    return [
        sorted(place[text] for text in part)
        for part in folds_of([problem.text for problem in problems], folds, seed)
    ]


def _validation_loss(
    problems: Sequence[PoolProblem], features: Sequence[FeatureName], l2: float, seed: int
) -> float:
    losses = []
    for held_out in fold_indices(problems, INNER_FOLDS, seed):
        seen = [problem for index, problem in enumerate(problems) if index not in held_out]
        unseen = [problems[index] for index in held_out]
        predicted = np.concatenate(probabilities(_fit(seen, features, l2), unseen))
        bounded = np.clip(predicted, 1e-12, 1 - 1e-12)
        losses.append(-np.where(_labels(unseen) == 1, np.log(bounded), np.log1p(-bounded)))
    return float(np.concatenate(losses).mean())


def _fit(problems: Sequence[PoolProblem], features: Sequence[FeatureName], l2: float) -> Selector:
    raw = np.concatenate([_matrix(problem.scores, tuple(features)) for problem in problems])
    means, scales = raw.mean(axis=0), raw.std(axis=0)
    # A feature that does not vary tells nothing: its standardised value is 0 in these data.
    scales[scales < 1e-9] = 1.0
    weights, intercept = fit_logistic((raw - means) / scales, _labels(problems), l2=l2)
    terms = zip(features, means.tolist(), scales.tolist(), weights.tolist(), strict=True)
    return Selector(
        intercept=intercept,
        terms=tuple(Term(feature=f, mean=m, scale=s, weight=w) for f, m, s, w in terms),
        l2=l2,
    )


def _labels(problems: Sequence[PoolProblem]) -> Floats:
    return np.concatenate([problem.is_right for problem in problems]).astype(np.float64)


@lru_cache(maxsize=1 << 14)
def _matrix(scores: tuple[tuple[float, ...], ...], features: tuple[FeatureName, ...]) -> Floats:
    """[candidate, feature]; asked for again with every fold and penalty."""
    return np.array([[FEATURES[name](steps) for name in features] for steps in scores])
