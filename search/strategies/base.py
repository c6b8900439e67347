"""What the settings of all strategies share."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prm.aggregation import AggregationName
from search.selection import StepSelection
from search.strategies.selecting import rank_ended
from search.types import Candidate

# More is a slip of the keyboard. What a server really does for one request is its own setting.
MAX_CANDIDATES = 1_000_000_000


class StrategySettings(BaseModel):
    """Base of a strategy: closed, immutable, told apart by `type`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # Whether each round continues only what the round before wrote: what all of it shares is
    # certain to be in the answer.
    is_forward_only: ClassVar[bool] = False
    # Whether `selection` has a say in what is written, and not only in which of it wins.
    is_steered_by_selection: ClassVar[bool] = False

    @property
    def needs_prm(self) -> bool:
        """Whether the strategy cannot run without step scores."""
        return True

    @property
    def uses_prm(self) -> bool:
        """Whether it makes use of step scores where there are any."""
        return self.needs_prm

    @property
    def sizes(self) -> Mapping[str, int]:
        """The settings whose product is `most_candidates`."""
        n = getattr(self, "n", None)
        return {} if n is None else {"n": n}

    @property
    def most_candidates(self) -> int:
        """The most candidates that it has under consideration at a time: what a server limits."""
        return math.prod(self.sizes.values())

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All of these, the winner first."""
        raise NotImplementedError


class SteeredSettings(StrategySettings):
    """A search that step scores steer; `selection` says who wins of those that came to an end."""

    selection: StepSelection = "weighted"
    aggregation: AggregationName | None = None

    def rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """See `rank_ended`."""
        return rank_ended(self.selection, candidates)


class BranchingSettings(SteeredSettings):
    """`n` steps in a round: what is kept of them goes on `width` times each."""

    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    width: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    max_rounds: int = Field(default=40, ge=1, le=1000)

    @model_validator(mode="after")
    def _width_divides_n(self) -> Self:
        if self.n % self.width:
            raise ValueError(f"width {self.width} must divide n {self.n}")
        return self
