"""Programs as a search's answers: classes of behaviour, grades, and the time for all of them."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from prm.errors import InvalidInput
from search.answers import Extraction
from training.grading import kernel
from training.grading.code import AssertTest, CodeGrader, CodeTest, OutputTest
from training.grading.code_answers import MAX_PROGRAM_CHARS, CodeAnswers
from training.grading.jail import JailUnavailable, missing_walls

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls())),
]
ENDLESS = "while True: pass"


def answers(*tests: CodeTest, test_s: float = 5.0, grading_s: float = 60.0) -> CodeAnswers:
    return CodeAnswers(CodeGrader(), tests, test_s=test_s, grading_s=grading_s)


async def test_programs_that_do_the_same_are_one_class_and_are_run_once() -> None:
    grader = CodeGrader()
    tests: Sequence[CodeTest] = [OutputTest(input="2", output="4"), OutputTest(input="5")]
    code = CodeAnswers(grader, tests)
    programs = [
        "print(2 * int(input()))",
        "print(2 + int(input()))",
        "n = int(input()); print(n + n)",
        "print(2 * int(input()))",
        "print(0)",
        "1 / 0",
    ]
    # 2 + 5 is not 2 · 5; the last two pass nothing, but one of them prints something.
    assert await code.group(programs) == [0, 1, 0, 0, 4, 5]
    grades = await code.grades(programs)
    assert [(grade.passed, grade.total) for grade in grades] == [(1, 1)] * 4 + [(0, 1)] * 2
    assert grades[0].reason is None
    assert grades[4].reason == "test 0: another output"
    assert grades[5].reason == "test 0: ZeroDivisionError: division by zero"
    # Five programs that differ, two tests each.
    assert sum(grader.endings.values()) == 10


async def test_a_late_program_is_late_once() -> None:
    code = answers(*[AssertTest(code="pass")] * 20, test_s=1.0)
    started = time.monotonic()
    (grade,) = await code.grades([ENDLESS])
    assert (grade.passed, grade.total, grade.reason) == (0, 20, "test 0: out of time")
    assert time.monotonic() - started < 5


async def test_what_does_not_fit_into_the_time_for_all_tests_is_told() -> None:
    code = answers(AssertTest(code="pass"), test_s=30.0, grading_s=1.5)
    started = time.monotonic()
    grades = await code.grades(["x = 1", *(f"{ENDLESS} # {n}" for n in range(9))])
    assert time.monotonic() - started < 6
    assert grades[0].passed == 1
    assert {grade.reason for grade in grades[1:]} == {
        "test 0: not run: the time for all tests was used up"
    }
    # Nothing is left for what comes later.
    assert (await code.grades(["x = 2"]))[0].passed == 0


async def test_a_search_with_slow_programs_leaves_turns_to_the_others() -> None:
    grader = CodeGrader(processes=1)
    test = AssertTest(code="pass")
    slow = CodeAnswers(grader, [test], test_s=1.0)
    crowd = asyncio.create_task(slow.grades([f"{ENDLESS} # {n}" for n in range(6)]))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    assert (await CodeAnswers(grader, [test]).grades(["x = 1"]))[0].passed == 1
    assert time.monotonic() - started < 4
    crowd.cancel()
    with pytest.raises(asyncio.CancelledError):
        await crowd


async def test_a_missing_wall_is_an_error_and_no_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "landlock_abi", lambda: 0)
    with pytest.raises(JailUnavailable, match="no Landlock"):
        await answers(AssertTest(code="pass")).group(["x = 1", "x = 2"])


def test_programs_are_found_in_what_was_written() -> None:
    code = answers(AssertTest(code="pass"))
    assert code.extract("So:\n```python\nx = 1\n```\n") == "x = 1\n"
    assert code.extract("x = 1") == "x = 1"
    assert code.extract("```\n\n```") is None
    assert code.extract("#" * (MAX_PROGRAM_CHARS + 1)) is None
    tagged = Extraction(pattern="<code>([^<]*)")
    by_pattern = CodeAnswers(CodeGrader(), [AssertTest(code="pass")], extraction=tagged)
    assert by_pattern.extract("<code>a = 1</code> or <code>b = 2</code>") == "b = 2"
    assert by_pattern.extract("a = 1") is None
    with pytest.raises(InvalidInput, match="without a bound"):
        Extraction(pattern="(a+)+b")
