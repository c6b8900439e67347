"""Batches over a verifier: crashes and deadlines are errors that are counted, never rewards."""

import asyncio
import time

import pytest

from prm.errors import Unavailable
from training.tasks.running_sum import RunningSum
from training.tasks.shared_prefix import SharedPrefix
from training.types import Problem
from training.verifiers import Outcome, TaskJudge, VerifierPool, count_errors, grade_all

PROBLEM = Problem(text="385=", answer="6")


class Troubled:
    """Does what the response says, and knows how many responses it had at a time."""

    def __init__(self, concurrency: int = 4) -> None:
        self.concurrency = concurrency
        self.now = self.most = 0
        self.is_closed = False
        self.loops: set[int] = set()

    async def start(self) -> None:
        self.loops.add(id(asyncio.get_running_loop()))

    async def grade(self, problem: Problem, response: str) -> Outcome:
        self.loops.add(id(asyncio.get_running_loop()))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            if response == "hang":
                await asyncio.Event().wait()
            if response == "crash":
                raise ZeroDivisionError("division by zero")
            if response == "timeout of its own":
                raise TimeoutError("of a socket")
            if response == "undecided":
                return Outcome(error="undecided")
            return Outcome(reward=float(response))
        finally:
            self.now -= 1

    async def aclose(self) -> None:
        self.is_closed = True


def test_each_response_has_its_own_outcome_and_nothing_hangs() -> None:
    responses = ["1", "hang", "0.25", "crash", "0", "undecided", "timeout of its own", "1"]
    started = time.monotonic()
    with VerifierPool(Troubled(), deadline_s=0.2) as pool:
        outcomes = pool.grade([(PROBLEM, response) for response in responses])
        assert (pool.graded, pool.errors) == (8, 4)
    assert time.monotonic() - started < 5
    assert [outcome.reward for outcome in outcomes] == [1, None, 0.25, None, 0, None, None, 1]
    assert count_errors(outcomes) == {
        "the grader met its deadline": 1,
        "ZeroDivisionError: division by zero": 1,
        "undecided": 1,
        "TimeoutError: of a socket": 1,
    }


def test_no_more_than_the_verifier_s_concurrency_run_at_a_time_and_all_in_one_loop() -> None:
    verifier = Troubled(concurrency=3)
    with VerifierPool(verifier) as pool:
        for _ in range(3):
            pool.grade([(PROBLEM, "1")] * 20)
    assert (verifier.most, verifier.now, verifier.is_closed) == (3, 0, True)
    assert len(verifier.loops) == 1


def test_a_deadline_begins_when_it_is_a_response_s_turn() -> None:
    class Slow(Troubled):
        async def grade(self, problem: Problem, response: str) -> Outcome:
            await asyncio.sleep(0.05)
            return Outcome(reward=1.0)

    outcomes = asyncio.run(grade_all(Slow(1), [(PROBLEM, "")] * 8, deadline_s=0.3))
    assert [outcome.reward for outcome in outcomes] == [1.0] * 8


def test_a_verifier_that_cannot_start_is_found_out_before_training() -> None:
    class Broken(Troubled):
        async def start(self) -> None:
            raise Unavailable("no sandbox here")

    verifier = Broken()
    with pytest.raises(Unavailable, match="no sandbox"), VerifierPool(verifier):
        pass
    assert verifier.is_closed


@pytest.mark.parametrize("reward", [1.01, -0.01, float("nan")])
def test_a_reward_outside_of_0_to_1_is_none(reward: float) -> None:
    with pytest.raises(AssertionError, match="reward"):
        Outcome(reward=reward)


def test_an_outcome_is_a_reward_or_an_error() -> None:
    with pytest.raises(AssertionError, match="a reward or an error"):
        Outcome()
    with pytest.raises(AssertionError, match="a reward or an error"):
        Outcome(reward=1.0, error="x")


def test_a_task_grades_exactly_and_in_parts() -> None:
    outcomes = TaskJudge(RunningSum(digits=(3, 3))).grade(
        [(PROBLEM, "316"), (PROBLEM, "315"), (PROBLEM, "")]
    )
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, 0.0]
    judge = TaskJudge(SharedPrefix(digits=(3, 3)))
    assert judge.grade([(PROBLEM, "q1")]) == [Outcome(reward=0.7)]
