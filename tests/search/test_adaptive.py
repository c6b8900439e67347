"""Sampling in waves on a script: after which wave the leader is safe."""

from typing import Literal

import pytest
from pydantic import ValidationError

from search.budget import Budget
from search.generator import EndedBy
from search.selection import Selector, Term, VoteSelection
from search.strategies.adaptive import Adaptive
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio


def writes(letters: str) -> ScriptedGenerator:
    """Candidate i is a step of its letter and answers with it, however the waves are cut."""
    written = iter(letters)

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        letter = next(written)
        return f"{letter}\nAnswer: {letter.lower()}", "eos"

    return ScriptedGenerator(script)


def doubts_capitals(step: str) -> float:
    """A capital letter is probably wrong, and the line with the answer says nothing new."""
    return 0.1 if step.isupper() else 0.9


@pytest.mark.parametrize(
    ("letters", "waves"),
    [
        # Beta(5, 1): a doubt of 1/2^5 = .031, and .05·√4 = .1 is tolerated.
        ("aaaa", 1),
        # Beta(4, 2): .1875. Then 7 against 1, Beta(8, 2): 10/2^9 = .020.
        ("aaab" "aaaa", 2),
        # 2 to 2, 4 to 4, 7 to 5 (.291 and .05·√12 = .173), 8 to 8: never.
        ("aabb" "aabb" "aaab" "abbb", 4),
        # Those that answer with nothing have no say, but are candidates: 2 to none is Beta(3, 1),
        # 1/8; then 3 to none 1/16, of .05·√8 = .141.
        ("aa  " "a   ", 2),
    ],
)  # fmt: skip
async def test_votes_decide_when_it_is_enough(letters: str, waves: int) -> None:
    generator = writes(letters)
    _, result = await finish(Adaptive(n=16, wave=4), new_run(generator, None))
    assert [len(wants) for wants, _ in generator.calls] == [4] * waves
    assert len(result.candidates) == 4 * waves
    assert (result.rounds, result.stopped_by) == (waves, "finished")
    assert result.winner is not None
    assert result.winner.answer == "a"


async def test_the_last_wave_is_what_is_left() -> None:
    generator = writes("abcdefg")
    _, result = await finish(Adaptive(n=7, wave=3), new_run(generator, None))
    assert [len(wants) for wants, _ in generator.calls] == [3, 3, 1]
    assert len({want.seed for wants, _ in generator.calls for want in wants}) == 7
    assert [vote.count for vote in result.votes] == [1] * 7


@pytest.mark.parametrize(
    ("selection", "waves", "answer"),
    [
        # .4 for A: Beta(1.4, 1) is a doubt of .38. Then 3.6 for b, too: Beta(4.6, 1.4) is .07.
        (None, 2, "b"),
        ("weighted", 2, "b"),
        # Four votes for one answer are enough, whatever the PRM says.
        ("majority", 1, "a"),
    ],
)
async def test_a_vote_weighs_what_the_prm_says(
    selection: Literal["weighted", "majority"] | None, waves: int, answer: str
) -> None:
    generator = writes("AAAA" "bbbb" "bbbb" "bbbb")  # fmt: skip
    run = new_run(generator, ScriptedScorer(doubts_capitals))
    _, result = await finish(Adaptive(n=16, wave=4, selection=selection), run)
    assert result.rounds == waves
    assert result.winner is not None
    assert result.winner.answer == answer


@pytest.mark.parametrize(
    ("selection", "waves"),
    [
        # Probabilities .012 and .988: 3.95 for b against .05 leave a doubt of .034, of .02·√8.
        (None, 2),
        ("calibrated", 2),
        # .07 are too many; 7.2 for b against .4 are enough.
        ("weighted", 3),
    ],
)
async def test_a_vote_weighs_its_fitted_probability_where_there_is_one(
    selection: VoteSelection | None, waves: int
) -> None:
    terms = (Term(feature="logit_min", mean=0, scale=1, weight=2),)
    selector = Selector(intercept=0, terms=terms, l2=1)
    generator = writes("AAAA" "bbbb" "bbbb" "bbbb")  # fmt: skip
    run = new_run(generator, ScriptedScorer(doubts_capitals), selector=selector)
    strategy = Adaptive(n=16, wave=4, selection=selection, threshold=0.98)
    _, result = await finish(strategy, run)
    assert result.rounds == waves
    assert result.winner is not None
    assert result.winner.answer == "b"


async def test_a_budget_ends_it_with_what_is_there() -> None:
    # A candidate has eleven characters: 44 for the first wave, and six for each of the second.
    run = new_run(writes("abcdefgh"), None, budget=Budget(tokens=70))
    _, result = await finish(Adaptive(n=8, wave=4), run)
    assert result.stopped_by == "budget.tokens"
    assert result.usage.generated_tokens <= 70
    assert len(result.candidates) == 8
    assert result.winner in result.candidates


async def test_a_budget_of_calls_trims_the_wave() -> None:
    generator = writes("abcdefgh")
    _, result = await finish(
        Adaptive(n=8, wave=4), new_run(generator, None, budget=Budget(calls=5))
    )
    assert [len(wants) for wants, _ in generator.calls] == [4, 1]
    assert result.stopped_by == "budget.calls"


def test_only_weighing_needs_a_prm() -> None:
    assert not Adaptive().needs_prm
    assert not Adaptive(selection="majority").needs_prm
    assert Adaptive(selection="weighted").needs_prm
    assert Adaptive(selection="calibrated").needs_prm


def test_a_certainty_that_is_never_reached_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        Adaptive(threshold=1.0)
