"""Raw text → steps: exact offsets in every mode, and the cuts that a reader would make."""

import gzip
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.blocks import blocks
from prm.errors import InvalidInput
from prm.segmentation import MAX_STEPS, CutRule, Mode, segment
from prm.steps import cut_steps
from prm.types import Step

DATA = Path(__file__).parents[3] / "shared" / "data"
MODES: tuple[Mode, ...] = get_args(Mode)
KEEPS_BLOCKS_WHOLE: tuple[Mode, ...] = ("newline", "numbered", "code", "thinking")
PATTERN = r"\n(?=Step)|^[ \t]*---|;"


def rule(mode: Mode, separator: str = "\n\n", pattern: str = PATTERN) -> CutRule:
    return CutRule(mode=mode, separator=separator, pattern=pattern if mode == "regex" else None)


def cut(text: str, mode: Mode, separator: str = "\n\n", pattern: str = PATTERN) -> list[str]:
    return [step.text for step in segment(text, rule(mode, separator, pattern))]


# Texts made of everything that any mode looks at, so that marks meet in odd places.
_marks = st.sampled_from(
    [
        *("\n", "\n\n", "\r\n", "\r\n\r\n", " ", "\t", "\u2028", "\r", "\n \n", "\x1c", "\u00a0"),
        *("```", "```py\n", "~~~", "\n```\n", "- ```\n", "`"),
        *("\\[", "\\]", "$$", "$", "\\\\[2pt]", "\\$", "\\", "[asy]", "[/asy]"),
        *("\\begin{align*}", "\\end{align*}", "\\begin{cases}", "\\end{cases}", "\\begin{proof}"),
        *(
            "\n1. ",
            "\n2. ",
            "\n3) ",
            "\n(1) ",
            "\nStep 1: ",
            "\n**Step 2**",
            "\n### 1. ",
            "\n  1. ",
        ),
        *(
            "<think>",
            "</think>",
            "<thinking>",
            ";",
            "---",
            "Step",
            "e\u0301",
            "👩‍👩‍👧",
            "a",
            "7*2=14",
        ),
    ]
)
texts = st.lists(_marks | st.text(max_size=5), max_size=40).map("".join)


def gaps(text: str, steps: tuple[Step, ...]) -> Iterator[str]:
    position = 0
    for step in steps:
        assert position <= step.char_start, "steps overlap or are out of order"
        yield text[position : step.char_start]
        position = step.char_end
    yield text[position:]


def without_separators(gap: str, mode: Mode) -> str:
    separators = {
        "auto": r"\n\n",
        "delimiter": r"\n\n",
        "thinking": r"</?think(ing)?>",
        "regex": rf"(?m){PATTERN}|---",
    }
    return re.sub(separators[mode], "", gap) if mode in separators else gap


@pytest.mark.parametrize("mode", MODES)
@given(text=texts)
def test_slices_give_the_steps_and_only_separators_lie_between(mode: Mode, text: str) -> None:
    try:
        steps = segment(text, rule(mode))
    except InvalidInput:
        steps = ()  # and then the one gap is the whole text
    assert [step.index for step in steps] == list(range(len(steps)))
    for step in steps:
        assert text[step.char_start : step.char_end] == step.text
        assert step.text.strip()
    for gap in gaps(text, steps):
        assert not without_separators(gap, mode).strip()


@pytest.mark.parametrize("mode", KEEPS_BLOCKS_WHOLE)
@given(text=texts)
def test_no_block_is_cut(mode: Mode, text: str) -> None:
    try:
        steps = segment(text, rule(mode))
    except InvalidInput:
        return
    if mode == "thinking" and re.search(r"</?think(ing)?>", text):
        return  # a tag cuts wherever it stands
    for start, end in blocks(text):
        ends = [step.char_end for step in steps if start < step.char_end < end]
        # White space at a block's end may be left out, and code mode cuts around fences.
        inside = [at for at in ends if text[at:end].strip()]
        assert not inside or mode == "code"


@pytest.mark.parametrize("mode", ["delimiter", "newline", "code", "regex"])
@given(text=texts)
def test_a_step_that_is_cut_again_stays_whole(mode: Mode, text: str) -> None:
    if mode in ("newline", "code") and blocks(text):
        return  # a step may hold one end of what were two blocks
    if mode == "regex" and "Step" in text:
        return  # what a pattern sees ahead is not there any more
    try:
        steps = segment(text, rule(mode))
    except InvalidInput:
        return
    for step in steps:
        if mode == "regex" and "---" in step.text:
            continue  # now at the start of a line
        assert [again.text for again in segment(step.text, rule(mode))] == [step.text]


