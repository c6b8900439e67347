"""Fits against values worked out by hand, planted rules, and what must hold for any data."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.calibration import FittedAggregation, IsotonicMap, PlattMap
from prm.evaluation.fits import (
    Graded,
    cross_predict,
    fit_aggregation,
    fit_isotonic,
    fit_logistic,
    fit_platt,
    folds_of,
    pool_adjacent_violators,
)
from prm.families.base import sigmoid

SCORES = st.floats(0, 1)
LABELLED = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def test_violators_are_pooled_until_none_decrease() -> None:
    # 3, 1 → 2, 2; then 2, 2, 0.5 (weight 2) → (2+2+1)/4 = 1.25; 1 stays before it.
    values, weights = [1.0, 3.0, 1.0, 0.5, 4.0], [1.0, 1.0, 1.0, 2.0, 1.0]
    assert pool_adjacent_violators(values, weights) == [1.0, 1.25, 1.25, 1.25, 4.0]


@given(st.lists(st.tuples(SCORES, st.floats(0.1, 10)), min_size=1, max_size=30))
def test_pooling_keeps_the_weighted_mean_and_no_constant_map_is_nearer(
    pairs: list[tuple[float, float]],
) -> None:
    values, weights = map(list, zip(*pairs, strict=True))
    pooled = pool_adjacent_violators(values, weights)
    assert all(a <= b for a, b in pairwise(pooled))
    assert np.dot(pooled, weights) == pytest.approx(np.dot(values, weights))

    def distance(fit: list[float]) -> float:
        return float(np.dot(np.subtract(fit, values) ** 2, weights))

    constant = float(np.average(values, weights=weights))
    assert distance(pooled) <= distance([constant] * len(values)) + 1e-9


def test_an_isotonic_fit_worked_out_by_hand() -> None:
    # At 0.2 one of two is right, at 0.4 none of one: pooled to 1/3. At 0.6 and 0.8 all are right,
    # which six labels support up to 1 − 1/8.
    scores = [0.2, 0.2, 0.4, 0.6, 0.8, 0.8]
    labels = [True, False, False, True, True, True]
    fitted = fit_isotonic(scores, labels)
    assert fitted.scores == (0.2, 0.4, 0.6, 0.8)
    assert fitted.probabilities == pytest.approx((1 / 3, 1 / 3, 0.875, 0.875))
    assert fitted.probability(0.5) == pytest.approx((1 / 3 + 0.875) / 2)
    assert fitted.probability(0.0) == pytest.approx(1 / 3)
    assert fitted.probability(1.0) == 0.875


def test_platt_recovers_the_sigmoid_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 2, 40_000)
    labels = rng.random(len(raw)) < [sigmoid(0.7 * x - 0.4) for x in raw]
    fitted = fit_platt([sigmoid(x) for x in raw], labels.tolist())
    assert fitted.slope == pytest.approx(0.7, abs=0.03)
    assert fitted.intercept == pytest.approx(-0.4, abs=0.03)


def test_platt_stays_finite_where_the_labels_separate() -> None:
    # With the targets 3/4 and 1/4 at logits ±a, slope·a = logit(3/4) = ln 3.
    fitted = fit_platt([0.1, 0.1, 0.9, 0.9], [False, False, True, True])
    assert fitted.slope * math.log(9) == pytest.approx(math.log(3), rel=1e-6)
    assert fitted.intercept == pytest.approx(0, abs=1e-9)


def test_where_higher_scores_are_wrong_more_often_platt_is_constant() -> None:
    fitted = fit_platt([0.1, 0.2, 0.8, 0.9], [True, True, False, False])
    assert fitted.slope == 0
    assert fitted.probability(0.1) == fitted.probability(0.9) == pytest.approx(0.5)


@settings(deadline=None)
@given(LABELLED, st.lists(SCORES, min_size=2, max_size=20))
def test_any_fit_is_a_monotone_map_into_the_open_unit_interval(
    pairs: list[tuple[float, bool]], asked: list[float]
) -> None:
    scores, labels = map(list, zip(*pairs, strict=True))
    for fitted in (fit_isotonic(scores, labels), fit_platt(scores, labels)):
        found = [fitted.probability(score) for score in sorted([*asked, *scores])]
        assert all(0 < p < 1 for p in found)
        assert all(a <= b for a, b in pairwise(found))


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
@settings(deadline=None)
@given(pairs=LABELLED)
def test_a_fit_does_not_depend_on_the_order_of_the_labels(
    fit: Callable[[list[float], list[bool]], IsotonicMap | PlattMap],
    pairs: list[tuple[float, bool]],
) -> None:
    def fitted(pairs: list[tuple[float, bool]]) -> IsotonicMap | PlattMap:
        return fit([score for score, _ in pairs], [label for _, label in pairs])

    for score in (0.0, 0.25, 0.5, 1.0):
        expected = fitted(sorted(pairs)).probability(score)
        assert fitted(pairs).probability(score) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, math.nan], [True, False], "not in"),
        ([0.1, 1.5], [True, False], "not in"),
        ([0.1, 0.2], [True, True], "all 2 labels are alike"),
        ([0.1], [True, False], "1 scores for 2 labels"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    fit: Callable[[list[float], list[bool]], IsotonicMap | PlattMap],
    scores: list[float],
    labels: list[bool],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(scores, labels)


def test_a_penalty_shrinks_the_weights_and_not_the_intercept() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4000, 2))
    z = features @ [2.0, -1.0] + 0.5
    labels = (rng.random(4000) < 1 / (1 + np.exp(-z))).astype(float)
    free, intercept = fit_logistic(features, labels, l2=1e-6)
    assert free == pytest.approx([2, -1], abs=0.15)
    assert intercept == pytest.approx(0.5, abs=0.1)
    shrunk, intercept = fit_logistic(features, labels, l2=100.0)
    assert np.abs(shrunk).max() < 0.01
    assert sigmoid(intercept) == pytest.approx(labels.mean(), abs=1e-3)


def planted(rng: np.random.Generator, problems: int) -> list[Graded]:
    """Right with probability σ(2·logit(min) + 1), whatever else the scores say."""
    made = []
    for number in range(problems):
        for _ in range(8):
            raw = rng.normal(0, 1.5, rng.integers(2, 9))
            chance = sigmoid(2 * float(raw.min()) + 1)
            made.append(
                Graded(
                    problem=f"p{number}",
                    scores=tuple(sigmoid(float(x)) for x in raw),
                    is_correct=bool(rng.random() < chance),
                )
            )
    return made


def test_the_fitted_aggregation_recovers_a_planted_rule() -> None:
    rng = np.random.default_rng(2)
    fitted = fit_aggregation(planted(rng, 250))
    terms = {term.feature: term for term in fitted.terms}
    assert terms["logit_min"].weight / terms["logit_min"].scale == pytest.approx(2, abs=0.35)
    others = [abs(t.weight) for name, t in terms.items() if name != "logit_min"]
    assert max(others) < terms["logit_min"].weight / 4
    for response in planted(rng, 30):
        raw = [math.log(s / (1 - s)) for s in response.scores]
        truth = sigmoid(2 * min(raw) + 1)
        assert fitted.probability(response.scores) == pytest.approx(truth, abs=0.12)


@pytest.fixture(scope="module")
def small_fit() -> FittedAggregation:
    return fit_aggregation(planted(np.random.default_rng(3), 12))


@settings(deadline=None)
@given(scores=st.lists(SCORES, min_size=1, max_size=12))
def test_a_fitted_aggregate_is_a_probability_and_only_the_last_step_has_a_place(
    small_fit: FittedAggregation, scores: list[float]
) -> None:
    *body, last = scores
    found = small_fit.probability(scores)
    assert 0 <= found <= 1
    assert small_fit.probability([*reversed(body), last]) == pytest.approx(found, abs=1e-12)


def test_a_problem_is_never_predicted_by_a_fit_that_saw_it() -> None:
    responses = planted(np.random.default_rng(4), 10)
    seen: list[set[str]] = []

    def fit(part: Sequence[Graded]) -> FittedAggregation:
        seen.append({response.problem for response in part})
        return fit_aggregation(part)

    predictions = cross_predict(responses, fit, folds=3)
    problems = {response.problem for response in responses}
    assert sorted(name for names in seen for name in problems - names) == sorted(problems)
    assert all(0 < p < 1 for p in predictions)


def test_folds_part_the_problems() -> None:
    folds = folds_of(["a", "b", "a", "c", "d"], 3, seed=0)
    assert sorted(name for fold in folds for name in fold) == ["a", "b", "c", "d"]
    assert len(folds_of(["a", "b"], 5, seed=0)) == 2
