"""As many samples as it takes: Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency
for Efficient Reasoning and Coding with LLMs", arXiv 2305.11860 §3.2.

Whole candidates are written in waves. After each wave the answers are grouped by equivalence, and
sampling stops when the posterior that the leading answer stays ahead of the second reaches
`threshold`, or at `n` candidates. The paper writes one sample at a time and counts votes; here a
wave is one batch, and with a PRM every vote weighs what the PRM says is the candidate's probability
of being right: its score under `aggregation`, "fitted" for a calibrated one. See
`search/stopping.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from pydantic import Field

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.stopping import stays_ahead
from search.strategies.base import MAX_CANDIDATES, StrategySettings
from search.strategies.selecting import rank_by
from search.strategies.stepwise import event
from search.types import Candidate, SearchEvent


class Adaptive(StrategySettings):
    """Up to `n` candidates in waves of `wave`, until the leading answer is safe.

    `selection` None is "weighted" with a PRM and "majority" without: how answers are weighed, when
    to stop and which wins alike.
    """

    type: Literal["adaptive"] = "adaptive"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    wave: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    threshold: float = Field(default=0.95, ge=0.5, lt=1, allow_inf_nan=False)
    selection: Literal["weighted", "majority"] | None = None
    aggregation: AggregationName | None = None

    @property
    def needs_prm(self) -> bool:
        """Votes do without."""
        return self.selection == "weighted"

    @property
    def uses_prm(self) -> bool:
        """See `StrategySettings.uses_prm`."""
        return self.selection != "majority"

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """A wave, its scores, and whether that is enough; `run.candidates` is all that there is."""
        while len(run.candidates) < self.n and run.stopped_by == "finished":
            wanted = run.affordable(min(self.wave, self.n - len(run.candidates)))
            if wanted == 0:
                return
            number = run.rounds
            wave: list[Candidate] = []
            async with aclosing(run.write([None] * wanted, one_step=False)) as written:
                async for candidate in written:
                    wave.append(candidate)
                    yield event("expanded", number, candidate, text=candidate.text)
            wave.sort(key=lambda candidate: candidate.index)
            wave = await run.score(wave, aggregation=self.aggregation)
            for candidate in wave:
                yield event("finished", number, candidate)
            run.candidates = await run.group([*run.candidates, *wave])
            if self._certainty(run.candidates) >= self.threshold:
                return

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """By `selection`."""
        return rank_by("weighted" if self._weighs(candidates) else "majority", candidates)

    def _certainty(self, candidates: Sequence[Candidate]) -> float:
        """The posterior that the leading answer stays ahead."""
        places: dict[str, int] = {}
        groups = [
            # What the problem's tests refuse cannot win, so it does not lead.
            None
            if candidate.group is None or candidate.has_failed
            else places.setdefault(candidate.group, len(places))
            for candidate in candidates
        ]
        if not self._weighs(candidates):
            return stays_ahead(groups)
        # A sum of step scores is no probability; beyond 1 a vote weighs no more than a sure one.
        return stays_ahead(groups, [min(1.0, max(0.0, c.score or 0.0)) for c in candidates])

    def _weighs(self, candidates: Sequence[Candidate]) -> bool:
        if self.selection is None:
            return any(candidate.score is not None for candidate in candidates)
        return self.selection == "weighted"
