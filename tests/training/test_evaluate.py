"""Rankings, votes and step accuracy on rollouts small enough to work out by hand."""

import numpy as np
import pytest

from prm.aggregation import predicted_error
from training.evaluate import (
    Floats,
    best_of_n,
    bootstrap,
    chance_hits,
    fit_threshold,
    majority,
    mean_with_interval,
    oracle,
    pass_at_1,
    step_accuracy,
    threshold_hits,
    weighted_vote,
)
from training.rollouts import label
from training.types import Problem, Rollout

PROBLEM = Problem(text="Evaluate 3+4*2", answer="11")


def rollout(*steps: str) -> Rollout:
    return label(PROBLEM, "\n".join(steps))


RIGHT = rollout("4*2=8", "3+8=11", "Answer: 11")
WRONG_FIRST = rollout("4*2=9", "3+9=12", "Answer: 12")
WRONG_SECOND = rollout("4*2=8", "3+8=12", "Answer: 12")
OTHER = rollout("4*2=8", "3+8=13", "Answer: 13")
SILENT = rollout("4*2=8")


def test_labels_are_those_of_the_task() -> None:
    assert [r.first_error for r in (RIGHT, WRONG_FIRST, WRONG_SECOND, SILENT)] == [None, 0, 1, None]
    assert [r.is_correct for r in (RIGHT, WRONG_FIRST, SILENT)] == [True, False, False]
    assert rollout("4*2=8", "", "  ", "3+8=11").steps == ("4*2=8", "3+8=11")


def test_the_figures_of_one_problem() -> None:
    group = [RIGHT, WRONG_FIRST, WRONG_SECOND, SILENT]
    assert pass_at_1(group) == 0.25
    assert oracle(group) == 1.0
    assert majority(group) == 0.0
    assert weighted_vote(group, [0.9, 0.5, 0.3, 5.0]) == 1.0  # 0.9 against 0.8
    assert best_of_n(group, [0.9, 0.5, 0.3, 0.1]) == 1.0
    assert best_of_n(group, [0.2, 0.5, 0.3, 0.1]) == 0.0


def test_ties_of_a_vote_are_broken_evenly() -> None:
    assert majority([RIGHT, WRONG_FIRST, OTHER]) == pytest.approx(1 / 3)
    assert majority([SILENT]) == 0.0


def test_the_candidates_of_a_published_example() -> None:
    # Five candidates whose minima pick a right answer where the majority is wrong; with weights
    # σ(min) near one half the vote is the majority's, with σ(20·min) it is not.
    group = [RIGHT, WRONG_FIRST, WRONG_FIRST, RIGHT, WRONG_FIRST]
    minima = np.array([0.05, -0.25, -0.1, 0.0, -0.7])
    assert best_of_n(group, minima.tolist()) == 1.0
    assert majority(group) == 0.0
    for coefficient, expected in ((1, 0.0), (20, 1.0)):
        weights = 1 / (1 + np.exp(-coefficient * minima))
        assert weighted_vote(group, weights.tolist()) == expected


def test_the_first_step_below_the_threshold_is_predicted() -> None:
    assert predicted_error([0.9, 0.2, 0.1], 0.5) == 1
    assert predicted_error([0.9, 0.5], 0.5) is None
    assert predicted_error([], 0.5) is None


def test_step_accuracy_is_processbenchs() -> None:
    # Erroneous: one of two found; right: one of one. F1 = 2·0.5·1/1.5 = 2/3.
    groups = [[RIGHT, WRONG_FIRST, WRONG_SECOND]]
    scores = [[[0.9, 0.9, 0.9], [0.1, 0.9, 0.9], [0.1, 0.1, 0.9]]]
    accuracy = step_accuracy(groups, threshold_hits(groups, scores, 0.5))
    assert accuracy.erroneous.mean == 0.5
    assert accuracy.correct.mean == 1.0
    assert accuracy.f1.mean == pytest.approx(2 / 3)


def test_chance_is_one_in_steps_plus_one() -> None:
    assert chance_hits([[RIGHT, SILENT]]) == [[0.25, 0.5]]


def test_a_threshold_that_separates_is_found() -> None:
    groups = [[RIGHT, WRONG_FIRST, WRONG_SECOND]]
    scores = [[[0.8, 0.7, 0.9], [0.2, 0.9, 0.9], [0.6, 0.3, 0.1]]]
    threshold, f1 = fit_threshold(groups, scores)
    assert 0.3 < threshold <= 0.6
    assert f1 == 1.0


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        sample = (rng.random(200) < 0.3).astype(float)
        estimate = mean_with_interval(sample.tolist())
        covered += estimate.low <= 0.3 <= estimate.high
    assert covered >= 52


def test_columns_are_resampled_together() -> None:
    ones = np.ones(20)
    values: Floats = np.arange(20, dtype=np.float64)
    estimate = bootstrap([values, values], lambda a, b: float((a - b).sum()) + ones.size)
    assert (estimate.mean, estimate.low, estimate.high) == (20, 20, 20)
