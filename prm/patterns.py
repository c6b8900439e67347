"""Callers' regular expressions, held to those that run in linear time.

Python's `re` backtracks and cannot be stopped, so a pattern is judged before it runs, on the parse
tree that `re` itself makes of it. The judgement bounds the work per character of text:

- a repeat with an upper bound costs its bound, and multiplies what comes after it by the number of
  lengths it may have; an alternation adds up its branches. That product is the pattern's *work*,
  and may not exceed MAX_WORK.
- a repeat without an upper bound costs nothing extra when no two attempts can walk the same run of
  characters: it repeats one character class, and the character before it is never in that class
  (`\\n[ \\t]*Step`: every run of blanks has its own newline). Or when it ends the pattern: nothing
  after it can fail, so what it walks, it takes.

What remains is refused with the remedy: back references, conditions, unbounded repeats of groups or
without such a guard (`\\s+x` is quadratic on a text of blanks, `(a+)+b` exponential).
"""

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from prm.errors import InvalidInput

# Not public, and the only honest source of what `re` will run; the tests see it if it changes.
_parser: Any = import_module("re._parser")
_compiler: Any = import_module("re._compiler")

MAX_PATTERN_CHARS = 256
# Measured at 5 ns a step: a megabyte under the worst pattern takes half a second.
MAX_WORK = 100
_ONE_CHARACTER = ("LITERAL", "NOT_LITERAL", "IN", "ANY")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
# The characters that may stand just before some place in the pattern; None: anything may.
Guard = list[Any] | None


@lru_cache(maxsize=256)
def safe_pattern(pattern: str, *, param: str = "segmentation.pattern") -> re.Pattern[str]:
    """The compiled pattern; `^` and `$` match at line ends, as with `(?m)`.

    Raises InvalidInput for one that is no pattern, matches the empty string, or may be slow.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidInput(
            f"the pattern has {len(pattern)} characters, and {MAX_PATTERN_CHARS} is the most; "
            "shorten it",
            param=param,
        )
    try:
        with warnings.catch_warnings():
            # Python's own doubts about `[[` and the like.
            warnings.simplefilter("error")
            tree = _parser.parse(pattern, re.MULTILINE)
            if tree.getwidth()[0] == 0:
                raise ValueError("it can match the empty string; let it match one character")
            _Judge(tree.state).cost(tree, before=None, is_tail=True)
            return re.compile(pattern, re.MULTILINE)
    except (re.error, Warning, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the pattern cannot be used: {error}", param=param) from error


class _Judge:
    """Walks one parse tree. Raises ValueError where the work is not bounded."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def cost(self, items: Any, *, before: Guard, is_tail: bool) -> tuple[int, int]:
        """(ways through, work) of a sequence that stands after `before`."""
        ways, work = 1, 0
        for position, item in enumerate(items):
            is_last = is_tail and position == len(items) - 1
            item_ways, item_work = self._item_cost(item, before, is_last)
            work += ways * item_work
            ways *= item_ways
            _check_work(max(work, ways))
            before = _guard_after(item, before)
        return ways, work

    def _item_cost(self, item: Any, before: Guard, is_tail: bool) -> tuple[int, int]:
        op, argument = item
        if op.name in (*_ONE_CHARACTER, "AT", "FAILURE"):
            return 1, 1
        if op.name in _REPEATS:
            return self._repeat_cost(*argument, before=before, is_tail=is_tail)
        if op.name == "BRANCH":
            costs = [self.cost(b, before=before, is_tail=is_tail) for b in argument[1]]
            return sum(ways for ways, _ in costs), sum(work + 1 for _, work in costs)
        if op.name == "SUBPATTERN":
            _, added, removed, inner = argument
            if added or removed:
                raise ValueError("it changes flags half-way; put flags first, as in (?i)")
            return self.cost(inner, before=before, is_tail=is_tail)
        if op.name == "ATOMIC_GROUP":
            return self.cost(argument, before=before, is_tail=is_tail)
        if op.name in ("ASSERT", "ASSERT_NOT"):
            # What it looks at is not taken, so the end of it is no end of the pattern.
            return self.cost(argument[1], before=before, is_tail=False)
        raise ValueError("it refers back to a group; write the text out")

    def _repeat_cost(
        self, least: int, most: int, inner: Any, *, before: Guard, is_tail: bool
    ) -> tuple[int, int]:
        is_simple = len(inner) == 1 and inner[0][0].name in _ONE_CHARACTER
        if most == _parser.MAXREPEAT:
            if not is_simple:
                raise ValueError("it repeats a group without a bound; write {1,5} instead")
            if not is_tail and not self._is_guarded(inner[0], before):
                raise ValueError(
                    "a repeat without a bound is slow here; write {0,20} for *, {1,20} for +, or "
                    "put a character before it that the repeat does not match"
                )
            return 1, least + 1
        if is_simple:
            return most - least + 1, most + 1
        again = None if before is None else _guard_after_all(inner, before)
        start = None if before is None or again is None else before + again
        ways, work = self.cost(inner, before=start, is_tail=False)
        total_ways, total_work, reached = 0, 0, 1
        for count in range(most + 1):
            total_ways += reached if count >= least else 0
            total_work += reached * (work + 1)
            reached *= ways
            _check_work(max(total_ways, total_work))
        return total_ways, total_work

    def _is_guarded(self, repeated: Any, before: Guard) -> bool:
        return before is not None and all(self._are_disjoint(one, repeated) for one in before)

    def _are_disjoint(self, one: Any, other: Any) -> bool:
        for listed, whole in ((one, other), (other, one)):
            if (characters := _characters(listed)) is not None:
                # Compiled by `re` itself, flags and all: its own answer.
                tree = _parser.SubPattern(self._state, [whole])
                matcher = _compiler.compile(tree, self._state.flags)
                return not any(matcher.fullmatch(character) for character in characters)
        # Letters, digits and white space have no character in common, in Unicode either.
        names = {_category(one), _category(other)}
        return "CATEGORY_SPACE" in names and bool(names & {"CATEGORY_DIGIT", "CATEGORY_WORD"})


