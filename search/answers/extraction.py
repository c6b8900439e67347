r"""The final answer in a text: boxed, announced, matched by a task's pattern, or the last number.

Every way takes time linear in the text, whatever the text: what a policy writes is hostile input.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prm.errors import InvalidInput
from prm.patterns import safe_pattern
from search.answers.normal import normalise

# A longer "answer" is a paragraph, not something that two candidates could agree on.
MAX_ANSWER_CHARS = 256
# What is looked at behind an "answer is": more than any answer with its decoration.
_MAX_TAIL_CHARS = 2 * MAX_ANSWER_CHARS
# `\\.` also takes `\{` and `\}`, which are no braces of TeX, and `\\`, before which no box begins.
_BRACES = re.compile(r"(?P<box>\\f?box(?:ed)?\s{0,9}\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_ANNOUNCED = re.compile(
    r"(?:answer|réponse|respuesta|antwort|risposta|resposta|ответ|答案|答え)"
    r"[*_ \t]{0,4}(?:is|est|es|ist|è|é|为|是|は|[:：=])",
    re.IGNORECASE,
)
# As good as a box, where a formula or a number follows: math-verify gives both one priority, and
# of these the later one wins (`LatexExtractionConfig.boxed_match_priority`).
_FINAL = re.compile(
    r"final\s{1,3}answer[*_ \t]{0,4}(?:is|[:：=])[*_: \t\r\n]{0,9}(?=[-−+]?[.(\[{]?[\d$\\])",
    re.IGNORECASE,
)
# A sentence ends behind an answer; "3.5" and "e.g. 3" go on.
_SENTENCE_END = re.compile(r"(?<=[\d)}\]$*%!])\.\s")
# No formula holds the beginning of another: each place is walked once.
_MATHS = re.compile(
    r"\${1,2}(?P<dollar>(?:\\.|[^$\\])+)\$"
    r"|\\\((?P<round>(?:[^\\]|\\[^()])+)\\\)"
    r"|\\\[(?P<square>(?:[^\\]|\\[^\[\]])+)\\\]",
    re.DOTALL,
)
_FRACTION = re.compile(r"-?\\[dt]?frac\{[^{}]*\}\{[^{}]*\}")
# Between two boxes that are one answer.
_JOINED = re.compile(
    r"(?:[\s,;$]|\\q?quad){0,9}(?:\\text\s?\{\s?)?(?:and|or)?\s?\}?(?:[\s,;$]|\\q?quad){0,9}"
)
_LAST_NUMBER = re.compile(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
# Four words on end, or two signs of a script without spaces: a sentence, not an answer.
_PROSE = re.compile(r"(?:[^\W\d_]{2,} ){3}[^\W\d_]{2,}|[\u3040-\u9fff]{2}")
_ANSWER_WORD = re.compile(r"answer|réponse|respuesta|antwort|答案", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    r"""How a task's texts state their answers.

    `pattern`: only this regular expression decides; of its last match the group `answer`, else the
    first group, else all of it. It must be one that runs in linear time (`prm.patterns`).
    `choices`: the letters of a multiple choice, such as "ABCD"; a letter that stands alone counts
    when nothing is boxed. `last_number`: where nothing is stated, the last number or formula is
    taken; off by default, since a cut-off text would vote for a number of its reasoning.

    >>> extract_answer("so x = 4, hence 12 eggs", Extraction(last_number=True))
    '12'
    """

    pattern: str | None = None
    choices: str | None = None
    last_number: bool = False

    def __post_init__(self) -> None:
        if self.pattern is not None:
            safe_pattern(self.pattern, param="answers.pattern")
        if self.choices is not None and not re.fullmatch("[A-Z]{2,26}", self.choices):
            raise InvalidInput(
                f"{self.choices!r} are no letters of a multiple choice; write them as in ABCD",
                param="answers.choices",
            )


class _Box(NamedTuple):
    """Places in the text: of the command, of the first character inside, of the closing brace."""

    start: int
    begin: int
    end: int


_DEFAULT = Extraction()


def extract_answer(text: str, extraction: Extraction = _DEFAULT) -> str | None:
    r"""The final answer that a text states, normalised, or None.

    The last balanced `\boxed{…}` wins, or a "final answer is …" behind it that a formula or number
    follows; else the last "answer is …" or "Answer: …", else what `extraction` allows. Longer ones
    than MAX_ANSWER_CHARS are none.

    >>> extract_answer("14-5=9\nAnswer: 9")
    '9'
    """
    if extraction.pattern is not None:
        found = last_match(text, extraction.pattern)
    elif extraction.choices is not None:
        found = _choice(text, extraction.choices)
    else:
        boxes = _boxes(text)
        found = _final(text, boxes[-1].end) if boxes else None
        if found is None:
            found = _side_by_side(text, boxes) if boxes else _announced(text)
        if found is not None and extraction.last_number and _PROSE.search(found):
            found = _last_number(found) or found
        if found is None and extraction.last_number:
            found = _last_number(text)
    if found is None or len(found) > _MAX_TAIL_CHARS:
        return None
    answer = normalise(found)
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` (or `\fbox{…}`) whose braces are balanced, or None.

    Boxes side by side are one answer: `\boxed{1}` and `\boxed{2}` give "1, 2".
    """
    boxes = _boxes(text)
    return _side_by_side(text, boxes) if boxes else None


