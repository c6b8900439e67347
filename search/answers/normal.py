r"""One spelling for answers that differ in decoration only. No mathematics: that is `maths.py`."""

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d*)(?:\.\d+)?")
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})
_EDGES = " \t\r\n*\u00a0"
# Not the second half of a matrix's row end.
_SPACING = re.compile(r"(?<!\\)\\[,;:!> ]|\\q?quad(?![a-zA-Z])|~|[\s\u2000-\u200b\u202f]+")
_SIZES = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_WHOLE_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}\\]*)\}")


def normalise(answer: str) -> str:
    """One spelling for the same answer: no decoration, numbers in their shortest form.

    >>> normalise(" **1,024.0**. "), normalise("$-0$")
    ('1024', '0')
    """
    while True:
        # Until nothing changes: a decoration may stand within another.
        stripped = _undecorated(answer)
        if stripped == answer:
            break
        answer = stripped
    if not answer or not _NUMBER.fullmatch(answer.translate(_MINUS)):
        return answer
    try:
        number = Decimal(answer.translate(_MINUS).replace(",", ""))
    except InvalidOperation:
        return answer
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text.removeprefix("+")


def exact_key(answer: str) -> str:
    r"""What two answers share when they are equal as written: spacing and sizes put aside.

    >>> exact_key(r"\left( 3, \dfrac{\pi}{2} \right)") == exact_key(r"(3,\frac{\pi}{2})")
    True
    """
    answer = normalise(answer)
    if whole := _WHOLE_TEXT.fullmatch(answer):
        answer = whole[1]
    answer = _SIZES.sub("", _FRACTIONS.sub(r"\\frac", answer))
    # Words keep one space; what stands beside anything else than two letters has none.
    answer = _SPACING.sub(" ", answer).strip()
    answer = re.sub(r"(?<![a-zA-Z]) | (?![a-zA-Z])", "", answer)
    # Without its spaces, the list 32, 349 would be a number.
    return answer if "," in answer else normalise(answer)


def _undecorated(answer: str) -> str:
    answer = answer.strip(_EDGES).rstrip(_EDGES + ".。")
    if "$" not in (inner := answer.strip("$")) and not inner.endswith("\\"):
        answer = inner
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if answer.startswith(opening) and answer.find(closing) == len(answer) - 2:
            answer = answer[2:-2]
    return answer