@given(text=texts, separator=st.sampled_from(["\n", "\n\n", "a", ";", " "]))
def test_auto_cuts_as_ever_where_the_separator_is(text: str, separator: str) -> None:
    if separator not in text:
        return
    try:
        expected = cut_steps(text, separator)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            segment(text, rule("auto", separator))
    else:
        assert segment(text, rule("auto", separator)) == expected
        assert segment(text, rule("delimiter", separator)) == expected


def test_auto_without_the_separator_finds_blank_lines_then_numbers_then_nothing() -> None:
    assert cut("a\r\n\r\nb\r\n \r\nc\r\n", "auto") == ["a", "b", "c"]
    assert cut("## Step 1: a\nb\n## Step 2: c", "auto") == ["## Step 1: a\nb", "## Step 2: c"]
    assert cut("a\n1. b", "auto") == ["a\n1. b"], "one number is no list"
    assert cut("3+4=7\n7*2=14\n", "auto") == ["3+4=7\n7*2=14\n"]
    assert cut("a\n\nb", "auto", separator=" ки\n") == ["a", "b"]
    assert cut("\\[\r\na\r\n\r\nb\r\n\\]", "auto") == ["\\[\r\na\r\n\r\nb\r\n\\]"]


def test_delimiter_cuts_through_everything() -> None:
    assert cut("\\[a\n\nb\\]\n\n\n\nc ", "delimiter") == ["\\[a", "b\\]", "c "]


def test_newline_cuts_at_line_ends_and_keeps_blocks() -> None:
    text = "Add:\r\n\\[\r\n3+4\r\n\\]\r\n\r\nso  7\nx\u2028y\n"
    assert cut(text, "newline") == ["Add:", "\\[\r\n3+4\r\n\\]", "so  7", "x\u2028y"]


