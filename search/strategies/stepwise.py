"""One round of a step-wise search: a step from each parent, scores, and who goes on.

Shared by all strategies that write step by step; what they differ in is whom they continue.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Literal

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.types import Candidate, SearchEvent

EventType = Literal["expanded", "scored", "pruned", "finished"]


class StepRound:
    """The children of one round, sorted out once its events have been seen.

    `active` can be continued, `ended` cannot; `repeated` say what an active one says already and
    are pruned. With `keeps_repeated` there are none of these: in a particle filter the same text
    twice counts twice.
    """

    def __init__(
        self,
        run: SearchRun,
        number: int,
        *,
        aggregation: AggregationName | None,
        keeps_repeated: bool = False,
    ) -> None:
        self._run = run
        self._number = number
        self._aggregation = aggregation
        self._keeps_repeated = keeps_repeated
        self.active: list[Candidate] = []
        self.ended: list[Candidate] = []
        self.repeated: list[Candidate] = []

    async def events(self, parents: Sequence[Candidate | None]) -> AsyncGenerator[SearchEvent]:
        """Write and score one child per parent, in the order of the parents."""
        children = []
        async with aclosing(self._run.write(parents, one_step=True)) as written:
            async for child in written:
                children.append(child)
                yield event("expanded", self._number, child, text=child.text)
        children.sort(key=lambda child: child.index)
        children = await self._run.score(children, aggregation=self._aggregation)
        for child in children:
            yield event("scored", self._number, child)
        self._sort_out(children)
        for child in self.ended:
            yield event("finished", self._number, child)
        for child in self.repeated:
            yield event("pruned", self._number, child)

    def _sort_out(self, children: Iterable[Candidate]) -> None:
        texts = set()
        for child in children:
            if child.finish_reason is None and child.tokens >= self._run.sampling.max_tokens:
                child = self._run.end(child, "length")
            if child.finish_reason is not None:
                self.ended.append(child)
            elif child.text in texts and not self._keeps_repeated:
                self.repeated.append(self._run.end(child, "pruned"))
            else:
                texts.add(child.text)
                self.active.append(child)


def end_active(
    run: SearchRun, active: Iterable[Candidate], *, round_: int
) -> tuple[list[Candidate], list[SearchEvent]]:
    """End what was still active when a search stopped, and say so.

    By the budget or the rounds it ends as "budget"; where enough others are done, as "pruned".
    """
    is_pruned = run.stopped_by == "finished"
    left = [run.end(child, "pruned" if is_pruned else "budget") for child in active]
    return left, [event("pruned", round_, child) for child in left] if is_pruned else []


def event(
    type_: EventType, round_: int, candidate: Candidate, *, text: str | None = None
) -> SearchEvent:
    """What happened to a candidate."""
    return SearchEvent(
        type=type_,
        round=round_,
        candidate=candidate.index,
        parent=candidate.parent,
        text=text,
        score=candidate.score,
    )
