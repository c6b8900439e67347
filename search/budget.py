"""What a search may spend, and what it has spent."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits on generated tokens and on seconds. None is no limit."""

    tokens: int | None = None
    seconds: float | None = None


class Meter:
    """Counts against a budget from the moment it is made."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._started_s = time.perf_counter()
        self.generated_tokens = 0

    def share(self, candidates: int) -> int | None:
        """Tokens that each of so many candidates may still write; None is no limit."""
        if self._budget.tokens is None:
            return None
        return (self._budget.tokens - self.generated_tokens) // candidates

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, never below zero; None is no deadline."""
        if self._budget.seconds is None:
            return None
        return max(0.0, self._budget.seconds - (time.perf_counter() - self._started_s))
