"""`POST /v1/chat/completions`: a search behind OpenAI's API."""

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse

from server.chat_response import chat_completion
from server.chat_search import HEADER, named_as_sent, search_of
from server.chat_stream import ChatStream
from server.deps import Caller, KeyFirst, MaySearch, Permit, ServicesDep, until_gone
from server.event_stream import event_stream
from server.schemas.chat import ChatCompletion, ChatRequest

router = APIRouter(tags=["openai"], route_class=KeyFirst)


@router.post(
    "/v1/chat/completions",
    dependencies=[MaySearch, Permit],
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat(
    request: Request,
    body: ChatRequest,
    services: ServicesDep,
    caller: Caller,
    strategy: Annotated[
        str | None, Header(alias=HEADER, description="A short form as `best-of-16`, or JSON.")
    ] = None,
) -> ChatCompletion | StreamingResponse:
    """Answer a chat by a plain sample, or by the search that body, header or model asks for."""
    search = search_of(body, strategy, services.registry)
    with named_as_sent():
        prepared = await until_gone(
            request, services.searches.prepare(search, caller=caller, num_given=body.n or 1)
        )
        if body.stream:
            events = services.searches.events(prepared)
            # What can go wrong mostly does so before the first event, while a status can say so.
            first = await until_gone(request, anext(events))
            stream = ChatStream(body, prepared)
            timeout_s = services.settings.request_timeout_s
            return event_stream(first, events, stream.lines, stream.error_line, timeout_s=timeout_s)
        result = await until_gone(request, services.searches.run(prepared))
    return chat_completion(body, result, prepared.run.tree)
