"""What a PRM family is: how a trajectory becomes tokens, and model outputs become step scores.

A family is pure: it names the reads that it wants of its models and maps what comes back. Running
the models is the engine's business, so a family can be tested on numbers worked out by hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prm.chat import ChatTokenizer
from prm.manifest import ModelVersion
from prm.types import StepScore, TokenRewards, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobRead:
    """Ask for log p(ids[t] | ids[:t]) of every t ≥ first, in float32, under one model."""

    model: str
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTrajectory:
    """Tokens of a trajectory, and where each step ends in them.

    `ids[first:]` are the response's tokens; `step_ends[k]` counts the response tokens up to and
    including the last one of step k; `char_offsets` has one span per response token.
    """

    ids: tuple[int, ...]
    first: int
    step_ends: tuple[int, ...]
    char_offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScores:
    """Step scores in step order, and per-token rewards where the family has them."""

    steps: tuple[StepScore, ...]
    tokens: TokenRewards | None


class Family(Protocol):
    """One PRM kind, bound to one version's tokenizer and settings."""

    name: str

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """Tokens of the trajectory. Raises InvalidInput when it is too long for the model."""
        ...

    def reads(self, encoded: EncodedTrajectory) -> Sequence[LogprobRead]:
        """What must be read from which model."""
        ...

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[Sequence[float]]) -> FamilyScores:
        """Step scores from the outputs of `reads`, in the same order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """How a family presents itself before any version of it is loaded."""

    name: str
    architecture_suffix: Literal["ForCausalLM", "ForTokenClassification"]
    bind: Callable[[ModelVersion, ChatTokenizer], Family]

    def reads_architecture(self, architecture: str) -> bool:
        """Whether a checkpoint of this architecture can be read this way."""
        return architecture.endswith(self.architecture_suffix)
