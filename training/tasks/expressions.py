"""Integer expressions: text ↔ tree, with limits so that no text can hang or crash the parser.

    expression := product (("+" | "-") product)*
    product    := factor ("*" factor)*
    factor     := number | "-" number | "(" expression ")"

Never `eval`: what is parsed here was written by a language model.
"""

import re
from dataclasses import dataclass
from typing import Literal

Operator = Literal["+", "-", "*"]

# Far above anything the task makes, far below what would make Python's integers or stack suffer.
MAX_CHARS = 400
MAX_DIGITS = 12
MAX_DEPTH = 40

_TOKEN = re.compile(r"\s*([0-9]+|[-+*()])")
_BINDS = {"+": 1, "-": 1, "*": 2}


class MalformedExpression(ValueError):
    """The text is no expression of this grammar, or is beyond the limits."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator over two trees; a leaf is a plain `int`.

    >>> parse("3+4*2") == Operation("+", 3, Operation("*", 4, 2))
    True
    """

    operator: Operator
    left: "Tree"
    right: "Tree"


Tree = int | Operation


def apply(operator: Operator, left: int, right: int) -> int:
    """The true value of one operation."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def value(tree: Tree) -> int:
    """The true value of the whole tree."""
    if isinstance(tree, int):
        return tree
    return apply(tree.operator, value(tree.left), value(tree.right))


def parse(text: str) -> Tree:
    """The tree of an expression, `*` before `+` and `-`, all of them from left to right.

    Raises MalformedExpression for anything else, and for text beyond the limits above.
    """
    if len(text) > MAX_CHARS:
        raise MalformedExpression(f"{len(text)} characters, the limit is {MAX_CHARS}")
    parser = _Parser(_tokens(text))
    tree = parser.sum(depth=0)
    if parser.next is not None:
        raise MalformedExpression(f"unexpected {parser.next!r}")
    return tree


def render(tree: Tree) -> str:
    """The expression with as few parentheses as `parse` needs to read the same tree.

    >>> render(parse("((3+4))*2-(5)"))
    '(3+4)*2-5'
    """
    if isinstance(tree, int):
        return str(tree)
    binds = _BINDS[tree.operator]
    return (
        _operand(tree.left, binds_at_least=binds)
        + tree.operator
        + _operand(tree.right, binds_at_least=binds + 1)
    )


def _operand(tree: Tree, *, binds_at_least: int) -> str:
    is_loose = isinstance(tree, Operation) and _BINDS[tree.operator] < binds_at_least
    return f"({render(tree)})" if is_loose else render(tree)


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise MalformedExpression(f"unexpected {text[at]!r}")
        tokens.append(match.group(1))
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens; `next` is the one to be read."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = iter(tokens)
        self.next = next(self._tokens, None)

    def sum(self, *, depth: int) -> Tree:
        tree = self._product(depth)
        while self.next in ("+", "-"):
            operator: Operator = "+" if self._take() == "+" else "-"
            tree = Operation(operator, tree, self._product(depth))
        return tree

    def _product(self, depth: int) -> Tree:
        tree = self._factor(depth)
        while self.next == "*":
            self._take()
            tree = Operation("*", tree, self._factor(depth))
        return tree

    def _factor(self, depth: int) -> Tree:
        token = self._take()
        if token == "-":
            return -self._number(self._take())
        if token != "(":
            return self._number(token)
        if depth == MAX_DEPTH:
            raise MalformedExpression(f"more than {MAX_DEPTH} parentheses inside each other")
        tree = self.sum(depth=depth + 1)
        if self._take() != ")":
            raise MalformedExpression("a parenthesis is not closed")
        return tree

    def _number(self, token: str) -> int:
        if not token.isdigit() or len(token) > MAX_DIGITS:
            raise MalformedExpression(f"not a number of at most {MAX_DIGITS} digits: {token!r}")
        return int(token)

    def _take(self) -> str:
        token = self.next
        if token is None:
            raise MalformedExpression("the text ends too early")
        self.next = next(self._tokens, None)
        return token
