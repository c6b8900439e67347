"""Calibration figures, by hand and by what must hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.evaluation.reliability import Resamples, compare, reliability


def test_the_figures_worked_out_by_hand() -> None:
    # Bin [0.8, 0.9): two predictions of 0.8, one right: gap 0.3. Bin [0.2, 0.3): 0.2, wrong: gap
    # 0.2. ECE = (2·0.3 + 1·0.2)/3. Brier = (0.04 + 0.64 + 0.04)/3.
    found = reliability([0.8, 0.8, 0.2], [True, False, False], Resamples(["a", "b", "c"]))
    assert found.ece.value == pytest.approx(0.8 / 3)
    assert found.brier.value == pytest.approx(0.72 / 3)
    loss = -(2 * math.log(0.8) + math.log(0.2)) / 3
    assert found.log_loss.value == pytest.approx(loss)
    assert [b.count for b in found.bins] == [0, 0, 1, 0, 0, 0, 0, 0, 2, 0]
    assert (found.bins[8].prediction, found.bins[8].frequency) == (0.8, 0.5)
    assert found.bins[0].prediction is None


def test_certainty_counts_in_the_last_bin_and_costs_no_infinity() -> None:
    found = reliability([1.0, 0.0], [False, True], Resamples(["a", "b"]))
    assert found.bins[-1].count == found.bins[0].count == 1
    assert found.log_loss.value == pytest.approx(-math.log(1e-6))
    assert found.ece.value == 1


def test_intervals_widen_when_predictions_come_from_fewer_problems() -> None:
    rng = np.random.default_rng(0)
    # All labels of one problem are alike: a hundred problems, not a thousand, were observed.
    labels = np.repeat(rng.random(100) < 0.5, 10)
    predictions = [0.7] * 1000

    def width(problems: list[str]) -> float:
        figure = reliability(predictions, labels.tolist(), Resamples(problems)).brier
        assert figure.low <= figure.value <= figure.high
        return figure.high - figure.low

    apart = width([str(n) for n in range(1000)])
    together = width([str(n // 10) for n in range(1000)])
    assert together / apart == pytest.approx(math.sqrt(10), rel=0.15)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = rng.random(150) < 0.3
        problems = [str(n) for n in range(150)]
        figure = reliability([0.2] * 150, labels.tolist(), Resamples(problems, count=400)).brier
        truth = 0.3 * 0.64 + 0.7 * 0.04
        held += figure.low <= truth <= figure.high
    assert 180 <= held <= 199


def test_a_change_is_paired() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(400) < 0.8).tolist()
    resamples = Resamples([str(n) for n in range(400)])
    found = compare([0.5] * 400, [0.8] * 400, labels, resamples)
    assert found.change.brier.value == pytest.approx(
        found.after.brier.value - found.before.brier.value
    )
    assert found.change.brier.high < 0
    same = compare([0.5] * 400, [0.5] * 400, labels, resamples).change
    assert (same.ece.low, same.ece.value, same.ece.high) == (0, 0, 0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)
)
def test_figures_do_not_depend_on_order_and_stay_in_range(
    rows: list[tuple[float, bool, int]],
) -> None:
    def figures(rows: list[tuple[float, bool, int]]) -> list[float]:
        predictions, labels, problems = map(list, zip(*rows, strict=True))
        resamples = Resamples([str(p) for p in problems], count=50)
        found = reliability(predictions, labels, resamples)
        assert 0 <= found.ece.low <= found.ece.high <= 1
        assert sum(b.count for b in found.bins) == len(rows)
        return [found.ece.value, found.ece.high, found.brier.value, found.log_loss.low]

    assert figures(rows) == pytest.approx(figures(sorted(rows)))


def test_no_number_and_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="not in"):
        reliability([math.nan], [True], Resamples(["a"]))
    with pytest.raises(ValueError, match="2 predictions for 1 labels"):
        reliability([0.5, 0.5], [True], Resamples(["a"]))
