"""Answers compared as mathematics: right, wrong, and three ways of not being told."""

import os
import time
from collections.abc import Iterator

import pytest

from search.answers import Extraction, MathAnswers
from training.types import Problem
from training.verifiers import MathVerifier, VerifierPool

HALF = Problem(text="What is 1/2?", answer=r"\frac{1}{2}")
# Beyond what sympy can do in the time that it is given.
MONSTER = r"\boxed{(7^{7^{7^{7^{7}}}} + 1)^{1/3}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    verifier = MathVerifier(MathAnswers(workers=1, deadline_s=1.0, group_s=2.0), workers=1)
    with VerifierPool(verifier, deadline_s=20.0) as pool:
        yield pool


def test_an_answer_is_right_however_it_is_written(pool: VerifierPool) -> None:
    responses = [
        r"so \boxed{0.5}", "Answer: 1/2", r"\boxed{\tfrac12}", r"\boxed{2}", "It is 0.5", "",
    ]  # fmt: skip
    rewards = [outcome.reward for outcome in pool.grade([(HALF, r) for r in responses])]
    # What states no answer is wrong, not in error.
    assert rewards == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_what_cannot_be_decided_is_an_error_and_the_next_is_graded(pool: VerifierPool) -> None:
    started = time.monotonic()
    gold = Problem(text="?", answer=r"\sqrt{7}")
    outcomes = pool.grade([(gold, MONSTER), (gold, r"\boxed{7^{1/2}}")])
    assert outcomes[0].error == "the comparison of answers is undecided"
    assert outcomes[1].reward == 1.0
    assert pool.errors == 1
    assert time.monotonic() - started < 15


def test_a_worker_that_is_killed_from_outside_rewards_nobody(pool: VerifierPool) -> None:
    answers = MathAnswers(workers=1, deadline_s=1.0, group_s=2.0)
    with VerifierPool(MathVerifier(answers, workers=1)) as other:
        nursery = answers._pool._nursery
        assert nursery is not None
        os.kill(nursery.pid, 9)
        (outcome,) = other.grade([(HALF, r"\boxed{1/2+0}")])
        assert outcome.reward in (None, 1.0)
    (outcome,) = pool.grade([(Problem(text="?"), r"\boxed{1}")])
    assert outcome.error == "the problem has no answer"


def test_extraction_is_the_job_s() -> None:
    verifier = MathVerifier(extraction=Extraction(last_number=True), workers=1)
    gold = Problem(text="?", answer="72")
    with VerifierPool(verifier) as pool:
        outcomes = pool.grade([(gold, "she sold 48+24 = 72 clips"), (gold, "she sold 48")])
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0]
