"""Programs graded by the share of their tests that they pass, in the sandbox.

1 means that every test was passed, and nothing else does. PRIME's released grader runs all tests at
once and, where that fails, the first ten one by one: it gives passed/10, and 1 when those ten pass
although a later one failed; where grading breaks, everyone gets 0.5 (PRIME-RL/PRIME,
`reward_score/prime.py`). Here, where only the first tests are counted apart, the others
are still run, and a failure among them counts.
"""

import re
import secrets
from collections.abc import Sequence

from training.grading.code import AssertTest, CheckResult, CodeGrader, OutputTest, extract_code
from training.grading.jail import Jail, JailUnavailable
from training.types import CodeTests, Problem
from training.verifiers.base import Outcome

# Of the sandbox's time, what all asserts together may take: Python must start and end, too.
_SHARE_OF_TIME = 0.8
# One statement after another, each with a time of its own, so that one that hangs or exits fails
# alone. What a program does to the clock harms itself; that all of them pass is not believed but
# from a run that reached its end (`CodeGrader`).
_COUNTING = """
def _count():
    import signal
    class OutOfTime(BaseException):
        pass
    def stop(*_):
        raise OutOfTime
    signal.signal(signal.SIGALRM, stop)
    names, passed = globals(), 0
    for test in {tests!r}:
        try:
            signal.setitimer(signal.ITIMER_REAL, {seconds})
            exec(compile(test, "test.py", "exec"), names)
            passed += 1
        except BaseException:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if passed < {total}:
        raise AssertionError(f"{secret} {{passed}}")
_count()
"""


class CodeVerifier:
    """Runs a problem's tests. A program that crashes, hangs or cheats its way out fails them.

    `counted_cases`: inputs that are run one by one to be counted; a program that passes them is
    run on the others too, up to the first that fails. An assert has its part of the sandbox's time,
    and `least_test_s` in any case.
    """

    def __init__(
        self,
        grader: CodeGrader | None = None,
        *,
        counted_cases: int = 10,
        least_test_s: float = 1.0,
    ) -> None:
        self._grader = grader or CodeGrader()
        self._counted_cases = counted_cases
        self._least_test_s = least_test_s
        self.concurrency = self._grader.processes

    async def start(self) -> None:
        """Run a program. Raises JailUnavailable where the walls cannot be put up."""
        result = await Jail(self._grader.limits).run("print(6 * 7)")
        if result.stdout != "42\n":
            raise JailUnavailable(
                f"the sandbox does not run Python: it {result.ending}, {result.stderr[-300:]!r}"
            )

    async def grade(self, problem: Problem, response: str) -> Outcome:
        """See `Verifier.grade`."""
        if problem.tests is None:
            return Outcome(error="the problem has no tests")
        program = program_of(response, problem.tests)
        if problem.tests.asserts:
            return await self._by_asserts(program, problem.tests)
        return await self._by_cases(program, problem.tests.cases)

    async def aclose(self) -> None:
        """See `Verifier.aclose`: every run has ended by itself."""

    async def _by_asserts(self, program: str, tests: CodeTests) -> Outcome:
        secret, total = secrets.token_hex(16), len(tests.asserts)
        share = _SHARE_OF_TIME * self._grader.limits.wall_s / total
        seconds = max(self._least_test_s, share)
        counting = _COUNTING.format(
            tests=list(tests.asserts), seconds=seconds, total=total, secret=secret
        )
        result = await self._check(program, AssertTest(code=f"{tests.setup}\n{counting}"))
        if result.is_passed:
            return Outcome(reward=1.0)
        count = re.search(f"{secret} ([0-9]+)", result.reason or "")
        # Killed, or out before its tests were: none of them is known to pass.
        return Outcome(reward=min(int(count[1]), total - 1) / total if count else 0.0)

    async def _by_cases(self, program: str, cases: Sequence[tuple[str, str]]) -> Outcome:
        tests = [OutputTest(input=given, output=expected) for given, expected in cases]
        counted, rest = tests[: self._counted_cases], tests[self._counted_cases :]
        passed = 0
        for test in counted:
            result = await self._check(program, test)
            passed += result.is_passed
            if result.is_late:
                # It would be late again, and again.
                break
        if passed < len(counted):
            return Outcome(reward=passed / len(counted))
        for test in rest:
            if not (await self._check(program, test)).is_passed:
                break
            passed += 1
        return Outcome(reward=passed / len(tests))

    async def _check(self, program: str, test: AssertTest | OutputTest) -> CheckResult:
        return await self._grader.check(program, test)


def program_of(response: str, tests: CodeTests) -> str:
    """The program that a response answers with, behind what its author could rely on.

    A response that does not define the function asked for goes on from the prompt.
    """
    code = extract_code(response)
    name = tests.entry_point
    is_whole = not tests.prompt or (
        name is not None and re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)
    )
    return "\n".join([tests.preamble, code if is_whole else tests.prompt + code])
