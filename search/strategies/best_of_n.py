"""Best of n: write n whole candidates, score them once, pick one.

Selection by the PRM's score is best-of-n as in Lightman et al., "Let's Verify Step by Step", arXiv
2305.20050 §2.5; `weighted` adds up the scores of candidates that agree (Li et al., arXiv
2206.02336 §3.2), `calibrated` the probabilities of being right that were fitted for this PRM and
policy (`search/selection.py`); `majority` is self-consistency (Wang et al., arXiv 2203.11171);
`first` is plain sampling, the baseline of them all.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from pydantic import Field

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.selection import Selection
from search.strategies.base import MAX_CANDIDATES, StrategySettings
from search.strategies.selecting import rank_by
from search.strategies.stepwise import event
from search.types import Candidate, SearchEvent


class BestOfN(StrategySettings):
    """Write `n` candidates and select one."""

    type: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    selection: Selection = "prm"
    aggregation: AggregationName | None = None

    @property
    def needs_prm(self) -> bool:
        """Votes and plain sampling do without."""
        return self.selection not in ("majority", "first")

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """One round: write all, score all."""
        wanted = run.affordable(self.n)
        if wanted == 0:
            return
        async with aclosing(run.write([None] * wanted, one_step=False)) as written:
            async for candidate in written:
                run.candidates.append(candidate)
                yield event("expanded", 0, candidate, text=candidate.text)
        run.candidates.sort(key=lambda candidate: candidate.index)
        run.candidates = await run.score(run.candidates, aggregation=self.aggregation)
        for candidate in run.candidates:
            yield event("finished", 0, candidate)

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """By `selection`."""
        return rank_by(self.selection, candidates)
