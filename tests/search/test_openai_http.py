"""The generator against a policy server of our own making: vLLM's wire, a byte per token.

A real uvicorn on loopback: an in-process transport would hand over whole responses only, and the
server would not see that a caller has gone. `tests/integration/vllm` runs the real one.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import stamina
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm.errors import InvalidInput, RungError, Unavailable, UnknownModel
from prm.types import Message
from search.generator import GenerateParams, Want, Written
from search.generators.openai_server import OpenAIServer
from search.types import Prefix

KEY = "sk-do-not-tell"
CONTEXT = 64
CHAT = (Message(role="user", content="2+3?"),)
# What the server makes of CHAT; the bytes 1 and 2 stand for control tokens.
CHAT_IDS = (1, *b"2+3?", 2)
EOS = 0


@dataclass
class Reply:
    """What a completion says, choice by choice: text until `end`, then a finish reason.

    `stop`: the string that ended it. Texts are cut after it; the ids go on for `overshoot` bytes.
    """

    text: str
    finish: str = "stop"
    stop: str | None = None
    overshoot: str = ""


@dataclass
class PolicyServer:
    """A FastAPI app that speaks vLLM's routes and keeps what it was asked."""

    replies: Callable[[dict[str, Any], int], Reply] = lambda body, index: Reply("5")
    served: dict[str, Any] = field(
        default_factory=lambda: {"id": "m", "max_model_len": CONTEXT, "owned_by": "vllm"}
    )
    busy: int = 0
    refusal: tuple[int, Any] | None = None
    hangs_after: int | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/v1/models")(self.models)
        app.post("/tokenize")(self.tokenize)
        app.post("/detokenize")(self.detokenize)
        app.post("/v1/completions")(self.completions)
        return app

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]

    async def models(self, request: Request) -> Response:
        if refused := self._refuse(request, {}):
            return refused
        return JSONResponse({"object": "list", "data": [self.served]})

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        if refused := self._refuse(request, body):
            return refused
        assert body["add_special_tokens"] is False
        if "prompt" in body:
            ids = list(body["prompt"].encode())
        else:
            ids = [1, *"".join(m["content"] for m in body["messages"]).encode(), 2]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": CONTEXT})

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((request.url.path, body))
        return JSONResponse({"prompt": bytes(body["tokens"]).decode()})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        if refused := self._refuse(request, body):
            return refused
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    def _refuse(self, request: Request, body: dict[str, Any]) -> Response | None:
        self.asked.append((request.url.path, body))
        if self.busy > 0:
            self.busy -= 1
            return Response(status_code=503)
        if self.refusal and request.url.path == "/v1/completions":
            return JSONResponse(self.refusal[1], status_code=self.refusal[0])
        if request.headers["authorization"] != f"Bearer {KEY}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return None

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """A byte per event, the choices in turn; the last event of a choice says how it ended."""
        replies = {index: self.replies(body, index) for index in range(body["n"])}
        sent = 0
        try:
            for place in range(CONTEXT):
                for index, reply in list(replies.items()):
                    if sent == self.hangs_after:
                        await asyncio.Event().wait()
                    sent += 1
                    piece: dict[str, Any] = {"index": index, "text": "", "token_ids": []}
                    if place < len(reply.text):
                        piece["text"] = reply.text[place]
                        piece["token_ids"] = list(reply.text[place].encode())
                    if place >= len(reply.text) - 1:
                        end = [EOS] if reply.finish == "stop" and reply.stop is None else []
                        piece["token_ids"] += [*reply.overshoot.encode(), *end]
                        piece |= {"finish_reason": reply.finish, "stop_reason": reply.stop}
                        del replies[index]
                    # As vLLM does: U+2028 is not escaped.
                    yield f"data: {json.dumps({'choices': [piece]}, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone.set()
            raise


@pytest.fixture
async def policy(anyio_backend: str) -> AsyncIterator[PolicyServer]:
    policy = PolicyServer()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(policy.app(), log_level="error", lifespan="off", ws="none")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    policy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield policy
    server.should_exit = True
    await serving


