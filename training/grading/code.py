"""Code answers: a program is right when it passes the given tests, in the jail.

Two kinds of tests: Python that asserts (HumanEval, MBPP), run in the same interpreter behind the
answer; and inputs with expected outputs (contests), where the comparison is made outside.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from training.grading.jail import Jail, JailResult

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
class CodeVerdict:
    """`passed` of `total` tests; asserts count as one. `reason` is the last line of the error."""

    outcome: Literal["right", "wrong"]
    passed: int
    total: int
    reason: str = ""


class CodeGrader:
    """Grades programs in a jail. Raises what `Jail.run` raises."""

    def __init__(self, jail: Jail | None = None) -> None:
        self._jail = jail or Jail()

    async def by_asserts(self, code: str, tests: str) -> CodeVerdict:
        """Run `tests` behind `code`; right when they run to their end without an exception."""
        secret = f"\n{secrets.token_hex(16)}\n"
        given = json.dumps({"code": code, "tests": tests, "secret": secret})
        result = await self._jail.run(_HARNESS, files={"tests.json": given})
        if result.exit_code == 0 and result.stderr.endswith(secret):
            return CodeVerdict(outcome="right", passed=1, total=1)
        reason = _reason(result)
        if result.exit_code == 0:
            reason = "it ended before its tests did"
        return CodeVerdict(outcome="wrong", passed=0, total=1, reason=reason)

    async def by_outputs(self, code: str, cases: Sequence[tuple[str, str]]) -> CodeVerdict:
        """Run `code` on each input; right when every output has the expected words in each line.

        Stops at the first that fails.
        """
        for passed, (given, expected) in enumerate(cases):
            result = await self._jail.run(code, stdin=given)
            if result.exit_code != 0:
                return CodeVerdict(
                    outcome="wrong", passed=passed, total=len(cases), reason=_reason(result)
                )
            if _words(result.stdout) != _words(expected):
                reason = f"test {passed}: another output"
                return CodeVerdict(outcome="wrong", passed=passed, total=len(cases), reason=reason)
        return CodeVerdict(outcome="right", passed=len(cases), total=len(cases))


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
