"""Tree search on a script: values and visits worked out by hand.

A step names its path: the first steps are a, b, …; under a come aa, ab, …
"""

import zlib
from collections.abc import Collection, Mapping
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.budget import Budget, Meter
from search.generator import EndedBy
from search.strategies.mcts import Mcts
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio


def tree(ends: Collection[str] = ()) -> ScriptedGenerator:
    """Every path can be continued, but for those in `ends`."""

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        path = last_step(prefix) + "abcdefgh"[nth]
        return (path, "eos") if path in ends else (f"{path}\n", "separator")

    return ScriptedGenerator(script)


def valued(values: Mapping[str, float]) -> ScriptedScorer:
    """A path is worth what stands here, else nothing."""
    return ScriptedScorer(lambda step: values.get(step, 0.0), aggregation="last")


def last_step(prefix: str) -> str:
    return prefix.strip("\n").rpartition("\n")[2]


def expanded(generator: ScriptedGenerator) -> list[list[str]]:
    """The paths that every round continued, each once."""
    return [
        list(dict.fromkeys(last_step(want.prefix.text) for want in wants))
        for wants, _ in generator.calls
    ]


async def test_a_first_step_that_promised_too_much_is_left_for_the_second_best() -> None:
    generator = tree(ends={"ba", "bb"})
    scorer = valued({"a": 0.9, "b": 0.5, "aa": 0.1, "ab": 0.1, "ba": 0.6, "bb": 0.8})
    run = new_run(generator, scorer)
    _, result = await finish(Mcts(n=1, width=2, simulations=3, exploration=1.0), run)
    # At first a: .9 + ½·√2/2 is more than b: .5 + ½·√2/2. Then a's mean is (.9 + .1 + .1)/3, and
    # .367 + ½·2/4 is less than b: .5 + ½·2/2.
    assert expanded(generator) == [[""], ["a"], ["b"]]
    assert result.winner is not None
    assert result.winner.text == "b\nbb"
    assert (result.rounds, result.stopped_by) == (3, "finished")
    assert {c.text: c.finish_reason for c in result.candidates} == {
        "b\nba": "stop",
        "b\nbb": "stop",
        "a\naa\n": "pruned",
        "a\nab\n": "pruned",
    }


@pytest.mark.parametrize(("backup", "third"), [("mean", "b"), ("max", "aa")])
async def test_the_mean_forgets_a_good_step_among_bad_ones_and_the_largest_does_not(
    backup: Literal["mean", "max"], third: str
) -> None:
    generator = tree()
    # Under a: mean (.5 + .7 + 0)/3 = .4 and largest .7; b is worth .45.
    run = new_run(generator, valued({"a": 0.5, "b": 0.45, "aa": 0.7}))
    await finish(Mcts(n=1, width=2, simulations=3, exploration=0, backup=backup), run)
    assert expanded(generator)[:3] == [[""], ["a"], [third]]


async def test_leaves_of_one_round_are_spread_by_virtual_loss() -> None:
    generator = tree()
    values = {"a": 0.9, "aa": 0.9, "ab": 0.9, "b": 0.8, "ba": 0.8, "bb": 0.8}
    run = new_run(generator, valued(values))
    await finish(Mcts(n=2, width=2, simulations=6, exploration=0), run)
    # In round 3 the subtree of a, with aa selected and lost, is worth 2.7/4 < .8.
    assert expanded(generator)[:3] == [[""], ["a", "b"], ["aa", "ba"]]


async def test_few_leaves_share_the_whole_batch() -> None:
    generator = tree(ends={"a", "b", "c", "da", "db", "dc"})
    run = new_run(generator, valued({"d": 0.5}))
    await finish(Mcts(n=2, width=2, simulations=6), run)
    assert [len(wants) for wants, _ in generator.calls] == [4, 4, 4]
    assert expanded(generator) == [[""], ["d"], ["dd"]]


async def test_a_tree_that_has_ended_everywhere_ends_the_search() -> None:
    generator = tree(ends={"a", "ba", "bb"})
    run = new_run(generator, valued({"a": 0.2, "b": 0.1, "ba": 0.3}))
    _, result = await finish(Mcts(n=1, width=2, simulations=50), run)
    assert expanded(generator) == [[""], ["b"]]
    assert result.stopped_by == "finished"
    assert result.winner is not None
    assert result.winner.text == "b\nba"


@pytest.mark.parametrize("limit", [{"simulations": 2}, {"max_rounds": 2}])
async def test_with_nothing_ended_the_best_leaf_is_written_to_its_end(
    limit: dict[str, int],
) -> None:
    # aba is the first text that ends, and nothing has when the search stops at ab.
    generator = tree(ends={"aba"})
    run = new_run(generator, valued({"a": 0.2, "b": 0.1, "ab": 0.7}))
    events, result = await finish(Mcts.model_validate({"n": 1, "width": 2} | limit), run)
    assert expanded(generator) == [[""], ["a"], ["ab"]]
    assert [len(wants) for wants, _ in generator.calls] == [2, 2, 1]
    assert result.stopped_by == ("finished" if "simulations" in limit else "max_rounds")
    assert result.winner is not None
    assert (result.winner.text, result.winner.finish_reason) == ("a\nab\naba", "stop")
    assert events[-1].candidate == result.winner.index or events[-1].type == "pruned"
    assert {c.text for c in result.candidates} == {"a\nab\naba", "a\naa\n", "b\n"}


