"""The circuit breaker's states, by a clock that the test turns."""

import asyncio

import pytest

from prm.errors import InvalidInput, Unavailable
from search.generators.breaker import Breaker


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(after=2, cooldown_s=5, clock=clock)


def state(breaker: Breaker) -> str:
    return breaker.state.value


def fail(breaker: Breaker, *, answered: bool = False) -> None:
    def ask() -> None:
        with breaker.guard("it") as has_answered:
            if answered:
                has_answered()
            raise Unavailable("boom")

    with pytest.raises(Unavailable, match="boom"):
        ask()


def succeed(breaker: Breaker) -> None:
    with breaker.guard("it") as answered:
        answered()


def test_only_failures_in_a_row_open_it(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker)
        succeed(breaker)
    assert state(breaker) == "closed"
    fail(breaker)
    fail(breaker)
    assert state(breaker) == "open"
    assert breaker.failures == 7


def test_a_refusal_is_a_sign_of_life(breaker: Breaker) -> None:
    fail(breaker)
    with pytest.raises(InvalidInput), breaker.guard("it"):
        raise InvalidInput("too hot")
    fail(breaker)
    assert state(breaker) == "closed"


def test_one_probe_at_a_time_and_no_other_request(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    fail(breaker)
    clock.now_s += 5
    with breaker.guard("it") as answered:
        with pytest.raises(Unavailable, match="it is not asked"), breaker.guard("it"):
            raise AssertionError("was let through")
        answered()
        # The server is there: the others need not wait until the probe's answer ends.
        succeed(breaker)
    assert state(breaker) == "closed"


def test_a_probe_whose_answer_breaks_off_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    fail(breaker)
    clock.now_s += 5
    fail(breaker, answered=True)
    assert state(breaker) == "open"


def test_a_probe_whose_caller_has_gone_makes_room_for_the_next(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker)
    fail(breaker)
    clock.now_s += 5
    with pytest.raises(asyncio.CancelledError), breaker.guard("it"):
        raise asyncio.CancelledError
    assert state(breaker) == "half_open"
    succeed(breaker)
    assert state(breaker) == "closed"