@pytest.fixture
async def server(policy: PolicyServer) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(policy.url + "/v1/", api_key=KEY) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_waits_between_tries() -> Any:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def always(reply: Reply) -> Callable[[dict[str, Any], int], Reply]:
    return lambda body, index: reply


def wants(*prefixes: Prefix | str, seed: int = 7) -> list[Want]:
    return [
        Want(
            number=10 + place,
            prefix=Prefix(text=prefix, ids=tuple(prefix.encode()))
            if isinstance(prefix, str)
            else prefix,
            seed=seed + place,
        )
        for place, prefix in enumerate(prefixes)
    ]


def params(**changes: Any) -> GenerateParams:
    return GenerateParams(**({"temperature": 0.8, "top_p": 0.9, "max_tokens": 20} | changes))


async def write(
    server: OpenAIServer, asked: list[Want], settings: GenerateParams | None = None
) -> dict[int, Written]:
    stream = server.generator("m").generate(CHAT, asked, settings or params())
    return {written.number: written async for written in stream}


@pytest.mark.anyio
async def test_lists_what_the_server_serves(server: OpenAIServer) -> None:
    models = await server.models()
    assert {name: model.max_model_len for name, model in models.items()} == {"m": CONTEXT}
    assert server.generator("m").context_limit == CONTEXT
    assert server.generator("another").context_limit is None


