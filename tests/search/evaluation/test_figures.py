"""Figures of outcomes that were made up, so that they can be worked out by hand."""

import math
from collections.abc import Callable

import pytest

from search.evaluation.arms import Arm
from search.evaluation.figures import measure
from search.evaluation.picture import lines_of
from search.evaluation.runs import ArmRun, Outcome
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN

PROBLEMS = 400


def arm_run(arm: Arm, tokens: int, is_correct: Callable[[int], bool]) -> ArmRun:
    outcomes = [
        Outcome(
            is_correct=is_correct(number),
            is_undecided=number == 0,
            right_share=0.5 * is_correct(number),
            generated_tokens=tokens + (-1) ** number,
            read_tokens=2 * tokens,
        )
        for number in range(PROBLEMS)
    ]
    return ArmRun(arm=arm, outcomes=outcomes, wall_s=1.0)


def best(n: int) -> Arm:
    return Arm(strategy=BestOfN(n=n))


def vote(n: int) -> Arm:
    return Arm(strategy=BestOfN(n=n, selection="majority"))


BEAM = Arm(strategy=Beam(n=8, width=4))


def test_accuracy_has_the_interval_of_a_share_of_independent_problems() -> None:
    (point,) = measure([arm_run(best(4), 100, lambda n: n % 2 == 0)], has_prm=True).points
    # 1.96 √(0.5 · 0.5 / 400) = 0.049
    assert point.accuracy.value == 0.5
    assert point.accuracy.low == pytest.approx(0.451, abs=0.006)
    assert point.accuracy.high == pytest.approx(0.549, abs=0.006)
    assert (point.oracle.value, point.right_share.value) == (0.5, 0.25)
    assert (point.mean_tokens.value, point.mean_read_tokens, point.undecided) == (100, 200, 1)


def test_the_baseline_is_read_between_its_widths_over_the_logarithm_of_tokens() -> None:
    runs = [
        arm_run(best(4), 100, lambda n: n % 4 == 0),
        arm_run(best(64), 1600, lambda n: n % 4 != 0),
        arm_run(BEAM, 400, lambda n: True),
    ]
    differences = measure(runs, has_prm=True).differences
    (found,) = [d for d in differences if d.baseline == "best of n"]
    # 400 is halfway from 100 to 1600 by its logarithm: 25 % and 75 % make 50 %.
    assert found.label == "beam by weighted vote 8x4"
    assert found.accuracy.value == pytest.approx(0.5, abs=1e-3)


def test_a_difference_is_paired_what_is_the_same_everywhere_has_no_width() -> None:
    def every_third(number: int) -> bool:
        return number % 3 == 0

    runs = [
        arm_run(best(4), 100, every_third),
        arm_run(best(16), 400, every_third),
        arm_run(BEAM, 200, lambda n: every_third(n) or n % 3 == 1),
    ]
    (found,) = measure(runs, has_prm=True).differences
    third = math.ceil(PROBLEMS / 3 - 1) / PROBLEMS
    assert found.accuracy.value == pytest.approx(third, abs=0.003)
    # Of the difference alone: 1.96 √(⅓ · ⅔ / 400) = 0.046, and no more of the baseline's own.
    assert found.accuracy.high - found.accuracy.low == pytest.approx(0.092, abs=0.01)
    same = measure([*runs[:2], arm_run(BEAM, 200, every_third)], has_prm=True).differences[0]
    assert (same.accuracy.low, same.accuracy.high) == pytest.approx((0, 0))


@pytest.mark.parametrize("tokens", [50, 5000])
def test_beyond_what_the_baseline_was_measured_at_there_is_no_difference(tokens: int) -> None:
    runs = [arm_run(best(4), 100, bool), arm_run(best(64), 1600, bool)]
    assert measure([*runs, arm_run(BEAM, tokens, bool)], has_prm=True).differences == ()


def test_the_gain_is_over_the_widest_vote_that_generates_no_more() -> None:
    runs = [
        arm_run(vote(4), 100, lambda n: n % 4 == 0),
        arm_run(vote(16), 400, lambda n: n % 2 == 0),
        arm_run(vote(64), 1600, lambda n: True),
        arm_run(BEAM, 400, lambda n: n % 4 != 3),
        arm_run(best(2), 50, lambda n: True),
    ]
    gains = {point.label: point.gain for point in measure(runs, has_prm=True).points}
    assert gains["majority 16"] is None
    assert gains["best of n 2"] is None
    beam = gains["beam by weighted vote 8x4"]
    assert beam is not None
    assert beam.value == pytest.approx(0.25)


def test_a_line_of_the_picture_is_a_strategy_over_its_widths_with_the_baselines_last() -> None:
    runs = [
        arm_run(vote(16), 400, bool),
        arm_run(vote(4), 100, bool),
        arm_run(BEAM, 200, bool),
        arm_run(best(1), 30, bool),
    ]
    lines = lines_of(measure(runs, has_prm=True))
    assert {name: [p.label for p in points] for name, points in lines.items()} == {
        "best of n": ["best of n 1"],
        "beam by weighted vote": ["beam by weighted vote 8x4"],
        "majority": ["majority 4", "majority 16"],
    }
    assert list(lines)[-1] == "majority"
