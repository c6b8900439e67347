"""A verifiable task made by program: nested integer expressions, one operation per step.

    Evaluate (3+4)*2-5          3+4=7
                                7*2=14
                                14-5=9
                                Answer: 9

Both labels are exact, for any text. The outcome is the last answer line. Of the process:

- a step that writes an equation is right iff every equation in it is true and its left side is a
  part of what is left of the expression (`rewriting`), which the right side then replaces;
- a malformed equation is wrong;
- an answer line is right iff it gives the true value;
- a step that claims nothing (no `=`, no answer) is neutral, which counts as right.

So a right step never changes the value of what is left, whatever the order of the reductions. An
equation speaks of one occurrence: `(3+4)*(3+4)` takes `3+4=7` twice. Where it fits in several
places, all readings are followed, and a later step is right if it is so under one of them.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import get_args

from training.tasks import base
from training.tasks.base import Split
from training.tasks.expressions import (
    MalformedExpression,
    Operation,
    Operator,
    Tree,
    apply,
    parse,
    render,
    value,
)
from training.tasks.rewriting import Form, normal_form, replacements, size
from training.types import Problem

SEPARATOR = "\n"
MAX_VALUE = 99
# Operations per problem: 2 to 4 are about 12 characters of question and 35 of solution.
OPERATIONS = (2, 4)
# What to put before the problem for a language model that was not trained on it.
INSTRUCTIONS = (
    "Evaluate the expression one operation at a time. Write one step per line, as an equation "
    "whose left side is a part of what is left of the expression, for example 3+4=7. "
    "Write nothing else, and end with a line such as Answer: 9."
)

_PREFIX = "Evaluate "
# No pattern here backtracks over an unbounded run: hostile text costs linear time.
_ANSWER = re.compile(
    r"\banswer(?:[ \t]{1,9}is)?[ \t]{0,9}[:=]?[ \t]{0,9}(-?[0-9]{1,12})(?![0-9])", re.IGNORECASE
)
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "−": "-", "–": "-", "$": " "})
_MARKUP = re.compile(r"\*\*|\\[()\[\]]")
_TIMES = re.compile(r"\\(?:times|cdot)\b")
_MATHS = re.compile(r"[0-9+\-*/().=\s]+")
# Beyond these a step is malformed, or a reading is dropped: the bounds on the work per step.
_MAX_STEP_CHARS = 2000
_MAX_NUMBERS = 100
_MAX_STATES = 16


def problems(
    seed: int, count: int, split: Split, operations: tuple[int, int] = OPERATIONS
) -> list[Problem]:
    """`count` different problems of one split, with this range of operations each.

    The hash of a problem's normal form decides its split, so no problem stands in two of them, nor
    a problem whose terms or factors are only in another order. Raises ValueError when so many are
    not to be found.
    """
    rng = random.Random(f"{split} {seed}")
    found: dict[str, Problem] = {}
    for _ in range(1000 + 200 * count):
        if len(found) == count:
            break
        tree = _expression(rng, rng.randint(*operations))
        if split_of(tree) == split:
            text = _PREFIX + render(tree)
            found[text] = Problem(text=text, answer=str(value(tree)))
    if len(found) < count:
        raise ValueError(f"only {len(found)} of {count} problems with {operations} operations")
    return list(found.values())


def split_of(tree: Tree) -> Split:
    """The split that this expression belongs to, by the hash of its normal form."""
    return base.split_of(repr(normal_form(tree)))


def expression_of(problem: Problem) -> Tree:
    """The expression that a problem asks for. Raises MalformedExpression for another task's."""
    return parse(problem.text.removeprefix(_PREFIX))


def answer_line(result: int) -> str:
    """How a solution ends."""
    return f"Answer: {result}"


def answer_of(response: str) -> str | None:
    """The number in the last answer line, or None where there is none."""
    answers = _ANSWER.findall(_plain(response))
    return str(int(answers[-1])) if answers else None


def is_correct(problem: Problem, response: str | Iterable[str]) -> bool:
    """The outcome label of a response, or of its steps: whether its last answer line is right."""
    text = response if isinstance(response, str) else SEPARATOR.join(response)
    return answer_of(text) == problem.answer


def first_error(problem: Problem, steps: Sequence[str]) -> int | None:
    """The process label: the index of the first wrong step, or None.

    >>> first_error(Problem(text="Evaluate 3+4*2", answer="11"), ["4*2=9", "3+9=12", "Answer: 12"])
    0
    """
    states = {normal_form(expression_of(problem))}
    for index, step in enumerate(steps):
        states = _after(step, states, problem.answer)
        if not states:
            return index
    return None


def _after(step: str, states: set[Form], true_answer: str) -> set[Form]:
    """What may be left of the expression after this step; nothing when the step is wrong."""
    text = _plain(step)
    if any(str(int(answer)) != true_answer for answer in _ANSWER.findall(text)):
        return set()
    text = _ANSWER.sub(" ; ", text)
    if "=" in text and len(text) > _MAX_STEP_CHARS:
        return set()
    for equation in _MATHS.findall(text):
        if "=" in equation:
            states = _apply_equation(equation, states)
    return states


def _apply_equation(equation: str, states: set[Form]) -> set[Form]:
    # An equation may end a sentence.
    sides = equation.strip().rstrip(".").split("=")
    try:
        trees = [parse(side) for side in sides]
    except MalformedExpression:
        return set()
    if len({value(tree) for tree in trees}) > 1:
        return set()
    left, right = normal_form(trees[0]), normal_form(trees[-1])
    after = {form for state in states for form in replacements(state, left, right)}
    bounded = sorted((form for form in after if size(form) <= _MAX_NUMBERS), key=repr)
    return set(bounded[:_MAX_STATES])


def _plain(text: str) -> str:
    """The text with one spelling for each operator and without mark-up around formulas."""
    return _MARKUP.sub(" ", _TIMES.sub("*", text.translate(_SPELLINGS)))


def _expression(rng: random.Random, operations: int) -> Tree:
    """A random tree in which every value lies in 0..MAX_VALUE."""
    if operations == 0:
        return rng.randint(1, 60) if rng.random() < 0.5 else rng.randint(2, 9)
    left_operations = rng.randrange(operations)
    left = _expression(rng, left_operations)
    right = _expression(rng, operations - 1 - left_operations)
    # One order always fits: the larger value minus the smaller.
    if not _fitting(left, right) or (rng.random() < 0.5 and _fitting(right, left)):
        left, right = right, left
    return Operation(rng.choice(_fitting(left, right)), left, right)


def _fitting(left: Tree, right: Tree) -> list[Operator]:
    a, b = value(left), value(right)
    return [
        operator
        for operator in get_args(Operator)
        if 0 <= apply(operator, a, b) <= MAX_VALUE
        # Times 0 or 1 is no work, and a zero swallows every slip before it.
        and not (operator == "*" and min(a, b) < 2)
    ]
