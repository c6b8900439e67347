"""Answers that are integers, which most are: compared as written, with no process for it."""

import pytest

from prm.errors import Unavailable
from search.answers import MathAnswers
from search.answers.pool import WorkerPool

pytestmark = pytest.mark.anyio


async def without_workers() -> MathAnswers:
    """One that can start no process."""
    pool = WorkerPool()
    await pool.aclose()
    return MathAnswers(pool=pool)


async def test_integers_are_grouped_without_a_worker() -> None:
    answers = await without_workers()
    assert await answers.group(["12", "-7", "007", "12.", "7", "1,200", "$12$", "1200"]) == [
        0,
        1,
        2,
        0,
        2,
        5,
        0,
        5,
    ]
    assert await answers.is_equal("12", "13") == "different"
    assert await answers.is_equal("12", "+12.0") == "equal"
    assert await answers.is_equal("12", "-12") == "different"
    assert answers.undecided == 0


@pytest.mark.parametrize("other", ["12/1", "1.5", "12%", "x", "1e1", r"\frac{24}{2}"])
async def test_all_else_is_mathematics(other: str) -> None:
    answers = await without_workers()
    with pytest.raises(Unavailable, match="closed"):
        await answers.is_equal("12", other)


async def test_integers_among_others_are_still_compared_with_those() -> None:
    async with MathAnswers(workers=1) as answers:
        assert await answers.group(["12", "13", "24/2", "26/2", "14"]) == [0, 1, 0, 1, 4]
