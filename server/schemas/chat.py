"""Wire types of `POST /v1/chat/completions`: OpenAI's, with `search` on both sides."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from prm.errors import InvalidInput
from search.budget import ReasoningEffort
from search.strategies import Strategy
from server.schemas.answers import AnswersIn, GradeOut
from server.schemas.common import MAX_MESSAGES, ChatMessage, Text, Wire, if_asked
from server.schemas.neighbours import Unsupported, without_unsupported
from server.schemas.search import BudgetIn, EventOut, SamplingIn, StopString
from server.short_forms import forms, strategy_of

# What OpenAI's API has and a search has not, with the values that ask for nothing.
_REQUEST_FIELDS: Unsupported = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# What a client sends back of an answer, and names that no chat template of a policy reads.
_MESSAGE_FIELDS: Unsupported = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
_ROLES = {"developer": "system"}


def _joined(content: Any) -> Any:
    """Text parts become one text, a part a line, as vLLM joins them."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('every part is an object as {"type": "text", "text": "…"}')
    return "\n".join(map(str, texts))


class ChatMessageIn(ChatMessage):
    """One turn; its content may come in parts. `developer` is another name for `system`."""

    role: Annotated[
        Literal["system", "user", "assistant"],
        BeforeValidator(lambda role: _ROLES.get(role, role) if isinstance(role, str) else role),
    ]
    content: Annotated[Text, BeforeValidator(_joined)]


def _short_form(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        strategy = strategy_of(given, param="search.strategy")
    except InvalidInput as error:
        raise ValueError(str(error).removeprefix("search.strategy: ")) from error
    if strategy is None:
        raise ValueError(f"no such strategy; the short forms are {forms()}")
    return strategy


class SearchIn(Wire):
    """How to search: fields of `POST /v1/search`."""

    strategy: Annotated[Strategy | None, BeforeValidator(_short_form)] = Field(
        default=None, description="An object as in `/v1/search`, or a short form as `beam-16x4`."
    )
    prm: Text | None = Field(
        default=None, description="NAME or NAME@VERSION; may be left out where one PRM is served."
    )
    budget: BudgetIn | None = None
    answers: AnswersIn | None = None
    include: tuple[Literal["candidates", "tree"], ...] = ()


class StreamOptions(Wire):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    search_events: bool | None = Field(
        default=None,
        description="Send every change of the search as an SSE event named `search`.",
    )
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Wire):
    """A chat to be answered, by a plain sample or by a search."""

    model: Text = Field(description="A policy's name, or STRATEGY/NAME as `best-of-16/NAME`.")
    messages: list[ChatMessageIn] = Field(min_length=1, max_length=MAX_MESSAGES)
    search: SearchIn | None = None
    n: int | None = Field(default=None, ge=1, le=128, description="Ranked answers to return.")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    stop: Annotated[
        tuple[StopString, ...] | None,
        BeforeValidator(lambda stop: (stop,) if isinstance(stop, str) else stop),
        Field(max_length=16),
    ] = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    reasoning_effort: ReasoningEffort | None = None
    metadata: dict[Text, Text] | None = Field(default=None, max_length=16)
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, body: Any) -> Any:
        """Raises InvalidInput naming the field that asks for what there is not."""
        body = without_unsupported(body, _REQUEST_FIELDS)
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return body
        return body | {
            "messages": [
                _supported_message(message, f"messages[{place}]")
                for place, message in enumerate(body["messages"])
            ]
        }

    @model_validator(mode="after")
    def _has_one_limit(self) -> "ChatRequest":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens is another name for max_completion_tokens; send just one")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true, and only with it")
        return self

    def sampling(self) -> SamplingIn:
        """How the policy writes; what was not sent is as in `/v1/search`."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "stop": self.stop,
            "seed": self.seed,
        }
        return SamplingIn(**{k: v for k, v in given.items() if v is not None})


def _supported_message(message: Any, where: str) -> Any:
    """Raises InvalidInput naming the turn, and the part of it."""
    message = without_unsupported(message, _MESSAGE_FIELDS, where=f"{where}.")
    if not isinstance(message, dict):
        return message
    if message.get("role") in ("tool", "function"):
        raise InvalidInput(
            f"{where}.role: {message['role']!r} is not supported here, as tools are not; send "
            "system, user and assistant turns",
            param=f"{where}.role",
        )
    content = message.get("content")
    for place, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise InvalidInput(
                f"{where}.content[{place}]: parts of type {str(kind)[:40]!r} are not supported "
                "here; send text",
                param=f"{where}.content[{place}]",
            )
    return message


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer. `score` is the PRM's, `answer` the final answer found in the text.

    `tests` say what its program passed, where the request has some.
    """

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason
    score: float | None
    answer: str | None
    tests: GradeOut | None = if_asked()


class CompletionDetails(BaseModel):
    """`rejected_prediction_tokens` were written and are in none of the returned answers."""

    rejected_prediction_tokens: int
    reasoning_tokens: int = 0


class ChatUsage(BaseModel):
    """Exact counts. `completion_tokens` are all that were written; `search` is `/v1/search`'s."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails
    search: dict[str, Any]


class ChatCompletion(BaseModel):
    """The answers, best first. `search` is `/v1/search`'s answer without what stands elsewhere."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: Sequence[Choice]
    usage: ChatUsage
    system_fingerprint: str
    search: dict[str, Any]


class Delta(BaseModel):
    """What is new in an answer."""

    role: Literal["assistant"] | None = if_asked()
    content: str | None = if_asked()


class ChunkChoice(BaseModel):
    """A piece of one answer. The last piece has the reason, score, answer and tests."""

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None
    score: float | None = if_asked()
    answer: str | None = if_asked()
    tests: GradeOut | None = if_asked()


class ChatChunk(BaseModel):
    """One event of a stream. `search_event` only in the events named `search`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChunkChoice] = ()
    usage: ChatUsage | None = None
    search: dict[str, Any] | None = if_asked()
    search_event: EventOut | None = if_asked()
