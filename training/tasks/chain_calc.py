"""ChainCalc-100: a chain of operations on two-digit numbers, modulo 100; one step per operation.

    problem   47+12*03-45+07=
    response  59;77;32;39;

An operand is 01 to 99 for + and -, and 03, 07 or 09 for *: those have an inverse modulo 100, so one
error alone never heals on the way to the answer. Every label is exact, as in ProcessBench (arXiv
2412.06559): a step is judged by the number that was *written* before it.
"""

import random
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from training.tasks.base import CountRange, Probability, Split, Task, clipped_index
from training.tasks.base import distinct_problems as distinct
from training.types import Problem

Operation = tuple[str, int]

_FACTORS = (3, 7, 9)
_OPERATION = re.compile(r"([-+*])([0-9]{2})")
_NUMBER = re.compile("[0-9]{2}")


class ChainCalc(Task):
    """Between `operations[0]` and `operations[1]` operations.

    `slip_probability` is that of a step with another number, in solutions to imitate, and
    `expert_noise` the same in demonstrations; what follows such a step goes on from it. With the
    defaults both are the oracle's: a policy is made imperfect by stopping its training early.
    """

    type: Literal["chain_calc"] = "chain_calc"
    operations: CountRange = (4, 4)
    slip_probability: Probability = 0.0
    expert_noise: Probability = 0.0

    separator: ClassVar[str] = ";"
    alphabet: ClassVar[str | None] = "0123456789+-*=;"

    @property
    def max_tokens(self) -> int:
        """Two digits and a semicolon each, and the end."""
        return 3 * self.operations[1] + 1

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`."""
        return distinct(self._draw, seed, count, split)

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return _write(problem, rng, self.slip_probability)

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return _write(problem, rng, self.expert_noise)

    def answer_of(self, response: str) -> str | None:
        """The last step's number; None where the last step is none."""
        steps = self.steps_of(response)
        return steps[-1] if steps and _NUMBER.fullmatch(steps[-1]) else None

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether the response has its format, and its last number is right."""
        return (
            self._has_format(response, len(chain_of(problem)[1]))
            and self.answer_of(response) == problem.answer
        )

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The first step whose number does not follow from the one written before it.

        Where all of them do and only the format is wrong, the last step that ought to be there.
        """
        before, operations = chain_of(problem)
        steps = self.steps_of(response)
        for index, (operation, step) in enumerate(zip(operations, steps, strict=False)):
            if not _NUMBER.fullmatch(step) or int(step) != apply(operation, before):
                return index
            before = int(step)
        if not self._has_format(response, len(operations)):
            return clipped_index(len(operations) - 1, steps)
        return None

    def _has_format(self, response: str, count: int) -> bool:
        return re.fullmatch(f"(?:[0-9]{{2}};){{{count}}}", response) is not None

    def _draw(self, rng: random.Random) -> Problem:
        start = rng.randrange(100)
        operations = [_operation(rng) for _ in range(rng.randint(*self.operations))]
        text = f"{start:02}" + "".join(f"{sign}{operand:02}" for sign, operand in operations) + "="
        return Problem(text=text, answer=f"{oracle(start, operations)[-1]:02}")


def chain_of(problem: Problem) -> tuple[int, list[Operation]]:
    """The number that a problem starts from, and its operations in order."""
    found = _OPERATION.findall(problem.text[2:])
    return int(problem.text[:2]), [(sign, int(operand)) for sign, operand in found]


def apply(operation: Operation, number: int) -> int:
    """The true number after one operation.

    >>> apply(("-", 45), 12)
    67
    """
    sign, operand = operation
    if sign == "*":
        return number * operand % 100
    return (number + operand if sign == "+" else number - operand) % 100


def oracle(start: int, operations: Sequence[Operation]) -> list[int]:
    """The true number after each operation."""
    return _numbers(start, operations, random.Random(0), 0.0)


def _write(problem: Problem, rng: random.Random, noise: float) -> str:
    start, operations = chain_of(problem)
    return "".join(f"{number:02};" for number in _numbers(start, operations, rng, noise))


def _numbers(
    start: int, operations: Sequence[Operation], rng: random.Random, noise: float
) -> list[int]:
    """Each one false with probability `noise`, any of the other 99 numbers being as likely."""
    numbers, number = [], start
    for operation in operations:
        number = apply(operation, number)
        if rng.random() < noise:
            number = (number + rng.randint(1, 99)) % 100
        numbers.append(number)
    return numbers


def _operation(rng: random.Random) -> Operation:
    sign = rng.choice("+-*")
    return sign, rng.choice(_FACTORS) if sign == "*" else rng.randint(1, 99)
