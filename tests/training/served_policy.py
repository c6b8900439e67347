"""A server with the routes of vLLM that training uses, over the engine's own sampler.

It writes with the weights of the folder that it was last told to load, and a token's log-prob is
what the model says: so what a test finds wrong is the writer's doing.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import Draft, Sampler, SamplingParams

PIECE = 2


@dataclass
class ServedPolicy:
    """vLLM on `folder`. `start` and `stop` may be called again and again; the port stays.

    `told` is every route that was asked, in order; `before_writing` is called with each request
    for a completion.
    """

    folder: Path
    key: str | None = None
    owned_by: str = "vllm"
    models: tuple[str, ...] = ("policy",)
    takes_weights: bool = True
    sees_weights: bool = True
    has_head: bool = True
    before_writing: Callable[["ServedPolicy"], None] = lambda server: None
    told: list[str] = field(default_factory=list)
    version: str = "default"

    def __post_init__(self) -> None:
        self._tokenizer = ChatTokenizer(self.folder)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.close()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, or begin anew: with the weights of `folder`, which have no name."""
        self.forget()
        port = int(self.url.rpartition(":")[2])
        config = uvicorn.Config(
            self._app(), port=port, log_config=None, lifespan="off", ws="none", loop="asyncio"
        )
        config.timeout_graceful_shutdown = 1
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the port is taken"
            self._thread.join(0.005)

    def stop(self) -> None:
        """End, as far as it had begun."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._server = self._thread = None

    def forget(self) -> None:
        """Be back at the first weights, as after a start that nobody saw."""
        self._model, self.version = CausalLM.load(self.folder), "default"

    def _app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        if self.takes_weights:
            routes += [
                Route("/weight_info", self._weight_info),
                Route("/weight_checker", self._checksums, methods=["POST"]),
                Route("/pause", self._accept, methods=["POST"]),
                Route("/collective_rpc", self._reload, methods=["POST"]),
                Route("/reset_prefix_cache", self._accept, methods=["POST"]),
                Route("/update_weight_version", self._name, methods=["POST"]),
                Route("/resume", self._accept, methods=["POST"]),
            ]
        return Starlette(routes=routes)

    async def _models(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        limit = self._model.context_limit
        return JSONResponse(
            {
                "data": [
                    {"id": name, "max_model_len": limit, "owned_by": self.owned_by}
                    for name in self.models
                ]
            }
        )

    async def _weight_info(self, _: Request) -> Response:
        return JSONResponse({"weight_version": self.version})

    async def _checksums(self, _: Request) -> Response:
        # As on a CPU: matrices are packed, and their tensors empty.
        names = ["model.embed_tokens.weight", *(["lm_head.weight"] if self.has_head else [])]
        packed = {"model.layers.0.mlp.down_proj.weight": hashlib.sha256().hexdigest()}
        return JSONResponse({"checksums": dict.fromkeys(names, "0f") | packed})

    async def _accept(self, request: Request) -> Response:
        self.told.append(request.url.path)
        return JSONResponse({"success": True})

    async def _reload(self, request: Request) -> Response:
        self.told.append(request.url.path)
        body = await request.json()
        assert body["method"] == "reload_weights"
        if not self.sees_weights:
            return JSONResponse({"error": {"message": "no such folder"}}, status_code=500)
        self._model = CausalLM.load(Path(body["kwargs"]["weights_path"]))
        return JSONResponse({"results": [None]})

    async def _name(self, request: Request) -> Response:
        self.version = (await request.json())["new_version"]
        self.told.append(f"{request.url.path} {self.version}")
        return JSONResponse({"success": True})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.told.append(request.url.path)
        self.before_writing(self)
        params = SamplingParams(temperature=body["temperature"], max_tokens=body["max_tokens"])
        sampler = Sampler(self._model, self._tokenizer, keeps_logprobs=True)
        drafts = [
            Draft(prompt=tuple(body["prompt"]), params=params, seed=body["seed"] + number)
            for number in range(body["n"])
        ]
        for draft in drafts:
            sampler.add(draft)
        while sampler.busy:
            sampler.step()
        return StreamingResponse(_events(drafts), media_type="text/event-stream")


def _events(drafts: list[Draft]) -> Iterator[bytes]:
    """The drafts a few tokens at a time, one after the other."""
    for number, draft in enumerate(drafts):
        for start in range(0, len(draft.ids), PIECE):
            end = start + PIECE
            yield _event(_choice(number, draft, start, end))
    yield b"data: [DONE]\n\n"


def _choice(number: int, draft: Draft, start: int, end: int) -> dict[str, Any]:
    assert draft.completion is not None
    reason = "stop" if draft.completion.finish_reason == "eos" else "length"
    return {
        "index": number,
        "text": "",
        "token_ids": draft.ids[start:end],
        "logprobs": {"token_logprobs": draft.logprobs[start:end]},
        "finish_reason": reason if end >= len(draft.ids) else None,
    }


def _event(choice: dict[str, Any]) -> bytes:
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
