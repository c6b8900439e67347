"""Best of n that gives up early: Sun et al., "Fast Best-of-N Decoding via Speculative Rejection",
arXiv 2410.20290, Algorithm 1.

`n` whole candidates are written, `chunk` tokens at a time. After each chunk the texts so far are
scored, in the middle of a step where they stand there, and of those still being written the worst
`rejection` (the paper's α) are given up, so that the batch shrinks: n, n·(1 − α), … The rest run to
their end; of those that got there the best one wins.

The paper scores when the accelerator's memory is full; here the batch is shared with other
searches, so that it is a number of tokens. And it takes its quantile over the finished ones too,
here they have no part: they take up no place in the batch.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from pydantic import Field

from search.ranking import by_score
from search.run import SearchRun
from search.strategies.base import MAX_CANDIDATES, SteeredSettings
from search.strategies.stepwise import end_active, event
from search.types import Candidate, SearchEvent


class SpeculativeRejection(SteeredSettings):
    """`n` candidates at first; every `chunk` tokens the worst `rejection` of them are given up."""

    type: Literal["speculative_rejection"] = "speculative_rejection"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    rejection: float = Field(default=0.5, ge=0, lt=1, allow_inf_nan=False)
    chunk: int = Field(default=64, ge=1, le=1_000_000)

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Write a chunk, score, reject; `run.candidates` ends as those that ran to their end."""
        ended: list[Candidate] = []
        active: list[Candidate] = []
        parents: Sequence[Candidate | None] = [None] * self.n
        while parents:
            parents = parents[: run.affordable(len(parents))]
            if not parents:
                break
            number = run.rounds
            # Those that the budget no longer pays stop where they are.
            unpaid = active[len(parents) :]
            written: list[Candidate] = []
            chunk = run.write(parents, one_step=False, at_most=self.chunk)
            async with aclosing(chunk) as pieces:
                async for child in pieces:
                    written.append(child)
                    yield event("expanded", number, child, text=child.text)
            written.sort(key=lambda child: child.index)
            written = await run.score(written, aggregation=self.aggregation)
            for child in written:
                finished = child.finish_reason is not None
                yield event("finished" if finished else "scored", number, child)
            ended += [child for child in written if child.finish_reason is not None]
            ranked = by_score(child for child in written if child.finish_reason is None)
            if run.stopped_by != "finished":
                active = ranked + unpaid
                break
            keep = len(ranked) - int(self.rejection * len(ranked))
            for child in ranked[keep:]:
                yield event("pruned", number, run.end(child, "pruned"))
            parents = active = ranked[:keep]
        left, ends = end_active(run, active, round_=run.rounds - 1)
        for each in ends:
            yield each
        run.candidates = ended + left
