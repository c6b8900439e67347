"""Programs made by program: their labels against Python itself, and their tests in the sandbox."""

import asyncio
import random

import pytest

from training.grading.code import CodeGrader
from training.grading.jail import missing_walls
from training.tasks.list_functions import ListFunctions, asked_for
from training.tasks.list_programs import CHANGES, RETURNS, does_the_same, effect_of
from training.types import Problem

TASK = ListFunctions()


def passes(problem: Problem, response: str) -> bool:
    """The tests, run by Python in this process: these programs are ours."""
    names: dict[str, object] = {}
    assert problem.tests is not None
    try:
        exec(response, names)
        for test in problem.tests.asserts:
            exec(test, names)
    except Exception:
        return False
    return True


def test_a_line_does_what_python_does() -> None:
    rng = random.Random(0)
    for template in (*CHANGES, *RETURNS):
        for _ in range(20):
            each = template.draw(rng)
            for line in (each.line, each.slip):
                effect = effect_of(line)
                assert effect is not None, line
                xs = [rng.randint(-20, 20) for _ in range(rng.randint(0, 9))]
                names: dict[str, object] = {"xs": list(xs)}
                exec(line if line.startswith("xs =") else f"xs = {line[7:]}", names)
                assert effect(xs) == names["xs"], line
            assert not does_the_same(each.line, each.slip)


def test_lines_that_differ_only_in_writing_do_the_same() -> None:
    assert does_the_same("xs = [x for x in xs if x > 3]", "xs = [x for x in xs if x >= 4]")
    assert does_the_same("xs = xs[0:]", "xs = [x + 0 for x in xs]")
    assert not does_the_same("xs = xs[0:]", "return xs")
    assert not does_the_same("xs = [x for x in xs if x > 3]", "import os")
    assert not does_the_same("import os", "import os")
    numbers = [f"xs = [x for x in xs if x % {m} == {r}]" for m in (2, 7, 50, 99) for r in range(m)]
    for index, line in enumerate(numbers):
        assert not any(does_the_same(line, other) for other in numbers[:index][-60:])


@pytest.mark.parametrize(
    "line", ["xs = [x for x in xs if x % 0 == 0]", "xs = [x * 100 for x in xs]", "return 1", ""]
)
def test_what_is_not_of_the_language_has_no_effect(line: str) -> None:
    assert effect_of(line) is None


def test_every_single_slip_fails_a_test_and_is_the_first_error() -> None:
    for problem in TASK.problems(0, 60, "train"):
        asked = asked_for(problem)
        for place in range(len(asked)):
            lines = [each.slip if i == place else each.line for i, each in enumerate(asked)]
            response = "\n    ".join(["def solve(xs):", *lines])
            assert not passes(problem, response)
            rollout = TASK.label(problem, response)
            assert (rollout.is_correct, rollout.first_error) == (False, 1 + place)


def test_labels_of_slipped_programs_are_pythons() -> None:
    rng, right = random.Random(0), 0
    for problem in TASK.problems(1, 300, "train"):
        response = TASK.solution(problem, rng)
        assert TASK.is_correct(problem, response) == passes(problem, response)
        right += passes(problem, response)
        slips = [line.strip() for line in response.split("\n")[1:]]
        wanted = [each.line for each in asked_for(problem)]
        first = next(
            (i + 1 for i, pair in enumerate(zip(slips, wanted, strict=True)) if pair[0] != pair[1]),
            None,
        )
        assert TASK.first_error(problem, response) == first
    assert 40 < right < 200


def test_programs_that_end_early_late_or_elsewhere() -> None:
    problem = TASK.problems(0, 1, "train")[0]
    lines = TASK.expert(problem, random.Random(0)).split("\n")
    assert TASK.first_error(problem, "\n".join(lines[:-1])) == len(lines) - 2
    assert TASK.first_error(problem, "\n".join([*lines, "    return xs"])) is None
    assert TASK.is_correct(problem, "\n".join([*lines, "    return xs"]))
    assert TASK.first_error(problem, "\n".join([lines[0], "    import os", *lines[1:]])) == 1
    assert TASK.first_error(problem, "\n".join(line.strip() for line in lines)) == 1
    assert TASK.first_error(problem, "") == 0


@pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls()))
def test_the_sandbox_says_the_same() -> None:
    rng = random.Random(1)
    problems = TASK.problems(2, 6, "test")
    responses = [TASK.solution(p, rng) for p in problems[:4]]
    responses += [TASK.expert(p, rng) for p in problems[4:]]

    async def outcomes() -> list[bool]:
        grader = CodeGrader()
        tests = ["\n".join(p.tests.asserts) for p in problems if p.tests is not None]
        verdicts = await asyncio.gather(*map(grader.by_asserts, responses, tests))
        return [verdict.outcome == "right" for verdict in verdicts]

    expected = [TASK.is_correct(p, r) for p, r in zip(problems, responses, strict=True)]
    assert asyncio.run(outcomes()) == expected
    assert len(set(expected)) == 2
