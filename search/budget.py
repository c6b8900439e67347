"""What a search may spend, and what it has spent."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ReasoningEffort = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits on generated tokens, on seconds, and on continuations asked of the policy.

    None is no limit.
    """

    tokens: int | None = None
    seconds: float | None = None
    calls: int | None = None


# Four times as much each: accuracy grows with the logarithm of what is spent (Snell et al., arXiv
# 2408.03314, figure 3), so that anything less would not be felt.
EFFORTS: Mapping[ReasoningEffort, Budget] = MappingProxyType(
    {
        "low": Budget(tokens=2_048),
        "medium": Budget(tokens=8_192),
        "high": Budget(tokens=32_768),
    }
)


class Meter:
    """Counts against a budget from the moment it is made."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._started_s = time.perf_counter()
        self._kept = Budget(tokens=0, seconds=0.0, calls=0)
        self.generated_tokens = 0
        self.calls = 0

    def keep_back(self, fraction: float, *, at_most_tokens: int) -> None:
        """Count as spent what a last continuation is to have, until `release`.

        That is a fraction of the tokens and of the seconds, and one call of several.
        """
        tokens, seconds, calls = self._budget.tokens, self._budget.seconds, self._budget.calls
        self._kept = Budget(
            tokens=min(int(fraction * (tokens or 0)), at_most_tokens),
            seconds=fraction * (seconds or 0.0),
            calls=min(1, (calls or 1) - 1),
        )

    def release(self) -> None:
        """Give back what was kept."""
        self._kept = Budget(tokens=0, seconds=0.0, calls=0)

    def share(self, candidates: int) -> int | None:
        """Tokens that each of so many candidates may still write; None is no limit."""
        if self._budget.tokens is None:
            return None
        left = self._budget.tokens - (self._kept.tokens or 0) - self.generated_tokens
        return max(0, left) // candidates

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be generated; None is no limit."""
        return self.share(1)

    @property
    def calls_left(self) -> int | None:
        """Continuations that may still be asked for; None is no limit."""
        if self._budget.calls is None:
            return None
        return max(0, self._budget.calls - (self._kept.calls or 0) - self.calls)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, never below zero; None is no deadline."""
        if self._budget.seconds is None:
            return None
        spent_s = time.perf_counter() - self._started_s
        return max(0.0, self._budget.seconds - (self._kept.seconds or 0.0) - spent_s)
