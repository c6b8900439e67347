"""Reward-balanced search: widths worked out by hand, and the budget that ended texts leave."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.generator import EndedBy
from search.strategies.rebase import Rebase
from search.strategies.weights import apportion, softmax
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio

# At temperature 0.2 a softmax in the ratio 6 : 3 : 1.
SIX, THREE, ONE = (0.5 + 0.2 * math.log(ratio) for ratio in (6, 3, 1))


def first_steps(prefix: str, nth: int) -> tuple[str, EndedBy]:
    """Six, three, one, one more three …; the second step ends it."""
    if prefix:
        return f"Answer: {prefix.strip()}", "eos"
    return ["one\n", "six\n", "three\n"][nth % 3], "separator"


def score(step: str) -> float:
    return {"six": SIX, "three": THREE, "one": ONE}.get(step, 0.5)


async def test_continuations_are_shared_by_the_softmax_of_the_scores() -> None:
    generator = ScriptedGenerator(first_steps)
    run = new_run(generator, ScriptedScorer(score, aggregation="last"))
    _, result = await finish(Rebase(n=3), run)
    # Shares of 3 in the ratio 6 : 3 : 1 are 1.8, 0.9 and 0.3.
    assert [w.prefix.text for w in generator.calls[1][0]] == ["six\n", "six\n", "three\n"]
    assert (result.rounds, result.stopped_by, len(result.candidates)) == (2, "finished", 3)


async def test_what_has_ended_is_taken_from_the_budget() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if not prefix and nth < 2:
            return "Answer: soon", "eos"
        return ("six\n", "separator") if not prefix else ("Answer: late", "eos")

    generator = ScriptedGenerator(script)
    run = new_run(generator, ScriptedScorer(score, aggregation="last"))
    _, result = await finish(Rebase(n=5), run)
    # Two of five have ended: the three active ones share three.
    assert [len(wants) for wants, _ in generator.calls] == [5, 3]
    assert [c.answer for c in result.candidates] == ["soon"] * 2 + ["late"] * 3


async def test_a_low_temperature_follows_the_best_step_only() -> None:
    generator = ScriptedGenerator(first_steps)
    run = new_run(generator, ScriptedScorer(score, aggregation="last"))
    events, _ = await finish(Rebase(n=3, temperature=0.001), run)
    assert {w.prefix.text for w in generator.calls[1][0]} == {"six\n"}
    assert [event.candidate for event in events if event.type == "pruned"] == [0, 2]


async def test_a_step_without_a_score_gets_nothing() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix:
            return "Answer: 1", "eos"
        return ["x" * 40 + "\n", "one\n", "one\n"][nth], "separator"

    generator = ScriptedGenerator(script)
    run = new_run(generator, ScriptedScorer(score, longest=30))
    await finish(Rebase(n=3), run)
    assert [w.prefix.text for w in generator.calls[1][0]] == ["one\n"] * 3


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0.001, 100),
    st.integers(0, 512),
)
def test_shares_add_up_and_are_the_rounded_ones_where_these_do(
    scores: list[float | None], temperature: float, places: int
) -> None:
    weights = softmax(scores, temperature)
    assert math.fsum(weights) == pytest.approx(1)
    widths = apportion(weights, places)
    assert sum(widths) == places
    exact = [weight * places for weight in weights]
    assert all(abs(width - share) < 1 + 1e-6 for width, share in zip(widths, exact, strict=True))
    no_ties = all(abs(share % 1 - 0.5) > 1e-9 for share in exact)
    if no_ties and sum(round(share) for share in exact) == places:
        assert widths == [round(share) for share in exact]
