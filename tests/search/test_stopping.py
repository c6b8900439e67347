"""When sampling stops: the posterior against exact sums, and its invariants."""

from fractions import Fraction
from math import comb
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.stopping import beats_half, is_decided, leader, stays_ahead

WEIGHTS = st.floats(0, 1)
CANDIDATES = st.lists(st.tuples(st.none() | st.integers(0, 4), WEIGHTS), max_size=40)


@given(st.integers(0, 300), st.integers(0, 300))
def test_whole_votes_agree_with_the_exact_binomial_sum(first: int, second: int) -> None:
    # I_½(b, a) for whole a, b is P(Binomial(a + b - 1, ½) ≤ a - 1).
    flips = first + second + 1
    exact = Fraction(sum(comb(flips, k) for k in range(first + 1)), 2**flips)
    assert beats_half(1 + first, 1 + second) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.4, 0.1), (3.7, 2.2), (9.25, 0.0), (0.01, 0.0)])
def test_fractional_votes_agree_with_the_integral(first: float, second: float) -> None:
    x = (np.arange(400_000) + 0.5) / 400_000
    density = x**first * (1 - x) ** second
    assert beats_half(1 + first, 1 + second) == pytest.approx(
        density[200_000:].sum() / density.sum(), abs=1e-6
    )


def test_only_the_two_leading_answers_matter() -> None:
    assert stays_ahead([0, 0, 0, 1, 2]) == stays_ahead([0, 0, 0, 1])


def test_a_vote_that_the_prm_doubts_counts_for_less() -> None:
    sure = stays_ahead([0, 0, 1], [0.9, 0.9, 0.1])
    assert sure > stays_ahead([0, 0, 1], [0.5, 0.5, 0.5])
    assert leader([0, 0, 1], [0.1, 0.1, 0.9]) == 1


def test_without_an_answer_nothing_is_known() -> None:
    assert stays_ahead([]) == stays_ahead([None, None], [0.9, 0.9]) == 0.5
    assert leader([None]) is None


@given(CANDIDATES)
def test_it_is_a_probability_that_another_vote_for_the_leader_raises(
    candidates: list[tuple[int | None, float]],
) -> None:
    groups, weights = [c[0] for c in candidates], [c[1] for c in candidates]
    before = stays_ahead(groups, weights)
    assert 0.5 <= before <= 1
    ahead = leader(groups, weights)
    if ahead is not None:
        assert stays_ahead([*groups, ahead], [*weights, 0.5]) >= before


@given(CANDIDATES, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(
    candidates: list[tuple[int | None, float]], random: Random
) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)
    first, second = (
        stays_ahead([c[0] for c in some], [c[1] for c in some]) for some in (candidates, shuffled)
    )
    assert first == second


def test_the_doubt_that_is_tolerated_grows_with_the_root_of_the_candidates() -> None:
    # Four disagree: a doubt of one half, for which 0.25 · √4 is just enough and 0.24 · √4 is not.
    assert is_decided([0, 1, 2, 3], threshold=0.75)
    assert not is_decided([0, 1, 2, 3], threshold=0.76)
    # One vote: 1 − ½² = 0.75.
    assert is_decided([0], threshold=0.75)
    assert not is_decided([0], threshold=0.76)
    assert not is_decided([], threshold=0.0)


@given(CANDIDATES, st.floats(0.5, 0.95))
def test_it_always_stops_in_the_end(
    candidates: list[tuple[int | None, float]], threshold: float
) -> None:
    groups, weights = [c[0] for c in candidates], [c[1] for c in candidates]
    if len(groups) > (2 * (1 - threshold)) ** -2:
        assert is_decided(groups, weights, threshold=threshold)
