"""What the settings of all strategies share."""

from pydantic import BaseModel, ConfigDict

# Keeps a single request from filling the engine for minutes.
MAX_CANDIDATES = 512


class StrategySettings(BaseModel):
    """Base of a strategy: closed, immutable, told apart by `type`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def needs_prm(self) -> bool:
        """Whether the strategy cannot run without step scores."""
        return True
