"""Which response a PRM picks and which step it blames, on scores written by hand."""

import pytest

from training.data import Example
from training.experiments.implicit_prm import _wrong_steps
from training.experiments.step_credit import Candidates, best_of, located, majority, oracle
from training.rollout_batch import Written
from training.tasks.running_sum import RunningSum
from training.types import Problem

TASK = RunningSum(digits=(3, 3))
# The right sums are 3, 1, 5.
PROBLEM = Problem(text="384=", answer="5")


def candidates(*texts: str) -> Candidates:
    group = [
        Written(
            problem=PROBLEM,
            example=Example(ids=(0,), first=0),
            text=text,
            logprobs=(),
            policy_step=0,
            is_cut=False,
        )
        for text in texts
    ]
    return Candidates.of(TASK, [group])


def test_the_best_is_the_one_whose_least_step_is_highest() -> None:
    three = candidates("326", "315", "315")
    scores = [[[9.0, 0.0, 9.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    assert best_of(three, scores, 1) == [False]
    assert best_of(three, scores, 3) == [True]
    assert best_of(three, scores, 3, sum) == [False]


def test_a_vote_is_between_answers_and_of_those_that_are_there() -> None:
    four = candidates("326", "315", "316", "416")
    assert majority(four, TASK, 1) == [False]
    assert majority(four, TASK, 4) == [False]
    assert majority(candidates("315", "326", "415"), TASK, 3) == [True]
    # Five sums in place of three: the answer is the right one, the response is not.
    assert majority(candidates("31555", "326"), TASK, 2) == [False]
    assert (oracle(four, 1), oracle(four, 2)) == ([False], [True])


def test_a_step_is_located_where_it_alone_is_wrong_and_scored_least() -> None:
    # One wrong step each, at 1 and at 0; then two wrong ones, one too short, and a right one.
    five = candidates("326", "426", "427", "32", "315")
    assert [len(_wrong_steps(rollout)) for rollout in five.labelled[0]] == [1, 1, 2, 0, 0]
    elsewhere = [0.0, 0.0, -9.0]
    scores = [[[0.0, -1.0, 0.0], elsewhere, elsewhere, [0.0, 0.0], elsewhere]]
    assert located(five, scores, _wrong_steps) == pytest.approx(0.5)
    assert located(candidates("315"), [[elsewhere]], _wrong_steps) == 0
