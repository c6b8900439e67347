"""A search whose problem has tests: what they say comes before scores and votes."""

from collections.abc import Sequence

import pytest

from search.answers import StatedAnswers
from search.generator import EndedBy
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from search.types import Grade
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio


class Divisible(StatedAnswers):
    """An answer passes a test for each of 2, 3 and 5 that divides it."""

    async def grades(self, answers: Sequence[str]) -> Sequence[Grade | None]:
        """See `TaskAnswers.grades`."""
        return [
            Grade(passed=sum(int(answer) % prime == 0 for prime in (2, 3, 5)), total=3)
            for answer in answers
        ]


def writes(*numbers: int | None) -> ScriptedGenerator:
    """A candidate per number; None is a text without an answer."""

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        number = numbers[nth]
        return ("who knows" if number is None else f"Answer: {number}"), "eos"

    return ScriptedGenerator(script)


def likes_seven(step: str) -> float:
    return 0.9 if step.endswith("7") else 0.1


async def ranked(strategy: BestOfN | Beam, *numbers: int | None) -> list[str | None]:
    run = new_run(writes(*numbers), ScriptedScorer(likes_seven), answers=Divisible())
    _, result = await finish(strategy, run)
    assert result.winner == result.ranking[0]
    assert [vote.grade.passed for vote in result.votes if vote.grade] == sorted(
        (vote.grade.passed for vote in result.votes if vote.grade), reverse=True
    )
    return [candidate.answer for candidate in result.ranking]


@pytest.mark.parametrize("selection", ["prm", "majority", "weighted", "first"])
async def test_more_tests_passed_comes_before_scores_and_votes(selection: str) -> None:
    strategy = BestOfN.model_validate({"n": 6, "selection": selection})
    order = await ranked(strategy, 7, 7, 30, 6, None, 7)
    assert order[:2] == ["30", "6"]
    assert order[-1] is None


async def test_where_all_pass_alike_the_strategy_decides() -> None:
    assert await ranked(BestOfN(n=4, selection="prm"), 1, 11, 7, 11) == ["7", "1", "11", "11"]
    assert (await ranked(BestOfN(n=4, selection="majority"), 1, 11, 7, 11))[0] == "11"


async def test_it_holds_for_searches_in_steps_too() -> None:
    assert (await ranked(Beam(n=4, width=4), 7, 30, 6, 1))[0] == "30"
