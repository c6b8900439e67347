"""A search as server-sent events: whatever happens after the headers, the caller is told."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing

from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from prm.errors import CallerError, ModelFault, RungError
from server.errors import CALLER_STATUS, error_body
from server.schemas.common import ErrorBody
from server.schemas.search import EventOut, SearchResponse

SearchEvents = AsyncGenerator[EventOut | SearchResponse]

# JSON may hold these as they are, and `format_sse_event` takes them for ends of lines.
_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}

logger = logging.getLogger(__name__)


def json_event(json: str, *, event: str | None = None) -> bytes:
    """An event with JSON in its one line of data."""
    return format_sse_event(data_str=json.translate(_ESCAPED), event=event)


def event_stream(
    first: EventOut | SearchResponse,
    events: SearchEvents,
    lines: Callable[[EventOut | SearchResponse], Iterable[bytes]],
    error_line: Callable[[ErrorBody], bytes],
    *,
    timeout_s: float,
) -> StreamingResponse:
    """Every event as its `lines`, an error as its line, `[DONE]` at the end.

    A caller who leaves ends the search, and so does the time limit.
    """
    return StreamingResponse(
        _lines(first, events, lines, error_line, timeout_s),
        media_type="text/event-stream",
        # Proxies would otherwise hold events back until there are many.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _lines(
    first: EventOut | SearchResponse,
    events: SearchEvents,
    lines: Callable[[EventOut | SearchResponse], Iterable[bytes]],
    error_line: Callable[[ErrorBody], bytes],
    timeout_s: float,
) -> AsyncIterator[bytes]:
    try:
        async with asyncio.timeout(timeout_s), aclosing(events):
            for line in lines(first):
                yield line
            async for event in events:
                for line in lines(event):
                    yield line
    except Exception as error:
        # The headers are sent: the only way left to tell the caller is an event.
        yield error_line(_body_of(error))
    yield format_sse_event(data_str="[DONE]")


def _body_of(error: Exception) -> ErrorBody:
    match error:
        case CallerError():
            status, code = CALLER_STATUS[type(error)]
            return error_body(status, str(error), param=error.param, code=code)
        case ModelFault():
            logger.error("a model is unusable: %s", error)
            return error_body(500, str(error), code="model_fault")
        case RungError():
            return error_body(503, str(error), code="unavailable")
        case TimeoutError():
            return error_body(503, "the search took longer than this server allows", code="timeout")
        case _:
            logger.error("unexpected error in a streamed search", exc_info=error)
            return error_body(500, "internal error; the server's log has more")
