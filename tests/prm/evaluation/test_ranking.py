"""AUROC and best-of-n against values worked out by hand."""

import numpy as np
import pytest

from prm.errors import InvalidInput
from prm.evaluation.fits import Graded
from prm.evaluation.ranking import auroc, compare_aggregations
from prm.evaluation.reliability import Resamples


def area(ranks: list[float], labels: list[int], weights: list[float] | None = None) -> float:
    return auroc(np.array(ranks), np.array(labels, float), np.array(weights or [1.0] * len(ranks)))


def test_auroc_worked_out_by_hand() -> None:
    # Pairs (right, wrong): 3>1, 3>2, 2>1 and a tie 2=2: 3.5 of 4.
    assert area([3, 2, 2, 1], [1, 1, 0, 0]) == 3.5 / 4
    assert area([1, 2], [1, 0]) == 0
    assert np.isnan(area([1, 2], [1, 1]))


def test_a_weight_is_a_repetition() -> None:
    once = area([3, 2, 2, 1, 5], [1, 1, 0, 0, 0], [1, 2, 3, 1, 0])
    repeated = area([3, 2, 2, 2, 2, 2, 1], [1, 1, 1, 0, 0, 0, 0])
    assert once == pytest.approx(repeated)


def graded(problem: str, scores: tuple[float, ...], is_correct: bool) -> Graded:
    return Graded(problem=problem, scores=scores, is_correct=is_correct)


def test_best_of_n_draws_the_first_of_equals() -> None:
    responses = [
        graded("a", (0.9, 0.2), False),
        graded("a", (0.3, 0.8), True),
        graded("b", (0.5,), True),
        graded("b", (0.5, 0.5), False),
        graded("c", (0.7,), True),
        graded("d", (0.1,), False),
    ]
    found = {r.aggregation: r for r in compare_aggregations(responses, folds=4)}
    # a: min takes the right one, max the wrong one; b: a tie under both; c right, d wrong.
    assert found["min"].best_of_n.value == 2.5 / 4
    assert found["max"].best_of_n.value == 1.5 / 4
    assert found["product"].best_of_n.value == 3 / 4


def test_the_fitted_one_finds_a_rule_that_no_plain_one_follows() -> None:
    # Right exactly where the last step is sure although the worst one is not: min misleads.
    rng = np.random.default_rng(0)
    responses = []
    for number in range(60):
        for _ in range(4):
            low, last = rng.uniform(0.05, 0.5), rng.uniform(0.5, 0.95)
            is_correct = bool(last - low > rng.normal(0.45, 0.05))
            responses.append(graded(str(number), (0.99, low, last), is_correct))
    found = {r.aggregation: r for r in compare_aggregations(responses)}
    assert found["fitted"].auroc.value > 0.95
    for name in ("min", "mean", "last", "product"):
        assert found[name].fitted_gains_auroc.low > 0


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([graded("a", (0.5,), True), graded("b", (0.5,), True)], "labelled alike"),
        ([graded("a", (0.5,), True), graded("a", (0.5,), False)], "give more problems"),
        ([graded("a", (0.5,), True), graded("b", (0.5,), False)], "give more problems"),
    ],
)
def test_what_cannot_be_ranked_is_refused(responses: list[Graded], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        compare_aggregations(responses)


def test_resamples_hold_as_many_problems_as_there_are() -> None:
    resamples = Resamples(["a", "b", "a", "c"], count=20)
    assert resamples.weights.sum(axis=1).tolist() == [3.0] * 20
    assert resamples.sums(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [4.0, 2.0, 4.0]
