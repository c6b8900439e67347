r"""Raw text → steps, by one of seven modes. Offsets are exact in all of them.

| mode | cuts | LaTeX and fences | a step's text |
| --- | --- | --- | --- |
| `auto` | at every separator of the version; without one in the text, see below | cut through | as it stands |
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from prm.blocks import blocks, fences
from prm.errors import InvalidInput
from prm.patterns import safe_pattern
from prm.steps import Span, between, cut_steps, place_steps
from prm.types import Step

Mode = Literal["auto", "delimiter", "newline", "numbered", "code", "thinking", "regex"]

# As many as a request may list itself.
MAX_STEPS = 10_000

_LINE_END = re.compile(r"\r?\n")
_BLANK_LINES = re.compile(r"\r?\n(?:[ \t]*+\r?\n)+")
_THINK_TAG = re.compile(r"</?think(?:ing)?>")
_NUMBER = re.compile(
    r"""
    ^(?P<indent>[ \t]*)(?P<dress>(?:\#{1,6}[ \t]+)?(?:\*\*|__)?)
    (?: [Ss](?:tep|TEP)[ \t]*(?P<step>[0-9]{1,4})
        (?=[ \t]*(?:[:)(*_–—-]|\.(?![0-9])|\r?$))
      | (?: (?P<dot>[0-9]{1,4})\. | (?P<paren>[0-9]{1,4})\) | \((?P<parens>[0-9]{1,4})\) )
        (?=[\s*_]|$)
    )
    """,
    re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """How raw text is cut.

    `separator` is the version's own, or the caller's delimiter: what `auto` and `delimiter` cut
    at. `pattern` is what `regex` cuts at, see `prm/patterns.py`.

    >>> segment("Step 1: add.\\nStep 2: halve.", Segmentation(mode="numbered", separator="\\n"))
    """

    mode: Mode
    separator: str
    pattern: str | None = None


def segment(response: str, how: Segmentation) -> tuple[Step, ...]:
    """The steps of a raw response, in order, with their places in it.

    Time is linear in the length of the text in every mode. Raises InvalidInput for a text without
    a step, for one with more than MAX_STEPS, and for a pattern that cannot be used.
    """
    if how.mode == "delimiter" or (how.mode == "auto" and how.separator in response):
        steps = cut_steps(response, how.separator)
    elif how.mode == "regex":
        assert how.pattern is not None, "mode regex has a pattern"
        cuts = (match.span() for match in safe_pattern(how.pattern).finditer(response))
        steps = place_steps(response, _trimmed(response, between(cuts, 0, len(response))))
    else:
        steps = place_steps(response, _CUTTERS[how.mode](response))
    if len(steps) > MAX_STEPS:
        raise InvalidInput(
            f"response is cut into {len(steps)} steps, and {MAX_STEPS} is the most; shorten it or "
            "choose another segmentation",
            param="response",
        )
    return steps


def _auto_without_separator(text: str) -> list[Span]:
    for pieces in (_at_blank_lines(text, 0, len(text)), _before(text, _numbers(text, least=2))):
        if len(pieces) > 1:
            return pieces
    return [(0, len(text))]


def _lines(text: str) -> list[Span]:
    cuts = [cut.span() for cut in _LINE_END.finditer(text)]
    return between(_outside_blocks(text, cuts, 0, len(text)), 0, len(text))


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
    cuts = [cut.span() for cut in _BLANK_LINES.finditer(text, start, end)]
    return _trimmed(text, between(_outside_blocks(text, cuts, start, end), start, end))


def _before(text: str, starts: list[int]) -> list[Span]:
    return _trimmed(text, between(((at, at) for at in starts), 0, len(text)))


def _numbers(text: str, least: int = 1) -> list[int]:
    """Where the items of the numbered list begin, or nothing when it has fewer than `least`."""
    places = [number.span() for number in _NUMBER.finditer(text)]
    kept = {start for start, _ in _outside_blocks(text, places, 0, len(text))}
    numbers = [number for number in _NUMBER.finditer(text) if number.start() in kept]
    found = _words(numbers) or _items(numbers)
    return found if len(found) >= least else []


def _words(numbers: list[re.Match[str]]) -> list[int]:
    """`Step N` with rising N: the word makes it plain, so the list may start or skip anywhere."""
    last, found = -1, []
    for number in numbers:
        if number["step"] is not None and int(number["step"]) > last:
            last = int(number["step"])
            found.append(number.start())
    return found


def _items(numbers: list[re.Match[str]]) -> list[int]:
    """A list 1, 2, 3, … of one kind, none deeper indented than its first item."""
    kind, depth, found = None, 0, list[int]()
    for number in numbers:
        name = str(number.lastgroup)
        if kind is None and name != "step" and int(number[name]) == 1:
            kind, depth = (name, number["dress"]), len(number["indent"])
        if (
            kind == (name, number["dress"])
            and int(number[name]) == len(found) + 1
            and len(number["indent"]) <= depth
        ):
            found.append(number.start())
    return found


def _outside_blocks(text: str, cuts: list[Span], start: int, end: int) -> list[Span]:
    """The cuts that touch no block's inside. Looks for blocks only where there is a cut."""
    if not cuts:
        return cuts
    kept = []
    inside = iter(blocks(text, start, end))
    block = next(inside, None)
    for cut_start, cut_end in cuts:
        while block is not None and block[1] <= cut_start:
            block = next(inside, None)
        if block is None or cut_end <= block[0]:
            kept.append((cut_start, cut_end))
    return kept


def _trimmed(text: str, pieces: Iterable[Span]) -> list[Span]:
    """The pieces without the white space at their ends; those of white space alone left out."""
    found = []
    for start, end in pieces:
        piece = text[start:end]
        if core := piece.strip():
            start += len(piece) - len(piece.lstrip())
            found.append((start, start + len(core)))
    return found
