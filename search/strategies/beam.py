"""Beam search over steps, in the form of search-and-learn (Beeching et al., 2024; Snell et al.,
arXiv 2408.03314 §5.1).

`n` beams write one step each and are scored; the best n / width that are not finished go on, each
continued `width` times. Beams with the same text count once. It ends when n beams are finished,
none is left, or the rounds or the budget are used up.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import cycle, islice
from typing import ClassVar, Literal

from search.ranking import by_score
from search.run import SearchRun
from search.strategies.base import BranchingSettings
from search.strategies.expanding import not_continued
from search.strategies.stepwise import StepRound, end_active, event
from search.types import Candidate, SearchEvent


class Beam(BranchingSettings):
    """`n` beams, each survivor continued `width` times."""

    is_forward_only: ClassVar[bool] = True

    type: Literal["beam"] = "beam"

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Expand, score, prune; `run.candidates` ends as the finished beams and the active ones."""
        finished: list[Candidate] = []
        active: list[Candidate] = []
        parents: Sequence[Candidate | None] = [None] * self.n
        for number in range(self.max_rounds):
            paid = run.affordable(len(parents))
            if paid == 0:
                break
            waiting = not_continued(parents, paid)
            round_ = StepRound(run, number, aggregation=self.aggregation)
            async with aclosing(round_.events(parents[:paid])) as events:
                async for each in events:
                    yield each
            active = round_.active + waiting
            finished += round_.ended
            if run.stopped_by != "finished" or len(finished) >= self.n or not active:
                break
            if number == self.max_rounds - 1:
                run.stopped_by = "max_rounds"
                break
            ranked = by_score(active)
            keep = self.n // self.width
            for child in ranked[keep:]:
                yield event("pruned", number, run.end(child, "pruned"))
            active = ranked[:keep]
            parents = list(islice(cycle(active), self.n))
        left, ends = end_active(run, active, round_=run.rounds - 1)
        for each in ends:
            yield each
        run.candidates = finished + left
