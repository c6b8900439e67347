"""The nouns of feedback: what was served, what somebody said of it, and what it comes to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prm.types import Message

Source = Literal["search", "chat", "score", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response as it was served. Without `steps` the text was never cut.

    `answer` is the final answer as it was read then. `prm_correct`: no step's score lay below the
    PRM's threshold; None where no PRM has scored it.

    >>> Answer(messages=(Message(role="user", content="3+4?"),), response="7", steps=("7",))
    """

    messages: tuple[Message, ...]
    response: str
    steps: tuple[str, ...] | None = None
    answer: str | None = None
    score: float | None = None
    prm_correct: bool | None = None

    @property
    def content(self) -> str:
        """The same for every copy of this problem and response, in hexadecimal."""
        return _digest([plain_messages(self.messages), self.response])

    @property
    def num_characters(self) -> int:
        """Of problem and response."""
        return len(self.response) + sum(len(message.content) for message in self.messages)

    @property
    def problem(self) -> str:
        """The same for every response to this problem, in hexadecimal."""
        return _digest(plain_messages(self.messages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one request was answered with. `prm` is NAME@VERSION of the PRM that took part.

    The answers of a search are the winner and what follows it, as many as were given.
    """

    id: str
    kind: Literal["search", "score"]
    prm: str | None
    created_s: float
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What somebody said of a response, as it is kept.

    `model` is the PRM that learns from it, `version` the one whose score is known. `correct` None:
    nobody knows, and nothing is learned from it; `note` says why where an answer was given.
    """

    id: str
    created: int
    key_id: str
    model: str
    version: str | None
    source: Source
    source_id: str | None
    answer: Answer
    correct: bool | None
    given_answer: str | None = None
    note: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def problem_fields(messages: Sequence[Message]) -> dict[str, Any]:
    """`problem`, or `messages` where it is more than one turn of the user, as requests have it."""
    if len(messages) == 1 and messages[0].role == "user":
        return {"problem": messages[0].content}
    return {"messages": plain_messages(messages)}


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as JSON holds them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def answer_fields(answer: Answer) -> dict[str, Any]:
    """An answer as JSON holds it; see `answer_of`."""
    return {
        "messages": plain_messages(answer.messages),
        "response": answer.response,
        "steps": answer.steps,
        "answer": answer.answer,
        "score": answer.score,
        "prm_correct": answer.prm_correct,
    }


def answer_of(fields: dict[str, Any]) -> Answer:
    """The answer that `answer_fields` was told of."""
    steps = fields["steps"]
    return Answer(
        **fields
        | {
            "messages": tuple(Message(**message) for message in fields["messages"]),
            "steps": None if steps is None else tuple(steps),
        }
    )
