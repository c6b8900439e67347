"""Nested integer expressions (`arithmetic`) as a task: what the bundled models were trained on."""

import random
from typing import ClassVar, Literal

from prm.errors import InvalidInput
from training.tasks import arithmetic
from training.tasks.base import CountRange, Probability, Split, Task
from training.tasks.slips import write_solution
from training.types import Problem

# A line such as 99-12=87, and the answer line with the end token. The bundled models' rollouts had
# room for twice a solution: a policy may also write longer steps than a pupil does.
_TOKENS_PER_OPERATION, _ANSWER_TOKENS, _LEAST_TOKENS = 9, 11, 96


class Arithmetic(Task):
    """Evaluate an expression one operation at a time, over bytes.

    `slip_probability` is that of a systematic slip in the solutions to imitate, per operation that
    one applies to; demonstrations have none.
    """

    type: Literal["arithmetic"] = "arithmetic"
    operations: CountRange = arithmetic.OPERATIONS
    slip_probability: Probability = 0.5

    separator: ClassVar[str] = arithmetic.SEPARATOR

    @property
    def max_tokens(self) -> int:
        """See `Task`; byte tokens, and never fewer than 96."""
        return max(_LEAST_TOKENS, self.operations[1] * _TOKENS_PER_OPERATION + _ANSWER_TOKENS)

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`; order of terms and factors apart, no problem is in two splits."""
        try:
            return arithmetic.problems(seed, count, split, self.operations)
        except ValueError as error:
            raise InvalidInput(f"{error}; ask for fewer", param="count") from error

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return self.separator.join(write_solution(problem, rng, self.slip_probability))

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return self.separator.join(write_solution(problem, rng, 0.0))

    def answer_of(self, response: str) -> str | None:
        """The number in the last answer line."""
        return arithmetic.answer_of(response)

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether the last answer line is right."""
        return arithmetic.is_correct(problem, response)

    def first_error(self, problem: Problem, response: str) -> int | None:
        """See `arithmetic.first_error`."""
        return arithmetic.first_error(problem, self.steps_of(response))
