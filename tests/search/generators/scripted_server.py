"""A real HTTP server that answers what a script says, to the byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from prm.types import Message
from search.generator import GenerateParams, Generator, Want, Written
from search.types import Prefix

CONTEXT = 200
CHAT = (Message(role="user", content="2+3?"),)
# What the server makes of CHAT: bytes, between two control tokens.
CHAT_IDS = (1, *b"2+3?", 2)
# In a script: the connection ends here.
BREAK = b"\0break"
# In a script: nothing comes any more.
HANG = b"\0hang"


@dataclass
class ScriptedServer:
    """`script(body, nth)` gives the bytes of the nth completion, piece by piece.

    A token is a byte of UTF-8. `statuses`: what the next completions are refused with.
    """

    script: Callable[[dict[str, Any], int], Iterable[bytes]]
    content_type: str = "text/event-stream"
    owned_by: str | None = "vllm"
    has_tokenizer: bool = True
    context: int = CONTEXT
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    url: str = ""

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]
        if self.has_tokenizer:
            routes.append(Route("/tokenize", self.tokenize, methods=["POST"]))
            routes.append(Route("/detokenize", self.detokenize, methods=["POST"]))
        return Starlette(routes=routes)

    async def models(self, _: Request) -> Response:
        self.requests += 1
        model = {"id": "m", "max_model_len": self.context, "owned_by": self.owned_by}
        return JSONResponse({"data": [model]})

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        if "prompt" in body:
            ids = list(body["prompt"].encode())
        else:
            ids = [1, *"".join(m["content"] for m in body["messages"]).encode(), 2]
        return JSONResponse({"tokens": ids, "max_model_len": self.context})

    async def detokenize(self, request: Request) -> Response:
        ids = (await request.json())["tokens"]
        return JSONResponse({"prompt": bytes(ids).decode(errors="replace")})

    async def complete(self, request: Request) -> Response:
        self.requests += 1
        body = await request.json()
        self.completions.append(body)
        if self.statuses:
            status, headers = self.statuses.pop(0)
            return Response(status_code=status, headers=headers)
        pieces = self.script(body, len(self.completions) - 1)
        return StreamingResponse(self._play(pieces), media_type=self.content_type)

    async def _play(self, pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
        for piece in pieces:
            if piece == BREAK:
                raise ConnectionAbortedError
            if piece == HANG:
                await asyncio.Event().wait()
            yield piece
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(server: ScriptedServer) -> AsyncIterator[ScriptedServer]:
    """The server on a port of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.app(), log_config=None, lifespan="off", ws="none")
    config.timeout_graceful_shutdown = 1
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield server
    finally:
        uvicorn_server.should_exit = True
        await task


def event(data: Any) -> bytes:
    """A server-sent event; U+2028 and its like unescaped, as vLLM sends them."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def piece(text: str, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    """A piece of a text in vLLM's form."""
    choice = {"index": index, "text": text, "token_ids": list(text.encode())}
    return event({"choices": [choice | {"finish_reason": finish} | more]})


def whole(*choices: dict[str, Any]) -> bytes:
    """An answer that is not streamed: each choice with a text, and how it ended."""
    told = [
        {"index": index, "token_ids": list(choice["text"].encode())} | choice
        for index, choice in enumerate(choices)
    ]
    return json.dumps({"choices": told}).encode()


def spoken(text: str, finish: str = "stop", **more: Any) -> Iterator[bytes]:
    """A text, a character at a time, and its end."""
    for character in text:
        yield piece(character)
    yield piece("", finish=finish, **more)
    yield b"data: [DONE]\n\n"


def wants(*prefixes: str, seed: int = 7) -> list[Want]:
    """A want per prefix, numbered from 0, with seeds from `seed`."""
    return [
        Want(number=place, prefix=Prefix(text=text, ids=tuple(text.encode())), seed=seed + place)
        for place, text in enumerate(prefixes)
    ]


def params(**changes: Any) -> GenerateParams:
    """Settings of a call."""
    return GenerateParams(**({"temperature": 0.8, "top_p": 0.9, "max_tokens": 40} | changes))


async def write(
    generator: Generator, asked: Sequence[Want], settings: GenerateParams | None = None
) -> list[Written]:
    """All that is written, in the order of the wants."""
    stream = generator.generate(CHAT, asked, settings or params())
    async with asyncio.timeout(20):
        found = [written async for written in stream]
    return sorted(found, key=lambda written: written.number)
