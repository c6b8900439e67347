r"""Raw text → steps, by one of seven modes. Offsets are exact in all of them.

| mode | cuts | LaTeX, fences | a step's text |
| --- | --- | --- | --- |
| `auto` | at every separator of the version; if there is none: below | cut through | as it stands |
| `delimiter` | at every delimiter of the caller's | cut through | as it stands |
| `newline` | at line ends | kept whole | as it stands |
| `numbered` | before each next number of a list that starts a line | kept whole | trimmed |
| `code` | around fenced blocks, each a step, and at blank lines | kept whole | trimmed |
| `thinking` | at `<think>`, `</think>` and at blank lines | kept whole | trimmed |
| `regex` | at every match of the caller's pattern | cut through | trimmed |

Between two steps lies white space and, by mode, the separator, the tags or what the pattern
matched; nothing else is lost. "Kept whole" is what `prm/blocks.py` calls a block. `auto` and
`delimiter` cut through blocks because that is how PRMs were trained: the recipes of PRM800K,
Qwen2.5-Math-PRM or Skywork-o1 split on a plain string, and a score is only right on the cuts that
its model knows. Whoever wants every line end, blocks or not, gives "\n" as the delimiter.

`auto` on a text without the version's separator: at blank lines (these may hold blanks, or end in
CRLF), else before the numbers of a list of two or more, both as in the modes that keep blocks
whole; else the text is one step. Single line ends decide nothing here: they also wrap prose.

`numbered` knows `1.`, `1)`, `(1)`, `Step 1`, with Markdown's `#`, `**` or `__` before it. Where any
line starts with `Step N`, those are the list, and N must rise. Otherwise the list is of the kind
that shows the first 1, and each item must be the next number, in the same dress and no deeper
indented: a list inside an item, or "3. 5 apples", is text. What precedes the list is a step.

`thinking` takes every tag, wherever it stands, as reasoning parsers do, and pieces at blank lines,
as the authors of ReasonFlux-PRM advise for thought and answer alike (their README, "split the
entire answer with \n\n"). Short pieces are not merged: nor do they.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prm.blocks import blocks, fences
from prm.patterns import safe_pattern
from prm.steps import Span, at_separators, between, place_steps
from prm.types import Step

Mode = Literal["auto", "delimiter", "newline", "numbered", "code", "thinking", "regex"]

# As many as a request may list itself.
MAX_STEPS = 10_000

_LINE_END = re.compile(r"(?:\r?\n)+")
_BLANK_LINES = re.compile(r"\r?\n(?:[ \t]*+\r?\n)+")
_THINK_TAG = re.compile(r"</?think(?:ing)?>")
_NUMBER = re.compile(
    r"""
    ^(?=                                      # cuts before the number and takes nothing
    (?P<indent>[ \t]*)(?P<dress>(?:\#{1,6}[ \t]+)?(?:\*\*|__)?)
    (?: [Ss](?:tep|TEP)[ \t]*(?P<step>[0-9]{1,4})
        (?=[ \t]*(?:[::)(*_–—-]|\.(?![0-9])|\r?$))
      | (?: (?P<dot>[0-9]{1,4})\. | (?P<paren>[0-9]{1,4})\) | \((?P<parens>[0-9]{1,4})\) )
        (?=[\s*_]|$)
    ))
    """,
    re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRule:
    """How raw text is cut.

    `separator` is the version's own, or the caller's delimiter: what `auto` and `delimiter` cut
    at. `pattern` is what `regex` cuts at, see `prm/patterns.py`.

    >>> segment("Step 1: add.\\nStep 2: halve.", CutRule(mode="numbered", separator="\\n"))
    """

    mode: Mode
    separator: str
    pattern: str | None = None


def segment(response: str, how: CutRule) -> tuple[Step, ...]:
    """The steps of a raw response, in order, with their places in it.

    Time is linear in the length of the text in every mode. Raises InvalidInput for a text without
    a step, for one with more than MAX_STEPS, and for a pattern that cannot be used.
    """
    if how.mode == "delimiter" or (how.mode == "auto" and how.separator in response):
        pieces = at_separators(response, how.separator)
    elif how.mode == "regex":
        assert how.pattern is not None, "mode regex has a pattern"
        cuts = (match.span() for match in safe_pattern(how.pattern).finditer(response))
        pieces = _trimmed(response, between(cuts, 0, len(response)))
    else:
        pieces = _CUTTERS[how.mode](response)
    return place_steps(response, pieces, most=MAX_STEPS)


def _auto_without_separator(text: str) -> list[Span]:
    for pieces in (_at_blank_lines(text, 0, len(text)), _before(text, _numbers(text, least=2))):
        if len(pieces) > 1:
            return pieces
    return [(0, len(text))]


def _lines(text: str) -> list[Span]:
    cuts = _outside_blocks(text, _LINE_END.finditer(text), 0, len(text))
    return between((cut.span() for cut in cuts), 0, len(text))


def _numbered(text: str) -> list[Span]:
    return _before(text, _numbers(text))


def _code(text: str) -> list[Span]:
    pieces = []
    start = 0
    for fence_start, fence_end in fences(text):
        pieces += _at_blank_lines(text, start, fence_start)
        pieces += _trimmed(text, [(fence_start, fence_end)])
        start = fence_end
    return pieces + _at_blank_lines(text, start, len(text))


def _thinking(text: str) -> list[Span]:
    tags = (tag.span() for tag in _THINK_TAG.finditer(text))
    return [
        piece
        for start, end in between(tags, 0, len(text))
        for piece in _at_blank_lines(text, start, end)
    ]


_CUTTERS: dict[str, Callable[[str], list[Span]]] = {
    "auto": _auto_without_separator,
    "newline": _lines,
    "numbered": _numbered,
    "code": _code,
    "thinking": _thinking,
}


def _at_blank_lines(text: str, start: int, end: int) -> list[Span]:
    cuts = _outside_blocks(text, _BLANK_LINES.finditer(text, start, end), start, end)
    return _trimmed(text, between((cut.span() for cut in cuts), start, end))


def _before(text: str, starts: list[int]) -> list[Span]:
    return _trimmed(text, between(((at, at) for at in starts), 0, len(text)))


def _numbers(text: str, least: int = 1) -> list[int]:
    """Where the items of the numbered list begin, or nothing when it has fewer than `least`."""
    words, items = list[int](), list[int]()
    last_word, kind, depth = -1, None, 0
    for number in _outside_blocks(text, _NUMBER.finditer(text), 0, len(text)):
        name = number.lastgroup
        assert name is not None, "one kind of number has matched"
        value = int(number[name])
        if name == "step":
            if value > last_word:
                last_word = value
                words.append(number.start())
            continue
        if kind is None and value == 1:
            kind, depth = (name, number["dress"]), len(number["indent"])
        if (
            value == len(items) + 1
            and kind == (name, number["dress"])
            and len(number["indent"]) <= depth
        ):
            items.append(number.start())
    found = words or items
    return found if len(found) >= least else []


def _outside_blocks(
    text: str, cuts: Iterable[re.Match[str]], start: int, end: int
) -> Iterator[re.Match[str]]:
    """The cuts that touch no block's inside. Looks for blocks only where there is a cut."""
    spans: Iterator[Span] | None = None
    block: Span | None = None
    for cut in cuts:
        if spans is None:
            spans = iter(blocks(text, start, end))
            block = next(spans, None)
        while block is not None and block[1] <= cut.start():
            block = next(spans, None)
        if block is None or cut.end() <= block[0]:
            yield cut


def _trimmed(text: str, pieces: Iterable[Span]) -> list[Span]:
    """The pieces without the white space at their ends; those of white space alone left out."""
    found = []
    for start, end in pieces:
        piece = text[start:end]
        if core := piece.strip():
            start += len(piece) - len(piece.lstrip())
            found.append((start, start + len(core)))
    return found
