"""A first token that decides: a rare good branch behind a prefix that is usually wrong.

    problem   384015=
    response  t315561      thorough: all running sums modulo 10, worth 1 when the last one is right
              q1           quick: the first two digits' sum, worth `quick_reward` when it is right

A policy that imitates the supervised solutions is mostly thorough and seldom right, so the mean
outcome behind `t` is far below that behind `q`, and yet only `t` leads to 1. Two first tokens and
few ways on: the responses of a group share their prefixes. GRPO multiplies the push away from a
popular prefix by the number of responses that share it, which λ-GRPO undoes (arXiv 2509.21154).
"""

import random
from typing import ClassVar, Literal

from training.tasks.base import CountRange, Probability, Split, Task, clipped_index
from training.tasks.base import distinct_problems as distinct
from training.tasks.sums import DIGITS, digits_of, draw_digits, false_sums, right_share, write_sums
from training.types import Problem

THOROUGH, QUICK = "t", "q"
# Of the digits, how many the quick way adds up.
_QUICK_DIGITS = 2


class SharedPrefix(Task):
    """Between `digits[0]` and `digits[1]` digits to add.

    In solutions to imitate, `thorough_share` are thorough, and there `slip_probability` is that of
    one too many wherever a digit of 5 or more is added; quick ones are right. Demonstrations are
    thorough and right. The outcome label says whether the reward is 1.
    """

    type: Literal["shared_prefix"] = "shared_prefix"
    digits: CountRange = (6, 6)
    thorough_share: Probability = 0.8
    slip_probability: Probability = 0.8
    quick_reward: Probability = 0.7

    separator: ClassVar[str] = ""
    alphabet: ClassVar[str | None] = "0123456789=" + THOROUGH + QUICK

    @property
    def max_tokens(self) -> int:
        """The choice, a digit each, and the end."""
        return max(self.digits[1], 1) + 2

    def expected_rewards(self, problem: Problem) -> tuple[float, float]:
        """The exact mean reward behind each first token, thorough and quick, of such solutions."""
        return right_share(digits_of(problem.text), self.slip_probability), self.quick_reward

    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """See `Task`."""
        return distinct(self._draw, seed, count, split)

    def solution(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        digits = digits_of(problem.text)
        if rng.random() < self.thorough_share:
            return THOROUGH + _text(write_sums(digits, rng, self.slip_probability))
        return QUICK + _text([sum(digits[:_QUICK_DIGITS]) % 10])

    def expert(self, problem: Problem, rng: random.Random) -> str:
        """See `Task`."""
        return THOROUGH + _text(write_sums(digits_of(problem.text), rng, 0.0))

    def answer_of(self, response: str) -> str | None:
        """The last digit of a thorough response; a quick one has no answer to the whole."""
        is_answer = response.startswith(THOROUGH) and response[-1] in DIGITS
        return response[-1] if is_answer else None

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether it is thorough, of the right length, and its last sum is right."""
        return (
            len(response) == 1 + len(digits_of(problem.text))
            and self.answer_of(response) == problem.answer
        )

    def reward(self, problem: Problem, response: str) -> float:
        """1 for the right answer, `quick_reward` for the quick one, else 0."""
        if self.is_correct(problem, response):
            return 1.0
        quick = sum(digits_of(problem.text)[:_QUICK_DIGITS]) % 10
        return self.quick_reward if response == f"{QUICK}{quick}" else 0.0

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The first token that is false: a choice never is, unless it is none.

        Where all are true but too few or too many, the last one that ought to be there.
        """
        digits = digits_of(problem.text)
        if response.startswith(THOROUGH):
            index = next(false_sums(digits, response[1:]), None)
            length = 1 + len(digits)
        elif response.startswith(QUICK):
            # One digit for two: a sum of what comes to it.
            index = next(false_sums([sum(digits[:_QUICK_DIGITS])], response[1:]), None)
            length = 2
        else:
            return 0
        if index is not None:
            return 1 + index
        return None if len(response) == length else clipped_index(length - 1, response)

    def _draw(self, rng: random.Random) -> Problem:
        digits = draw_digits(rng, *self.digits)
        return Problem(text=_text(digits) + "=", answer=str(sum(digits) % 10))


def _text(digits: list[int]) -> str:
    return "".join(map(str, digits))
