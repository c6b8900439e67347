"""Aggregations, on numbers worked out by hand."""

import pytest

from prm.aggregation import aggregate_all


def test_every_aggregate_of_three_steps() -> None:
    assert aggregate_all([0.5, 0.25, 0.8]) == {
        "min": 0.25,
        "last": 0.8,
        "mean": pytest.approx(1.55 / 3),
        "product": pytest.approx(0.1),
        "max": 0.8,
        "sum": pytest.approx(1.55),
    }


def test_one_step_is_its_own_aggregate() -> None:
    assert set(aggregate_all([0.3]).values()) == {0.3}
