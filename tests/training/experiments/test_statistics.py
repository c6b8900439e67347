"""Intervals and tests, against numbers worked by hand."""

import pytest

from training.experiments.statistics import (
    Interval,
    area_under,
    over_seeds,
    paired_crossed,
    paired_over_seeds,
    two_proportions,
)


def approximately(found: Interval, mean: float, low: float, high: float) -> None:
    assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high), abs=1e-4)


def test_an_interval_over_seeds_is_students() -> None:
    # s² = 10/4, s/√5 = .70711, and t of 4 degrees of freedom is 2.776.
    approximately(over_seeds([1, 2, 3, 4, 5]), 3, 3 - 1.96293, 3 + 1.96293)


def test_many_seeds_have_the_normal_quantile() -> None:
    # 40 values of ±1: s² = 40/39, s/√40 = .160128, times 1.959964.
    approximately(over_seeds([1, -1] * 20), 0, -0.313845, 0.313845)


def test_one_seed_says_nothing_about_others() -> None:
    assert over_seeds([0.5]) == Interval(0.5, float("-inf"), float("inf"))


def test_pairs_take_out_what_seeds_have_in_common() -> None:
    found = paired_over_seeds([0.5, 0.9, 0.1], [0.3, 0.7, -0.1])
    approximately(found, 0.2, 0.2, 0.2)
    assert found.is_above_zero
    assert not over_seeds([0.5, 0.9, -0.1]).is_above_zero


def test_pairs_have_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_over_seeds([1, 2], [1])


def test_seeds_and_problems_both_count() -> None:
    # Rows 1.5 and 3.5: 2/2; columns 2 and 3: ½/2. 1.25²/(1² + ¼²) is one whole degree.
    found = paired_crossed([[1, 2], [3, 4]], [[0, 0], [0, 0]])
    approximately(found, 2.5, 2.5 - 14.20574, 2.5 + 14.20574)


def test_seeds_alone_have_students_interval() -> None:
    ours = [[float(seed)] * 7 for seed in range(1, 6)]
    zeros = [[0.0] * 7 for _ in range(5)]
    plain = over_seeds([1, 2, 3, 4, 5])
    approximately(paired_crossed(ours, zeros), plain.mean, plain.low, plain.high)


def test_problems_alone_narrow_it() -> None:
    # 400 differences of 0 or 1 in equal number: a standard error of ½/√399.
    found = paired_crossed([[1, 0] * 200] * 5, [[0, 0] * 200] * 5)
    approximately(found, 0.5, 0.5 - 1.959964 / 2 / 399**0.5, 0.5 + 1.959964 / 2 / 399**0.5)


def test_what_never_differs_is_a_point() -> None:
    approximately(paired_crossed([[3, 5], [1, 2]], [[2, 4], [0, 1]]), 1, 1, 1)


def test_one_seed_or_problem_says_nothing_about_others() -> None:
    for ours in ([[1.0, 2.0]], [[1.0], [2.0]]):
        found = paired_crossed(ours, [[0.0] * len(row) for row in ours])
        assert (found.low, found.high) == (float("-inf"), float("inf"))


def test_the_lady_tasting_tea() -> None:
    # Three of four cups, and one of the four others: (1 + 16 + 16 + 1)/70.
    assert two_proportions((3, 1), (4, 4)) == pytest.approx(34 / 70)


def test_equal_shares_are_no_evidence() -> None:
    assert two_proportions((5, 5), (10, 10)) == 1
    assert two_proportions((0, 0), (7, 3)) == 1


def test_every_seed_against_none() -> None:
    # One of C(40, 20) ways, and its mirror image.
    assert two_proportions((20, 0), (20, 20)) == pytest.approx(2 / 137846528820)


def test_the_order_of_two_arms_is_no_matter() -> None:
    one, other = two_proportions((12, 20), (20, 25)), two_proportions((20, 12), (25, 20))
    assert one == pytest.approx(other)


def test_an_area_counts_the_distance_between_steps() -> None:
    # (½·1 + 1·2)/3.
    assert area_under([0, 1, 3], [0, 1, 1]) == pytest.approx(2.5 / 3)


def test_an_area_needs_two_places() -> None:
    with pytest.raises(AssertionError, match="two places"):
        area_under([4], [0.5])
