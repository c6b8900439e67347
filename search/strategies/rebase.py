"""Reward-balanced search (Wu et al., "Inference Scaling Laws", arXiv 2408.00724 §3.2).

In every round B = n − (candidates that ended) continuations are shared out among the active steps:
step j gets W_j = Round(B · softmax(score / temperature)_j), so that good ones are continued often
and fair ones still a little, without the cost of values by rollout. The paper's rounded widths need
not add up to B (ten equal steps would share four continuations as ten noughts): here the largest
remainders are rounded up, which is the same wherever the paper's do add up. It ends when n
candidates have.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from search.ranking import by_score
from search.run import SearchRun
from search.strategies.base import MAX_CANDIDATES, SteeredSettings
from search.strategies.expanding import expand
from search.strategies.weights import apportion, scores_of, softmax
from search.types import Candidate, SearchEvent


class Rebase(SteeredSettings):
    """`n` continuations per round, less those that ended, in the balance of the scores.

    `temperature` is the paper's T_b, for scores in [0, 1]: low follows the best step only, high
    shares evenly.
    """

    is_forward_only: ClassVar[bool] = True

    type: Literal["rebase"] = "rebase"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    temperature: float = Field(default=0.2, ge=0.001, le=100, allow_inf_nan=False)
    max_rounds: int = Field(default=40, ge=1, le=1000)

    def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Rounds of as many steps as there are candidates missing."""
        missing = self.n

        def choose(active: Sequence[Candidate], ended: Sequence[Candidate]) -> list[Candidate]:
            nonlocal missing
            missing -= len(ended)
            if not active or missing == 0:
                return []
            # Best first: of equal remainders the better step is rounded up, and a budget that
            # runs short takes from the worst.
            ranked = by_score(active)
            widths = apportion(softmax(scores_of(ranked), self.temperature), missing)
            return [step for step, width in zip(ranked, widths, strict=True) for _ in range(width)]

        return expand(
            run, choose, n=self.n, max_rounds=self.max_rounds, aggregation=self.aggregation
        )
