"""Wire types of `POST /v1/prm/score`."""

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from prm.aggregation import AggregationName
from prm.errors import InvalidInput
from prm.patterns import MAX_PATTERN_CHARS, safe_pattern
from prm.segmentation import CutRule, Mode, segment
from prm.steps import join_steps
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

    @property
    def num_characters(self) -> int:
        """Characters of the response, which may have to be cut."""
        return len(self.response or "") + sum(map(len, self.steps or ()))

    def to_trajectory(self, rule: CutRule) -> Trajectory:
        """The trajectory: its response cut, or its steps joined. Raises InvalidInput."""
        messages = messages_of(self.problem, self.messages)
        if self.steps is not None:
            response, steps = join_steps(self.steps, rule.separator)
        else:
            assert self.response is not None
            response, steps = self.response, segment(self.response, rule)
        return Trajectory(
            messages=messages, response=response, steps=steps, is_cut=self.steps is None
        )


class Segmentation(Wire):
    """How a `response` is cut into steps. `prm/segmentation.py` has the fine print."""

    mode: Mode = Field(
        default="auto",
        description=(
            "`auto`: at the version's own separator; in a text without it, at blank lines, else "
            "before numbered items. `delimiter`: at every `delimiter`. `newline`: at line ends. "
            "`numbered`: before `1.`, `1)`, `(1)` or `Step 1` and what follows in number, at line "
            "starts. `code`: fenced code blocks are a step each, the rest is cut at blank lines. "
            "`thinking`: at `<think>` tags and blank lines. `regex`: at every match of `pattern`. "
            "`newline`, `numbered`, `code` and `thinking` keep displayed LaTeX and fenced code "
            "whole; `auto` on the version's separator, `delimiter` and `regex` cut through."
        ),
    )
    delimiter: Text | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="What to cut at, in mode `delimiter` and only there.",
    )
    pattern: Text | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PATTERN_CHARS,
        description=(
            "What to cut at, in mode `regex` and only there: a Python regular expression, `^` and "
            "`$` matching at line ends. What it matches belongs to no step; `\\n(?=Step \\d)` "
            "keeps the heading. Patterns that may run slowly are refused: repeats without a bound "
            "must end the pattern, or follow a character that they do not match."
        ),
    )

    @field_validator("pattern")
    @classmethod
    def _pattern_is_safe(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                safe_pattern(pattern)
            except InvalidInput as error:
                raise ValueError(str(error)) from error
        return pattern

    @model_validator(mode="after")
    def _fields_fit_mode(self) -> Self:
        if (self.delimiter is not None) != (self.mode == "delimiter"):
            raise ValueError("delimiter goes with mode 'delimiter', and only with it")
        if (self.pattern is not None) != (self.mode == "regex"):
            raise ValueError("pattern goes with mode 'regex', and only with it")
        return self

    def rule(self, own: str) -> CutRule:
        """The same in our words; `own` is the version's separator. Given steps are joined by the
        rule's separator, which modes without one of their own leave to the version.
        """
        separator = "\n" if self.mode == "newline" else self.delimiter or own
        return CutRule(mode=self.mode, separator=separator, pattern=self.pattern)


class ScoreRequest(Wire):
    """Score every step of every item."""

    model: Text = Field(description="NAME, or NAME@VERSION")
    items: list[ScoreItem] = Field(min_length=1, max_length=10_000)
    segmentation: Segmentation = Segmentation()
    aggregation: AggregationName | None = None
    policy: Text | None = Field(
        default=None, description="who wrote the steps: chooses the calibration"
    )
    include: tuple[Literal["raw", "calibrated", "cumulative", "tokens"], ...] = Field(
        default=(),
        description=(
            "What to tell beside the scores. `cumulative`: the running sum up to each step, of "
            "implicit PRMs; `tokens`: a reward per token."
        ),
    )
    reference_compat: bool = Field(
        default=False,
        description=(
            "Implicit PRMs only: cut steps where the authors' evaluation script cuts them, to "
            "compare with published numbers. The default is where the steps end."
        ),
    )


class StepOut(BaseModel):
    """One step's score; the offsets index the item's response."""

    index: int
    text: str
    char_start: int
    char_end: int
    score: float
    raw: float | None = if_asked()
    calibrated: float | None = if_asked()
    cumulative: float | None = if_asked()
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
    request, and `cached_tokens` had been read before, or for another item of it. A generative PRM
    wrote `generated_tokens`; of its samples, `cut_samples` broke off (at a limit, or without a
    closing tag) and were judged as they were, `discarded_samples` gave no verdict and took no part.
    """

    prompt_tokens: int
    cached_tokens: int
    scored_tokens: int
    generated_tokens: int | None = if_asked()
    cut_samples: int | None = if_asked()
    discarded_samples: int | None = if_asked()
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
