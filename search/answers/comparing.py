"""One request in a worker process: the first of some answers that a new one equals."""

from collections.abc import Callable, Iterable
from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet as LatexFiniteSet
from math_verify import verify

from search.answers.reading import Reading, is_read, read

Reply = Callable[[dict[str, Any]], None]
_MAX_REMEMBERED = 4096
_verdicts: dict[tuple[Any, ...], bool] = {}


def compare(request: dict[str, Any], reply: Reply) -> None:
    """Replies {"at": k, "doing": "read" | "compare"} before each slow part, then {"first": k}.

    `k` is a place in `request["others"]`, -1 the new answer itself; `first` is None when none is
    equal. The other answers are the gold ones: math-verify is not symmetric. The parent keeps the
    time from one reply to the next.
    """
    rules = request["rules"]
    reply({"at": -1, "doing": "read"})
    answer = read(request["answer"])
    for place, text in enumerate(request["others"]):
        key = (text, request["answer"], *rules.values())
        if key not in _verdicts:
            if not is_read(text):
                reply({"at": place, "doing": "read"})
            other = read(text)
            if (verdict := _quick_verdict(other, answer, rules)) is None:
                reply({"at": place, "doing": "compare"})
                verdict = _are_equal(other, answer, rules)
            while len(_verdicts) >= _MAX_REMEMBERED:
                _verdicts.pop(next(iter(_verdicts)))
            _verdicts[key] = verdict
        if _verdicts[key]:
            reply({"first": place})
            return
    reply({"first": None})


def _quick_verdict(gold: Reading, answer: Reading, rules: dict[str, Any]) -> bool | None:
    if gold.words is not None and answer.words is not None:
        return gold.words == answer.words
    if not gold.expressions or not answer.expressions:
        # Equal strings never come here; words may still be a symbol's name.
        return False
    if gold.print is None or answer.print is None or not rules["strict"]:
        return None
    if gold.print.differs(answer.print, float_rounding=rules["float_rounding"]):
        return False
    return None


def _are_equal(gold: Reading, answer: Reading, rules: dict[str, Any]) -> bool:
    pairs = ((left, right) for left in gold.expressions for right in answer.expressions)
    return any(_pair_is_equal(left, right, rules) for left, right in pairs)


def _pair_is_equal(gold: Any, answer: Any, rules: dict[str, Any]) -> bool:
    if rules["ordered"]:
        sequences = [_in_order(gold), _in_order(answer)]
        if all(sequence is not None for sequence in sequences):
            first, second = (list(sequence or ()) for sequence in sequences)
            return len(first) == len(second) and all(
                _pair_is_equal(*pair, rules) for pair in zip(first, second, strict=True)
            )
    try:
        return bool(
            verify(
                gold,
                answer,
                float_rounding=rules["float_rounding"],
                strict=rules["strict"],
                allow_set_relation_comp=rules["relations_as_sets"],
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # sympy has hundreds of ways to say that two things have no common measure.
        return False


def _in_order(expression: Any) -> Iterable[Any] | None:
    if isinstance(expression, LatexFiniteSet):
        return tuple(expression._unsorted_args)
    return tuple(expression.args) if isinstance(expression, sympy.Tuple) else None
