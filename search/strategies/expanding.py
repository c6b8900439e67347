"""The loop of the strategies that differ only in which steps they continue, and how often.

write a step from each parent → score → choose the parents of the next round → prune the others
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.strategies.stepwise import StepRound, end_active, event
from search.types import Candidate, SearchEvent

Choose = Callable[[Sequence[Candidate], Sequence[Candidate]], Sequence[Candidate]]
"""From what a round wrote, (active, ended) in the order written, the parents of the next round.

An active candidate as often as it is to be continued; those left out are pruned. No parents: done.
"""


async def expand(
    run: SearchRun,
    choose: Choose,
    *,
    n: int,
    max_rounds: int,
    aggregation: AggregationName | None,
) -> AsyncGenerator[SearchEvent]:
    """Rounds from `n` first steps on, until nobody goes on or the rounds or the budget are used up.

    `run.candidates` ends as all that ended, and what was still active. Equal texts are kept: what
    the policy says twice is likely, and so it is drawn upon twice.
    """
    finished: list[Candidate] = []
    active: list[Candidate] = []
    parents: Sequence[Candidate | None] = [None] * n
    for number in range(max_rounds):
        paid = run.affordable(len(parents))
        waiting = not_continued(parents, paid)
        if paid == 0:
            active = waiting
            break
        round_ = StepRound(run, number, aggregation=aggregation, keeps_repeated=True)
        async with aclosing(round_.events(parents[:paid])) as events:
            async for each in events:
                yield each
        finished += round_.ended
        active = round_.active + waiting
        if run.stopped_by != "finished":
            break
        chosen = choose(round_.active, round_.ended)
        if chosen and number == max_rounds - 1:
            run.stopped_by = "max_rounds"
        if not chosen or number == max_rounds - 1:
            break
        for each in prune(run, active, number, kept=chosen):
            yield each
        parents = chosen
    left, ends = end_active(run, active, round_=run.rounds - 1)
    for each in ends:
        yield each
    run.candidates = finished + left


def not_continued(parents: Sequence[Candidate | None], paid: int) -> list[Candidate]:
    """The parents that the budget leaves without any continuation, each once."""
    seen = {parent.index for parent in parents[:paid] if parent}
    waiting = []
    for parent in parents[paid:]:
        if parent and parent.index not in seen:
            seen.add(parent.index)
            waiting.append(parent)
    return waiting


def prune(
    run: SearchRun, candidates: Iterable[Candidate], round_: int, *, kept: Iterable[Candidate]
) -> list[SearchEvent]:
    """End those that are not kept, and say so."""
    indices = {candidate.index for candidate in kept}
    return [
        event("pruned", round_, run.end(candidate, "pruned"))
        for candidate in candidates
        if candidate.index not in indices
    ]
