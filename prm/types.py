"""The nouns of step scoring. Frozen: a score never changes after it was computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prm.aggregation import AggregationName


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat turn. The problem is usually a single user turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One unit of reasoning text, and where it stands in the response.

    >>> Step(index=1, text="7*2=14", char_start=6, char_end=12)
    """

    index: int
    text: str
    char_start: int
    char_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A problem and the ordered steps of one attempt at it, complete or not.

    `response[step.char_start:step.char_end] == step.text` for every step. `is_cut` when the caller
    gave the response and not its steps: what is wrong in a step is then said of the response.
    """

    messages: tuple[Message, ...]
    response: str
    steps: tuple[Step, ...]
    is_cut: bool = False

    @property
    def num_characters(self) -> int:
        """Characters that a tokenizer will see."""
        return len(self.response) + sum(len(message.content) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """What a PRM says of one step.

    `raw` is the family's own number (for an implicit PRM, β times the step's log-ratio),
    `score` is that number mapped to [0, 1], higher is better. `cumulative` is the sum up to and
    with this step, where the family's steps add up: an implicit PRM's Q.
    """

    raw: float
    score: float
    cumulative: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRewards:
    """Per-token process rewards of one response: the RL trainer's view of a step score.

    All three have one entry per response token; offsets index the response's characters.
    """

    ids: Sequence[int]
    char_offsets: Sequence[tuple[int, int]]
    rewards: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """One scored item: a score per step, all aggregates, and what it cost.

    `first_error` is the first step whose score lies below the version's threshold, or None.
    Over all its models, `scored_tokens` were read for this item and `cached_tokens` had been read
    before; the scores of the first `cached_steps` steps were known without reading anything.
    A generative PRM wrote `generated_tokens` for it; of the samples, `cut_samples` broke off (at a
    limit, or without a closing tag) and were judged as they were, `discarded_samples` gave no
    verdict and took no part.
    `calibrated` has each step's probability of being right, where the scorer had a calibration.
    """

    trajectory: Trajectory
    step_scores: tuple[StepScore, ...]
    aggregates: Mapping[AggregationName, float]
    score: float
    first_error: int | None
    tokens: TokenRewards | None
    prompt_tokens: int
    scored_tokens: int
    cached_tokens: int
    cached_steps: int
    generated_tokens: int = 0
    cut_samples: int = 0
    discarded_samples: int = 0
    calibrated: tuple[float, ...] | None = None
