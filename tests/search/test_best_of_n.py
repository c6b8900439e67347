"""Best of n on a script: five candidates whose winner under each selection is known."""

from typing import Literal

import pytest

from prm.errors import InvalidInput
from search.budget import Budget
from search.generator import EndedBy
from search.run import SearchRun, run_search
from search.selection import Selector, Term
from search.strategies.best_of_n import BestOfN
from search.types import Sampling, SearchEvent, SearchProblem, SearchResult
from tests.factories import user
from tests.search.fakes import ScriptedGenerator, ScriptedScorer

pytestmark = pytest.mark.anyio

# Answers 15 15 12 12 15; the best single one is number 2; 15 has the votes, 12 the weight.
TEXTS = [
    "bad\nAnswer: 15",
    "poor\nAnswer: 15",
    "good\nAnswer: 12",
    "fair\nAnswer: 12",
    "bad\nAnswer: 15",
]
SCORES = {"bad": 0.1, "poor": 0.2, "good": 0.9, "fair": 0.5}


def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
    return TEXTS[nth % len(TEXTS)], "eos"


def score(step: str) -> float:
    return SCORES.get(step, 0.95)


def new_run(
    scorer: ScriptedScorer | None,
    *,
    budget: Budget | None = None,
    generator: ScriptedGenerator | None = None,
    max_tokens: int = 100,
    selector: Selector | None = None,
) -> SearchRun:
    return SearchRun(
        SearchProblem(messages=user("?")),
        generator or ScriptedGenerator(script),
        scorer,
        sampling=Sampling(max_tokens=max_tokens, seed=1),
        budget=budget or Budget(),
        step_separator="\n",
        selector=selector,
    )


async def finish(strategy: BestOfN, run: SearchRun) -> tuple[list[SearchEvent], SearchResult]:
    events = [event async for event in run_search(strategy, run)]
    assert isinstance(events[-1], SearchResult)
    return [event for event in events if isinstance(event, SearchEvent)], events[-1]


@pytest.mark.parametrize(
    ("selection", "winner"), [("prm", 2), ("weighted", 2), ("majority", 1), ("first", 0)]
)
async def test_each_selection_picks_its_winner(
    selection: Literal["prm", "weighted", "majority", "first"], winner: int
) -> None:
    strategy = BestOfN(n=5, selection=selection)
    _, result = await finish(strategy, new_run(ScriptedScorer(score)))
    assert result.winner is not None
    assert result.winner.index == winner
    assert [(v.answer, v.count) for v in result.votes] == [("15", 3), ("12", 2)]
    assert [v.weight for v in result.votes] == [pytest.approx(0.4), pytest.approx(1.4)]


async def test_calibrated_adds_up_fitted_probabilities_and_not_scores() -> None:
    # A PRM whose scores mean the opposite: its selector turns the least step score p into 1 - p.
    turned = Selector(
        intercept=0, l2=1, terms=(Term(feature="logit_min", mean=0, scale=1, weight=-1),)
    )
    run = new_run(ScriptedScorer(score), selector=turned)
    _, result = await finish(BestOfN(n=5, selection="calibrated"), run)
    assert [c.probability for c in result.candidates] == pytest.approx([0.9, 0.8, 0.1, 0.5, 0.9])
    # 15 adds up to 2.6 and 12 to 0.6; then the best of each, then the others.
    assert [c.index for c in result.ranking] == [0, 3, 4, 1, 2]


async def test_the_accounts_are_exact() -> None:
    scorer = ScriptedScorer(score)
    events, result = await finish(BestOfN(n=5), new_run(scorer))
    lengths = [len(text) for text in TEXTS]
    assert result.usage.prompt_tokens == 5
    assert result.usage.generated_tokens == sum(lengths)
    assert result.usage.discarded_tokens == sum(lengths) - lengths[2]
    # What two have written is read once.
    distinct = list(dict.fromkeys(TEXTS))
    assert len(distinct) < len(TEXTS)
    assert result.usage.scored_tokens == sum(map(len, distinct))
    assert result.usage.cached_tokens == sum(lengths) - result.usage.scored_tokens
    assert (result.rounds, result.stopped_by) == (1, "finished")
    assert [[t.response for t in call] for call in scorer.calls] == [distinct]
    assert [event.type for event in events] == ["expanded"] * 5 + ["finished"] * 5


async def test_majority_without_a_prm_takes_the_first_of_the_leading_answer() -> None:
    _, result = await finish(BestOfN(n=5, selection="majority"), new_run(None))
    assert result.winner is not None
    assert (result.winner.index, result.winner.score) == (0, None)
    assert result.usage.scored_tokens == 0


async def test_the_callers_aggregation_decides() -> None:
    # By their last step all are alike, so the first written wins.
    _, result = await finish(BestOfN(n=5, aggregation="last"), new_run(ScriptedScorer(score)))
    assert result.winner is not None
    assert result.winner.index == 0


async def test_a_token_budget_is_shared_out_and_never_exceeded() -> None:
    run = new_run(ScriptedScorer(score), budget=Budget(tokens=52))
    _, result = await finish(BestOfN(n=5), run)
    assert result.usage.generated_tokens == 50
    assert result.stopped_by == "budget.tokens"
    assert {c.finish_reason for c in result.candidates} == {"budget"}


async def test_a_candidate_too_long_for_the_prm_keeps_no_score() -> None:
    texts = ["good\nAnswer: 12", "good" * 30]
    generator = ScriptedGenerator(lambda _, nth: (texts[nth], "eos"))
    run = new_run(ScriptedScorer(score, longest=50), generator=generator, max_tokens=500)
    _, result = await finish(BestOfN(n=2), run)
    assert [c.score for c in result.candidates] == [0.9, None]
    assert result.winner is not None
    assert result.winner.index == 0


async def test_no_readable_candidate_is_an_error_that_says_what_to_do() -> None:
    run = new_run(ScriptedScorer(score, longest=1))
    with pytest.raises(InvalidInput, match=r"lower sampling\.max_tokens"):
        await finish(BestOfN(n=2), run)


async def test_empty_texts_are_candidates_without_a_score() -> None:
    generator = ScriptedGenerator(lambda _, nth: ("" if nth else "good\nAnswer: 12", "eos"))
    _, result = await finish(BestOfN(n=3), new_run(ScriptedScorer(score), generator=generator))
    assert [c.score for c in result.candidates] == [0.9, None, None]


async def test_leaving_early_closes_the_generator() -> None:
    generator = ScriptedGenerator(script)
    events = run_search(BestOfN(n=5), new_run(ScriptedScorer(score), generator=generator))
    await anext(events)
    assert generator.is_open
    await events.aclose()
    assert not generator.is_open


async def test_seeds_differ_between_candidates_and_repeat_between_runs() -> None:
    seeds = []
    for _ in range(2):
        generator = ScriptedGenerator(script)
        await finish(BestOfN(n=5), new_run(None, generator=generator))
        seeds.append([want.seed for want in generator.calls[0][0]])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 5
