"""As many samples as it takes: Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency
for Efficient Reasoning and Coding with LLMs", arXiv 2305.11860 §3.2.

Whole candidates are written in waves. After each wave the answers are grouped by equivalence, and
sampling stops when the leading answer is likely enough to stay ahead of the second, or at `n`
candidates. The paper writes one sample at a time, counts votes and stops at a constant posterior.
Here a wave is one batch; with a PRM every vote weighs the candidate's probability of being right,
as it was fitted for this PRM and policy (`search/selection.py`), or else its score under
`aggregation`; and more doubt is tolerated later: `search/stopping.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from prm.aggregation import AggregationName
from search.run import SearchRun
from search.selection import VoteSelection
from search.stopping import is_decided
from search.strategies.base import MAX_CANDIDATES, StrategySettings
from search.strategies.selecting import rank_by
from search.strategies.stepwise import event
from search.types import Candidate, SearchEvent

WAVE = 4
THRESHOLD = 0.95


class Adaptive(StrategySettings):
    """Up to `n` candidates in waves of `wave`, until the leading answer is safe.

    `selection` says how answers are weighed, when to stop and which wins alike. None is
    "calibrated" where probabilities were fitted, "weighted" where there are only scores, "majority"
    where there are none. `threshold` None is the one that was fitted with the probabilities, for
    waves of as many as `wave` None is; else `THRESHOLD` and `WAVE`.
    """

    is_steered_by_selection: ClassVar[bool] = True

    type: Literal["adaptive"] = "adaptive"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    wave: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    threshold: float | None = Field(default=None, ge=0.5, lt=1, allow_inf_nan=False)
    selection: VoteSelection | None = None
    aggregation: AggregationName | None = None

    @property
    def needs_prm(self) -> bool:
        """Votes do without."""
        return self.selection in ("weighted", "calibrated")

    @property
    def uses_prm(self) -> bool:
        """See `StrategySettings.uses_prm`."""
        return self.selection != "majority"

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """A wave, its scores, and whether that is enough; `run.candidates` is all that there is."""
        while len(run.candidates) < self.n and run.stopped_by == "finished":
            wanted = run.affordable(min(self.wave or WAVE, self.n - len(run.candidates)))
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
            if self._is_decided(run.candidates):
                return

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """By `selection`."""
        return rank_by(self._selection(candidates), candidates)

    def _is_decided(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the leading answer is safe."""
        places: dict[str, int] = {}
        groups = [
            # What the problem's tests refuse cannot win, so it does not lead.
            None
            if candidate.group is None or candidate.has_failed
            else places.setdefault(candidate.group, len(places))
            for candidate in candidates
        ]
        weights: list[float] | None = None
        match self._selection(candidates):
            case "calibrated":
                weights = [candidate.probability or 0.0 for candidate in candidates]
            case "weighted":
                # A sum of step scores is no probability; beyond 1 a vote weighs no more than that.
                weights = [min(1.0, max(0.0, c.score or 0.0)) for c in candidates]
        return is_decided(groups, weights, threshold=self.threshold or THRESHOLD)

    def _selection(self, candidates: Sequence[Candidate]) -> VoteSelection:
        if self.selection is not None:
            return self.selection
        if any(candidate.probability is not None for candidate in candidates):
            return "calibrated"
        is_scored = any(candidate.score is not None for candidate in candidates)
        return "weighted" if is_scored else "majority"
