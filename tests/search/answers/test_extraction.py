"""Final answers out of text: where they stand, what is left of them, and hostile texts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.errors import InvalidInput
from search.answers import Extraction, extract_answer, normalise
from search.answers.normal import exact_key

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{wrong}, final \boxed{42}", "42"),
        (r"\boxed{7} and then \boxed{cut off", "7"),
        (r"\fbox{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{-2} \quad \text{and} \quad \boxed{1}", "-2, 1"),
        (r"$\boxed{1}$, $\boxed{2}$", "1, 2"),
        ("The answer is 5. I hope it is correct.", "5"),
        ("The answer is $x+1$, since 2 > 1.", "x+1"),
        (r"Final Answer: \(\frac{3}{4}\)", r"\frac{3}{4}"),
        ("**Answer:** 12 apples", "12 apples"),
        ("Réponse : 3", "3"),
        ("答案是：42。", "42"),
        ("la respuesta es −3", "-3"),
        ("Answer: ٣", "3"),
        ("Answer: 0,111", "0,111"),
        ("Answer:\n\n8", "8"),
        ("answer is 3\nanswer is", "3"),
        # An intermediate box, and what the text ends with.
        (r"interest \boxed{200} ... Final Answer: The final answer is $10,455$. I hope", "10455"),
        (r"\boxed{3} **Final answer:** -3.5", "-3.5"),
        (r"\boxed{4}. The final answer is (2, 3)", "(2, 3)"),
        (r"The final answer is $\boxed{5}$.", "5"),
        (r"\boxed{5}. The final answer is above.", "5"),
        (r"\boxed{5}. So the answer is 6 apples too many", "5"),
    ],
)
def test_a_stated_answer_is_found(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7", "7"),
        ("about 1,234.50 metres", "1234.5"),
        ("the share is 13/28", "13/28"),
        ("we get $x = 2$.", "x = 2"),
        ("we get $x = 2$, in all 9", "9"),
        ("no number", None),
    ],
)
def test_the_last_number_is_taken_only_when_asked_for(text: str, answer: str | None) -> None:
    assert extract_answer(text) is None
    assert extract_answer(text, Extraction(last_number=True)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\text{(B)}}", "B"),
        ("It's not A, therefore I think it's B", "B"),
        ("The answer is for sure D, it can't be A or B", "D"),
        ("D. it can't be A or B", "D"),
        ("B不是 A", "B"),
        ("Answer: E", None),
    ],
)
def test_a_choice_is_a_letter_that_stands_alone(text: str, answer: str | None) -> None:
    assert extract_answer(text, Extraction(choices="ABCD")) == answer


def test_a_task_s_own_pattern_alone_decides() -> None:
    task = Extraction(pattern=r"#### (?P<answer>[^\n]{1,50})")
    assert extract_answer("#### 5\n\\boxed{1}\n#### 1,250", task) == "1250"
    assert extract_answer(r"\boxed{1}", task) is None
    assert extract_answer("x=3;", Extraction(pattern=r"x=\d")) == "x=3"


@pytest.mark.parametrize("pattern", ["(a+)+b", r"\s+x", "(", ".*"])
def test_a_pattern_that_may_be_slow_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Extraction(pattern=pattern)
    assert caught.value.param == "answers.pattern"


@pytest.mark.parametrize("choices", ["", "A", "abc", "A|B"])
def test_choices_that_are_no_letters_are_refused(choices: str) -> None:
    with pytest.raises(InvalidInput, match="letters of a multiple choice"):
        Extraction(choices=choices)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * (MIB // 7),
        r"\boxed{" * 70_000 + "}" * 70_000,
        "{" * MIB,
        "}" * MIB,
        "\\" * MIB,
        "answer is " * (MIB // 10),
        "answer is" + "\n" * MIB,
        "answer is" + " " * MIB + "x",
        "$" * MIB,
        "$a" * (MIB // 2),
        r"\(" * (MIB // 2),
        r"\[" * (MIB // 2),
        "1," * (MIB // 2),
        "9" * MIB,
        "." * MIB,
        "a " * (MIB // 2),
        r"\frac{" * (MIB // 6),
        r"\boxed{1} " * (MIB // 10),
        "A" * MIB,
        "answer A" * (MIB // 8),
    ],
)
def test_a_megabyte_of_anything_takes_little_time(text: str) -> None:
    for extraction in (
        Extraction(last_number=True),
        Extraction(choices="ABCD"),
        Extraction(pattern=r"#### (\d{1,9})"),
    ):
        started = time.process_time()
        extract_answer(text, extraction)
        # Linear work takes 0.1 to 0.4 s; quadratic work would take hours.
        assert time.process_time() - started < 4


@given(st.text(alphabet="\\boxed{}$()[] answeris:.,1A\n*", max_size=120))
def test_any_text_is_survived(text: str) -> None:
    for extraction in (Extraction(last_number=True), Extraction(choices="AB")):
        answer = extract_answer(text, extraction)
        assert answer is None or normalise(answer) == answer


@pytest.mark.parametrize(
    "spellings",
    [
        [r"\left( 3, \dfrac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", r"$(3,\ \tfrac{\pi}{2})$"],
        [r"\text{Evelyn}", "Evelyn", "**Evelyn**."],
        ["2 x + 1", "2x+1", r"\(2x + 1\)"],
        ["1,000", "1000.0", "+1000", "１０００"],
    ],
)
def test_spellings_of_one_answer_have_one_key(spellings: list[str]) -> None:
    assert len({exact_key(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("32, 349", "32,349"), ("0,111", "111"), ("no one", "noone"), ("a", "A")]
)
def test_different_answers_keep_their_difference(one: str, other: str) -> None:
    assert exact_key(one) != exact_key(other)
