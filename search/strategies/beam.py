"""Beam search over steps, in the form of search-and-learn (Beeching et al., 2024; Snell et al.,
arXiv 2408.03314 §5.1).

`n` beams write one step each and are scored; the best n / width that are not finished go on, each
continued `width` times. Beams with the same text count once. It ends when n beams are finished,
none is left, or the rounds or the budget are used up.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import cycle, islice
from typing import Literal, Self

from pydantic import Field, model_validator

from prm.aggregation import AggregationName
from search.run import SearchRun, best_scored
from search.strategies.base import MAX_CANDIDATES, StrategySettings
from search.types import Candidate, FinishReason, SearchEvent


class Beam(StrategySettings):
    """`n` beams, each survivor continued `width` times."""

    type: Literal["beam"] = "beam"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    width: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    max_rounds: int = Field(default=40, ge=1, le=1000)
    aggregation: AggregationName | None = None

    @model_validator(mode="after")
    def _width_divides_n(self) -> Self:
        if self.n % self.width:
            raise ValueError(f"width {self.width} must divide n {self.n}")
        return self

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Expand, score, prune; `run.candidates` ends as the finished beams and the active ones."""
        finished: list[Candidate] = []
        active: list[Candidate] = []
        parents: Sequence[Candidate | None] = [None] * self.n
        for round_ in range(self.max_rounds):
            if not run.can_pay(len(parents)):
                run.stopped_by = "budget.tokens"
                break
            children = []
            written = run.write(parents, one_step=True)
            async with aclosing(written):
                async for child in written:
                    children.append(child)
                    yield _event("expanded", round_, child, text=child.text)
            children.sort(key=lambda child: child.index)
            children = await run.score(children, aggregation=self.aggregation)
            for child in children:
                yield _event("scored", round_, child)
            active, ended, repeated = _sort_out(run, children)
            finished += ended
            for child in ended:
                yield _event("finished", round_, child)
            for child in repeated:
                yield _event("pruned", round_, child)
            if run.stopped_by != "finished" or len(finished) >= self.n or not active:
                break
            if round_ == self.max_rounds - 1:
                run.stopped_by = "max_rounds"
                break
            kept, pruned = self._prune(active)
            for child in pruned:
                yield _event("pruned", round_, run.end(child, "pruned"))
            parents = list(islice(cycle(kept), self.n))
        # What was still active is left as it is: by the budget, or because enough beams are done.
        reason: FinishReason = "pruned" if run.stopped_by == "finished" else "budget"
        left = [run.end(child, reason) for child in active]
        if reason == "pruned":
            for child in left:
                yield _event("pruned", child.round, child)
        run.candidates = finished + left

    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The best finished beam; where none is finished, the best one there is."""
        finished = [c for c in candidates if c.finish_reason in ("stop", "length")]
        return best_scored(finished or candidates)

    def _prune(self, active: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
        """The best n / width, and the others."""
        ranked = sorted(active, key=lambda beam: (-(beam.score or 0.0), beam.index))
        keep = self.n // self.width
        return ranked[:keep], ranked[keep:]


def _sort_out(
    run: SearchRun, children: Sequence[Candidate]
) -> tuple[list[Candidate], list[Candidate], list[Candidate]]:
    """Beams to go on with, those that ended, and those that repeat a beam's text."""
    active: dict[str, Candidate] = {}
    ended = []
    repeated = []
    for child in children:
        if child.finish_reason is None and child.tokens >= run.sampling.max_tokens:
            child = run.end(child, "length")
        if child.finish_reason is not None:
            ended.append(child)
        elif child.text in active:
            repeated.append(run.end(child, "pruned"))
        else:
            active[child.text] = child
    return list(active.values()), ended, repeated


def _event(
    type_: Literal["expanded", "scored", "pruned", "finished"],
    round_: int,
    beam: Candidate,
    *,
    text: str | None = None,
) -> SearchEvent:
    return SearchEvent(
        type=type_,
        round=round_,
        candidate=beam.index,
        parent=beam.parent,
        text=text,
        score=beam.score,
    )