def _side_by_side(text: str, boxes: Sequence[_Box]) -> str:
    """The last of these boxes, with those that stand side by side with it."""
    first = len(boxes) - 1
    while first > 0 and _JOINED.fullmatch(text, boxes[first - 1].end + 1, boxes[first].start):
        first -= 1
    contents = [text[box.begin : box.end].strip() for box in boxes[max(first, len(boxes) - 9) :]]
    return ", ".join(dict.fromkeys(contents))


def _boxes(text: str) -> list[_Box]:
    """Every balanced box, in the order of their starts, those within boxes too."""
    opened: list[tuple[int, int] | None] = []
    boxes: list[_Box] = []
    for match in _BRACES.finditer(text, max(0, text.find("\\"))):
        if match["box"]:
            opened.append(match.span())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened and (span := opened.pop()) is not None:
            boxes.append(_Box(*span, match.start()))
    return sorted(boxes)


def _final(text: str, start: int) -> str | None:
    """What follows the last "final answer is" behind `start`."""
    end = None
    for match in _FINAL.finditer(text, start):
        end = match.end()
    return None if end is None else _without_rest(text[end : end + _MAX_TAIL_CHARS + 1])


def _announced(text: str) -> str | None:
    """What follows the last "answer is" that something follows: models restate themselves."""
    ends = [match.end() for match in _ANNOUNCED.finditer(text)]
    # Of more than a few with nothing behind them none is an answer.
    for end in reversed(ends[-4:]):
        tail = text[end : end + _MAX_TAIL_CHARS + 1].lstrip(" \t\r\n:：*_")
        if tail:
            return _without_rest(tail)
    return None


def _without_rest(tail: str) -> str:
    """The answer at the head of what follows "answer is"."""
    if maths := _MATHS.match(tail):
        return next(group for group in maths.groups() if group is not None)
    line = tail.split("\n", 1)[0]
    sentence_end = _SENTENCE_END.search(line)
    return line[: sentence_end.start()] if sentence_end else line


def _last_number(text: str) -> str | None:
    """The last formula between dollars or the like, or the last number behind all of them."""
    formula, behind = None, 0
    for match in _MATHS.finditer(text):
        formula, behind = next(group for group in match.groups() if group is not None), match.end()
    for match in _FRACTION.finditer(text, behind):
        formula, behind = match[0], match.end()
    number = _last(_LAST_NUMBER.finditer(text, behind))
    return number if number is not None else formula


def last_match(text: str, pattern: str) -> str | None:
    """What a task's pattern finds last: its group `answer`, else its first group, else all of it.

    Raises InvalidInput for a pattern that `prm.patterns` refuses.
    """
    last = None
    compiled = safe_pattern(pattern, param="answers.pattern")
    for match in compiled.finditer(text):
        last = match
    if last is None:
        return None
    if "answer" in compiled.groupindex:
        return last["answer"]
    return last[1] if compiled.groups else last[0]


def _choice(text: str, letters: str) -> str | None:
    """A letter of the choice: boxed, the first behind the last "answer", leading, or the last."""
    # Beside no other letter or digit of the Latin script; Chinese is written without spaces.
    alone = re.compile(rf"(?<![A-Za-z0-9'’])[{letters}](?![A-Za-z0-9'’])")
    boxed = last_boxed(text)
    if boxed is not None:
        return _last(alone.finditer(boxed[:_MAX_TAIL_CHARS]))
    words = [match.end() for match in _ANSWER_WORD.finditer(text)]
    for end in reversed(words[-4:]):
        if found := alone.search(text, end, end + 100):
            return found[0]
    if leading := alone.match(text.lstrip(" *(")):
        return leading[0]
    return _last(alone.finditer(text))


def _last(matches: Iterator[re.Match[str]]) -> str | None:
    last = None
    for match in matches:
        last = match
    return last[0] if last else None
