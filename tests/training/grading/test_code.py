"""Programs graded by tests: by asserts and by outputs, and answers that only seem to pass."""

import json
from pathlib import Path

import pytest

from training.grading.code import CodeGrader, extract_code
from training.grading.jail import JailLimits, missing_walls

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls())),
]
DATA = Path(__file__).parents[4] / "shared/data/code"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/code")
TESTS = "assert double(2) == 4\nassert double(-1) == -2"


@pytest.fixture
def grader() -> CodeGrader:
    return CodeGrader(JailLimits(wall_s=5.0, cpu_s=2))


async def test_asserts_decide(grader: CodeGrader) -> None:
    right = await grader.by_asserts("def double(x):\n    return 2 * x", TESTS)
    assert (right.outcome, right.passed) == ("right", 1)
    wrong = await grader.by_asserts("def double(x):\n    return x + 2", TESTS)
    assert (wrong.outcome, wrong.reason) == ("wrong", "AssertionError")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def double(x):\n    raise SystemExit(0)",
        "syntax error",
        "while True: pass",
        "def double(x):\n    print('\\n' * 40)",
    ],
)
async def test_what_does_not_reach_the_end_of_its_tests_is_wrong(
    grader: CodeGrader, code: str
) -> None:
    assert (await grader.by_asserts(code, TESTS)).outcome == "wrong"


async def test_outputs_decide_by_line_and_word(grader: CodeGrader) -> None:
    code = "n = int(input())\nprint(n * 2, ' ')\nprint()"
    assert (await grader.by_outputs(code, [("1\n", "2"), ("4\n", "8\n")])).outcome == "right"
    verdict = await grader.by_outputs(code, [("1\n", "2"), ("4\n", "9"), ("5\n", "10")])
    assert (verdict.outcome, verdict.passed, verdict.total) == ("wrong", 1, 3)
    assert (await grader.by_outputs("1/0", [("", "")])).reason.startswith("ZeroDivisionError")


def test_the_last_block_of_code_is_the_answer() -> None:
    assert extract_code("a\n```\n1\n```\nb\n```python\n2\n```\n") == "2\n"
    assert extract_code("a\n```py\n1\n```\ncut off:\n```python\n2") == "1\n"
    assert extract_code("print(1)") == "print(1)"


@needs_data
async def test_the_samples_of_the_reference_grader_are_judged_as_it_does(
    grader: CodeGrader,
) -> None:
    for line in (DATA / "nemo_skills/code_execution_test.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["language"].startswith("py"):
            continue
        cases = [(case["input"], case["output"]) for case in row["test_cases"]]
        verdict = await grader.by_outputs(row["code"], cases)
        assert (verdict.outcome == "right") == row["is_correct"], row["id"]


@needs_data
@pytest.mark.slow
async def test_humaneval_s_own_solutions_pass_and_empty_ones_do_not(grader: CodeGrader) -> None:
    lines = (DATA / "humaneval/HumanEval.jsonl").read_text().splitlines()
    for row in map(json.loads, lines[::4]):
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        right = await grader.by_asserts(row["prompt"] + row["canonical_solution"], tests)
        assert right.outcome == "right", (row["task_id"], right.reason)
        empty = await grader.by_asserts(row["prompt"] + "    return None\n", tests)
        assert empty.outcome == "wrong", row["task_id"]
