"""Lookahead search (Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314 §5.2,
"Lookahead search").

Beam search whose steps are valued by where they lead: each of the `n` steps of a round is rolled
out by up to `depth` further ones at temperature 0, and the PRM's score at the end of the rollout
stands for the step when the best n / width are chosen. A round costs up to n · (depth + 1) steps;
depth 0 is beam search.

Rollouts are thrown away, as in the paper and in search-and-learn, with one exception: where the
search is stopped before any beam is finished, the rollouts that came to their end are candidates as
well. They were what beams were chosen for, and are answers instead of halves of one.
"""

import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import cycle, islice
from typing import Literal

from pydantic import Field

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.strategies.base import BranchingSettings
from search.strategies.expanding import not_continued, prune
from search.strategies.stepwise import StepRound, end_active, event
from search.types import Candidate, SearchEvent


class Lookahead(BranchingSettings):
    """`n` beams, each survivor continued `width` times, valued `depth` steps ahead."""

    type: Literal["lookahead"] = "lookahead"
    depth: int = Field(default=1, ge=0, le=100)

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Expand, score, roll out, prune; `max_rounds` counts without the rollouts' own."""
        finished: list[Candidate] = []
        active: list[Candidate] = []
        arrived: list[Candidate] = []
        parents: Sequence[Candidate | None] = [None] * self.n
        for number in range(self.max_rounds):
            paid = run.affordable(len(parents))
            active = not_continued(parents, paid)
            if paid == 0:
                break
            round_ = StepRound(run, run.rounds, aggregation=self.aggregation)
            async with aclosing(round_.events(parents[:paid])) as events:
                async for each in events:
                    yield each
            finished += round_.ended
            active += round_.active
            if run.stopped_by != "finished" or len(finished) >= self.n or not active:
                break
            if number == self.max_rounds - 1:
                run.stopped_by = "max_rounds"
                break
            rollouts = _Rollouts(run, active, self.aggregation)
            async with aclosing(rollouts.events(self.depth)) as events:
                async for each in events:
                    yield each
            arrived += rollouts.arrived()
            for each in prune(run, rollouts.written(), run.rounds - 1, kept=arrived):
                yield each
            if run.stopped_by != "finished":
                break
            kept = rollouts.ranked()[: self.n // self.width]
            for each in prune(run, active, run.rounds - 1, kept=kept):
                yield each
            active = kept
            parents = list(islice(cycle(kept), self.n))
        left, ends = end_active(run, active, round_=run.rounds - 1)
        spare = [] if finished else _distinct(arrived)
        for each in (*ends, *prune(run, arrived, run.rounds - 1, kept=spare)):
            yield each
        run.candidates = finished + left + spare


class _Rollouts:
    """Where each beam of a round leads: written at temperature 0, scored at the end only."""

    def __init__(
        self, run: SearchRun, beams: Sequence[Candidate], aggregation: AggregationName | None
    ) -> None:
        self._run = run
        self._beams = beams
        self._aggregation = aggregation
        self._tips = {beam.index: beam for beam in beams}

    async def events(self, depth: int) -> AsyncGenerator[SearchEvent]:
        """Go `depth` steps on, or to the end, or as far as the budget pays; then score."""
        for _ in range(depth):
            beams = [beam for beam in self._tips if self._may_go_on(self._tips[beam])]
            beams = beams[: self._run.affordable(len(beams))]
            if not beams:
                break
            number, origin = self._run.rounds, {self._tips[beam].index: beam for beam in beams}
            parents = [self._tips[beam] for beam in beams]
            writing = self._run.write(parents, one_step=True, temperature=0.0)
            async with aclosing(writing) as written:
                async for tip in written:
                    assert tip.parent is not None, "a rollout continues something"
                    self._tips[origin[tip.parent]] = tip
                    yield event("expanded", number, tip, text=tip.text)
        for tip in await self._score():
            yield event("scored", self._run.rounds - 1, tip)

    def written(self) -> list[Candidate]:
        """The ends of the rollouts, of those beams that have one."""
        return [tip for beam, tip in self._tips.items() if tip.index != beam]

    def arrived(self) -> list[Candidate]:
        """The rollouts that the policy ended itself."""
        return [tip for tip in self.written() if tip.finish_reason == "stop"]

    def ranked(self) -> list[Candidate]:
        """The beams, by the score of where they lead, or their own where that has none."""
        return sorted(self._beams, key=lambda beam: (-self._value(beam), beam.index))

    def _value(self, beam: Candidate) -> float:
        for score in (self._tips[beam.index].score, beam.score):
            if score is not None:
                return score
        return -math.inf

    def _may_go_on(self, tip: Candidate) -> bool:
        return tip.finish_reason is None and tip.tokens < self._run.sampling.max_tokens

    async def _score(self) -> list[Candidate]:
        if not self.written():
            return []
        beams = {tip.index: beam for beam, tip in self._tips.items()}
        # Where all rollouts are longer than the PRM reads, the beams are not: their scores decide.
        tips = await self._run.score(self.written(), aggregation=self._aggregation, must_read=False)
        self._tips |= {beams[tip.index]: tip for tip in tips}
        return tips


def _distinct(rollouts: Iterable[Candidate]) -> list[Candidate]:
    """The first of each text: a beam and its best continuation often lead to the same."""
    first: dict[str, Candidate] = {}
    for rollout in rollouts:
        first.setdefault(rollout.text, rollout)
    return list(first.values())
