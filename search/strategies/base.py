"""What the settings of all strategies share."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from search.run import by_score
from search.types import Candidate

# Keeps a single request from filling the engine for minutes.
MAX_CANDIDATES = 512


class StrategySettings(BaseModel):
    """Base of a strategy: closed, immutable, told apart by `type`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def needs_prm(self) -> bool:
        """Whether the strategy cannot run without step scores."""
        return True

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All of these, the winner first: by score, those that came to an end before the others."""
        ended = [c for c in candidates if c.finish_reason in ("stop", "length")]
        others = [c for c in candidates if c.finish_reason not in ("stop", "length")]
        return by_score(ended) + by_score(others)
