"""Trust, votes and shares: what one key can do to a training, and what it cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.feedback.weights import LEAST_SCALE, Vote, agree, capped, last_votes, trusts


def votes(**said: str) -> list[Vote]:
    """What keys say of responses 0, 1, …: + right, - wrong, blank nothing."""
    found = [
        Vote(seq=0, content=str(place), key_id=key, correct=sign == "+")
        for key, signs in said.items()
        for place, sign in enumerate(signs)
        if sign != " "
    ]
    return [
        Vote(seq=seq, content=v.content, key_id=v.key_id, correct=v.correct)
        for seq, v in enumerate(found)
    ]


def test_a_key_that_contradicts_the_others_is_not_trusted_and_the_others_are() -> None:
    said = votes(ann="+-+-+-+-+-", ben="+-+-+-+-+-", eve="-+-+-+-+-+")
    trust = trusts(last_votes(said))
    assert trust["eve"] == 0
    assert trust["ann"] == trust["ben"] == 1


def test_trust_is_twice_the_accuracy_minus_one_over_that_of_a_new_key() -> None:
    # ann and ben stand for one vote together: eve agrees in 3 of 5; (4 + 3) of (5 + 5) is 0.7.
    said = votes(ann="+++++", ben="+++++", eve="+++--")
    assert trusts(last_votes(said))["eve"] == pytest.approx((2 * 0.7 - 1) / 0.6, abs=0.02)


def test_who_shares_no_response_with_anybody_is_trusted() -> None:
    assert trusts(last_votes(votes(ann="++++", ben="    ----"))) == {"ann": 1, "ben": 1}


def test_a_poisoner_who_is_found_out_costs_an_honest_key_nothing() -> None:
    # Eve answers all that ann has labelled; where ben is there too, she is outvoted.
    said = votes(ann="+" * 30, ben="+" * 20, eve="-" * 30)
    trust = trusts(last_votes(said))
    assert trust["eve"] < 0.05
    assert trust["ann"] > 0.95


def test_the_last_label_of_a_key_counts_and_only_once() -> None:
    said = [
        *(Vote(seq=n, content="r", key_id="eve", correct=False) for n in range(50)),
        Vote(seq=50, content="r", key_id="eve", correct=True),
        Vote(seq=51, content="r", key_id="ann", correct=True),
    ]
    (agreed,) = agree(last_votes(said), {"eve": 1.0, "ann": 1.0})
    assert (agreed.correct, agreed.weight, dict(agreed.by)) == (True, 1.0, {"eve": 0.5, "ann": 0.5})


def test_two_against_one_weigh_a_third_and_a_tie_is_dropped() -> None:
    last = last_votes(votes(ann="++", ben="+-", eve="- "))
    agreed = {each.content: each for each in agree(last, dict.fromkeys(("ann", "ben", "eve"), 1.0))}
    assert agreed.keys() == {"0"}
    assert agreed["0"].weight == pytest.approx(1 / 3)


def test_no_key_gives_more_than_its_share() -> None:
    last = last_votes(votes(ann="+" * 60, ben=" " * 60 + "-" * 20))
    agreed = agree(last, {"ann": 1.0, "ben": 1.0})
    weights, shares = capped(agreed, 0.5)
    assert shares == pytest.approx({"ann": 0.5, "ben": 0.5})
    assert sum(weights[:60]) == pytest.approx(20)
    assert weights[60:] == [1.0] * 20


def test_one_label_of_a_second_key_does_not_undo_a_thousand() -> None:
    last = last_votes(votes(ann="+" * 1000, eve=" " * 1000 + "-"))
    weights, shares = capped(agree(last, {"ann": 1.0, "eve": 1.0}), 0.5)
    assert min(weights) == pytest.approx(LEAST_SCALE)
    assert shares["eve"] < 0.01


def test_the_only_key_gives_everything() -> None:
    weights, shares = capped(agree(last_votes(votes(ann="+-+")), {"ann": 1.0}), 0.5)
    assert (weights, shares) == ([1, 1, 1], {"ann": 1.0})


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    share=st.floats(0.05, 1),
)
def test_shares_hold_wherever_the_floor_is_not_reached(counts: list[int], share: float) -> None:
    said = {f"k{n}": " " * sum(counts[:n]) + "+" * count for n, count in enumerate(counts)}
    agreed = agree(last_votes(votes(**said)), dict.fromkeys(said, 1.0))
    weights, shares = capped(agreed, share)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < weight <= 1 + 1e-9 for weight in weights)
    if min(weights) > LEAST_SCALE + 1e-9:
        assert max(shares.values()) <= max(share, 1 / len(counts)) + 1e-9
