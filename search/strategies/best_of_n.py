"""Best of n: write n whole candidates, score them once, pick one.

Selection by the PRM's score is best-of-n as in Lightman et al., "Let's Verify Step by Step", arXiv
2305.20050 §2.5; `weighted` adds up the scores of candidates that agree (Li et al., arXiv
2206.02336 §3.2); `majority` is self-consistency (Wang et al., arXiv 2203.11171); `first` is plain
sampling, the baseline of them all.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from pydantic import Field

from prm.aggregation import AggregationName
from search.answers import count_votes
from search.run import SearchRun, best_scored
from search.strategies.base import MAX_CANDIDATES, StrategySettings
from search.types import Candidate, SearchEvent


class BestOfN(StrategySettings):
    """Write `n` candidates and select one."""

    type: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    selection: Literal["prm", "weighted", "majority", "first"] = "prm"
    aggregation: AggregationName | None = None

    @property
    def needs_prm(self) -> bool:
        """Votes and plain sampling do without."""
        return self.selection in ("prm", "weighted")

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """One round: write all, score all."""
        written = run.write([None] * self.n, one_step=False)
        async with aclosing(written):
            async for candidate in written:
                run.candidates.append(candidate)
                yield SearchEvent(
                    type="expanded", round=0, candidate=candidate.index, text=candidate.text
                )
        run.candidates.sort(key=lambda candidate: candidate.index)
        run.candidates = await run.score(run.candidates, aggregation=self.aggregation)
        for candidate in run.candidates:
            yield SearchEvent(
                type="finished", round=0, candidate=candidate.index, score=candidate.score
            )

    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The winner by `selection`; where nobody gave an answer, the best single candidate."""
        if self.selection == "first":
            return min(candidates, key=lambda candidate: candidate.index, default=None)
        votes = count_votes(candidates)
        if self.selection == "prm" or not votes:
            return best_scored(candidates)
        if self.selection == "weighted":
            leading = max(votes, key=lambda vote: vote.weight or 0.0)
        else:
            leading = votes[0]
        return best_scored([c for c in candidates if c.answer == leading.answer])
