"""Small functions over lists of integers, made by program and graded by running their tests.

    problem   Write solve(xs): keep the numbers greater than 3; sort them; return the sum
    response  def solve(xs):
                  xs = [x for x in xs if x > 3]
                  xs = sorted(xs)
                  return sum(xs)

A step is a line. The outcome is the tests' alone, in the sandbox (`training.verifiers`): any
program that passes is right. The process label is that of programs which do one operation per line,
in the order asked for (`list_programs`); a line in any other language is taken for wrong.
"""

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from training.tasks.base import CountRange, Probability, Split, Task
from training.tasks.base import distinct_problems as distinct
from training.tasks.list_programs import CHANGES, RETURNS, Operation, does_the_same, run
from training.types import CodeTests, Problem

_HEADER, _INDENT = "def solve(xs):", "    "
_PREFIX = "Write solve(xs): "
_BY_WORDS_JOIN = "; "
_LONGEST_LINE = 40


class ListFunctions(Task):
    """Between `operations[0]` and `operations[1]` changes to a list, then something to return.

    `tests` asserts each; every single slip fails one of them. `slip_probability`: in solutions to
    imitate, of the line that nearly does what was asked for. Demonstrations have none.
    """

    type: Literal["list_functions"] = "list_functions"
    operations: CountRange = (2, 3)
    tests: Annotated[int, Field(ge=2, le=50)] = 6
    slip_probability: Probability = 0.3

    separator: ClassVar[str] = "\n"
    graded_by: ClassVar[Literal["task", "tests"]] = "tests"

    @property
    def max_tokens(self) -> int:
        """Byte tokens."""
        return (self.operations[1] + 2) * _LONGEST_LINE + 1

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`."""
        return distinct(self._draw, seed, count, split)

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return _program(
            [
                each.slip if rng.random() < self.slip_probability else each.line
                for each in asked_for(problem)
            ]
        )

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return _program([each.line for each in asked_for(problem)])

    def answer_of(self, response: str) -> str | None:
        """The program itself: equal programs vote together."""
        return response.strip() or None

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether a program of the little language passes the tests; one in another does not here.

        For programs of the language the same as the sandbox says, without running anything.
        """
        steps = self.steps_of(response)
        if not steps or steps[0] != _HEADER or not all(s.startswith(_INDENT) for s in steps[1:]):
            return False
        assert problem.tests is not None, "this task's problems have tests"
        try:
            return all(
                run([step.removeprefix(_INDENT) for step in steps[1:]], xs) == expected
                for xs, expected in map(_read_test, problem.tests.asserts)
            )
        except ValueError:
            return False

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The first line that does not do the next operation that was asked for.

        Where all do and there are too few, the last one; lines behind the return do nothing.
        """
        steps = self.steps_of(response)
        wanted = [_HEADER, *(_INDENT + each.line for each in asked_for(problem))]
        for index, (step, line) in enumerate(zip(steps, wanted, strict=False)):
            bare, other = step.removeprefix(_INDENT), line.removeprefix(_INDENT)
            is_indented = step.startswith(_INDENT) == line.startswith(_INDENT)
            if not is_indented or not (bare == other or does_the_same(bare, other)):
                return index
        return max(0, len(steps) - 1) if len(steps) < len(wanted) else None

    def _draw(self, rng: random.Random) -> Problem:
        while True:
            count = rng.randint(*self.operations)
            asked = [rng.choice(CHANGES).draw(rng) for _ in range(count)]
            asked.append(rng.choice(RETURNS).draw(rng))
            inputs = [_draw_list(rng) for _ in range(self.tests)]
            if not _tell_slips_apart(asked, inputs):
                continue
            asserts = [f"assert solve({xs}) == {run([e.line for e in asked], xs)}" for xs in inputs]
            return Problem(
                text=_PREFIX + _BY_WORDS_JOIN.join(each.words for each in asked),
                tests=CodeTests(asserts=tuple(asserts), entry_point="solve"),
            )


def asked_for(problem: Problem) -> list[Operation]:
    """The operations that a problem's words ask for."""
    return [_BY_WORDS[words] for words in problem.text.removeprefix(_PREFIX).split(_BY_WORDS_JOIN)]


def _all_operations() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for template in (*CHANGES, *RETURNS):
        for number in range(template.least, template.most + 1):
            texts = (template.words, template.line, template.slip)
            operation = Operation(*(text.replace("#", str(number)) for text in texts))
            found[operation.words] = operation
    return found


_BY_WORDS = _all_operations()


def _draw_list(rng: random.Random) -> list[int]:
    return [rng.randint(-5, 15) for _ in range(rng.randint(0, 8))]


def _tell_slips_apart(asked: Sequence[Operation], inputs: Sequence[list[int]]) -> bool:
    """Whether each slip alone changes what is returned for some input."""
    right = [each.line for each in asked]
    for index, each in enumerate(asked):
        slipped = [*right[:index], each.slip, *right[index + 1 :]]
        if all(run(slipped, xs) == run(right, xs) for xs in inputs):
            return False
    return True


def _program(lines: Sequence[str]) -> str:
    return "\n".join([_HEADER, *(_INDENT + line for line in lines)])


def _read_test(test: str) -> tuple[list[int], object]:
    """The input and the expected result of an assert that this task wrote."""
    given, _, expected = test.removeprefix("assert solve(").partition(") == ")
    return _read_list(given), _read_list(expected) if "[" in expected else int(expected)


def _read_list(text: str) -> list[int]:
    return [int(number) for number in text.strip("[]").split(",") if number.strip()]
