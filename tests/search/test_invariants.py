"""What holds for every strategy in the table, whatever the policy writes and the PRM says."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prm.errors import InvalidInput
from prm.types import Message
from search.budget import Budget
from search.generator import EndedBy, GenerateParams, Want, Written
from search.run import SearchRun, run_search
from search.selection import StepSelection
from search.strategies import Strategy
from search.strategies.adaptive import Adaptive
from search.strategies.base import StrategySettings
from search.types import Sampling, SearchEvent, SearchProblem, SearchResult
from tests.factories import user
from tests.search.fakes import ScriptedGenerator, ScriptedScorer

pytestmark = pytest.mark.anyio

SELECTIONS: tuple[StepSelection, ...] = get_args(StepSelection)
STRATEGIES: tuple[type[StrategySettings], ...] = get_args(get_args(Strategy)[0])
# So small that a search ends in a moment and so large that rounds differ.
SMALL: Mapping[str, Any] = {
    "max_rounds": 5,
    "depth": 2,
    "simulations": 10,
    "chunk": 4,
    "wave": 2,
}
Script = Callable[[str, int], tuple[str, EndedBy]]


class StepWriter(ScriptedGenerator):
    """Where nobody asks to stop at a separator, the script's steps are written one after another.

    `nth` stays what it was for the first one. Each continuation counts as one call of the script.
    """

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self._steps = script

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """See `ScriptedGenerator`."""
        limit = max((want.limit(params) for want in wants), default=0)
        self._script = self._steps if params.keep_stop else lambda p, n: self._whole(p, n, limit)
        async with aclosing(super().generate(messages, wants, params)) as written:
            async for piece in written:
                yield piece

    def _whole(self, prefix: str, nth: int, limit: int) -> tuple[str, EndedBy]:
        text = ""
        while True:
            piece, ended_by = self._steps(prefix + text, nth)
            text += piece
            if ended_by != "separator" or not piece:
                return text, "eos" if ended_by == "separator" else ended_by
            if len(text) > limit:
                return text, "length"


every_strategy = pytest.mark.parametrize(
    "kind", STRATEGIES, ids=[kind.model_fields["type"].default for kind in STRATEGIES]
)


def small(
    kind: type[StrategySettings], *, n: int = 4, width: int = 2, selection: str = "prm"
) -> Any:
    """A strategy of this kind with as many of these settings as it has."""
    # Samples in waves stop by votes, and have none by score.
    choice = {"prm": "weighted"}.get(selection, selection) if kind is Adaptive else selection
    wanted = {"n": n, "width": width, "selection": choice, **SMALL}
    return kind(**{name: value for name, value in wanted.items() if name in kind.model_fields})


def random_tree(seed: int, texts: str = "step") -> Script:
    """One in four continuations ends with an answer, in no order that a strategy could know."""

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        roll = zlib.crc32(repr((seed, prefix, nth)).encode())
        if roll % 4 == 0:
            return f"Answer: {roll % 3}", "eos"
        return f"{texts} {roll % 5}\n", "separator"

    return script


def random_scores(seed: int) -> Callable[[str], float]:
    return lambda step: zlib.crc32(repr((seed, step)).encode()) % 100 / 100


def new_run(
    script: Script,
    seed: int = 0,
    *,
    budget: Budget | None = None,
    longest: int = 10_000,
    stop: tuple[str, ...] = (),
    max_tokens: int = 60,
) -> tuple[SearchRun, StepWriter]:
    generator = StepWriter(script)
    run = SearchRun(
        SearchProblem(messages=user("?")),
        generator,
        ScriptedScorer(random_scores(seed), longest=longest, aggregation="last"),
        sampling=Sampling(max_tokens=max_tokens, seed=seed, stop=stop),
        budget=budget or Budget(),
    )
    return run, generator


async def finish(strategy: Any, run: SearchRun) -> tuple[list[SearchEvent], SearchResult]:
    async with asyncio.timeout(20):
        found = [event async for event in run_search(strategy, run)]
    assert isinstance(found[-1], SearchResult)
    return [event for event in found if isinstance(event, SearchEvent)], found[-1]


@every_strategy
@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 3),
    keep=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    tokens=st.none() | st.integers(1, 250),
    calls=st.none() | st.integers(1, 30),
    longest=st.sampled_from([10_000, 30]),
    selection=st.sampled_from(SELECTIONS),
)
# Beams that a budget of calls leaves without a continuation are candidates all the same.
@example(width=1, keep=3, seed=0, tokens=None, calls=10, longest=10_000, selection="prm")
# A finished particle that is in the population three times is pruned once.
@example(width=2, keep=2, seed=1584, tokens=None, calls=None, longest=10_000, selection="prm")
async def test_the_accounts_and_the_choice_of_any_search(
    kind: type[StrategySettings],
    width: int,
    keep: int,
    seed: int,
    tokens: int | None,
    calls: int | None,
    longest: int,
    selection: StepSelection,
) -> None:
    strategy = small(kind, n=width * keep, width=width, selection=selection)
    budget = Budget(tokens=tokens, calls=calls)
    run, generator = new_run(random_tree(seed), seed, budget=budget, longest=longest)
    try:
        events, result = await finish(strategy, run)
    except InvalidInput as error:
        if longest > 30 or "no candidate can be scored" not in str(error):
            raise
        return
    usage = result.usage
    asked = [len(wants) for wants, _ in generator.calls]
    # Widths and budgets.
    most = result.choice["strategy"]["n"] if result.choice else strategy.most_candidates
    assert max(asked, default=0) <= most
    assert (usage.policy_calls, result.rounds) == (sum(asked), len(asked))
    assert tokens is None or usage.generated_tokens <= tokens
    assert calls is None or usage.policy_calls <= calls
    # The choice.
    indices = [candidate.index for candidate in result.candidates]
    assert len(indices) == len(set(indices)) <= usage.policy_calls
    assert sorted(candidate.index for candidate in result.ranking) == indices
    assert result.winner == (result.ranking[0] if result.ranking else None)
    assert result.ranking or not generator.calls
    # The tree: what was written is in it, and every branch goes on or has ended for a reason.
    parents = {node.parent for node in run.tree}
    spent = [
        n.tokens - (run.tree[n.parent].tokens if n.parent is not None else 0) for n in run.tree
    ]
    assert sum(spent) == usage.generated_tokens
    assert usage.discarded_tokens == usage.generated_tokens - (
        result.winner.tokens if result.winner else 0
    )
    assert all(node.finish_reason or node.index in parents for node in run.tree)
    assert all(candidate.finish_reason for candidate in result.candidates)
    assert all(run.tree[c.index].text == c.text for c in result.candidates)
    # The events tell the same.
    expanded = [event.candidate for event in events if event.type == "expanded"]
    assert sorted(expanded) == list(range(usage.policy_calls))
    pruned = [event.candidate for event in events if event.type == "pruned"]
    assert sorted(pruned) == [n.index for n in run.tree if n.finish_reason == "pruned"]
    assert not generator.is_open


@every_strategy
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
async def test_the_same_seed_gives_the_same_search(kind: type[StrategySettings], seed: int) -> None:
    seen = []
    for _ in range(2):
        run, generator = new_run(random_tree(seed), seed)
        events, result = await finish(small(kind), run)
        seen.append((events, result.ranking, result.usage, [wants for wants, _ in generator.calls]))
    assert seen[0] == seen[1]


@every_strategy
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), after=st.integers(1, 30))
async def test_leaving_at_any_event_leaves_nothing_running(
    kind: type[StrategySettings], seed: int, after: int
) -> None:
    run, generator = new_run(random_tree(seed), seed)
    before = asyncio.all_tasks()
    events = run_search(small(kind), run)
    for _ in range(after):
        if isinstance(await anext(events), SearchResult):
            break
    await events.aclose()
    assert not generator.is_open
    assert asyncio.all_tasks() == before


@every_strategy
@pytest.mark.parametrize(
    "piece",
    [("", "separator"), ("", "eos"), ("", "length"), ("\n", "separator"), ("  \n", "separator")],
)
async def test_a_policy_that_says_nothing_for_ever_comes_to_an_end(
    kind: type[StrategySettings], piece: tuple[str, EndedBy]
) -> None:
    run, generator = new_run(lambda prefix, _: piece)
    _, result = await finish(small(kind, n=4, width=2), run)
    assert result.winner is not None
    assert result.winner.score is None
    assert result.winner.text.strip() == ""
    assert result.stopped_by in ("finished", "max_rounds")
    assert not generator.is_open


@every_strategy
async def test_no_text_is_lost_or_changed(kind: type[StrategySettings]) -> None:
    answer = "½·√2 — 四十二 🙂 e\u0301"

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix:
            return f"Answer: {answer}", "eos"
        return f"步骤 {nth} \u202e\u00a0🙂\n", "separator"

    run, _ = new_run(script)
    _, result = await finish(small(kind), run)
    assert result.winner is not None
    if result.winner.finish_reason == "stop" and "Answer" in result.winner.text:
        assert result.winner.answer == answer
        assert result.winner.text.startswith("步骤 ")
    assert all("".join(s.text for s in c.steps) for c in result.candidates)


@every_strategy
async def test_stop_strings_go_to_the_policy_as_they_are(kind: type[StrategySettings]) -> None:
    stop = (".*", "[(", "\\", "$^", "🙂")
    run, generator = new_run(random_tree(3), 3, stop=stop)
    await finish(small(kind), run)
    assert {params.stop for _, params in generator.calls} == {stop}


@every_strategy
async def test_no_time_left_is_no_candidate_and_no_error(kind: type[StrategySettings]) -> None:
    run, generator = new_run(random_tree(3), 3, budget=Budget(seconds=0.0))
    _, result = await finish(small(kind), run)
    assert (result.winner, result.stopped_by) == (None, "budget.seconds")
    assert not generator.calls


@every_strategy
def test_settings_are_closed_and_bounded(kind: type[StrategySettings]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        kind(nonsense=1)  # type: ignore[call-arg]
    for name, field in kind.model_fields.items():
        if field.annotation in (int, float):
            for value in (-1, float("inf"), float("nan")):
                with pytest.raises(ValidationError):
                    kind(**{name: value})