def _guard_after_all(items: Any, before: Guard) -> Guard:
    for item in items:
        before = _guard_after(item, before)
    return before


def _guard_after(item: Any, before: Guard) -> Guard:
    """What may stand just before the place after `item`."""
    op, argument = item
    if op.name in _ONE_CHARACTER:
        return [item]
    if op.name in _REPEATS:
        least, _, inner = argument
        # After several rounds the last one decides; its own start stands after any round.
        after = _guard_after_all(inner, before)
        return after if least or after is None or before is None else before + after
    if op.name == "BRANCH":
        ends = [_guard_after_all(branch, before) for branch in argument[1]]
        known = [end for end in ends if end is not None]
        return [one for end in known for one in end] if len(known) == len(ends) else None
    if op.name == "SUBPATTERN":
        return _guard_after_all(argument[3], before)
    if op.name == "ATOMIC_GROUP":
        return _guard_after_all(argument, before)
    if op.name == "AT" and argument.name == "AT_BEGINNING":
        return list(_parser.parse("\\n"))
    return before


def _characters(item: Any) -> Sequence[str] | None:
    """Every character that a literal or a list of literals names; None for other classes."""
    op, argument = item
    if op.name == "LITERAL":
        return [chr(argument)]
    if op.name == "IN" and all(member.name == "LITERAL" for member, _ in argument):
        return [chr(code) for _, code in argument]
    return None


def _category(item: Any) -> str | None:
    op, argument = item
    if op.name == "IN" and len(argument) == 1 and argument[0][0].name == "CATEGORY":
        return str(argument[0][1].name)
    return None


def _check_work(work: int) -> None:
    if work > MAX_WORK:
        raise ValueError(
            f"it may take more than {MAX_WORK} steps at each character; use fewer alternatives "
            "and smaller bounds"
        )
