"""Lookahead search: a trap that the PRM sees only at its end, and what becomes of rollouts."""

import pytest

from search.budget import Budget
from search.generator import EndedBy
from search.strategies.lookahead import Lookahead
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio


def trap(prefix: str, nth: int) -> tuple[str, EndedBy]:
    """Two first steps, and a line of steps behind each, of which the third is the answer."""
    if not prefix:
        return ["fair\n", "trap\n"][nth % 2], "separator"
    name = prefix.split("\n")[0]
    if prefix.count("\n") == 1:
        return ("good\n" if name == "fair" else "bad\n"), "separator"
    return f"Answer: {name}", "eos"


SCORES = {"fair": 0.5, "trap": 0.8, "good": 0.9, "bad": 0.1, "Answer: fair": 1, "Answer: trap": 0}


def scorer() -> ScriptedScorer:
    return ScriptedScorer(lambda step: SCORES[step], aggregation="last")


@pytest.mark.parametrize(("depth", "answer"), [(0, "trap"), (1, "fair"), (2, "fair")])
async def test_a_step_is_worth_what_it_leads_to(depth: int, answer: str) -> None:
    generator = ScriptedGenerator(trap)
    run = new_run(generator, scorer())
    _, result = await finish(Lookahead(n=2, width=2, depth=depth), run)
    assert result.winner is not None
    assert result.winner.answer == answer
    assert result.stopped_by == "finished"


async def test_rollouts_are_greedy_and_thrown_away() -> None:
    generator = ScriptedGenerator(trap)
    run = new_run(generator, scorer())
    events, result = await finish(Lookahead(n=2, width=2, depth=1), run)
    # A step from nothing; both rolled out; two steps from "fair", which say the same and are one;
    # that one rolled out to its end; two ends.
    assert [[w.prefix.text for w in wants] for wants, _ in generator.calls] == [
        ["", ""],
        ["fair\n", "trap\n"],
        ["fair\n", "fair\n"],
        ["fair\ngood\n"],
        ["fair\ngood\n", "fair\ngood\n"],
    ]
    assert [params.temperature for _, params in generator.calls] == [0.8, 0.0, 0.8, 0.0, 0.8]
    assert [c.index for c in result.candidates] == [7, 8]
    # Rollouts 2 and 3, the trap, the repeated step, and the rollout that reached the answer.
    gone = {event.candidate for event in events if event.type == "pruned"}
    assert gone == {1, 2, 3, 5, 6}
    assert gone == {c.index for c in run.tree if c.finish_reason == "pruned"}
    written = 2 * 5 + 5 + 4 + 2 * 5 + 12 + 2 * 12
    assert result.usage.generated_tokens == written
    assert result.usage.discarded_tokens == written - len("fair\ngood\nAnswer: fair")
    assert result.rounds == 5


async def test_a_rollout_stops_at_the_end_of_the_text() -> None:
    generator = ScriptedGenerator(trap)
    run = new_run(generator, scorer())
    await finish(Lookahead(n=2, width=2, depth=50), run)
    # Two steps lead from the first to the end, one from the second; then the end itself.
    assert len(generator.calls) == 1 + 2 + 1 + 1 + 1


async def test_stopped_before_a_beam_is_finished_a_rollout_that_is_can_win() -> None:
    generator = ScriptedGenerator(trap)
    # 10 for the first steps, 9 for the second, 24 for both answers: nothing is left for round 2.
    run = new_run(generator, scorer(), budget=Budget(tokens=10 + 9 + 24))
    events, result = await finish(Lookahead(n=2, width=2, depth=2), run)
    assert result.stopped_by == "budget.tokens"
    assert result.winner is not None
    assert result.winner.text == "fair\ngood\nAnswer: fair"
    assert {c.text: c.finish_reason for c in result.candidates} == {
        "fair\n": "budget",
        "fair\ngood\nAnswer: fair": "stop",
        "trap\nbad\nAnswer: trap": "stop",
    }
    assert [run.tree[e.candidate].text for e in events if e.type == "pruned"] == ["trap\n"]


async def test_a_rollout_that_the_prm_cannot_read_leaves_the_steps_own_score() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if not prefix:
            return ["fair\n", "trap\n"][nth], "separator"
        return "x" * 60, "eos"

    generator = ScriptedGenerator(script)
    run = new_run(generator, ScriptedScorer(lambda step: SCORES.get(step, 0.0), longest=64))
    await finish(Lookahead(n=2, width=2, depth=1, max_rounds=1), run)
    run = new_run(generator, ScriptedScorer(lambda step: SCORES.get(step, 0.0), longest=20))
    with pytest.raises(Exception, match="no candidate can be scored"):
        await finish(Lookahead(n=2, width=2, depth=1), run)
    # The beam that was chosen for the last round is the trap: its own score is the higher one.
    assert {want.prefix.text for want in generator.calls[-1][0]} == {"trap\n"}
