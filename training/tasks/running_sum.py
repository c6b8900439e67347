"""`384015=` → `315561`: the sums of the digits so far, modulo 10. Only the last one is checked.

    problem   3 8 4 0 1 5 =
    response  3 1 5 5 6 1          a step is one digit

The task on which an implicit PRM, trained from outcome labels alone, is to find the wrong digit
(after arXiv 2412.01981): solutions to imitate add one too many to half of the digits from 5 on.
"""

import random
from typing import ClassVar, Literal

from training.tasks.base import CountRange, Probability, Split, Task, clipped_index
from training.tasks.base import distinct_problems as distinct
from training.tasks.sums import DIGITS, digits_of, draw_digits, false_sums, write_sums
from training.types import Problem


class RunningSum(Task):
    """Between `digits[0]` and `digits[1]` digits to add.

    `slip_probability`: in solutions to imitate, of one too many wherever a digit of 5 or more is
    added. Demonstrations have none.
    """

    type: Literal["running_sum"] = "running_sum"
    digits: CountRange = (6, 6)
    slip_probability: Probability = 0.5

    separator: ClassVar[str] = ""
    alphabet: ClassVar[str | None] = "0123456789="

    @property
    def max_tokens(self) -> int:
        """A digit each, and the end."""
        return self.digits[1] + 1

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`."""
        return distinct(self._draw, seed, count, split)

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return self._write(problem, rng, self.slip_probability)

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return self._write(problem, rng, 0.0)

    def answer_of(self, response: str) -> str | None:
        """The last digit, whatever stands before it."""
        return response[-1:] if response[-1:] in DIGITS else None

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether there are as many sums as digits, and the last one is right."""
        return (
            len(response) == len(digits_of(problem.text))
            and self.answer_of(response) == problem.answer
        )

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The first sum that does not follow from the one before it.

        Where all are true but too few or too many, the last one that ought to be there.
        """
        digits = digits_of(problem.text)
        index = next(false_sums(digits, response), None)
        if index is None and len(response) != len(digits):
            return clipped_index(len(digits) - 1, response)
        return index

    def _draw(self, rng: random.Random) -> Problem:
        digits = draw_digits(rng, *self.digits)
        return Problem(text="".join(map(str, digits)) + "=", answer=str(sum(digits) % 10))

    def _write(self, problem: Problem, rng: random.Random, slip_probability: float) -> str:
        return "".join(map(str, write_sums(digits_of(problem.text), rng, slip_probability)))
