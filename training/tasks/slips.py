"""Solutions written by program, with the systematic slips of a pupil.

A slip is a wrong procedure: it applies to some operations, where it always gives the same wrong
result, and the result is carried into the later steps. Two of the three are among the bugs that
Brown and Burton catalogued ("Diagnostic Models for Procedural Bugs in Basic Mathematical Skills",
Cognitive Science 2(2), 1978). Systematic ones are needed to show anything: where slips are rare
and random, the policy's own likelihood already finds them (arXiv 2412.01981, Table 5).
"""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from training.tasks.arithmetic import MAX_VALUE, answer_line, expression_of
from training.tasks.expressions import Operator, Tree, apply
from training.types import Problem

Slip = Callable[[int, int], int]


def dropped_carry(left: int, right: int) -> int:
    """Adds tens and units apart and forgets the carry: 27+15=32."""
    return left // 10 * 10 + right // 10 * 10 + (left + right) % 10


def smaller_from_larger(left: int, right: int) -> int:
    """Takes the smaller unit from the larger, whichever stands on top: 52-37=25."""
    return left // 10 * 10 - right // 10 * 10 + abs(left % 10 - right % 10)


def seven_row_off(left: int, right: int) -> int:
    """Reads the table of seven one row too high: 7*6=36."""
    if 7 not in (left, right):
        return left * right
    return 6 * (left * right // 7)


SLIPS: Mapping[Operator, Slip] = MappingProxyType(
    {"+": dropped_carry, "-": smaller_from_larger, "*": seven_row_off}
)


def write_solution(problem: Problem, rng: random.Random, slip_probability: float) -> list[str]:
    """Steps from left to right, inner operations first, then the answer line.

    Each operation that a slip applies to is done wrongly with `slip_probability`, except where that
    would lead a later value out of 0..99: the solution is then written again.
    """
    tree = expression_of(problem)
    while True:
        steps: list[str] = []
        result = _solve(tree, rng, slip_probability, steps)
        if result is not None:
            return [*steps, answer_line(result)]


def _solve(tree: Tree, rng: random.Random, slip_probability: float, steps: list[str]) -> int | None:
    """The value that this pupil finds for the tree, or None when a value leaves the range."""
    if isinstance(tree, int):
        return tree
    left = _solve(tree.left, rng, slip_probability, steps)
    right = _solve(tree.right, rng, slip_probability, steps)
    if left is None or right is None:
        return None
    does_slip = rng.random() < slip_probability
    work = SLIPS[tree.operator] if does_slip else _correctly(tree.operator)
    result = work(left, right)
    if not 0 <= result <= MAX_VALUE:
        return None
    steps.append(f"{left}{tree.operator}{right}={result}")
    return result


def _correctly(operator: Operator) -> Slip:
    return lambda left, right: apply(operator, left, right)
