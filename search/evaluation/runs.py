"""Every arm over every problem: many searches at a time, so that the engine's batches are full.

by_work → search each problem → rank under every arm that shares the work → grade the winner
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prm.errors import InvalidInput
from search.answers import Equivalence
from search.answers import Outcome as Verdict
from search.evaluation.arms import Arm, by_work
from search.evaluation.problems import LabelledProblem
from search.run import Strategy
from search.types import Candidate, SearchResult, SearchUsage
from search.writing import derive_seed

Search = Callable[[LabelledProblem, Strategy, int], Awaitable[SearchResult]]
"""Runs one search: problem, strategy, seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm on one problem. An undecided comparison counts as wrong and is told apart.

    `right_share` of the answers that it was chosen from are right: where that is above 0, a better
    choice would have been right. `read_tokens` are those that the PRM was shown, cached ones among
    them; 0 where it has no say.
    """

    is_correct: bool
    is_undecided: bool
    right_share: float
    generated_tokens: int
    read_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One arm on all problems, in their order. `wall_s` is that of all its searches together.

    Arms that share their work share `wall_s`: it was spent once.
    """

    arm: Arm
    outcomes: Sequence[Outcome]
    wall_s: float


async def run_arms(
    arms: Sequence[Arm],
    problems: Sequence[LabelledProblem],
    search: Search,
    equivalence: Equivalence,
    *,
    seed: int,
    concurrency: int,
    on_progress: Callable[[float, str], None],
    on_run: Callable[[ArmRun], None],
) -> None:
    """Run them; `on_run` is told each arm that is through, `on_progress` the share done of all.

    A problem has the same seed in all arms: where two write alike, they write the same. Cancelled,
    it leaves no search running; what `on_run` was told stays told. Raises InvalidInput naming the
    line of a problem that cannot be searched.
    """
    works = by_work(arms)
    done = 0
    for alike in works:
        started = time.perf_counter()

        async def solve(index: int, alike: Sequence[Arm] = alike) -> list[Outcome]:
            nonlocal done
            problem = problems[index]
            try:
                result = await search(problem, alike[0].strategy, derive_seed(seed, index, 0))
            except InvalidInput as error:
                raise InvalidInput(f"{problem.where}: {error}", param=error.param) from error
            verdicts = await _verdicts(result.candidates, problem, equivalence)
            others = (arm.rank(result.candidates) for arm in alike[1:])
            outcomes = [
                _graded(arm, ranking, verdicts, result.usage)
                for arm, ranking in zip(alike, [result.ranking, *others], strict=True)
            ]
            done += 1
            on_progress(done / (len(problems) * len(works)), alike[0].label)
            return outcomes

        rows = await _gather(solve, len(problems), concurrency)
        wall_s = time.perf_counter() - started
        for place, arm in enumerate(alike):
            on_run(ArmRun(arm=arm, outcomes=[row[place] for row in rows], wall_s=wall_s))


async def _verdicts(
    candidates: Iterable[Candidate], problem: LabelledProblem, equivalence: Equivalence
) -> dict[str, Verdict]:
    """Of each different answer, whether it is right."""
    answers = {candidate.answer for candidate in candidates if candidate.answer is not None}
    return {answer: await equivalence.is_equal(problem.answer, answer) for answer in answers}


def _graded(
    arm: Arm, ranking: Sequence[Candidate], verdicts: Mapping[str, Verdict], usage: SearchUsage
) -> Outcome:
    found = [verdicts.get(candidate.answer or "", "different") for candidate in ranking]
    read = usage.scored_tokens + usage.cached_tokens
    return Outcome(
        is_correct=found[:1] == ["equal"],
        is_undecided=found[:1] == ["undecided"],
        right_share=found.count("equal") / max(1, sum(c.answer is not None for c in ranking)),
        generated_tokens=usage.generated_tokens,
        read_tokens=read if arm.uses_prm(has_prm=True) else 0,
    )


async def _gather(
    solve: Callable[[int], Awaitable[list[Outcome]]], count: int, concurrency: int
) -> list[list[Outcome]]:
    """`solve` for 0 … count − 1, so many at a time; the first failure ends the others."""
    rows: list[list[Outcome] | None] = [None] * count
    left = iter(range(count))

    async def work() -> None:
        for index in left:
            rows[index] = await solve(index)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, count)):
                group.create_task(work())
    except ExceptionGroup as failures:
        # They all fail of the same cause, or the others were ended because of the first.
        raise failures.exceptions[0] from failures
    return [row for row in rows if row is not None]
