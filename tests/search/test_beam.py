"""Beam search on a script: a maze whose good path is known, and invariants on random trees."""

import zlib
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search.budget import Budget
from search.generator import EndedBy
from search.run import run_search
from search.strategies.beam import Beam
from search.types import SearchEvent, SearchResult
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import new_run

pytestmark = pytest.mark.anyio


def three_steps(prefix: str, nth: int) -> tuple[str, EndedBy]:
    """Each continuation is a step a, b, c or d, and the third one is the answer."""
    step = "abcd"[nth % 4]
    if prefix.count("\n") == 2:
        return f"Answer: {prefix.replace(chr(10), '')}{step}", "eos"
    return f"{step}\n", "separator"


def likes_d(step: str) -> float:
    """Higher letters are better; an answer is as good as its letters."""
    letters = step.removeprefix("Answer: ")
    return sum(max(0, "abcd".find(letter)) for letter in letters) / (3 * max(1, len(letters)))


async def finish(
    events: AsyncGenerator[SearchEvent | SearchResult],
) -> tuple[list[SearchEvent], SearchResult]:
    found = [event async for event in events]
    assert isinstance(found[-1], SearchResult)
    return [event for event in found if isinstance(event, SearchEvent)], found[-1]


async def test_the_best_path_is_followed_and_the_others_pruned() -> None:
    generator = ScriptedGenerator(three_steps)
    scorer = ScriptedScorer(likes_d, aggregation="last")
    run = new_run(generator, scorer)
    events, result = await finish(run_search(Beam(n=4, width=4), run))
    # Round 1 writes a b c d and keeps d; round 2 writes da … dd and keeps dd; round 3 ends.
    assert [[w.prefix.text for w in wants] for wants, _ in generator.calls] == [
        [""] * 4,
        ["d\n"] * 4,
        ["d\nd\n"] * 4,
    ]
    assert result.winner is not None
    assert (result.winner.text, result.winner.answer) == ("d\nd\nAnswer: ddd", "ddd")
    assert (result.rounds, result.stopped_by) == (3, "finished")
    assert len(scorer.calls) == 3
    pruned = [event.candidate for event in events if event.type == "pruned"]
    assert len(pruned) == 6
    written = 4 * 2 + 4 * 2 + 4 * len("Answer: ddd")
    assert result.usage.generated_tokens == written
    assert result.usage.discarded_tokens == written - len("d\nd\nAnswer: ddd")


async def test_wider_beams_keep_several_prefixes() -> None:
    generator = ScriptedGenerator(three_steps)
    run = new_run(generator, ScriptedScorer(likes_d, aggregation="last"))
    await finish(run_search(Beam(n=4, width=2), run))
    assert [want.prefix.text for want in generator.calls[1][0]] == ["d\n", "c\n"] * 2


async def test_equal_texts_count_once() -> None:
    generator = ScriptedGenerator(lambda prefix, _: ("same\n", "separator"))
    run = new_run(generator, ScriptedScorer(lambda _: 0.5))
    _, result = await finish(run_search(Beam(n=4, width=2, max_rounds=3), run))
    # One distinct beam goes on in every round; it is continued four times all the same.
    assert [len({w.prefix.text for w in wants}) for wants, _ in generator.calls] == [1, 1, 1]
    assert len(result.candidates) == 1
    assert result.stopped_by == "max_rounds"


async def test_without_a_finished_beam_the_best_unfinished_one_wins() -> None:
    generator = ScriptedGenerator(lambda prefix, nth: (f"{'abcd'[nth]}\n", "separator"))
    run = new_run(generator, ScriptedScorer(likes_d, aggregation="last"))
    _, result = await finish(run_search(Beam(n=4, width=2, max_rounds=1), run))
    assert result.winner is not None
    assert result.winner.text == "d\n"
    assert {c.finish_reason for c in result.candidates} == {"budget"}


async def test_a_beam_at_its_own_limit_is_finished_by_length() -> None:
    generator = ScriptedGenerator(lambda prefix, nth: (f"{'abcd'[nth]}\n", "separator"))
    run = new_run(generator, ScriptedScorer(likes_d), max_tokens=4)
    _, result = await finish(run_search(Beam(n=4, width=4), run))
    assert {c.finish_reason for c in result.candidates} == {"length"}
    assert max(c.tokens for c in result.candidates) <= 4


async def test_no_beam_writes_more_than_its_own_limit() -> None:
    # One beam takes long steps, the other short ones: the short one's room is not the long one's.
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        is_long = prefix.startswith("long") or (not prefix and nth == 0)
        return ("long step\n" if is_long else "s\n"), "separator"

    run = new_run(ScriptedGenerator(script), ScriptedScorer(lambda _: 0.5), max_tokens=25)
    _, result = await finish(run_search(Beam(n=2, width=1, max_rounds=30), run))
    assert max(c.tokens for c in result.candidates) == 25
    assert {c.finish_reason for c in result.candidates} == {"length"}


async def test_a_step_that_the_budget_cuts_is_not_a_finished_beam() -> None:
    generator = ScriptedGenerator(three_steps)
    run = new_run(generator, ScriptedScorer(likes_d, aggregation="last"), budget=Budget(tokens=24))
    # Two rounds of four beams and two tokens leave two tokens for each answer line.
    events, result = await finish(run_search(Beam(n=4, width=4), run))
    assert result.stopped_by == "budget.tokens"
    assert result.usage.generated_tokens == 24
    assert {c.finish_reason for c in result.candidates} == {"budget"}
    gone = {event.candidate for event in events if event.type == "pruned"}
    assert gone == {c.index for c in run.tree if c.finish_reason == "pruned"}


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 4),
    keep=st.integers(1, 4),
    max_rounds=st.integers(1, 6),
    budget=st.none() | st.integers(16, 200),
    seed=st.integers(0, 10**6),
)
async def test_invariants_on_random_trees(
    width: int, keep: int, max_rounds: int, budget: int | None, seed: int
) -> None:
    n = width * keep

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        roll = zlib.crc32(repr((seed, prefix, nth)).encode())
        if roll % 4 == 0:
            return f"Answer: {roll % 3}", "eos"
        return f"step {roll % 5}\n", "separator"

    generator = ScriptedGenerator(script)
    run = new_run(
        generator,
        ScriptedScorer(lambda step: zlib.crc32(repr((seed, step)).encode()) % 100 / 100),
        budget=Budget(tokens=budget),
    )
    _, result = await finish(run_search(Beam(n=n, width=width, max_rounds=max_rounds), run))
    assert all(len(wants) == n for wants, _ in generator.calls)
    assert all(len({w.prefix.text for w in wants}) <= keep for wants, _ in generator.calls)
    assert result.rounds == len(generator.calls) <= max_rounds
    if budget is not None:
        assert result.usage.generated_tokens <= budget
    if result.winner is not None:
        assert result.winner in result.candidates
    assert not generator.is_open


def test_a_width_that_does_not_divide_n_is_refused() -> None:
    with pytest.raises(ValidationError, match="width 4 must divide n 6"):
        Beam(n=6, width=4)
