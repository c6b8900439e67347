"""When a canary must not go on: by its failures, or by scores that are not the live version's."""

import random

import pytest

from server.trials import Limits, Tally, why_not

LIMITS = Limits(error_rate=0.02, drift=0.1, least_requests=50)


def tally(mean: float, *, requests: int = 200, failures: int = 0, seed: int = 0) -> Tally:
    """Requests of one item each, whose scores spread 0.2 around a mean."""
    rng = random.Random(seed)
    made = Tally()
    for _ in range(requests):
        made.add([mean + rng.uniform(-0.2, 0.2)])
    made.failures = failures
    made.requests += failures
    return made


def test_a_canary_like_the_live_version_goes_on() -> None:
    assert why_not(tally(0.6), tally(0.6, seed=1), LIMITS) is None
    assert why_not(tally(0.65), tally(0.6, seed=1), LIMITS) is None


def test_failures_count_from_the_first_few_and_against_the_live_version() -> None:
    assert why_not(tally(0.6, requests=5, failures=2), tally(0.6), LIMITS) is None
    reason = why_not(tally(0.6, requests=5, failures=3), tally(0.6), LIMITS)
    assert reason is not None
    assert reason.startswith("as a canary it failed in 3 of 8 requests; at most 2.0% are allowed")
    # A live version that fails as often is no reason.
    assert why_not(tally(0.6, failures=20), tally(0.6, failures=20), LIMITS) is None


@pytest.mark.parametrize("mean", [0.4, 0.8])
def test_scores_that_drift_either_way_end_it_once_there_are_enough(mean: float) -> None:
    assert why_not(tally(mean, requests=49), tally(0.6), LIMITS) is None
    assert why_not(tally(mean), tally(0.6, requests=49), LIMITS) is None
    reason = why_not(tally(mean), tally(0.6), LIMITS)
    assert reason is not None
    assert "further apart than 0.1" in reason


def test_a_distance_within_its_standard_error_is_no_drift() -> None:
    # 50 items that spread by 1 have a standard error of .14: 0.3 apart may be an accident.
    live, canary = Tally(), Tally()
    for number in range(50):
        live.add([float(number % 2)])
        canary.add([float(number % 2) + 0.3])
    assert why_not(canary, live, LIMITS) is None
    for number in range(5000):
        live.add([float(number % 2)])
        canary.add([float(number % 2) + 0.3])
    assert why_not(canary, live, LIMITS) is not None