NUMBERED: dict[str, tuple[str, list[str]]] = {
    "dots": ("1. a\n2. b\n\nc\n3. d\n", ["1. a", "2. b\n\nc", "3. d"]),
    "brackets": ("1) a\n2) b", ["1) a", "2) b"]),
    "two brackets": ("(1) a\n(2) b", ["(1) a", "(2) b"]),
    "before the list": ("We add.\n\n1. a\n2. b", ["We add.", "1. a", "2. b"]),
    "ten after nine": (
        "Step 9: a\nStep 10: b\nStep 11. c",
        ["Step 9: a", "Step 10: b", "Step 11. c"],
    ),
    "ten items": (
        "\n".join(f"{n}. x" for n in range(1, 12)),
        [f"{n}. x" for n in range(1, 12)],
    ),
    "bold": ("**Step 1**: a\n**Step 2:** b", ["**Step 1**: a", "**Step 2:** b"]),
    "bold items": ("**1.** a\n**2.** b", ["**1.** a", "**2.** b"]),
    "headings": ("### Step 1 - a\nb\n### Step 2", ["### Step 1 - a\nb", "### Step 2"]),
    "prose about steps": (
        "Step 1: a\nStep 2 is hard\nStep 2: b",
        ["Step 1: a\nStep 2 is hard", "Step 2: b"],
    ),
    "substeps": ("Step 1: a\nStep 1.1: b\nStep 2: c", ["Step 1: a\nStep 1.1: b", "Step 2: c"]),
    "apples": ("1. We buy\n3. 5 apples\n2. Done", ["1. We buy\n3. 5 apples", "2. Done"]),
    "decimals": ("1. a\n2.5 apples\n2. b", ["1. a\n2.5 apples", "2. b"]),
    "not at the line's start": ("1. a and 2. b\n2. c", ["1. a and 2. b", "2. c"]),
    "no number": ("3+4=7\n7*2=14", ["3+4=7\n7*2=14"]),
    "a list inside an item": (
        "1. a\n   1. x\n   2. y\n2. b\n   1. z",
        ["1. a\n   1. x\n   2. y", "2. b\n   1. z"],
    ),
    "a list inside a step": (
        "Given:\n1. x\n2. y\nStep 1: a\n1. p\n2. q\nStep 2: b",
        ["Given:\n1. x\n2. y", "Step 1: a\n1. p\n2. q", "Step 2: b"],
    ),
    "a plain list under headings": (
        "### 1. A\n1. x\n2. y\n### 2. B",
        ["### 1. A\n1. x\n2. y", "### 2. B"],
    ),
    "right-aligned": (" 1. a\n 2. b", ["1. a", "2. b"]),
    "CRLF": ("1. a\r\n2. b\r\n", ["1. a", "2. b"]),
    "inside a fence": ("1. a\n```\n2. x\n```\n2. b", ["1. a\n```\n2. x\n```", "2. b"]),
    "an item that is a fence": ("1. ```\n2. x\n   ```\n2. b", ["1. ```\n2. x\n   ```", "2. b"]),
    "inside a display": ("1. a\n$$\n2. x\n$$\n2. b", ["1. a\n$$\n2. x\n$$", "2. b"]),
    "full-width colon": ("Step 1:a\nStep 2:b", ["Step 1:a", "Step 2:b"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERED)
def test_numbered(name: str) -> None:
    text, expected = NUMBERED[name]
    assert cut(text, "numbered") == expected


BLOCKS: dict[str, tuple[str, list[str]]] = {
    "a fence is a step": ("a\n```py\nx\n\ny\n```\nb\n\nc", ["a", "```py\nx\n\ny\n```", "b", "c"]),
    "an open fence": ("a\n~~~\nx\n\ny\n", ["a", "~~~\nx\n\ny"]),
    "a fence in a fence": ("````\n```\n\nx\n````\nb", ["````\n```\n\nx\n````", "b"]),
    "other marks do not close": ("```\n~~~\n\n```\nb", ["```\n~~~\n\n```", "b"]),
    "info does not close": ("```\n```py\n\n```\nb", ["```\n```py\n\n```", "b"]),
    "code on one line": ("```x``` is\n\nno fence", ["```x``` is", "no fence"]),
    "CRLF": ("a\r\n```\r\nx\r\n\r\n```\r\nb", ["a", "```\r\nx\r\n\r\n```", "b"]),
    "brackets": ("a\n\n\\[\nx\n\ny\n\\]\n\nb", ["a", "\\[\nx\n\ny\n\\]", "b"]),
    "dollars": ("$$\nx\n\ny\n$$\n\nb", ["$$\nx\n\ny\n$$", "b"]),
    "nested environments": (
        "\\begin{align}\n\\begin{cases}\n\nx\n\\end{cases}\n\ny\n\\end{align}\n\nb",
        ["\\begin{align}\n\\begin{cases}\n\nx\n\\end{cases}\n\ny\n\\end{align}", "b"],
    ),
    "the same environment nested": (
        "\\begin{array}\n\\begin{array}\n\\end{array}\n\n\\end{array}\n\nb",
        ["\\begin{array}\n\\begin{array}\n\\end{array}\n\n\\end{array}", "b"],
    ),
    "a proof is prose": (
        "\\begin{proof}\na\n\nb\n\\end{proof}",
        ["\\begin{proof}\na", "b\n\\end{proof}"],
    ),
    "a diagram": ("[asy]\nx;\n\ny;\n[/asy]\n\nb", ["[asy]\nx;\n\ny;\n[/asy]", "b"]),
    "never closed": ("\\[ a\n\n$$ b\n\n\\begin{align} c", ["\\[ a", "$$ b", "\\begin{align} c"]),
    "never closed, then closed": ("\\[ a\n\nb\n\n\\[\n\n\\]", ["\\[ a", "b", "\\[\n\n\\]"]),
    "line breaks are no brackets": ("x\\\\[2pt]\n\ny\\]", ["x\\\\[2pt]", "y\\]"]),
    "inline side by side": ("$a$$b$\n\n$c$$d$", ["$a$$b$", "$c$$d$"]),
    "money": ("It is $5, so $$\nx\n\ny\n$$", ["It is $5, so $$\nx\n\ny\n$$"]),
    "escaped dollars": ("\\$$a$\n\n\\$$b$", ["\\$$a$", "\\$$b$"]),
    "latex marks in code": ("```\n\\[\n```\na\n\nb \\]", ["```\n\\[\n```", "a", "b \\]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_code_keeps_what_belongs_together(name: str) -> None:
    text, expected = BLOCKS[name]
    assert cut(text, "code") == expected


THINKING: dict[str, tuple[str, list[str]]] = {
    "thought and answer": (
        "<think>\nHm.\n\nWait, no.\n</think>\n\nIt is 14.\n\nDone.",
        ["Hm.", "Wait, no.", "It is 14.", "Done."],
    ),
    "the prompt opened it": ("Hm.\n</think>\n14", ["Hm.", "14"]),
    "cut off": ("<think>Hm.\n\nWa", ["Hm.", "Wa"]),
    "nothing thought": ("<think>\n\n</think>\n\n14", ["14"]),
    "the other word": ("<thinking>a</thinking>b", ["a", "b"]),
    "a display": ("<think>\\[\n\nx\n\\]</think>b", ["\\[\n\nx\n\\]", "b"]),
    "a fence left open in the thought": (
        "<think>a\n```\nx\n\ny</think>b\n\n```py\nz\n```",
        ["a\n```\nx\n\ny", "b", "```py\nz\n```"],
    ),
    "short pieces stay": ("Hm.\n\nOk.\n\nSo", ["Hm.", "Ok.", "So"]),
}


@pytest.mark.parametrize("name", THINKING)
def test_thinking(name: str) -> None:
    text, expected = THINKING[name]
    assert cut(text, "thinking") == expected


def test_regex_cuts_at_matches_and_trims() -> None:
    assert cut("a ;b; c\nStep 1", "regex") == ["a", "b", "c", "Step 1"]
    assert cut("Step 1 a\nStep 2 b", "regex", pattern=r"^Step \d+") == ["a", "b"]
    assert cut("abc", "regex", pattern="x") == ["abc"]


def test_regex_without_a_safe_pattern_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        cut("aaa", "regex", pattern="(a+)+b")
    assert caught.value.param == "segmentation.pattern"


@pytest.mark.parametrize("mode", MODES)
def test_offsets_count_characters_not_bytes_or_glyphs(mode: Mode) -> None:
    text = "👩‍👩‍👧 e\u0301 ∑\u2028x\n\n\n\nStep 1: ß 7\u20e3"
    steps = segment(text, rule(mode))
    assert "".join(s.text for s in steps).replace("\n", "") == text.replace("\n", "")
    assert steps[-1].char_end == len(text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", ["", " \n\n\t", "\u2028\n\n"])
def test_a_text_without_a_step_is_refused(mode: Mode, text: str) -> None:
    with pytest.raises(InvalidInput, match="no step"):
        segment(text, rule(mode))


def test_more_steps_than_a_request_may_list_are_refused() -> None:
    assert len(cut("a\n" * MAX_STEPS, "newline")) == MAX_STEPS
    with pytest.raises(InvalidInput, match=str(MAX_STEPS + 1)):
        segment("a\n" * (MAX_STEPS + 1), rule("newline"))


HOSTILE = ["$", "`", "\\["]
MORE_HOSTILE = [
    *("\\", "\\begin{a}", "\\begin{a}\\end{a}", "$a", "$$\n\n", "\\[\n\n", "```\n", "- ```\n"),
    *("\n", "\n ", " ", "\r", "a\n\n", "<think>", "<think>a\n\nb", "1.\n", "Step 1:\n", "(1) \n"),
    *("# ", "> ", "[asy]", "`$$\n", "9", "-", "a"),
]


def assert_linear(unit: str, mode: Mode) -> None:
    # The last lines hold a cut for every mode, so that none can stop before it looked for blocks.
    text = unit * ((1_000_000 - 20) // len(unit)) + "\n\nx\n1. a\n2. b\n"
    taken = []
    for _ in range(2):
        started = time.process_time()
        with suppress(InvalidInput):  # too many steps, found after the work was done
            segment(text, rule(mode))
        taken.append(time.process_time() - started)
        if taken[-1] < 1.0:
            return
    raise AssertionError(f"a megabyte of {unit!r} takes {min(taken):.1f} s in mode {mode}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", HOSTILE)
def test_a_hostile_megabyte_takes_less_than_a_second(unit: str, mode: Mode) -> None:
    assert_linear(unit, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", MORE_HOSTILE)
def test_other_hostile_megabytes_take_less_than_a_second(unit: str, mode: Mode) -> None:
    assert_linear(unit, mode)


def rows(path: str) -> list[dict[str, Any]]:
    file = DATA / path
    if not file.exists():
        pytest.skip(f"needs {path} in ../shared/data, which is not here")
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_no_display_or_diagram_of_the_math_solutions_is_cut() -> None:
    solutions = [row["solution"] for row in rows("math/math_test_minus_math500.jsonl")]
    pairs = [("[asy]", "[/asy]"), ("\\begin{align*}", "\\end{align*}"), ("\\[", "\\]")]
    cut_by_delimiter = 0
    for solution in solutions:
        for mode in KEEPS_BLOCKS_WHOLE:
            for text in cut(solution, mode):
                text = text.replace("\\\\[", "")
                assert all(text.count(left) == text.count(right) for left, right in pairs), text
        if "\n\n" in solution:
            cut_by_delimiter += any(
                text.count("[asy]") != text.count("[/asy]") for text in cut(solution, "delimiter")
            )
    assert cut_by_delimiter > 100, "the data no longer shows what the blocks are for"


def test_numbered_and_auto_agree_with_how_real_candidates_were_written_and_scored() -> None:
    candidates = [
        candidate
        for row in rows("bestofn/pool_math500/pool_rows_000_099.jsonl.gz")
        for candidate in row["candidates"]
    ]
    as_scored = as_numbered = rising = 0
    for candidate in candidates:
        text = candidate["completion"]
        as_scored += len(cut(text, "auto")) == len(candidate["step_scores"])
        numbers = [int(number) for number in re.findall(r"^## Step (\d+):", text, re.MULTILINE)]
        if numbers and numbers == sorted(set(numbers)):
            rising += 1
            before = not text.startswith("## Step")
            as_numbered += len(cut(text, "numbered")) == len(numbers) + before
    # The rest holds no blank line at all, or writes "## Step Step 1" and the like.
    assert as_scored >= 0.99 * len(candidates)
    assert as_numbered >= 0.99 * rising > 2000
