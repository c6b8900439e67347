"""Callers' patterns: what is let through runs in linear time, the rest says what to write."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.errors import InvalidInput
from prm.patterns import safe_pattern

MEGABYTE = 1_000_000

USEFUL = [
    r"\n+",
    r"\n{2,}",
    r"\n(?=Step \d+[:.])",
    r"^[ \t]*(?:\*\*)?(?:Step|STEP)[ \t]*\d+[ \t]*[:.]",
    r"^#{1,6} ",
    r"(?<=[.!?])\s+",
    r"\n[ \t]*\n",
    r"\n\s{0,20}\n",
    r"(?i)\n(?=step \d{1,3})",
    r"</?think>|\n\n+",
    r"\n[^\n]*:\n",
    r"\n\d{1,2}[.)]\s",
    r"[。;]|\n-{3,20}\n",
]

SLOW_OR_WRONG = {
    r"(a+)+b": "repeats a group",
    r"(?:a*)*b": "repeats a group",
    r"(?:\n[ \t]*)+": "repeats a group",
    r"(a|aa)+b": "repeats a group",
    r"a*a*b": "without a bound is slow",
    r"\s+x": "without a bound is slow",
    r"^\s*x": "without a bound is slow",
    r"\n\s*\n": "without a bound is slow",
    r".*:": "without a bound is slow",
    r"(?:x|)y*z": "without a bound is slow",
    r"(?:x[ab])?[ab]*z": "without a bound is slow",
    r"x(?=\s+)": None,  # guarded by x: each run of blanks has its own
    r"\s(?=\s+)": "without a bound is slow",
    r"(?i)K[k]*x": "without a bound is slow",
    r"(?:a?){20}b": "more than",
    r"a{0,30}a{0,30}b": "more than",
    r"[^b]{1000}b": "more than",
    r"((a{9}){9}){9}": "more than",
    r"(.)\1": "refers back",
    r"(?P<q>.)x(?P=q)": "refers back",
    r"(a)?(?(1)b|c)": "refers back",
    r"(?i:a)b": "changes flags",
    r"a?": "empty string",
    r"": "empty string",
    r"^": "empty string",
    r"(?=Step)": "empty string",
    r"(": "unterminated",
    r"[": "unterminated",
    r"*": "nothing to repeat",
    r"a{3,1}": "min repeat greater",
    r"[[a]": "nested set",
    r"(?<=a+)b": "without a bound is slow",
    r"a(?i)": "flags",
    "(" * 200: "unterminated",
    "a" * 300: "300 characters",
    r"a{99999999999999999999}": "too large",
}


@pytest.mark.parametrize("pattern", USEFUL)
def test_a_useful_pattern_is_let_through(pattern: str) -> None:
    assert safe_pattern(pattern).pattern == pattern


@pytest.mark.parametrize("pattern", SLOW_OR_WRONG)
def test_a_pattern_that_may_be_slow_or_makes_no_sense_is_refused(pattern: str) -> None:
    reason = SLOW_OR_WRONG[pattern]
    if reason is None:
        safe_pattern(pattern)
        return
    with pytest.raises(InvalidInput, match=reason) as caught:
        safe_pattern(pattern)
    assert caught.value.param == "segmentation.pattern"


def test_carets_match_at_line_starts() -> None:
    assert len(safe_pattern(r"^\d\. ").findall("1. a\n2. b\nx 3. c")) == 2


# What a pattern is made of, small enough that many are let through and nasty enough that many of
# these would be quadratic without the judgement.
_atoms = st.sampled_from(["a", "b", " ", r"\n", r"\s", r"\d", ".", "[ab]", "[^a]", "^", r"\w"])
_repeats = st.sampled_from(["", "", "", "*", "+", "?", "{0,9}", "{2,}", "*?", "++"])
_pieces = st.builds(lambda atom, repeat: atom + ("" if atom == "^" else repeat), _atoms, _repeats)
_patterns = st.recursive(
    st.lists(_pieces, min_size=1, max_size=4).map("".join),
    lambda inner: st.builds(
        lambda opening, left, right, repeat, after: f"{opening}{left}|{right}){repeat}{after}",
        st.sampled_from(["(?:", "(", "(?=", "(?!"]),
        inner,
        inner,
        st.sampled_from(["", "", "?", "{1,3}"]),
        inner,
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(deadline=None)
@given(_patterns, st.sampled_from(["a", " ", "\n", "ab", "a ", "\n ", "a\n", "aab \n"]))
def test_whatever_is_let_through_is_linear(pattern: str, unit: str) -> None:
    try:
        allowed = safe_pattern(pattern)
    except InvalidInput:
        return
    text = unit * (MEGABYTE // 4 // len(unit))
    started = time.process_time()
    for _ in allowed.finditer(text):
        pass
    # A quadratic walk of this text takes minutes; the bound itself allows an eighth of a second.
    assert time.process_time() - started < 1.0


@given(_patterns)
def test_a_refusal_names_the_field_and_never_escapes_as_another_error(pattern: str) -> None:
    try:
        allowed = safe_pattern(pattern)
    except InvalidInput as error:
        param = error.param
    else:
        param = "segmentation.pattern"
        assert allowed.match("") is None
    assert param == "segmentation.pattern"
