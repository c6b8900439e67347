"""Final answers out of text, and votes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.answers import count_votes, extract_answer, normalise
from search.types import Candidate


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3+4=7\nAnswer: 7", "7"),
        ("so the answer is 42.", "42"),
        ("**Final answer:** $x+1$", "x+1"),
        (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"The answer is 3, that is \boxed{4}", "4"),
        ("Answer: 1\nwait\nAnswer: 2", "2"),
        ("answer = -3.50", "-3.5"),
        ("Answer: 1,024", "1024"),
        ("The answer is **5.**", "5"),
        ("Answer: 123456789012345678901234567891", "123456789012345678901234567891"),
        ("3+4=7", None),
        ("Answer:", None),
        (r"\boxed{unclosed", None),
        ("Answer: " + "x" * 300, None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_found(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@given(st.integers(-(10**12), 10**12))
def test_spellings_of_an_integer_agree(number: int) -> None:
    spellings = [f"{number}", f"{number:,}", f"{number}.0", f" ${number}$. "]
    assert {normalise(text) for text in spellings} == {str(number)}


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    extract_answer(text)
    assert normalise(normalise(text)) == normalise(text)


def test_a_bomb_of_boxes_takes_no_time() -> None:
    assert extract_answer(r"\boxed{" * 100_000 + "}" * 100_000) is None


def candidate(index: int, answer: str | None, score: float | None) -> Candidate:
    return Candidate(index=index, answer=answer, score=score)


def test_votes_are_counted_and_weighed() -> None:
    votes = count_votes(
        [
            candidate(0, "9", 0.2),
            candidate(1, "8", 0.9),
            candidate(2, "9", 0.3),
            candidate(3, None, 0.9),
            candidate(4, "7", None),
        ]
    )
    assert [(v.answer, v.count) for v in votes] == [("9", 2), ("8", 1), ("7", 1)]
    assert [v.weight for v in votes] == pytest.approx([0.5, 0.9, 0.0])


def test_unscored_votes_have_no_weight() -> None:
    assert count_votes([candidate(0, "9", None)])[0].weight is None
