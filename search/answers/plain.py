"""Plain expressions such as sqrt(3)/2 or 2*pi**2, read without `eval`.

sympy's own reader evaluates Python; this one walks the syntax tree and knows names from a table
only. It runs in a worker, since what it reads may be as large as 9**9**9.
"""

import ast
from collections.abc import Callable
from typing import Any

import sympy

_CONSTANTS: dict[str, Any] = {
    "pi": sympy.pi,
    "oo": sympy.oo,
    "inf": sympy.oo,
    "infinity": sympy.oo,
    "E": sympy.E,
    "I": sympy.I,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": sympy.sqrt,
    "cbrt": sympy.cbrt,
    "exp": sympy.exp,
    "ln": sympy.log,
    "log": sympy.log,
    "abs": sympy.Abs,
    "Abs": sympy.Abs,
    "factorial": sympy.factorial,
    "binomial": sympy.binomial,
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
    "ceil": sympy.ceiling,
    "Max": sympy.Max,
    "max": sympy.Max,
    "Min": sympy.Min,
    "min": sympy.Min,
    "Mod": sympy.Mod,
    "Sum": sympy.Sum,
    "Integral": sympy.Integral,
    "Product": sympy.Product,
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    **{
        name: getattr(sympy, name)
        for base in ("sin", "cos", "tan", "cot", "sec", "csc")
        for name in (base, f"a{base}", f"{base}h", f"a{base}h")
    },
    **{f"arc{base}": getattr(sympy, f"a{base}") for base in ("sin", "cos", "tan", "sinh", "cosh")},
}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
    ast.Mod: lambda a, b: a % b,
}


class NotPlain(Exception):
    """The text is no plain expression; it may still be LaTeX or words."""


def read_plain(text: str) -> Any:
    """The sympy value of a plain expression. Raises NotPlain.

    One-letter names are real variables, as in math-verify; any other name must be in the tables.
    A list without parentheses is LaTeX's matter, for which it is a set.
    """
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotPlain(text) from error
    if isinstance(tree, ast.Tuple) and tree.elts and tree.elts[0].col_offset == tree.col_offset:
        raise NotPlain(text)
    return _value(tree)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return sympy.Integer(node.value) if isinstance(node.value, int) else _decimal(node)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Name(id=name) if len(name) == 1 and name.isalpha():
            return sympy.Symbol(name, real=True)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=ast.Name(id="e"), op=ast.Pow(), right=power):
            return sympy.exp(_value(power))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            try:
                return _FUNCTIONS[name](*map(_value, args))
            except (TypeError, ValueError) as error:
                raise NotPlain(name) from error
        case ast.Tuple(elts=elements):
            return sympy.Tuple(*map(_value, elements))
    raise NotPlain(ast.dump(node)[:80])


def _decimal(node: ast.Constant) -> Any:
    return sympy.Float(node.value)