async def test_a_call_is_kept_for_the_end_of_the_best_leaf() -> None:
    # Of four calls, two write a and b, one aa, which is worth most; the one that is kept ends it.
    generator = tree(ends={"aaa"})
    values = {"a": 0.2, "b": 0.1, "aa": 0.7}
    run = new_run(generator, valued(values), budget=Budget(calls=4))
    _, result = await finish(Mcts(n=1, width=2, simulations=9, exploration=0), run)
    assert [len(wants) for wants, _ in generator.calls] == [2, 1, 1]
    assert (result.stopped_by, result.usage.policy_calls) == ("budget.calls", 4)
    assert result.winner is not None
    assert (result.winner.text, result.winner.finish_reason) == ("a\naa\naaa", "stop")


def mountain(prefix: str, nth: int) -> tuple[str, EndedBy]:
    """Steps of 2, 2, 3, 3 and 4 characters; the text ends behind aa, also when it was cut there."""
    steps: dict[str, list[tuple[str, EndedBy]]] = {
        "": [("a\n", "separator"), ("b\n", "separator")],
        "a\n": [("aa\n", "separator"), ("ab\n", "separator")],
        "a\naa\n": [("aaa.", "eos"), ("aab.", "eos")],
        "a\naa\na": [("aa.", "eos")],
    }
    return steps[prefix][nth]


async def test_tokens_are_kept_for_a_leaf_that_the_rest_of_them_cut() -> None:
    generator = ScriptedGenerator(mountain)
    values = {"a": 0.5, "b": 0.1, "aa": 0.7, "ab": 0.1}
    run = new_run(generator, valued(values), budget=Budget(tokens=16))
    _, result = await finish(Mcts(n=1, width=2, simulations=9, exploration=0), run)
    # A quarter of 16 is kept. Of the other 12, a and b take 4, aa and ab 6; the 2 that are left
    # write a character each behind aa. One of these texts is written on, with the 4 and to its end.
    assert [[want.max_tokens for want in wants] for wants, _ in generator.calls] == [
        [6, 6],
        [4, 4],
        [1, 1],
        [4],
    ]
    assert result.winner is not None
    assert (result.winner.text, result.winner.finish_reason) == ("a\naa\naaa.", "stop")
    assert (result.stopped_by, result.usage.generated_tokens) == ("budget.tokens", 15)


async def test_nothing_is_kept_once_a_text_has_ended() -> None:
    generator = tree(ends={"b"})
    run = new_run(generator, valued({"a": 0.5, "aa": 0.7}), budget=Budget(tokens=16))
    _, result = await finish(Mcts(n=1, width=2, simulations=9, exploration=0), run)
    # 3 of 12, and then all 13 that are left are there to be shared: 6, and behind aa 3 each.
    limits = [[want.max_tokens for want in wants] for wants, _ in generator.calls]
    assert limits == [[6, 6], [6, 6], [3, 3]]
    assert result.winner is not None
    assert result.winner.text == "b"


async def test_where_one_call_is_all_there_is_nothing_is_kept_of_it() -> None:
    run = new_run(tree(), valued({"a": 0.2}), budget=Budget(calls=1))
    _, result = await finish(Mcts(n=1, width=2, simulations=2), run)
    assert result.stopped_by == "budget.calls"
    assert result.winner is not None
    assert (result.winner.text, result.winner.finish_reason) == ("a\n", "budget")


def test_a_part_of_the_seconds_is_kept_and_given_back() -> None:
    meter = Meter(Budget(seconds=1000.0))
    meter.keep_back(0.25, at_most_tokens=10)
    assert 749 < (meter.seconds_left or 0) <= 750
    assert (meter.tokens_left, meter.calls_left) == (None, None)
    meter.release()
    assert 999 < (meter.seconds_left or 0) <= 1000


async def test_a_step_without_a_score_is_worth_nothing() -> None:
    generator = tree()
    scorer = ScriptedScorer({"a": 0.9, "b": 0.1}.__getitem__, longest=2)
    # What is longer than two characters the PRM does not read: all that comes second.
    run = new_run(generator, scorer)
    with pytest.raises(Exception, match="no candidate can be scored"):
        await finish(Mcts(n=1, width=2, simulations=2), run)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    width=st.integers(1, 3),
    simulations=st.integers(1, 12),
    backup=st.sampled_from(["mean", "max"]),
    exploration=st.sampled_from([0.0, 0.5, 1.25, 10.0]),
    tokens=st.none() | st.integers(12, 200),
    seed=st.integers(0, 10**6),
)
async def test_invariants_on_random_trees(
    n: int,
    width: int,
    simulations: int,
    backup: Literal["mean", "max"],
    exploration: float,
    tokens: int | None,
    seed: int,
) -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        roll = zlib.crc32(repr((seed, prefix, nth)).encode())
        return (f"Answer: {roll % 3}", "eos") if roll % 4 == 0 else (f"s{roll % 5}\n", "separator")

    strategy = Mcts(
        n=n, width=width, simulations=simulations, backup=backup, exploration=exploration
    )
    found = []
    for _ in range(2):
        generator = ScriptedGenerator(script)
        scorer = ScriptedScorer(lambda s: zlib.crc32(repr((seed, s)).encode()) % 100 / 100)
        run = new_run(generator, scorer, budget=Budget(tokens=tokens))
        _, result = await finish(strategy, run)
        found.append(result)
        # One more where the best leaf had to be finished.
        assert sum(len(wants) for wants, _ in generator.calls) <= simulations * width + 1
        # Nobody is expanded in two rounds.
        leaves = [path for wants, _ in generator.calls for path in {w.prefix.text for w in wants}]
        assert len(leaves) == len(set(leaves))
        assert not generator.is_open
    assert found[0].candidates == found[1].candidates
    assert found[0].winner in found[0].candidates
    assert tokens is None or found[0].usage.generated_tokens <= tokens
