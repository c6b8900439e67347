"""Diverse verifier tree search on a script: no subtree gives way to another before the end."""

import pytest
from pydantic import ValidationError

from search.generator import EndedBy
from search.strategies.dvts import Dvts
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run
from tests.search.test_beam import likes_d, three_steps

pytestmark = pytest.mark.anyio


async def test_each_subtree_follows_its_own_best() -> None:
    generator = ScriptedGenerator(three_steps)
    run = new_run(generator, ScriptedScorer(likes_d, aggregation="last"))
    events, result = await finish(Dvts(n=4, width=2), run)
    # a b c d are shared out in turn: the subtrees are {a, c} and {b, d}, and keep c and d.
    # Each then writes a and b and keeps b.
    assert [[w.prefix.text for w in wants] for wants, _ in generator.calls] == [
        [""] * 4,
        ["d\n", "c\n", "d\n", "c\n"],
        ["d\nb\n", "c\nb\n", "d\nb\n", "c\nb\n"],
    ]
    assert sorted(c.text for c in result.candidates) == [
        "c\nb\nAnswer: cba",
        "c\nb\nAnswer: cbb",
        "d\nb\nAnswer: dba",
        "d\nb\nAnswer: dbb",
    ]
    assert result.winner is not None
    assert result.winner.answer == "dbb"
    assert (result.rounds, result.stopped_by) == (3, "finished")
    assert len([event for event in events if event.type == "pruned"]) == 2 + 2


async def test_a_poor_subtree_is_not_given_up_for_a_better_one() -> None:
    # All of the first subtree is poor; its end is the best of all.
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        match prefix:
            case "":
                return ["poor\n", "good\n"][nth % 2], "separator"
            case "poor\n":
                return "Answer: best", "eos"
            case _:
                return "Answer: fair", "eos"

    scores = {"poor": 0.1, "good": 0.9, "Answer: best": 1.0, "Answer: fair": 0.5}
    run = new_run(ScriptedGenerator(script), ScriptedScorer(scores.__getitem__, aggregation="last"))
    _, result = await finish(Dvts(n=4, width=2), run)
    assert result.winner is not None
    assert result.winner.answer == "best"


async def test_a_subtree_ends_when_its_best_step_does_and_the_others_go_on() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix.count("\n") == 1:
            return f"Answer: late{nth}", "eos"
        # Subtree 0 holds the first and third, subtree 1 the second and fourth.
        first = [("Answer: soon", "eos"), ("b\n", "separator"), ("c\n", "separator")]
        return first[nth] if nth < 3 else ("Answer: poor", "eos")  # type: ignore[return-value]

    scores = {"Answer: soon": 0.9, "b": 0.6, "c": 0.5, "Answer: poor": 0.1}
    generator = ScriptedGenerator(script)
    scorer = ScriptedScorer(lambda step: scores.get(step, 0.3), aggregation="last")
    events, result = await finish(Dvts(n=4, width=2), new_run(generator, scorer))
    # c is not continued, for its subtree has ended with "soon"; b is.
    assert [w.prefix.text for w in generator.calls[1][0]] == ["b\n", "b\n"]
    assert [c.answer for c in result.candidates] == ["soon", "poor", "late0", "late1"]
    pruned = [event.candidate for event in events if event.type == "pruned"]
    assert pruned == [2]
    assert result.winner is not None
    assert result.winner.answer == "soon"


async def test_the_same_text_in_two_subtrees_is_two_beams() -> None:
    generator = ScriptedGenerator(lambda prefix, _: ("same\n", "separator"))
    run = new_run(generator, ScriptedScorer(lambda _: 0.5))
    _, result = await finish(Dvts(n=4, width=2, max_rounds=2), run)
    assert len(generator.calls[1][0]) == 4
    assert {want.prefix.text for want in generator.calls[1][0]} == {"same\n"}
    assert result.stopped_by == "max_rounds"


async def test_a_step_that_the_prm_cannot_read_is_the_last_choice() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix:
            return "Answer: 1", "eos"
        return ["long" * 10 + "\n", "a\n"][nth], "separator"

    generator = ScriptedGenerator(script)
    run = new_run(generator, ScriptedScorer(lambda _: 0.1, longest=30))
    await finish(Dvts(n=2, width=2), run)
    assert {want.prefix.text for want in generator.calls[1][0]} == {"a\n"}


def test_a_width_that_does_not_divide_n_is_refused() -> None:
    with pytest.raises(ValidationError, match="width 4 must divide n 6"):
        Dvts(n=6, width=4)
