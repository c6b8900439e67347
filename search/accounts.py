"""The accounts of one search: what it may still spend, what it has spent, and what stopped it."""

from search.budget import Budget, Meter
from search.types import Candidate, SearchUsage, StoppedBy


class Accounts:
    """Kept by whoever writes and scores for the search; exact, and never estimated."""

    def __init__(self, budget: Budget) -> None:
        self.meter = Meter(budget)
        self.stopped_by: StoppedBy = "finished"
        self.prompt_tokens = 0
        self.scored_tokens = 0
        self.cached_tokens = 0
        self.generate_s = 0.0
        self.score_s = 0.0

    def affordable(self, candidates: int) -> int:
        """How many of so many continuations the budget still pays, with a token for each.

        Fewer than asked for is noted as what the search was stopped by.
        """
        tokens, calls = self.meter.tokens_left, self.meter.calls_left
        paid = candidates
        if tokens is not None and tokens < paid:
            paid, self.stopped_by = tokens, "budget.tokens"
        if calls is not None and calls < paid:
            paid, self.stopped_by = calls, "budget.calls"
        if self.meter.seconds_left == 0:
            paid, self.stopped_by = 0, "budget.seconds"
        return paid

    def usage(self, winner: Candidate | None = None) -> SearchUsage:
        """What was spent until now; all of it is discarded but the winner's tokens."""
        generated = self.meter.generated_tokens
        return SearchUsage(
            policy_calls=self.meter.calls,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=generated,
            discarded_tokens=generated - (winner.tokens if winner else 0),
            scored_tokens=self.scored_tokens,
            cached_tokens=self.cached_tokens,
        )
