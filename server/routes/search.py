"""`POST /v1/search`: spend test-time compute on one problem, whole or streamed."""

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from server.deps import Caller, KeyFirst, MaySearch, Permit, ServicesDep, until_gone
from server.event_stream import event_stream, json_event
from server.schemas.common import ErrorBody
from server.schemas.search import EventOut, SearchRequest, SearchResponse

router = APIRouter(tags=["search"], route_class=KeyFirst)


@router.post(
    "/v1/search",
    dependencies=[MaySearch, Permit],
    response_model=SearchResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def search(
    request: Request, body: SearchRequest, services: ServicesDep, caller: Caller
) -> SearchResponse | StreamingResponse:
    """Write, score and select. With `stream: true`, server-sent events as it happens."""
    prepared = await until_gone(request, services.searches.prepare(body, caller=caller))
    if body.stream:
        events = services.searches.events(prepared)
        # Most of what can go wrong does so before the first event, while a status can still say so.
        first = await until_gone(request, anext(events))
        timeout_s = services.settings.request_timeout_s
        return event_stream(first, events, _lines, _error_line, timeout_s=timeout_s)
    return await until_gone(request, services.searches.run(prepared))


def _lines(event: EventOut | SearchResponse) -> Iterator[bytes]:
    """One `data:` line per event, the result last."""
    if isinstance(event, EventOut):
        yield json_event(event.model_dump_json(exclude_none=True))
    else:
        result = event.model_dump_json()
        yield json_event('{"type":"result","result":' + result + "}")


def _error_line(error: ErrorBody) -> bytes:
    return json_event('{"type":"error",' + error.model_dump_json()[1:])
