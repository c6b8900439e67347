"""Running sums modulo 10, and a pupil who adds one too many: what three tasks are made of.

The slip is systematic: it befalls only digits of 5 and more, and always in the same way. Where
slips are random and rare instead, the policy's own likelihood already finds them, and nothing is
left for a PRM to learn (arXiv 2412.01981, Table 5).
"""

import random
from collections.abc import Iterator, Sequence

DIGITS = frozenset("0123456789")
# Adding a digit from here on may go wrong.
SLIPPERY = 5


def draw_digits(rng: random.Random, least: int, most: int) -> list[int]:
    """Between `least` and `most` digits, all equally likely."""
    return [rng.randrange(10) for _ in range(rng.randint(least, most))]


def digits_of(problem_text: str) -> list[int]:
    """The digits that a problem such as `384015=` adds up."""
    return [int(character) for character in problem_text if character in DIGITS]


def write_sums(digits: Sequence[int], rng: random.Random, slip_probability: float) -> list[int]:
    """The running sums as the pupil writes them: a slip is carried into every later sum.

    >>> write_sums([3, 8, 4], random.Random(0), 0.0)
    [3, 1, 5]
    """
    written, total = [], 0
    for digit in digits:
        slips = digit >= SLIPPERY and rng.random() < slip_probability
        total = (total + digit + slips) % 10
        written.append(total)
    return written


def false_sums(digits: Sequence[int], written: Sequence[str]) -> Iterator[int]:
    """The places where what is written is not the sum of the number written before and the digit.

    What is no single digit is false, and so is what follows it: it stands on no number.
    """
    before: int | None = 0
    for index, (digit, text) in enumerate(zip(digits, written, strict=False)):
        value = int(text) if text in DIGITS else None
        if value is None or before is None or value != (before + digit) % 10:
            yield index
        before = value


def right_share(digits: Sequence[int], slip_probability: float) -> float:
    """How likely the pupil's last sum is right: the number of slips is then a multiple of ten."""
    chance = [1.0] + [0.0] * 9
    for digit in digits:
        if digit >= SLIPPERY:
            chance = [
                (1 - slip_probability) * chance[slips] + slip_probability * chance[slips - 1]
                for slips in range(10)
            ]
    return chance[0]
