"""A small reader of PromQL: tokens, brackets, and which metrics with which labels are asked for.

Not a parser: it finds what a slip of the pen makes (an open bracket, a range on a number, a name
that nobody exposes). Where `promtool` is installed, it is asked too.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<range>\[[0-9smhdwy$_a-z]+\])|"
    r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?(?![a-z0-9_])|[0-9]+[smhdwy])|"
    r"(?P<name>[a-zA-Z_$][\w:$]*)|(?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^=<>,(){}]))"
)
_PAIRS = {")": "(", "}": "{"}
_AGGREGATES = ("sum", "max", "min", "avg", "count")
FUNCTIONS = frozenset(
    (*_AGGREGATES, "rate", "increase", "delta", "vector", "histogram_quantile", "label_values")
)
_WORDS = frozenset(("by", "without", "on", "ignoring", "and", "or", "unless", "offset"))


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric that is asked for, and the labels that are matched or grouped by within it."""

    metric: str
    labels: frozenset[str]
    has_range: bool


def tokens(expression: str) -> list[tuple[str, str]]:
    """Kind and text of each. Raises ValueError where one begins that is none."""
    found, at, text = [], 0, expression.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"{text[at : at + 20]!r} is no token of PromQL")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def selectors(expression: str) -> list[Selector]:
    """What an expression asks for. Raises ValueError where it is not well formed."""
    parts = tokens(expression)
    _check_brackets(parts)
    found = []
    for index, (kind, name) in enumerate(parts):
        following = parts[index + 1][1] if index + 1 < len(parts) else ""
        if kind != "name" or name in _WORDS or _is_label(parts, index):
            continue
        if following in ("(", "by", "without"):
            if name not in FUNCTIONS:
                raise ValueError(f"{name}() is not a function that is known here")
            continue
        labels, end = _matchers(parts, index + 1)
        has_range = end < len(parts) and parts[end][0] == "range"
        found.append(Selector(name, labels, has_range))
    return found


def grouping(expression: str) -> set[str]:
    """All labels behind `by` and `on`."""
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")} - {""}


def _check_brackets(parts: list[tuple[str, str]]) -> None:
    opened: list[str] = []
    for kind, text in parts:
        if kind == "operator" and text in "({":
            opened.append(text)
        elif kind == "operator" and text in ")}" and (not opened or opened.pop() != _PAIRS[text]):
            raise ValueError(f"{text} closes nothing")
    if opened:
        raise ValueError(f"{opened[-1]} is never closed")
    if parts and parts[-1][0] == "operator" and parts[-1][1] not in ")}":
        raise ValueError(f"ends with {parts[-1][1]}")


def _is_label(parts: list[tuple[str, str]], index: int) -> bool:
    """Whether this name stands between the braces of matchers, or in the list behind by or on."""
    opened: list[int] = []
    for at, (kind, text) in enumerate(parts[:index]):
        if kind == "operator" and text in "({":
            opened.append(at)
        elif kind == "operator" and text in ")}":
            opened.pop()
    if not opened:
        return False
    inner = opened[-1]
    return parts[inner][1] == "{" or (inner > 0 and parts[inner - 1][1] in ("by", "on", "without"))


def _matchers(parts: list[tuple[str, str]], at: int) -> tuple[frozenset[str], int]:
    """Labels within braces that begin here, and where they end."""
    if at >= len(parts) or parts[at][1] != "{":
        return frozenset(), at
    end = next(i for i in range(at, len(parts)) if parts[i][1] == "}")
    names = [
        text
        for (kind, text), (_, operator) in zip(parts[at:end], parts[at + 1 :], strict=False)
        if kind == "name" and operator in ("=", "!=", "=~", "!~")
    ]
    return frozenset(names), end + 1
