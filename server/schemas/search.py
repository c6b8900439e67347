"""Wire types of `POST /v1/search`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from prm.types import Message
from search.budget import ReasoningEffort
from search.strategies import Strategy
from search.strategies.best_of_n import BestOfN
from search.types import StoppedBy
from server.schemas.answers import AnswersIn, GradeOut, MathAnswersIn
from server.schemas.common import Messages, Problem, Text, Wire, if_asked, messages_of

StopString = Annotated[Text, Field(min_length=1, max_length=256)]


class SamplingIn(Wire):
    """How the policy writes. Without a seed one is drawn, and the answer names it."""

    temperature: float = Field(default=0.8, ge=0, le=10, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    stop: tuple[StopString, ...] = Field(default=(), max_length=16)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)


class BudgetIn(Wire):
    """What may be spent; a missing number is no limit."""

    tokens: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    calls: int | None = Field(
        default=None, ge=1, description="Continuations that the policy is asked for."
    )


class SearchRequest(Wire):
    """Spend test-time compute on one problem."""

    policy: Text
    prm: Text | None = Field(default=None, description="NAME, NAME@VERSION, or null")
    problem: Problem | None = None
    messages: Messages | None = None
    strategy: Strategy = BestOfN()
    sampling: SamplingIn = SamplingIn()
    budget: BudgetIn = BudgetIn()
    answers: AnswersIn = MathAnswersIn()
    reasoning_effort: ReasoningEffort | None = Field(
        default=None, description="low, medium or high: a budget of tokens, where none is given."
    )
    stream: bool = False
    include: tuple[Literal["candidates", "tree"], ...] = ("candidates",)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        messages_of(self.problem, self.messages)
        return self

    def to_messages(self) -> tuple[Message, ...]:
        """The chat that the policy answers."""
        return messages_of(self.problem, self.messages)


class StepOut(BaseModel):
    """One step of a candidate."""

    text: str
    score: float | None


class CandidateOut(BaseModel):
    """One candidate, as it ended."""

    index: int
    text: str
    answer: str | None
    steps: list[StepOut]
    score: float | None
    finish_reason: Literal["stop", "length", "pruned", "budget"] | None
    tokens: int
    tests: GradeOut | None = if_asked()


class NodeOut(CandidateOut):
    """One node of the search tree: `parent` is the candidate that it continues."""

    parent: int | None
    round: int


class VoteOut(BaseModel):
    """One distinct answer: the majority baseline, beside every result."""

    answer: str
    count: int
    weight: float | None
    tests: GradeOut | None = if_asked()


class UsageOut(BaseModel):
    """Exact counts. `discarded_tokens` were generated and are not in the winner.

    `policy_calls` are the continuations that the policy was asked for.
    """

    policy_calls: int
    prompt_tokens: int
    generated_tokens: int
    discarded_tokens: int
    scored_tokens: int
    cached_tokens: int


class SearchTiming(BaseModel):
    """Milliseconds."""

    generate: float
    score: float
    total: float


class SearchResponse(BaseModel):
    """The winner, and everything needed to judge it."""

    id: str
    object: Literal["search"] = "search"
    created: int
    policy: str
    policy_version: str
    prm: str | None
    prm_version: str | None
    strategy: dict[str, Any]
    sampling: dict[str, Any]
    text: str
    answer: str | None
    score: float | None
    ranking: list[int] = Field(description="the candidates' indices, the winner's first")
    candidates: list[CandidateOut] | None = if_asked()
    tree: list[NodeOut] | None = if_asked()
    votes: list[VoteOut]
    rounds: int
    stopped_by: StoppedBy
    choice: Mapping[str, Any] | None = if_asked()
    usage: UsageOut
    timing_ms: SearchTiming


class EventOut(BaseModel):
    """One change in a streamed search.

    `ess` is the effective sample size of the round's weights, in a search that draws by weight.
    """

    type: Literal["expanded", "scored", "pruned", "finished"]
    round: int
    candidate: int
    parent: int | None = None
    text: str | None = None
    score: float | None = None
    ess: float | None = None
