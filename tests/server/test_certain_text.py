"""What is certain of an answer, on searches drawn at random: never wrong, never late."""

from os.path import commonprefix

from hypothesis import given
from hypothesis import strategies as st

from server.certain_text import CertainText
from server.schemas.search import EventOut

STEPS = st.sampled_from(["a\n", "b\n", "ab\n", ""])


def expanded(candidate: int, text: str, parent: int | None, round_: int) -> EventOut:
    return EventOut(type="expanded", round=round_, candidate=candidate, parent=parent, text=text)


@given(st.data())
def test_what_is_told_is_what_every_possible_winner_begins_with(data: st.DataObject) -> None:
    certain = CertainText()
    told = ""
    texts: dict[int, str] = {}
    finished: set[int] = set()
    active: list[int | None] = [None]
    for round_ in range(data.draw(st.integers(1, 5))):
        children = []
        for parent in active:
            for _ in range(data.draw(st.integers(1, 3))):
                number = len(texts)
                begin = "" if parent is None else texts[parent]
                texts[number] = begin + data.draw(STEPS)
                children.append(number)
                assert not certain.take(expanded(number, texts[number], parent, round_))
        for child in children:
            told += certain.take(EventOut(type="scored", round=round_, candidate=child))
        ended = set(data.draw(st.lists(st.sampled_from(children), max_size=2)))
        for child in ended:
            told += certain.take(EventOut(type="finished", round=round_, candidate=child))
        finished |= ended
        kept = [child for child in children if child not in ended]
        pruned = set(data.draw(st.lists(st.sampled_from(children)))) & set(kept)
        for child in pruned:
            told += certain.take(EventOut(type="pruned", round=round_, candidate=child))
        active = [child for child in kept if child not in pruned]
        possible = [texts[i] for i in (*finished, *active) if i is not None]
        if possible:
            assert told == commonprefix(possible)  # noqa: RUF071 # characters are what is meant
        if not active:
            break


def test_a_lone_candidate_is_certain_when_it_is_scored() -> None:
    certain = CertainText()
    assert certain.take(expanded(0, "a\n", None, 0)) == ""
    assert certain.take(EventOut(type="scored", round=0, candidate=0)) == "a\n"
    assert certain.take(expanded(1, "a\nb\n", 0, 1)) == ""
    assert certain.take(EventOut(type="finished", round=1, candidate=1)) == "b\n"
