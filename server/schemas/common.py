"""Wire types that several routes share."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prm.types import Message


def is_text(text: str) -> str:
    """The text. Raises ValueError for what is no well-formed text, and where."""
    if (at := text.find("\0")) >= 0:
        raise ValueError(f"holds a NUL character at position {at}; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds a lone surrogate at position {error.start}; send well-formed Unicode"
        ) from error
    return text


# No model that is served reads more; beyond, looking at the text would hold up everybody else.
MAX_TEXT_CHARS = 1_000_000
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(is_text)]


def if_asked() -> Any:
    """A field of an answer that is left out, not null, unless it was asked for."""
    return Field(default=None, exclude_if=_is_none)


def _is_none(value: object) -> bool:
    return value is None


class Wire(BaseModel):
    """Base of what callers send: an unknown field is an error, not a wish ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatMessage(Wire):
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: Text

    def to_message(self) -> Message:
        """The same in our words."""
        return Message(role=self.role, content=self.content)


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error's body."""

    error: ErrorDetail


def messages_of(problem: str | None, messages: list[ChatMessage] | None) -> tuple[Message, ...]:
    """The chat that `problem` or `messages` stands for. Raises ValueError unless just one is."""
    if (problem is None) == (messages is None):
        raise ValueError("give either problem or messages, and not both")
    if messages is not None:
        return tuple(message.to_message() for message in messages)
    assert problem is not None
    return (Message(role="user", content=problem),)


MAX_MESSAGES = 4096
Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
Problem = Annotated[Text, Field(min_length=1)]
