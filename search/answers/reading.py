r"""What an answer says: its sympy expressions, or its words. Runs in a worker process only.

An answer comes as it was extracted, so usually without dollars. It is read as the first of these
that it can be: words; a plain number; a plain expression (`plain.py`); LaTeX (math-verify).
"""

import re
from dataclasses import dataclass
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

from search.answers.fingerprint import Fingerprint, fingerprint_of
from search.answers.plain import NotPlain, read_plain

_LATEX = LatexExtractionConfig()
_EXPRESSION = ExprExtractionConfig()
_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s?\{")
_NUMBER = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:[ ,]\d{3})+|\d+)?(?:\.\d+)?\s?%?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_WORDS = re.compile(r"[^\W\d_][^\d\\^_{}=<>+*/]*")
_AMOUNT = re.compile(r"(?P<number>[-+]?[\d.,/]+)\s+(?!percent|pct|and |or )[A-Za-z][A-Za-z. ]{2,}")
_NOT_WORDS = frozenset(
    [
        "sqrt",
        "infinity",
        "inf",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "pi",
        "alpha",
        "beta",
        "gamma",
        "theta",
        "lambda",
    ]
)
_PLAIN = re.compile(r"[-+*/^().,\w\s]+", re.ASCII)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_ROOT = re.compile(r"√\s?(?:\((?P<group>[^()]*)\)|(?P<word>\w+(?:\.\d+)?))")
_UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∕": "/", "⁄": "/",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "°": r"^\circ ", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "，": ",", "（": "(", "）": ")",
    "％": "%",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)


@dataclass(frozen=True, slots=True)
class Reading:
    """`words` for a text (one case, one spacing); else `expressions`, any of which is meant.

    Both empty: it could not be read. `print` is None where no fingerprint can be taken.
    """

    words: str | None
    expressions: tuple[Any, ...]
    print: Fingerprint | None


_MAX_REMEMBERED = 2048
_readings: dict[str, Reading] = {}


def is_read(answer: str) -> bool:
    """Whether `read` has it at hand."""
    return answer in _readings


def read(answer: str) -> Reading:
    """Read one answer; remembered, since a search asks about the same ones again."""
    if answer not in _readings:
        while len(_readings) >= _MAX_REMEMBERED:
            _readings.pop(next(iter(_readings)))
        _readings[answer] = _read(answer)
    return _readings[answer]


def _read(answer: str) -> Reading:
    text = _from_unicode(answer)
    words = _words(text)
    if words is not None:
        return Reading(words, (), None)
    expressions = tuple(_expressions(text))
    only = expressions[0] if len(expressions) == 1 else None
    return Reading(None, expressions, None if only is None else fingerprint_of(only))


def _expressions(text: str) -> list[Any]:
    if _DELIMITED.search(text):
        return _parsed(text, [_LATEX, _EXPRESSION])
    if amount := _AMOUNT.fullmatch(text):
        text = amount["number"]
    if _DECIMAL_COMMA.fullmatch(text):
        # 1,22 is one number in half of the world and a list in the other half.
        return _parsed(f"${text}$", [_LATEX]) + _parsed(text, [_EXPRESSION])
    if _NUMBER.fullmatch(text):
        return _parsed(text, [_EXPRESSION])
    if _PLAIN.fullmatch(text) and len(text) > 1:
        try:
            return [read_plain(text)]
        except NotPlain:
            pass
    one_line = " ".join(text.split())
    return _parsed(f"${one_line}$", [_LATEX]) or _parsed(text, [_EXPRESSION])


def _parsed(text: str, forms: list[Any]) -> list[Any]:
    """math-verify's expressions, without the string that it adds for when nothing is read."""
    # The deadline is kept outside, by killing this process: `signal.alarm` stops no C code.
    parsed = parse(text, forms, parsing_timeout=None)
    return [item for item in parsed if not isinstance(item, str)]


def _words(text: str) -> str | None:
    """The text in lower case if it is words and no mathematics, else None."""
    # What latex2sympy makes of a word is the product of its letters, in which order is no matter.
    inner = _TEXT_COMMAND.sub("{", text).replace("{", "").replace("}", "").strip("$ .")
    if not _WORDS.fullmatch(inner):
        return None
    words = _WORD.findall(inner)
    if not words or any(word.lower() in _NOT_WORDS for word in words):
        return None
    return " ".join(inner.casefold().split())


def _from_unicode(text: str) -> str:
    # A currency, not the edge of a formula.
    text = text.replace(r"\$", "")
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root['group'] or root['word']}}}", text)
    return text.translate(_UNICODE_TABLE).strip()
