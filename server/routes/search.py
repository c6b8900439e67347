"""`POST /v1/search`: spend test-time compute on one problem, whole or streamed."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from prm.errors import CallerError, RungError
from server.deps import KeyFirst, MaySearch, Permit, ServicesDep, until_gone
from server.errors import CALLER_STATUS, error_body
from server.schemas.search import EventOut, SearchRequest, SearchResponse
from server.services import Services

router = APIRouter(tags=["search"], route_class=KeyFirst)
logger = logging.getLogger(__name__)


@router.post(
    "/v1/search",
    dependencies=[MaySearch, Permit],
    response_model=SearchResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def search(
    request: Request, body: SearchRequest, services: ServicesDep
) -> SearchResponse | StreamingResponse:
    """Write, score and select. With `stream: true`, server-sent events as it happens."""
    prepared = await until_gone(request, services.searches.prepare(body))
    if body.stream:
        events = services.searches.events(prepared)
        # Most of what can go wrong does so before the first event, while a status can still say so.
        first = await until_gone(request, anext(events))
        return StreamingResponse(
            _event_stream(services, first, events),
            media_type="text/event-stream",
            # Proxies would otherwise hold events back until there are many.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    return await until_gone(request, services.searches.run(prepared))


async def _event_stream(
    services: Services,
    first: EventOut | SearchResponse,
    events: AsyncGenerator[EventOut | SearchResponse],
) -> AsyncIterator[bytes]:
    """One `data:` line per event, the result or an error last, then `[DONE]`."""
    try:
        async with asyncio.timeout(services.settings.request_timeout_s), aclosing(events):
            yield _line(first)
            async for event in events:
                yield _line(event)
    except RungError as error:
        status = CALLER_STATUS[type(error)][0] if isinstance(error, CallerError) else 503
        yield _error_line(status, str(error))
    except TimeoutError:
        yield _error_line(503, "the search took longer than this server allows")
    except Exception:
        # The headers are sent: the only way left to tell the caller is an event.
        logger.exception("unexpected error in a streamed search")
        yield _error_line(500, "internal error; the server's log has more")
    yield format_sse_event(data_str="[DONE]")


def _line(event: EventOut | SearchResponse) -> bytes:
    if isinstance(event, EventOut):
        return format_sse_event(data_str=event.model_dump_json(exclude_none=True))
    return format_sse_event(data_str='{"type":"result","result":' + event.model_dump_json() + "}")


def _error_line(status: int, message: str) -> bytes:
    body = error_body(status, message).model_dump_json()
    return format_sse_event(data_str='{"type":"error",' + body[1:])
