"""Text ↔ steps: what goes in comes back out, and blank steps are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.errors import InvalidInput
from prm.steps import cut_steps, join_steps

step_texts = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8)


@given(step_texts, st.sampled_from(["\n", "\n\n", " ки\n"]))
def test_offsets_of_joined_steps_give_the_steps_back(steps: list[str], separator: str) -> None:
    response, placed = join_steps(steps, separator)
    assert [response[s.char_start : s.char_end] for s in placed] == steps
    assert response == separator.join(steps)


@given(st.text(), st.sampled_from(["\n", "\n\n", "ab"]))
def test_cutting_loses_nothing_but_separators_and_white_space(text: str, separator: str) -> None:
    if not text.replace(separator, "").strip():
        return
    steps = cut_steps(text, separator)
    position = 0
    for step in steps:
        assert text[step.char_start : step.char_end] == step.text
        assert not text[position : step.char_start].replace(separator, "").strip()
        assert step.text.strip()
        assert separator not in step.text
        position = step.char_end
    assert not text[position:].replace(separator, "").strip()


@given(step_texts)
def test_cutting_undoes_joining(steps: list[str]) -> None:
    steps = [step.replace("\n", " ").strip() for step in steps]
    response, placed = join_steps(steps, "\n")
    assert cut_steps(response, "\n") == placed


@pytest.mark.parametrize("steps", [[], [""], ["a", " \t"]])
def test_no_step_and_blank_steps_are_refused(steps: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        join_steps(steps, "\n")
    assert caught.value.param in ("steps", "steps[0]", "steps[1]")


@pytest.mark.parametrize("text", ["", "\n\n", "  \n "])
def test_text_without_a_step_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no step"):
        cut_steps(text, "\n")
