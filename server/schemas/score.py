"""Wire types of `POST /v1/prm/score`."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from prm.aggregation import AggregationName
from prm.steps import cut_steps, join_steps
from prm.types import Trajectory
from server.schemas.common import Messages, Problem, Text, Wire, if_asked, messages_of


class ScoreItem(Wire):
    """One trajectory: a problem, and either its steps or a raw response."""

    id: Text | None = Field(default=None, max_length=256)
    problem: Problem | None = None
    messages: Messages | None = None
    steps: list[Text] | None = Field(default=None, max_length=10_000)
    response: Text | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        messages_of(self.problem, self.messages)
        if (self.steps is None) == (self.response is None):
            raise ValueError("give either steps or response, and not both")
        return self

    def to_trajectory(self, separator: str) -> Trajectory:
        """The trajectory, cut or joined at the separator. Raises InvalidInput."""
        messages = messages_of(self.problem, self.messages)
        if self.steps is not None:
            response, steps = join_steps(self.steps, separator)
        else:
            assert self.response is not None
            response, steps = self.response, cut_steps(self.response, separator)
        return Trajectory(messages=messages, response=response, steps=steps)


class Segmentation(Wire):
    """How raw text is cut: at the version's own separator, at a given one, or at line ends."""

    mode: Literal["auto", "delimiter", "newline"] = "auto"
    delimiter: Text | None = Field(default=None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _delimiter_fits_mode(self) -> Self:
        if (self.delimiter is not None) != (self.mode == "delimiter"):
            raise ValueError("delimiter goes with mode 'delimiter', and only with it")
        return self

    def separator(self, own: str) -> str:
        """The string to cut at; `own` is the version's."""
        if self.mode == "newline":
            return "\n"
        return self.delimiter or own


class ScoreRequest(Wire):
    """Score every step of every item."""

    model: Text = Field(description="NAME, or NAME@VERSION")
    items: list[ScoreItem] = Field(min_length=1, max_length=10_000)
    segmentation: Segmentation = Segmentation()
    aggregation: AggregationName | None = None
    policy: Text | None = Field(
        default=None, description="who wrote the steps: chooses the calibration"
    )
    include: tuple[Literal["raw", "calibrated", "tokens"], ...] = ()


class StepOut(BaseModel):
    """One step's score; the offsets index the item's response."""

    index: int
    text: str
    char_start: int
    char_end: int
    score: float
    raw: float | None = if_asked()
    calibrated: float | None = if_asked()
    cached: bool = False


class TokensOut(BaseModel):
    """Per-token process rewards of the response."""

    ids: list[int]
    char_offsets: list[tuple[int, int]]
    rewards: list[float]


class ItemOut(BaseModel):
    """One item's scores. `first_error`: the first step below the version's threshold."""

    index: int
    id: str | None = None
    steps: list[StepOut]
    aggregates: dict[str, float]
    score: float
    first_error: int | None
    tokens: TokensOut | None = if_asked()


class ScoreUsage(BaseModel):
    """`prompt_tokens` were sent. Over all models of the version, `scored_tokens` were read for this
    request, and `cached_tokens` had been read before, or for another item of it.
    """

    prompt_tokens: int
    cached_tokens: int
    scored_tokens: int
    total_tokens: int


class ScoreTiming(BaseModel):
    """Milliseconds: waiting for a batch, making tokens, running models, and all in all."""

    queue: float
    encode: float
    inference: float
    total: float


class ScoreResponse(BaseModel):
    """Scores in the order of the items."""

    id: str
    object: Literal["prm.score"] = "prm.score"
    created: int
    model: str
    model_version: str
    family: str
    recipe: str = Field(description="how the family was read, NAME/REVISION")
    data: list[ItemOut]
    usage: ScoreUsage
    timing_ms: ScoreTiming
