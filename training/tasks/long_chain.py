"""Long chains: 20 to 40 decisions, each hidden among tokens that decide nothing.

    problem   3840…=
    response  qxc3vmo1pkr5abz5…        three random letters, then the sum so far, modulo 10

For what dense rewards are said to be good for (PRIME, arXiv 2502.01456): credit assignment is the
bottleneck here. One wrong sum spoils the outcome, the letters say nothing, and a policy that slips
at every fifth chance is seldom right. `expected_accuracy` says how seldom, to set a start by.
"""

import random
import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from training.tasks.base import CountRange, Probability, Span, Split, Task, clipped_index
from training.tasks.base import distinct_problems as distinct
from training.tasks.sums import digits_of, draw_digits, false_sums, right_share, write_sums
from training.types import Problem

STYLE_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LongChain(Task):
    """Between `decisions[0]` and `decisions[1]` sums, each behind `style_tokens` random letters.

    `slip_probability`: in solutions to imitate, of one too many wherever a digit of 5 or more is
    added. Demonstrations have none.
    """

    type: Literal["long_chain"] = "long_chain"
    decisions: CountRange = (24, 24)
    style_tokens: Annotated[int, Field(ge=0, le=100)] = 3
    slip_probability: Probability = 0.2

    separator: ClassVar[str] = ""
    alphabet: ClassVar[str | None] = "0123456789=" + STYLE_LETTERS

    @property
    def max_tokens(self) -> int:
        """Letters and a digit each, and the end."""
        return self.decisions[1] * (self.style_tokens + 1) + 1

    def expected_accuracy(self, problem: Problem) -> float:
        """How likely a solution to imitate is right: the exact chance."""
        return right_share(digits_of(problem.text), self.slip_probability)

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`."""
        return distinct(self._draw, seed, count, split)

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return self._write(problem, rng, self.slip_probability)

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`; its letters are random too."""
        return self._write(problem, rng, 0.0)

    def step_spans(self, response: str) -> tuple[Span, ...]:
        """A step is as many characters as a right one has; the last may be cut short."""
        width = self.style_tokens + 1
        starts = range(0, len(response), width)
        return tuple((start, min(start + width, len(response))) for start in starts)

    def answer_of(self, response: str) -> str | None:
        """The last sum; None where the last step is none."""
        steps = self.steps_of(response)
        return steps[-1][-1] if steps and self._is_step(steps[-1]) else None

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether every step has its format, as many as digits, and the last sum is right."""
        steps = self.steps_of(response)
        return (
            len(steps) == len(digits_of(problem.text))
            and all(map(self._is_step, steps))
            and steps[-1][-1] == problem.answer
        )

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The first step that is malformed or whose sum does not follow from the one before it.

        Where all are true but too few or too many, the last one that ought to be there.
        """
        steps, digits = self.steps_of(response), digits_of(problem.text)
        sums = [step[-1] if self._is_step(step) else "" for step in steps]
        index = next(false_sums(digits, sums), None)
        if index is None and len(steps) != len(digits):
            return clipped_index(len(digits) - 1, steps)
        return index

    def _is_step(self, step: str) -> bool:
        return re.fullmatch(f"[a-z]{{{self.style_tokens}}}[0-9]", step) is not None

    def _draw(self, rng: random.Random) -> Problem:
        digits = draw_digits(rng, *self.decisions)
        return Problem(text="".join(map(str, digits)) + "=", answer=str(sum(digits) % 10))

    def _write(self, problem: Problem, rng: random.Random, slip_probability: float) -> str:
        sums = write_sums(digits_of(problem.text), rng, slip_probability)
        return "".join(
            "".join(rng.choices(STYLE_LETTERS, k=self.style_tokens)) + str(total) for total in sums
        )
