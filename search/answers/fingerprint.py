"""A few numbers by which most different expressions are told apart without comparing them.

math-verify takes about 5 ms for a pair and 64 answers make 2,016 pairs. An expression's value at
fixed points is taken once, and two that differ there by more than any rounding are different. The
points are positive: what holds for positive numbers only is then still compared in full.
"""

from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet as LatexFiniteSet
from sympy.core.relational import Relational

_POINTS = (0.7390851332, 1.3247179572, 2.2360679775, 0.3028534213, 1.9021605831)
# Beyond this, values say little and cost much.
_MAX_OPERATIONS = 200
_NO_NUMBERS = (Relational, sympy.MatrixExpr)
_SMALL = 1e-5


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How many numbers an expression is (1, or a tuple's length) and the sum of their values."""

    count: int
    total: float

    def differs(self, other: "Fingerprint", *, float_rounding: int) -> bool:
        """Whether no rounding to so many decimals makes the two equal."""
        if self.count != other.count:
            return True
        gap = abs(self.total - other.total)
        size = max(abs(self.total), abs(other.total))
        # Rounded to decimals, 1e-9 and 2e-9 would be equal.
        if size < _SMALL and gap > 1e-3 * size:
            return True
        return gap > 2.0 * self.count * 10.0**-float_rounding + 1e-9 * size


def fingerprint_of(expression: Any) -> Fingerprint | None:
    """None where values would mislead or cannot be had: relations, percentages, infinities."""
    try:
        members = _members(expression)
        values = [_value(member) for member in members]
    except (ArithmeticError, AttributeError, TypeError, ValueError, NotImplementedError):
        return None
    known = [value for value in values if value is not None]
    if len(known) != len(values) or not known:
        return None
    return Fingerprint(len(known), sum(known))


def _members(expression: Any) -> list[Any]:
    if isinstance(expression, sympy.Interval):
        return [expression.start, expression.end]
    if isinstance(expression, sympy.Tuple | sympy.FiniteSet | LatexFiniteSet):
        return list(expression.args)
    if isinstance(expression, sympy.MatrixBase):
        # A matrix of one column and a tuple may be compared, so its entries are counted alike.
        return list(expression.flat())
    return [expression]


def _value(expression: Any) -> float | None:
    if not isinstance(expression, sympy.Expr) or isinstance(expression, _NO_NUMBERS):
        return None
    # math-verify lets 9% equal 9; and a product of letters may be a word.
    if expression.has(sympy.UnevaluatedExpr) or isinstance(expression, sympy.Symbol):
        return None
    symbols = sorted(expression.free_symbols, key=str)
    if expression.is_Mul and all(argument.is_Symbol for argument in expression.args):
        return None
    if len(symbols) > len(_POINTS) or expression.count_ops() > _MAX_OPERATIONS:
        return None
    points = {symbol: _POINTS[_place(symbol)] for symbol in symbols}
    value = complex(expression.evalf(15, subs=points))
    if abs(value.imag) > 1e-12 * max(1.0, abs(value.real)):
        # A constant may be complex; with letters in it, it depends on a choice of branch.
        return None if symbols else value.real + 0.5772156649 * value.imag
    return value.real if abs(value.real) < 1e300 else None


def _place(symbol: Any) -> int:
    """By its name, so that a letter has the same value in every answer."""
    return sum(map(ord, str(symbol))) % len(_POINTS)
