"""What the API process and an engine process say to each other.

One frame is four bytes of length, then JSON. The API process listens on a Unix socket in a folder
of its own; the engine connects, says `Ready` or `Refused`, and answers requests by their `id` in
whatever order they finish. A closed socket ends the engine.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from prm.families.base import Read, ReadOutput

FRAME_HEADER = struct.Struct(">I")

# Why a completion ended: a stop string appeared (`separator`: one that stays in the text), the
# model ended its turn, `max_tokens` were written, its context was full, or time was up.
FinishReason = Literal["stop", "separator", "eos", "length", "context", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Read all of these; one reply with all outputs."""

    id: int
    reads: tuple[Read, ...]
    type: Literal["read"] = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Write one completion per prompt; one reply each, as it ends. `numbers` name them.

    One of each per prompt; the other fields are those of `SamplingParams`, and `written` those of
    `Draft` (none: no prompt holds a part of the response).
    """

    id: int
    model: str
    numbers: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    max_tokens: tuple[int, ...]
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    keep_stop: tuple[str, ...]
    seconds: float | None
    top_k: int = 0
    written: tuple[int, ...] | None = None
    type: Literal["sample"] = "sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Whoever asked has gone: do no more for this request, and do not answer it."""

    id: int
    type: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Load these versions beside what is there, check their golden scores, and answer for them.

    A version that is there already is left as it is. `only_if_it_fits`: where memory has room for
    them beside what is there, with a margin.
    """

    id: int
    folders: tuple[str, ...]
    only_if_it_fits: bool = False
    type: Literal["load"] = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadRequest:
    """Forget these versions, which nobody waits for any more. There is no reply."""

    keys: tuple[str, ...]
    type: Literal["unload"] = "unload"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReply:
    """The versions of a `LoadRequest` answer now; or one is refused, and nothing has changed.

    `refused` is the path and the reason; `no_room` bytes that are needed, and that are free.
    """

    id: int
    load_s: float
    refused: tuple[str, str] | None = None
    no_room: tuple[int, int] | None = None
    type: Literal["load"] = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Every version is loaded and has reproduced its golden scores."""

    device: str
    dtype: str
    load_s: float
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A model folder cannot be served; trying again would not help."""

    path: str
    reason: str
    type: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReply:
    """One output per read. `queue_ms` is the wait for the first batch."""

    id: int
    outputs: tuple[ReadOutput, ...]
    queue_ms: float
    inference_ms: float
    type: Literal["read"] = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReply:
    """One finished completion of a `SampleRequest`."""

    id: int
    number: int
    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    type: Literal["sample"] = "sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """The request could not be computed; the engine itself goes on.

    `read` is the place of a read whose values are no finite numbers: trying again will not help.
    """

    id: int
    message: str
    read: int | None = None
    type: Literal["error"] = "error"


Request = ReadRequest | SampleRequest | CancelRequest | LoadRequest | UnloadRequest
Reply = Ready | Refused | LoadReply | ReadReply | SampleReply | ErrorReply

_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_replies: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def request_frame(request: Request) -> bytes:
    """The bytes of a request on the wire."""
    return _frame(_requests.dump_json(request))


def reply_frame(reply: Reply) -> bytes:
    """The bytes of a reply on the wire."""
    return _frame(_replies.dump_json(reply))


def parse_request(body: bytes) -> Request:
    """A frame's body, back to the request."""
    return _requests.validate_json(body)


def parse_reply(body: bytes) -> Reply:
    """A frame's body, back to the reply."""
    return _replies.validate_json(body)


def _frame(body: bytes) -> bytes:
    return FRAME_HEADER.pack(len(body)) + body
