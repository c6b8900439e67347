"""The little language of `list_functions`: one operation on a list of integers per line.

    xs = [x for x in xs if x > 3]      xs = sorted(xs)
    xs = [x * 2 for x in xs]           return sum(xs)

Each operation has the words that ask for it, the line that does it, and the line of a programmer
who has it slightly wrong. Lines are read by patterns, never by `eval`: a model may have written
them.
"""

import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# What a line makes of the list.
Effect = Callable[[list[int]], object]

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul
}  # fmt: skip
_RETURNS: dict[str, Effect] = {
    "sum(xs)": sum,
    "len(xs)": len,
    "max(xs, default=0)": lambda xs: max(xs, default=0),
    "xs": lambda xs: xs,
}
_NUMBER = r"([0-9]{1,2})"
_COMPARE = re.compile(rf"xs = \[x for x in xs if x (>=?|<=?) {_NUMBER}\]")
_REMAINDER = re.compile(rf"xs = \[x for x in xs if x % {_NUMBER} == {_NUMBER}\]")
_CHANGE = re.compile(rf"xs = \[x ([-+*]) {_NUMBER} for x in xs\]")
_SLICE = re.compile(rf"xs = xs\[(?:{_NUMBER}:|:-{_NUMBER})\]")
_RETURN = re.compile(r"return (.+)")

# Numbers have two digits at most, so that two lines that differ at all differ on one of these: by
# a bound, a remainder (of two moduli one holds where the other does not), a factor, an order.
_PROBES: tuple[list[int], ...] = (
    [],
    [2, 3, 1, 3],
    list(range(-300, 301)),
    [number * 71 % 601 - 300 for number in range(601)],
)


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of operation; `#` stands for its number. `slip` is the wrong line."""

    words: str
    line: str
    slip: str
    least: int = 0
    most: int = 0

    def draw(self, rng: random.Random) -> "Operation":
        """The operation with a number of its own."""
        number = str(rng.randint(self.least, self.most))
        return Operation(
            *(text.replace("#", number) for text in (self.words, self.line, self.slip))
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """What a problem asks for, the line that does it, and the line that nearly does."""

    words: str
    line: str
    slip: str


CHANGES = (
    Template("keep the numbers greater than #", "xs = [x for x in xs if x > #]",
             "xs = [x for x in xs if x >= #]", 0, 9),
    Template("keep the numbers less than #", "xs = [x for x in xs if x < #]",
             "xs = [x for x in xs if x <= #]", 3, 12),
    Template("keep the multiples of #", "xs = [x for x in xs if x % # == 0]",
             "xs = [x for x in xs if x % # == 1]", 2, 4),
    Template("add # to each", "xs = [x + # for x in xs]", "xs = [x - # for x in xs]", 1, 9),
    Template("multiply each by #", "xs = [x * # for x in xs]", "xs = [x + # for x in xs]", 2, 5),
    Template("drop the first", "xs = xs[1:]", "xs = xs[:-1]"),
    Template("sort them", "xs = sorted(xs)", "xs = xs[::-1]"),
)  # fmt: skip
RETURNS = (
    Template("return the sum", "return sum(xs)", "return len(xs)"),
    Template("return how many there are", "return len(xs)", "return sum(xs)"),
    Template("return the largest, or 0", "return max(xs, default=0)", "return sum(xs)"),
    Template("return the list", "return xs", "return len(xs)"),
)


def effect_of(line: str) -> Effect | None:
    """What a line does; None for one that is not of the language."""
    if line == "xs = sorted(xs)":
        return sorted
    if line == "xs = xs[::-1]":
        return lambda xs: xs[::-1]
    if match := _COMPARE.fullmatch(line):
        compare, bound = _COMPARISONS[match[1]], int(match[2])
        return lambda xs: [x for x in xs if compare(x, bound)]
    if match := _REMAINDER.fullmatch(line):
        modulus, remainder = int(match[1]), int(match[2])
        return (lambda xs: [x for x in xs if x % modulus == remainder]) if modulus else None
    if match := _CHANGE.fullmatch(line):
        change, number = _ARITHMETIC[match[1]], int(match[2])
        return lambda xs: [change(x, number) for x in xs]
    if match := _SLICE.fullmatch(line):
        part = slice(int(match[1]), None) if match[1] else slice(None, -int(match[2]))
        return lambda xs: xs[part]
    match = _RETURN.fullmatch(line)
    return _RETURNS.get(match[1]) if match else None


def does_the_same(line: str, other: str) -> bool:
    """Whether two lines of the language always have the same effect, and both or none return."""
    first, second = effect_of(line), effect_of(other)
    if first is None or second is None:
        return False
    if line.startswith("return") != other.startswith("return"):
        return False
    return all(first(probe) == second(probe) for probe in _PROBES)


def run(lines: Sequence[str], xs: list[int]) -> object:
    """What a program of these lines returns. Raises ValueError for a line it cannot read."""
    for line in lines:
        effect = effect_of(line)
        if effect is None:
            raise ValueError(f"{line!r} is no line of this language")
        result = effect(xs)
        if line.startswith("return"):
            return result
        assert isinstance(result, list), "only a return makes something else of a list"
        xs = result
    return None
