"""Another strategy, chosen for the budget by what was measured: see `search/curves.py`.

How much a PRM and a wider search help differs from policy to policy and from PRM to PRM (Snell et
al., arXiv 2408.03314 §5-7), so the choice goes by measured curves. A server that has those of the
pair replaces `auto` before the search begins. Without any, as here, the choice is to vote: weighted
by a PRM's scores where there is one, by count where not. Either way `run.choice` says what was
chosen and why.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from search.curves import choose
from search.run import SearchRun
from search.strategies.base import StrategySettings
from search.strategies.best_of_n import BestOfN
from search.strategies.selecting import rank_by
from search.types import Candidate, SearchEvent


class Auto(StrategySettings):
    """Strategy and width by the budget, which is that of medium effort where none is named."""

    type: Literal["auto"] = "auto"

    @property
    def needs_prm(self) -> bool:
        """Votes do without."""
        return False

    @property
    def uses_prm(self) -> bool:
        """See `StrategySettings.uses_prm`."""
        return True

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Those of the vote that the budget pays."""
        choice = choose(
            None,
            run.meter.tokens_left,
            has_prm=run.scorer is not None,
            tokens_per_candidate=run.sampling.max_tokens,
        )
        chosen = BestOfN.model_validate(choice.settings)
        run.choice = {"strategy": chosen.model_dump(), "reason": choice.reason}
        async with aclosing(chosen.rounds(run)) as events:
            async for event in events:
                yield event

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """As the vote that was chosen does."""
        has_scores = any(candidate.score is not None for candidate in candidates)
        return rank_by("weighted" if has_scores else "majority", candidates)
