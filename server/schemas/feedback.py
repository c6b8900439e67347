"""Wire types of `/v1/feedback`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StrictBool, model_validator

from server.schemas.common import Messages, Problem, Text, Wire, if_asked
from server.schemas.fine_tuning import Metadata

# Longer answers are not compared as mathematics.
MAX_ANSWER_CHARS = 4096
MAX_ITEMS = 10_000
AnswerId = Annotated[Text, Field(min_length=1, max_length=100)]


class _Fields(Wire):
    """What may be said of one response."""

    search_id: AnswerId | None = Field(
        default=None, description="The id of a search or of a chat completion."
    )
    score_id: AnswerId | None = Field(
        default=None, description="The id of a scoring or a reranking; `index` says which item."
    )
    index: int | None = Field(
        default=None, ge=0, description="Which item, document or choice; the first one, if null."
    )
    problem: Problem | None = None
    messages: Messages | None = None
    response: Annotated[Text, Field(min_length=1)] | None = None
    model: Text | None = Field(
        default=None,
        max_length=140,
        description="The PRM that is to learn from it; null: the one that scored it, or the only "
        "one.",
    )
    correct: StrictBool | None = Field(
        default=None, description="Whether the response is right; null: nobody knows, or see answer"
    )
    answer: Annotated[Text, Field(min_length=1, max_length=MAX_ANSWER_CHARS)] | None = Field(
        default=None,
        description="The right final answer: where `correct` is null, the response's own is "
        "compared with it.",
    )
    metadata: Metadata | None = None


class FeedbackIn(_Fields):
    """An outcome label: for something that was served, or for a text given whole."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        _check(self)
        return self


class FeedbackRequest(_Fields):
    """One label, or with `items` many, of which all are taken or none."""

    items: list[FeedbackIn] | None = Field(default=None, min_length=1, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _is_one_or_many(self) -> Self:
        if self.items is None:
            _check(self)
        elif others := sorted(self.model_fields_set - {"items"}):
            raise ValueError(f"items holds every label whole; {others[0]} goes into each of them")
        return self

    @property
    def all_items(self) -> list[FeedbackIn]:
        """The labels, also where there is one alone."""
        if self.items is not None:
            return self.items
        fields = self.model_fields_set - {"items"}
        return [FeedbackIn.model_validate({name: getattr(self, name) for name in fields})]


def _check(label: _Fields) -> None:
    """Raises ValueError for what names no response, or two, or says nothing of it."""
    if label.problem is not None and label.messages is not None:
        raise ValueError("give either problem or messages, and not both")
    has_problem = label.problem is not None or label.messages is not None
    if has_problem != (label.response is not None):
        raise ValueError("problem (or messages) and response go together: give both")
    if (label.search_id is not None) + (label.score_id is not None) + has_problem != 1:
        raise ValueError("name one response: search_id, or score_id, or problem and response")
    if has_problem and label.index is not None:
        raise ValueError("index goes with search_id or score_id; leave it out")
    if "correct" not in label.model_fields_set and label.answer is None:
        raise ValueError("say whether it is right: correct, or the right answer")


class FeedbackOut(BaseModel):
    """A label that is kept for good. `correct` is what counts, also where it was found by `answer`;
    where it could not be found, `note` says why.
    """

    id: str
    object: Literal["feedback"] = "feedback"
    accepted: Literal[True] = True
    correct: bool | None
    note: str | None = if_asked()


class FeedbackBatchOut(BaseModel):
    """All labels of a request with `items`, in their order."""

    object: Literal["list"] = "list"
    data: list[FeedbackOut]


class LabelOut(FeedbackOut):
    """A label as it is kept. `prm_correct`: what the PRM's version said of the response."""

    created: int
    key_id: str
    model: str
    model_version: str | None
    source: Literal["search", "chat", "score", "text"]
    source_id: str | None
    messages: list[dict[str, str]]
    response: str
    steps: list[str] | None
    score: float | None
    prm_correct: bool | None
    answer: str | None
    metadata: dict[str, str]


class LabelList(BaseModel):
    """A page of labels, the newest first."""

    object: Literal["list"] = "list"
    data: list[LabelOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


class KeyReport(BaseModel):
    """What a key's labels are worth. `share` is what it gives of all training weight.

    `contested`: responses that other keys have labelled, without a tie; `contradictions`: those of
    them where this key says otherwise than most others. `judged`: responses that the PRM has
    scored; `prm_contradictions`: those where the key says otherwise than the PRM.
    """

    key_id: str
    labels: int
    contested: int
    contradictions: int
    contradiction_rate: float | None
    judged: int
    prm_contradictions: int
    prm_contradiction_rate: float | None
    trust: float
    share: float


class DisputedLabel(BaseModel):
    """What one key said of a disputed response."""

    id: str
    key_id: str
    correct: bool


class Disputed(BaseModel):
    """A response with different labels. `correct` null: it is a tie, and not learned from."""

    problem: str
    response: str
    labels: list[DisputedLabel]
    correct: bool | None
    prm_correct: bool | None


class FeedbackReport(BaseModel):
    """Whom a PRM's labels come from, and where they disagree; of the newest 50,000."""

    object: Literal["feedback.report"] = "feedback.report"
    model: str
    labels: int
    responses: int
    key_share: float
    keys: list[KeyReport]
    num_disputed: int
    disputed: list[Disputed] = Field(description="the newest 100")
