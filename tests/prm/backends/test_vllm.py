"""What the backend asks, and what it makes of answers that it must not turn into scores.

The server is our own, over a real socket, with vLLM's wire; `tests/integration/vllm` runs the real
one and compares the numbers.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import stamina
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from prm.backends import vllm
from prm.backends.vllm import VllmBackend, VllmModel
from prm.backends.vllm_wire import Head, Labels, Logprobs, Prompt, Question, WrongAnswer
from prm.errors import InvalidInput, Unavailable
from prm.families.base import HeadRead, LogprobRead

KEY = "sk-do-not-tell"
LIMIT = 20_000


def logprob_of(token: int) -> float:
    """What our server says of a token."""
    return -(token + 1) / 1024


@dataclass
class Vllm:
    """A FastAPI app that speaks vLLM's routes and keeps what it was asked."""

    status: int = 200
    busy: int = 0
    hangs_on: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    model_lists: int = 0
    running: int = 0
    most_running: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/v1/models")(self.models)
        app.post("/v1/completions")(self.completions)
        return app

    async def models(self) -> Response:
        self.model_lists += 1
        return JSONResponse({"data": [{"id": "m", "max_model_len": LIMIT}]})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        if request.headers["authorization"] != f"Bearer {KEY}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        if self.busy:
            self.busy -= 1
            return Response(status_code=503)
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.hangs_on is not None and self.hangs_on == body["prompt"][0][0]:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)
                self.gone.set()
            # Long enough for all that may to be in here together.
            await asyncio.sleep(0.02)
        finally:
            self.running -= 1
        if self.status != 200:
            error = {"message": f"{KEY} at /srv/models/m", "code": self.status}
            return JSONResponse({"error": error}, status_code=self.status)
        choices = [
            {"index": index, "prompt_logprobs": self._rows(ids)}
            for index, ids in enumerate(body["prompt"])
        ]
        return JSONResponse({"choices": choices[::-1]})

    def _rows(self, ids: list[int]) -> list[dict[str, dict[str, float]] | None]:
        return [None, *({str(i): {"logprob": logprob_of(i)}} for i in ids[1:])]


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[Vllm]:
    app = Vllm()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app.app(), log_level="error", lifespan="off", ws="none")
    config.timeout_graceful_shutdown = 1
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve(sockets=[listener]))
    app.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield app
    running.should_exit = True
    await serving


@pytest.fixture
async def backend(server: Vllm) -> AsyncIterator[VllmBackend]:
    async with reading(server) as backend:
        yield backend


@asynccontextmanager
async def reading(server: Vllm, key: str = KEY) -> AsyncIterator[VllmBackend]:
    backend = VllmBackend({"m@1": VllmModel(url=server.url + "/v1/", name="m", api_key=key)})
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture(autouse=True)
def _no_waits_between_tries() -> Any:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def read(*ids: int, first: int = 1) -> LogprobRead:
    return LogprobRead(model="m@1", ids=ids, first=first)


@pytest.mark.anyio
async def test_reads_share_requests_that_are_bounded_in_number_and_size(
    server: Vllm, backend: VllmBackend
) -> None:
    reads = [read(*range(number, number + 1700), first=1 + number) for number in range(50)]
    reply = await backend.read([*reads, read(7), reads[0]])
    for asked, output in zip([*reads, read(7), reads[0]], reply.outputs, strict=True):
        assert output.values == tuple(map(logprob_of, asked.ids[asked.first :]))
        assert (output.cached_tokens, output.cached_values) == (0, 0)
    sizes = [sum(map(len, body["prompt"])) for body in server.bodies]
    # Four of 1,700 fit into a request; the one that asks for nothing is not sent.
    assert sorted(sizes) == [3 * 1700, *[4 * 1700] * 12]
    assert server.most_running == vllm.REQUESTS_AT_ONCE
    assert server.model_lists <= vllm.REQUESTS_AT_ONCE


@pytest.mark.anyio
async def test_a_read_larger_than_a_request_goes_alone(server: Vllm, backend: VllmBackend) -> None:
    large = range(vllm.TOKENS_PER_REQUEST + 1)
    await backend.read([read(1, 2), read(*large), read(3, 4)])
    assert [len(body["prompt"]) for body in server.bodies] == [1, 1, 1]
    with pytest.raises(InvalidInput, match=rf"{LIMIT} tokens long, .* at most {LIMIT - 1} of m"):
        await backend.read([read(*range(LIMIT))])


@pytest.mark.anyio
async def test_a_busy_server_is_asked_again_and_a_failed_one_is_named(
    server: Vllm, backend: VllmBackend
) -> None:
    server.busy = 2
    await backend.read([read(1, 2)])
    server.busy = 3
    address = server.url.removeprefix("http://")
    with pytest.raises(Unavailable, match=f"the vLLM server at {address} takes no requests now"):
        await backend.read([read(1, 2)])
    for status, message in ((500, "failed .status 500"), (400, "refuses .status 400.: … at …$")):
        server.status = status
        with pytest.raises(Unavailable, match=message) as failed:
            await backend.read([read(1, 2)])
        assert KEY not in str(failed.value)
    async with reading(server, key="other") as stranger:
        with pytest.raises(Unavailable, match="refuses this server's key"):
            await stranger.read([read(1, 2)])


