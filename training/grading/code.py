"""Code answers: a program is right when it passes the given tests, in the jail.

Two kinds of tests: Python that asserts (HumanEval, MBPP), run in the same interpreter behind the
answer; and inputs with expected outputs (contests), where the comparison is made outside.
"""

import asyncio
import hashlib
import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from training.grading.jail import Ending, Jail, JailLimits, JailResult

_FENCE = re.compile(
    r"^```[ \t]{0,4}(?:python|python3|py)?[ \t]{0,4}$", re.MULTILINE | re.IGNORECASE
)

# The answer may end the interpreter before its tests: only a secret written after them counts. It
# is read and unlinked before the answer runs, so nothing that does not look for it finds it.
_HARNESS = """
import json, os, sys
with open("tests.json") as file:
    given = json.load(file)
for name in ("tests.json", "main.py"):
    os.unlink(name)
def run(given):
    names = {"__name__": "__main__"}
    exec(compile(given["code"], "answer.py", "exec"), names)
    exec(compile(given["tests"], "tests.py", "exec"), names)
    sys.stderr.flush()
    os.write(2, given["secret"].encode())
run(given)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTest:
    """Python that runs behind the program, passed when it raises nothing."""

    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTest:
    """What the program prints for an input. `output` None: nothing is expected, and what it prints
    only tells programs apart (clusters of behaviour: AlphaCode, arXiv 2203.07814 §4.4).
    """

    input: str
    output: str | None = None


CodeTest = AssertTest | OutputTest


def expects(test: CodeTest) -> bool:
    """Whether the test can tell right from wrong."""
    return isinstance(test, AssertTest) or test.output is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One test of one program; one that expects nothing is passed by whatever ends well.

    `behaviour` is equal for programs that did the same; `reason` says why it was not passed.
    """

    is_passed: bool
    behaviour: str
    reason: str | None = None
    is_late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerdict:
    """`passed` of `total` tests; asserts count as one. `reason` is the last line of the error."""

    outcome: Literal["right", "wrong"]
    passed: int
    total: int
    reason: str = ""


class CodeGrader:
    """Grades programs, `processes` at a time, each run in a jail of its own.

    `endings` counts the runs by how they ended, for metrics. Every method raises what `Jail.run`
    raises.
    """

    def __init__(self, limits: JailLimits | None = None, *, processes: int = 2) -> None:
        self.limits = limits or JailLimits()
        self.endings: Counter[Ending] = Counter()
        self.processes = processes
        self._turns = asyncio.Semaphore(processes)

    async def run(
        self,
        program: str,
        *,
        stdin: str = "",
        files: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> JailResult:
        """One run, as soon as it is its turn; `seconds` instead of the limits' own times."""
        limits = self.limits
        if seconds is not None:
            limits = replace(limits, wall_s=seconds, cpu_s=math.ceil(seconds))
        async with self._turns:
            result = await Jail(limits).run(program, stdin=stdin, files=files)
        self.endings[result.ending] += 1
        return result

    async def check(
        self, program: str, test: CodeTest, *, seconds: float | None = None
    ) -> CheckResult:
        """Run one test."""
        if isinstance(test, AssertTest):
            return await self._check_asserts(program, test.code, seconds)
        result = await self.run(program, stdin=test.input, seconds=seconds)
        if result.exit_code != 0:
            return _failed(_reason(result), is_late=result.ending == "time")
        words = _words(result.stdout)
        if test.output is None:
            printed = hashlib.sha256(json.dumps(words).encode()).hexdigest()
            return CheckResult(is_passed=True, behaviour=f"printed {printed}")
        if words != _words(test.output):
            return _failed("another output")
        return CheckResult(is_passed=True, behaviour="passed")

    async def by_asserts(self, code: str, tests: str) -> CodeVerdict:
        """Run `tests` behind `code`; right when they run to their end without an exception."""
        return await self.by_tests(code, [AssertTest(code=tests)])

    async def by_outputs(self, code: str, cases: Sequence[tuple[str, str]]) -> CodeVerdict:
        """Run `code` on each input; right when every output has the expected words in each line.

        Stops at the first that fails.
        """
        return await self.by_tests(
            code, [OutputTest(input=given, output=output) for given, output in cases]
        )

    async def by_tests(self, code: str, tests: Sequence[CodeTest]) -> CodeVerdict:
        """Right when all are passed. Stops at the first that is not."""
        total = len(tests)
        for passed, test in enumerate(tests):
            result = await self.check(code, test)
            if not result.is_passed:
                shown = f"{result.reason}" if total == 1 else f"test {passed}: {result.reason}"
                return CodeVerdict(outcome="wrong", passed=passed, total=total, reason=shown)
        return CodeVerdict(outcome="right", passed=total, total=total)

    async def _check_asserts(self, code: str, tests: str, seconds: float | None) -> CheckResult:
        secret = f"\n{secrets.token_hex(16)}\n"
        given = json.dumps({"code": code, "tests": tests, "secret": secret})
        result = await self.run(_HARNESS, files={"tests.json": given}, seconds=seconds)
        if result.exit_code == 0 and result.stderr.endswith(secret):
            return CheckResult(is_passed=True, behaviour="passed")
        if result.exit_code == 0:
            return _failed("it ended before its tests did")
        return _failed(_reason(result), is_late=result.ending == "time")


def extract_code(text: str) -> str:
    """The last fenced block of Python in a response; all of it where there is none.

    >>> extract_code("First:\\n```python\\nx = 1\\n```\\nThat is all.")
    'x = 1\\n'
    """
    fences = list(_FENCE.finditer(text))
    if len(fences) < 2:
        return text
    # An opening and a closing one belong together; an odd one at the end opens what was cut off.
    opening = fences[(len(fences) // 2) * 2 - 2]
    closing = fences[(len(fences) // 2) * 2 - 1]
    return text[opening.end() + 1 : closing.start()]


def _failed(reason: str, *, is_late: bool = False) -> CheckResult:
    return CheckResult(is_passed=False, behaviour="failed", reason=reason, is_late=is_late)


def _reason(result: JailResult) -> str:
    if result.ending == "ended":
        lines = result.stderr.strip().splitlines()
        return lines[-1][:300] if lines else f"exit code {result.exit_code}"
    return {"time": "out of time", "output": "too much output"}.get(result.ending, "killed")


def _words(output: str) -> list[list[str]]:
    """By line and word: spaces at line ends and blank last lines are nobody's answer."""
    lines = [line.split() for line in output.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines
