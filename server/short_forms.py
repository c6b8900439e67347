"""Strategies in a word, for a model's name or a header: `best-of-16`, `beam-16x4`, `majority-16`.

The forms follow from the table of strategies: a type's name with dashes, then `n` and `width` where
the strategy has them; a selection's name alone stands for best of n with that selection.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from prm.errors import InvalidInput
from search.selection import Selection
from search.strategies import Strategy
from search.strategies.base import StrategySettings
from search.strategies.best_of_n import BestOfN

_FORM = re.compile(r"(?P<word>[a-z]+(?:-[a-z]+)*)(?:-(?P<n>\d{1,9})(?:x(?P<width>\d{1,9}))?)?")
_STRATEGIES: TypeAdapter[Strategy] = TypeAdapter(Strategy)


@dataclass(frozen=True, kw_only=True)
class _Word:
    """What a form begins with: the type that it stands for, and what it settles already."""

    type: str
    fields: frozenset[str]
    settled: Mapping[str, str] = field(default_factory=dict)


def strategy_of(text: str, *, param: str) -> Strategy | None:
    """The strategy that a short form stands for, or None where `text` is no short form.

    Raises InvalidInput about `param` for a form whose numbers the strategy does not take.

    >>> strategy_of("beam-16x4", param="model") == Beam(n=16, width=4)
    True
    """
    found = _FORM.fullmatch(text)
    word = WORDS.get(found["word"]) if found else None
    if found is None or word is None:
        return None
    numbers = {name: int(found[name]) for name in ("n", "width") if found[name] is not None}
    if not numbers.keys() <= word.fields:
        return None
    return strategy_from({"type": word.type} | dict(word.settled) | numbers, text, param=param)


def strategy_from(settings: Any, shown: str, *, param: str) -> Strategy:
    """A strategy from its settings. Raises InvalidInput, `shown` naming what was sent."""
    try:
        return _STRATEGIES.validate_python(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(
            f"{param}: {shown[:100]!r}: {where}{': ' if where else ''}{reason}", param=param
        ) from error


def forms() -> str:
    """Every short form, for an error's text."""
    return ", ".join(form for word in WORDS.items() for form in _forms(*word))


def _forms(text: str, word: _Word) -> Iterator[str]:
    if "n" not in word.fields:
        yield text
        return
    yield f"{text}-N"
    if "width" in word.fields:
        yield f"{text}-NxWIDTH"


def _words() -> dict[str, _Word]:
    words: dict[str, _Word] = {}
    selections: dict[str, _Word] = {}
    for settings in _strategies():
        fields = frozenset(settings.model_fields)
        type_ = settings.model_fields["type"].default
        words[type_.replace("_", "-").removesuffix("-n")] = _Word(type=type_, fields=fields)
        if settings is BestOfN:
            names = {*get_args(Selection)} - {settings.model_fields["selection"].default}
            for name in sorted(names):
                selections[name] = _Word(type=type_, fields=fields, settled={"selection": name})
    return selections | words


def _strategies() -> tuple[type[StrategySettings], ...]:
    union, *_ = get_args(Strategy)
    members: tuple[type[StrategySettings], ...] = get_args(union)
    return members


WORDS: Mapping[str, _Word] = _words()
