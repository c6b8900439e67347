"""Programs rewarded by the share of their tests that they pass, in the sandbox."""

import random
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest

from training.datasets import DatasetSettings, load_problems
from training.datasets.code_columns import code_tests_of
from training.datasets.rows import read_rows
from training.grading.code import CodeGrader
from training.grading.jail import JailLimits, missing_walls
from training.tasks.list_functions import ListFunctions
from training.types import CodeTests, Problem
from training.verifiers import CodeVerifier, VerifierPool
from training.verifiers.code import program_of

pytestmark = pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls()))
DATA = Path(__file__).parents[4] / "shared/data/code"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/code")

DOUBLE = Problem(
    text="Write double(x).",
    tests=CodeTests(asserts=tuple(f"assert double({n}) == {2 * n}" for n in (0, 1, 2, 5))),
)
ECHO = Problem(
    text="Print twice the number.",
    tests=CodeTests(cases=tuple((f"{n}\n", f"{2 * n}\n") for n in range(6))),
)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    grader = CodeGrader(JailLimits(wall_s=3.0, cpu_s=1))
    with VerifierPool(CodeVerifier(grader, counted_cases=4, least_test_s=0.3)) as pool:
        yield pool


@pytest.mark.parametrize(
    ("program", "reward"),
    [
        ("def double(x):\n    return 2 * x", 1.0),
        ("def double(x):\n    return x + x % 4", 0.75),
        ("def double(x):\n    return 4", 0.25),
        ("def double(x):\n    return 2 * x if x != 2 else 1 // 0", 0.75),
        ("def double(x):\n    while x == 2: pass\n    return 2 * x", 0.75),
        ("def double(x):\n    if x == 2: raise SystemExit\n    return 2 * x", 0.75),
        ("```python\ndef double(x):\n    return 2 * x\n```\nDone.", 1.0),
        ("def double(x)\n    return 2 * x", 0.0),
        ("", 0.0),
        ("import os; os._exit(0)", 0.0),
        ("def double(x):\n    import os; os._exit(0)", 0.0),
        ("raise AssertionError('4 of 4 passed')", 0.0),
        ("import sys; print('AssertionError: 4', file=sys.stderr); sys.exit(1)", 0.0),
        ("_passed = passed = 9\ndef double(x):\n    globals()['passed'] = 9; return 0", 0.25),
    ],
)
def test_the_reward_is_the_share_of_asserts_that_pass(
    pool: VerifierPool, program: str, reward: float
) -> None:
    (outcome,) = pool.grade([(DOUBLE, program)])
    assert (outcome.reward, outcome.error) == (reward, None)


def test_a_failure_after_the_counted_cases_is_no_full_reward(pool: VerifierPool) -> None:
    programs = {
        "print(2 * int(input()))": 1.0,
        # Passes the four that are counted and fails a later one: PRIME's grader says 1.
        "n = int(input())\nprint(2 * n if n < 5 else 0)": 5 / 6,
        "n = int(input())\nprint(2 * n if n % 2 else 1)": 2 / 4,
        "n = int(input())\nwhile n == 1: pass\nprint(2 * n)": 1 / 4,
        "print(0)": 1 / 4,
    }
    outcomes = pool.grade([(ECHO, program) for program in programs])
    assert [outcome.reward for outcome in outcomes] == pytest.approx(list(programs.values()))


def test_a_problem_without_tests_is_an_error(pool: VerifierPool) -> None:
    (outcome,) = pool.grade([(Problem(text="2+2?", answer="4"), "print(4)")])
    assert (outcome.reward, outcome.error) == (None, "the problem has no tests")


def test_a_sandbox_that_breaks_is_an_error_and_no_reward(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.grading.kernel.landlock_abi", lambda: 0)
    (outcome,) = pool.grade([(DOUBLE, "def double(x):\n    return 2 * x")])
    assert outcome.reward is None
    assert outcome.error is not None
    assert outcome.error.startswith("JailUnavailable")


def test_a_completion_goes_on_from_its_prompt_and_a_whole_function_replaces_it() -> None:
    tests = CodeTests(
        asserts=("assert f(2) == 4",),
        preamble="import math",
        prompt="import math\n\ndef f(x):\n",
        entry_point="f",
    )
    assert program_of("    return 2 * x", tests).endswith("def f(x):\n    return 2 * x")
    assert program_of("def f(x):\n    return x + 2", tests).count("def f") == 1
    assert program_of("def g(x):\n    return 1", tests).count("def f") == 1


def test_lists_and_trees_of_leetcode_are_there_and_cannot_be_replaced(pool: VerifierPool) -> None:
    tests = code_tests_of(
        {
            "tests": {
                "functional": "def check(candidate):\n"
                "    assert is_same_list(candidate(list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
                "    assert not is_same_list(list_node([1]), list_node([1, 2]))\n"
                "    assert is_same_tree(tree_node([1, None, 2, 3]), tree_node([1, None, 2, 3]))\n"
                "    assert not is_same_tree(tree_node([1, 2]), tree_node([1, None, 2]))\n"
                "    tree = tree_node([1, None, 2, 3])\n"
                "    assert (tree.left, tree.right.left.val, tree.right.right) == (None, 3, None)\n"
                "check(Solution().reverse)"
            }
        }
    )
    reverse = (
        "class Solution:\n"
        "    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:\n"
        "        done = None\n"
        "        while head: head.next, done, head = done, head, head.next\n"
        "        return done"
    )
    cheat = (
        "def is_same_list(one, other): return True\n"
        "class Solution:\n    def reverse(self, head): return head"
    )
    problem = Problem(text="Reverse it.", tests=tests)
    outcomes = pool.grade([(problem, reverse), (problem, cheat)])
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0]


def test_slipped_solutions_of_the_task_have_the_rewards_of_their_tests(pool: VerifierPool) -> None:
    task, rng = ListFunctions(), random.Random(3)
    problems = task.problems(0, 6, "validation")
    responses = [task.solution(p, rng) for p in problems] + [task.expert(p, rng) for p in problems]
    outcomes = pool.grade(list(zip(problems * 2, responses, strict=True)))
    assert [outcome.reward for outcome in outcomes[6:]] == [1.0] * 6
    for problem, response, outcome in zip(problems, responses[:6], outcomes[:6], strict=True):
        assert (outcome.reward == 1.0) == task.is_correct(problem, response)


@needs_data
@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("humaneval/HumanEval.jsonl", "canonical_solution"),
        ("mbpp/mbpp.jsonl", "code"),
        ("mbpp/mbpp_sanitized_codet.jsonl", "canonical_solution"),
        ("rllm/leetcode_train.jsonl.gz", "solutions"),
    ],
)
@pytest.mark.slow
def test_the_data_sets_own_solutions_pass_and_empty_ones_do_not(
    pool: VerifierPool, file: str, column: str
) -> None:
    problems = load_problems(DatasetSettings(path=DATA / file)).problems
    rows = list(read_rows(DATA / file))
    places = random.Random(0).sample(range(len(rows)), 12)
    solutions = [str(rows[i].values[column]) for i in places]
    if "sanitized" in file:
        # Theirs are indented otherwise than the prompts that they go on from.
        solutions = [indent(dedent(solution), "    ") for solution in solutions]
    right = pool.grade([(problems[i], s) for i, s in zip(places, solutions, strict=True)])
    # One of LeetCode's needs a package that is not of the standard library.
    assert sum(outcome.reward == 1.0 for outcome in right) >= 11, right
    empty = pool.grade([(problems[i], "pass") for i in places])
    assert not any(outcome.reward for outcome in empty)
