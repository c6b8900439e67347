"""Programs as a search's answers: run by the problem's tests, the same when they do the same."""

import asyncio
import time
from collections.abc import Sequence

from search.answers import Extraction, last_match
from search.types import Grade
from training.grading.code import CheckResult, CodeGrader, CodeTest, expects, extract_code

MAX_PROGRAM_CHARS = 1 << 16


class CodeAnswers:
    """`search.answers.TaskAnswers` for one problem whose answers are Python programs.

    Two programs are equivalent when the same tests are passed by both, and they print the same for
    every input that expects nothing. `test_s` bounds one test; a program that is late once is not
    run again, so that an endless one costs one deadline. `grading_s` bounds all tests of a search:
    what was not run by then counts as failed, and says so. A search waits for no more turns than
    the grader has, so that one with many slow programs leaves every other turn to the others.
    """

    def __init__(
        self,
        grader: CodeGrader,
        tests: Sequence[CodeTest],
        *,
        extraction: Extraction | None = None,
        test_s: float = 5.0,
        grading_s: float = 60.0,
    ) -> None:
        self._grader = grader
        self._tests = tests
        self._pattern = extraction.pattern if extraction else None
        self._test_s = test_s
        self._left_s = grading_s
        self._turns = asyncio.Semaphore(grader.processes)
        self._known: dict[str, Sequence[CheckResult]] = {}

    def extract(self, text: str) -> str | None:
        """The last fenced block, or what the task's pattern finds; None where that is no code.

        Without a fence it is the whole text.
        """
        found = extract_code(text) if self._pattern is None else last_match(text, self._pattern)
        if found is None or not found.strip() or len(found) > MAX_PROGRAM_CHARS:
            return None
        return found

    async def group(self, answers: Sequence[str]) -> list[int]:
        """See `TaskAnswers.group`. Raises what `Jail.run` raises."""
        await self._run_new(answers)
        firsts: dict[tuple[str, ...], int] = {}
        return [
            firsts.setdefault(tuple(result.behaviour for result in self._known[answer]), index)
            for index, answer in enumerate(answers)
        ]

    async def grades(self, answers: Sequence[str]) -> Sequence[Grade]:
        """Of each program the tests that it passed. Raises what `Jail.run` raises."""
        await self._run_new(answers)
        return [self._grade(self._known[answer]) for answer in answers]

    async def _run_new(self, answers: Sequence[str]) -> None:
        """Run the programs that were not run yet, until the time for all tests is used up."""
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._known]
        if not new:
            return
        started = time.monotonic()
        tasks = {program: asyncio.create_task(self._run(program)) for program in new}
        try:
            await asyncio.wait(
                tasks.values(), timeout=self._left_s, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            self._left_s = max(0.0, self._left_s - (time.monotonic() - started))
        for program, task in tasks.items():
            if task.cancelled():
                self._known[program] = self._not_run(0, "the time for all tests was used up")
            else:
                self._known[program] = task.result()

    async def _run(self, program: str) -> Sequence[CheckResult]:
        results: list[CheckResult] = []
        async with self._turns:
            for place, test in enumerate(self._tests):
                result = await self._grader.check(program, test, seconds=self._test_s)
                results.append(result)
                if result.is_late:
                    return [*results, *self._not_run(place + 1, "an earlier test ran out of time")]
        return results

    def _not_run(self, start: int, why: str) -> list[CheckResult]:
        reason = f"not run: {why}"
        return [
            CheckResult(is_passed=False, behaviour="failed", reason=reason)
            for _ in self._tests[start:]
        ]

    def _grade(self, results: Sequence[CheckResult]) -> Grade:
        counted = [
            result.is_passed
            for test, result in zip(self._tests, results, strict=True)
            if expects(test)
        ]
        failures = (
            f"test {place}: {result.reason}"
            for place, result in enumerate(results)
            if not result.is_passed
        )
        return Grade(passed=sum(counted), total=len(counted), reason=next(failures, None))