@pytest.mark.anyio
async def test_a_text_carries_its_ids_and_exact_counts(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply("3+2=5")
    written = await write(server, wants(""))
    assert written == {
        10: Written(
            number=10,
            prefix=Prefix(text="3+2=5", ids=(*b"3+2=5", EOS)),
            tokens=6,
            prompt_tokens=len(CHAT_IDS),
            ended_by="eos",
        )
    }


@pytest.mark.anyio
async def test_wants_with_one_prefix_share_a_request_and_its_seed(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply(f"{chr(body['prompt'][-1])}{index}")
    written = await write(server, wants("a\n", "b\n", "a\n", "a\n"))
    bodies = {tuple(body["prompt"]): body for body in policy.bodies("/v1/completions")}
    assert {prompt: (body["n"], body["seed"]) for prompt, body in bodies.items()} == {
        (*CHAT_IDS, *b"a\n"): (3, 7),
        (*CHAT_IDS, *b"b\n"): (1, 8),
    }
    assert {number: piece.prefix.text for number, piece in written.items()} == {
        10: "a\n\n0",
        11: "b\n\n0",
        12: "a\n\n1",
        13: "a\n\n2",
    }


@pytest.mark.anyio
async def test_a_server_that_is_not_vllm_gets_a_request_per_want_with_its_own_seed(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.served["owned_by"] = "sglang"
    policy.replies = lambda body, index: Reply(str(body["seed"]))
    written = await write(server, wants("", "", ""))
    assert {number: piece.prefix.text for number, piece in written.items()} == {
        10: "7",
        11: "8",
        12: "9",
    }
    assert [body["n"] for body in policy.bodies("/v1/completions")] == [1, 1, 1]


@pytest.mark.anyio
async def test_top_k_is_asked_for_by_its_number(policy: PolicyServer, server: OpenAIServer) -> None:
    await write(server, wants(""), params(top_k=20))
    assert policy.bodies("/v1/completions")[0]["top_k"] == 20


@pytest.mark.anyio
async def test_greedy_wants_go_alone(policy: PolicyServer, server: OpenAIServer) -> None:
    await write(server, wants("", "", ""), params(temperature=0.0))
    assert [body["n"] for body in policy.bodies("/v1/completions")] == [1, 1, 1]


@pytest.mark.anyio
async def test_a_models_own_sampling_defaults_are_switched_off(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    await write(server, wants("", seed=2**63 - 1))
    (body,) = policy.bodies("/v1/completions")
    assert body["temperature"] == 0.8
    assert body["top_p"] == 0.9
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert 0 <= body["seed"] < 2**31


@pytest.mark.anyio
async def test_the_chat_is_tokenised_once_for_all_rounds(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    generator = server.generator("m")
    for asked in (wants(""), wants("a\n")):
        assert [piece async for piece in generator.generate(CHAT, asked, params())]
    assert len(policy.bodies("/tokenize")) == 1


@pytest.mark.anyio
async def test_a_separator_stays_and_a_stop_string_goes(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: (
        Reply("a\n", stop="\n") if index else Reply("b###", stop="###")
    )
    written = await write(server, wants("", ""), params(stop=("###",), keep_stop=("\n",)))
    assert (written[10].prefix.text, written[10].ended_by, written[10].tokens) == ("b", "stop", 4)
    assert (written[11].prefix.text, written[11].ended_by, written[11].tokens) == (
        "a\n",
        "separator",
        2,
    )
    assert written[11].prefix.ids == tuple(b"a\n")
    assert written[10].prefix.ids == ()


@pytest.mark.anyio
async def test_where_ids_say_more_than_the_text_the_text_goes_on(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply("a\n", stop="\n", overshoot="\n")
    written = await write(server, wants("x"), params(keep_stop=("\n",)))
    assert written[10].prefix == Prefix(text="xa\n", ids=tuple(b"xa\n\n"), is_exact=False)
    assert written[10].tokens == 3
    policy.replies = lambda body, index: Reply("b")
    again = await write(server, wants(written[10].prefix))
    assert policy.bodies("/v1/completions")[-1]["prompt"] == [*CHAT_IDS, *b"xa\n"]
    assert again[10].prefix == Prefix(text="xa\nb", ids=(*b"xa\nb", EOS))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.tuples(st.text("ab½\n", max_size=3), st.sampled_from(["", "\n", "½", "ab"])),
        min_size=1,
        max_size=4,
    )
)
@pytest.mark.anyio
async def test_every_step_goes_on_from_the_text_and_nothing_else(
    policy: PolicyServer, server: OpenAIServer, steps: list[tuple[str, str]]
) -> None:
    policy.asked.clear()
    prefix = Prefix()
    for text, overshoot in steps:
        step = text.replace("\n", "") + "\n"
        policy.replies = always(Reply(step, stop="\n", overshoot=overshoot))
        before = prefix.text
        settings = params(keep_stop=("\n",), max_tokens=30)
        prefix = (await write(server, wants(prefix), settings))[10].prefix
        assert prefix.text == before + step
        prompt = policy.bodies("/v1/completions")[-1]["prompt"]
        assert bytes(prompt).decode() == "\1" + CHAT[0].content + "\2" + before


@pytest.mark.anyio
async def test_only_ids_that_are_gone_on_from_are_looked_up(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply(f"{index}\n", stop="\n")
    settings = params(keep_stop=("\n",))
    written = await write(server, wants("", "", "", ""), settings)
    assert policy.bodies("/detokenize") == []
    chosen = [written[number].prefix for number in (11, 13, 11, 11)]
    again = await write(server, wants(*chosen), settings)
    assert sorted(body["tokens"] for body in policy.bodies("/detokenize")) == [
        list(b"1\n"),
        list(b"3\n"),
    ]
    assert [again[10 + place].prefix.text[:2] for place in range(4)] == ["1\n", "3\n", "1\n", "1\n"]


@pytest.mark.anyio
async def test_line_separators_in_a_text_do_not_cut_the_stream(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply("a\u2028b\x85c")
    written = await write(server, wants(""))
    assert written[10].prefix.text == "a\u2028b\x85c"


@pytest.mark.anyio
async def test_a_full_context_ends_a_prefix_and_refuses_a_problem(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    full = "x" * (CONTEXT - len(CHAT_IDS))
    written = await write(server, wants(full, "y"))
    assert (written[10].ended_by, written[10].tokens, written[10].prefix.text) == (
        "length",
        0,
        full,
    )
    assert written[11].ended_by == "eos"
    long = (Message(role="user", content="x" * CONTEXT),)
    with pytest.raises(InvalidInput, match=f"at most {CONTEXT}") as refused:
        await anext(server.generator("m").generate(long, wants(""), params()))
    assert refused.value.param == "problem"


@pytest.mark.anyio
async def test_the_deadline_returns_what_is_there(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    # Of two texts, the short one ends; the server stops talking in the middle of the other.
    policy.replies = lambda body, index: Reply("abcdefgh" if index else "ab")
    policy.hangs_after = 7
    written = await write(server, wants("", ""), params(seconds=0.5))
    assert written[10].ended_by == "eos"
    assert written[11].ended_by == "deadline"
    assert written[11].prefix == Prefix(text="abcde", ids=tuple(b"abcde"))
    assert written[11].tokens == 5
    async with asyncio.timeout(5):
        await policy.gone.wait()


@pytest.mark.anyio
async def test_closing_early_ends_the_requests(policy: PolicyServer, server: OpenAIServer) -> None:
    policy.replies = lambda body, index: Reply("abcdefgh" if index else "a")
    policy.hangs_after = 5
    stream = server.generator("m").generate(CHAT, wants("", ""), params())
    assert (await anext(stream)).number == 10
    await stream.aclose()
    async with asyncio.timeout(5):
        await policy.gone.wait()


@pytest.mark.anyio
async def test_a_server_that_is_busy_is_asked_again(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.busy = 2
    assert (await write(server, wants("")))[10].prefix.text == "5"
    policy.busy = 3
    with pytest.raises(Unavailable, match="takes no requests now"):
        await server.models()


@pytest.mark.anyio
async def test_a_dead_server_is_unavailable_and_its_address_goes_to_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with OpenAIServer(f"http://user:{KEY}@127.0.0.1:{port}", api_key=KEY) as server:
        with pytest.raises(Unavailable, match="the policy server does not answer") as dead:
            await server.models()
        with pytest.raises(Unavailable, match=r"^policy 'm': the policy server does not"):
            await write(server, wants(""))
    assert not any(secret in str(dead.value) for secret in (KEY, "127.0.0.1", str(port)))
    assert f"policy server at 127.0.0.1:{port}" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="http://HOST:PORT"):
        OpenAIServer(url)


@pytest.mark.anyio
async def test_a_wrong_key_is_the_operators_matter(policy: PolicyServer) -> None:
    async with OpenAIServer(policy.url, api_key="wrong-key") as server:
        with pytest.raises(Unavailable, match="refuses this server's key") as refused:
            await server.models()
    assert "wrong-key" not in str(refused.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (
            404,
            {"error": {"message": "The model `m` does not exist.", "code": 404}},
            UnknownModel,
            "The model `m` does not exist.",
        ),
        (404, {"detail": "Not Found"}, Unavailable, "lacks a route"),
        (
            400,
            {"error": {"message": "top_p must be in (0, 1], got 2.", "code": 400}},
            InvalidInput,
            "top_p must be in",
        ),
        (400, {"message": "flat, as SGLang's", "code": None}, InvalidInput, "flat"),
        (500, {"error": {"message": "boom", "code": 500}}, Unavailable, r"failed \(status 500\)"),
    ],
)
async def test_refusals_become_ours(
    policy: PolicyServer,
    server: OpenAIServer,
    status: int,
    body: dict[str, Any],
    kind: type[RungError],
    message: str,
) -> None:
    policy.refusal = (status, body)
    with pytest.raises(kind, match=message):
        await write(server, wants(""))
    # A refusal is an answer: it is not asked for again. A failure is none.
    assert len(policy.bodies("/v1/completions")) == (3 if status >= 500 else 1)


@pytest.mark.anyio
async def test_refusals_tell_no_keys_and_no_paths(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.refusal = (
        400,
        {"message": f"key {KEY} is bad for /srv/models/m; 1/2 stays " + "x" * 999},
    )
    with pytest.raises(InvalidInput) as refused:
        await write(server, wants(""))
    assert "key … is bad for …; 1/2 stays" in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.anyio
async def test_a_text_that_was_given_up_is_an_error(
    policy: PolicyServer, server: OpenAIServer
) -> None:
    policy.replies = lambda body, index: Reply("x", finish="abort")
    with pytest.raises(Unavailable, match="gave up a text"):
        await write(server, wants(""))