@pytest.mark.anyio
async def test_who_leaves_and_who_fails_is_computed_no_further(
    server: Vllm, backend: VllmBackend
) -> None:
    server.hangs_on = 5
    leaving = asyncio.create_task(backend.read([read(5, 6)]))
    while not server.running:
        await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.wait_for(server.gone.wait(), timeout=5)
    server.gone.clear()
    # A request that can have no answer ends the other one of the same read.
    with pytest.raises(InvalidInput):
        await backend.read([read(5, *range(16_000)), read(*range(LIMIT))])
    assert (await backend.read([read(1, 2)])).outputs[0].values == (logprob_of(2),)


PROMPT = Prompt(ids=(3, 4, 5), positions=(1, 2))


def completion(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": index} | choice for index, choice in enumerate(choices)]}


def own(*logprobs: float | None, ids: tuple[int, ...] = PROMPT.ids) -> dict[str, Any]:
    rows = [{str(i): {"logprob": value}} for i, value in zip(ids[1:], logprobs, strict=True)]
    return completion({"prompt_logprobs": [None, *rows]})


def sampled(logprobs: dict[str, float | None]) -> dict[str, Any]:
    return completion({"logprobs": {"top_logprobs": [logprobs]}})


def pooled(*rows: list[float | None]) -> dict[str, Any]:
    return {"data": [{"index": 0, "data": rows}]}


@pytest.mark.parametrize(
    ("question", "answer", "values"),
    [
        (Logprobs(), own(-1.0, -2.0), [-1.0, -2.0]),
        # The token's own log-prob, with more likely ones beside it.
        (
            Logprobs(),
            completion(
                {
                    "prompt_logprobs": [
                        None,
                        {"9": {"logprob": -0.1}, "4": {"logprob": -3.0}},
                        {"5": {"logprob": -4.0}, "4": {"logprob": -5.0}},
                    ]
                }
            ),
            [-3.0, -4.0],
        ),
        (
            Labels((8, 7)),
            sampled({"token_id:1": -0.1, "token_id:7": -1.0, "token_id:8": -2.0}),
            [-2.0, -1.0],
        ),
        (Head(2), pooled([1, 2], [3, 4], [5, 6]), [3.0, 4.0, 5.0, 6.0]),
        (Head(1), pooled([1], [3], [5]), [3.0, 5.0]),
    ],
)
def test_answers_become_values(
    question: Question, answer: dict[str, Any], values: list[float]
) -> None:
    assert question.values(json.dumps(answer).encode(), [PROMPT]) == [values]


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        (Logprobs(), own(-1.0, ids=(3, 4)), "2 log-probs for 3 tokens"),
        (Logprobs(), completion({}), "0 log-probs for 3 tokens"),
        (Logprobs(), own(-1.0, -1.0, ids=(3, 4, 6)), "no log-prob of token 2, but of others"),
        (Logprobs(), own(-9999.0, -1.0), "-9999.0 as the log-prob of token 1"),
        # `--logprobs-mode raw_logits`.
        (Logprobs(), own(-1.0, 3.5), "3.5 as the log-prob of token 2"),
        (Logprobs(), completion(), "0 answers to 1 prompts"),
        (Logprobs(), completion({}, {}), "2 answers to 1 prompts"),
        (Labels((7, 8)), sampled({"token_id:7": -1.0}), r"no log-probs of the labels \[7, 8\]"),
        (Labels((7, 8)), completion({}), r"no log-probs of the labels \[7, 8\]"),
        # STEP pooling: rows of the marker's tokens only.
        (Head(2), pooled([1, 2], [3, 4]), "2 rows for 3 tokens; start it with .*ALL"),
        (Head(2), pooled(), "0 rows for 3 tokens"),
        (Head(3), pooled([1, 2], [3, 4], [5, 6]), "2 numbers per token, where .* has 3"),
    ],
)
def test_another_answer_than_was_asked_for_is_no_score(
    question: Question, answer: dict[str, Any], message: str
) -> None:
    with pytest.raises(WrongAnswer, match=message):
        question.values(json.dumps(answer).encode(), [PROMPT])


@pytest.mark.parametrize("number", [None, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Logprobs(), lambda number: own(-1.0, number)),
        (Labels((7, 8)), lambda number: sampled({"token_id:7": -1.0, "token_id:8": number})),
        (Head(1), lambda number: pooled([1.0], [number], [2.0])),
    ],
)
def test_what_is_no_finite_number_is_no_score(
    question: Question, answer: Any, number: float | None
) -> None:
    # The backend names these "another shape than vLLM's", as every pydantic.ValidationError.
    with pytest.raises(ValueError, match="validation error"):
        question.values(json.dumps(answer(number)).encode(), [PROMPT])


def test_labels_are_asked_behind_each_position() -> None:
    asked = HeadRead(model="m@1", ids=(3, 4, 5), positions=(0, 2), width=2, labels=(7, 8))
    assert [prompt.ids for prompt in Labels((7, 8)).prompts(asked)] == [(3,), (3, 4, 5)]
