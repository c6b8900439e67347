"""Rollouts with outcomes: errors leave a group, cut responses are wrong."""

from training.data import Example
from training.grades import OutcomeGrader
from training.rollout_batch import Written
from training.types import Problem
from training.verifiers import Outcome, VerifierPool


class BySaying:
    """Rewards what a response says of itself; anything but a number crashes it."""

    concurrency = 2

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def start(self) -> None:
        """Nothing to start."""

    async def grade(self, problem: Problem, response: str) -> Outcome:
        self.seen.append(response)
        return Outcome(reward=float(response))

    async def aclose(self) -> None:
        """Nothing to end."""


def written(text: str, *, is_cut: bool = False) -> Written:
    example = Example(ids=(1, 2), first=1)
    return Written(
        problem=Problem(text="?", answer="!"),
        example=example,
        text=text,
        logprobs=(0.0,),
        policy_step=0,
        is_cut=is_cut,
    )


def test_rewards_stand_in_order_and_errors_are_left_out_and_counted() -> None:
    verifier = BySaying()
    groups = [
        [written("1"), written("crash"), written("0.5", is_cut=True), written("0.25")],
        [written("crash"), written("again")],
        [written("0")],
    ]
    with VerifierPool(verifier) as pool:
        graded = OutcomeGrader(pool).grade(groups)
        assert (pool.graded, pool.errors) == (6, 3)
    assert [[(r.text, r.reward) for r in group] for group in graded.groups] == [
        [("1", 1.0), ("0.5", 0.0), ("0.25", 0.25)],
        [("0", 0.0)],
    ]
    assert graded.errors == 3
    assert "0.5" not in verifier.seen


def test_nothing_to_grade_is_no_trouble() -> None:
    with VerifierPool(BySaying()) as pool:
        assert OutcomeGrader(pool).grade([[written("1", is_cut=True)]]).errors == 0
        assert OutcomeGrader(pool).grade([]).groups == ()
