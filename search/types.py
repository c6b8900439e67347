"""The nouns of a search. A candidate is frozen: a round makes new ones from old ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prm.types import Message, StepScore

FinishReason = Literal["stop", "length", "pruned", "budget"]
# "prm.context": what came after had all grown longer than the PRM reads.
StoppedBy = Literal[
    "finished", "budget.tokens", "budget.seconds", "budget.calls", "max_rounds", "prm.context"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the policy writes. `max_tokens` bounds one candidate, over all its rounds."""

    temperature: float = 0.8
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What the assistant has written so far, to be continued.

    `ids` are the tokens that were sampled for `text`; empty when the generator deals in text only.
    Without `is_exact` they may say more than the text does: the generator that wrote them finds out
    before it goes on from there.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    is_exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredStep:
    """A step's text and, when there is a PRM, its score."""

    text: str
    score: StepScore | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How many of the problem's tests an answer passed; `reason` is why the first other one failed.

    Tests that expect nothing, and only tell answers apart, do not count.
    """

    passed: int
    total: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One trajectory under consideration.

    `parent` is the index of the candidate that it continues, `finish_reason` None while the policy
    has not ended it, `score` None without a PRM or without a step. `tokens` counts what was
    sampled for its whole text. `group` is the answer that stands for all that are equivalent to
    this candidate's, None until answers were compared. `probability` is that of being right, where
    a selector was fitted to tell. `grade` is that of its answer, where the problem has tests.
    """

    index: int
    parent: int | None = None
    round: int = 0
    prefix: Prefix = field(default_factory=Prefix)
    steps: tuple[ScoredStep, ...] = ()
    score: float | None = None
    probability: float | None = None
    answer: str | None = None
    group: str | None = None
    grade: Grade | None = None
    finish_reason: FinishReason | None = None
    tokens: int = 0

    @property
    def text(self) -> str:
        """The whole response so far."""
        return self.prefix.text

    @property
    def has_failed(self) -> bool:
        """Whether the problem's tests say that its answer is wrong."""
        return self.grade is not None and self.grade.passed < self.grade.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One distinct final answer: how many candidates gave it, and the sum of their scores.

    `grade` is that of all of them, where the problem has tests.
    """

    answer: str
    count: int
    weight: float | None
    grade: Grade | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchUsage:
    """Exact counts. `discarded_tokens` were generated and are not in the winner.

    `policy_calls` are the continuations that the policy was asked for.
    """

    policy_calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    discarded_tokens: int = 0
    scored_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEvent:
    """One change, in the order in which it happened: it feeds the stream and the trace alike.

    `ess` is the effective sample size of the round's weights, in a search that draws by weight.
    """

    type: Literal["expanded", "scored", "pruned", "finished"]
    round: int
    candidate: int
    parent: int | None = None
    text: str | None = None
    score: float | None = None
    ess: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search ends with.

    `winner` is one of `candidates`, or None when none was written. `ranking` are the candidates,
    the winner first. `choice` says what a strategy that chooses another one chose, and why.
    """

    winner: Candidate | None
    ranking: Sequence[Candidate]
    candidates: Sequence[Candidate]
    votes: Sequence[Vote]
    rounds: int
    stopped_by: StoppedBy
    usage: SearchUsage
    generate_ms: float
    score_ms: float
    choice: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProblem:
    """What is to be solved: the chat up to the point where the assistant answers."""

    messages: tuple[Message, ...]
