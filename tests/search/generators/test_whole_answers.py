"""Answers that come whole, and texts that end at a token: what they are worth is all the same."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, Unavailable
from search.generators.ending_tokens import ending_tokens
from search.generators.openai_http import WHOLE_TOKENS
from search.generators.openai_server import OpenAIServer
from search.types import Prefix
from tests.factories import POLICY
from tests.search.generators.scripted_server import (
    BREAK,
    CHAT_IDS,
    ScriptedServer,
    event,
    params,
    piece,
    serving,
    spoken,
    wants,
    whole,
    write,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_tries")]

TEXTS = ("3+2\n", "5")


def both(body: dict[str, Any], nth: int) -> Any:
    """Two texts, streamed or whole, as it was asked."""
    ends = [{"finish_reason": "stop", "stop_reason": "\n"}, {"finish_reason": "stop"}]
    if not body.get("stream"):
        yield whole(*({"text": text} | end for text, end in zip(TEXTS, ends, strict=True)))
        return
    for index, (text, end) in enumerate(zip(TEXTS, ends, strict=True)):
        finish = end.pop("finish_reason")
        yield piece(text, index=index, finish=finish, **end)
    yield b"data: [DONE]\n\n"


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedServer]:
    async with serving(ScriptedServer(both)) as server:
        yield server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(server.url) as client:
        yield client


async def test_texts_that_nobody_watches_come_whole_and_are_the_same(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    generator = client.generator("m")
    streamed = await write(generator, wants("", ""), params(keep_stop=("\n",)))
    at_once = await write(generator, wants("", ""), params(keep_stop=("\n",), is_watched=False))
    assert at_once == streamed
    assert [written.prefix.text for written in at_once] == list(TEXTS)
    assert [written.ended_by for written in at_once] == ["separator", "eos"]
    first, second = server.completions
    assert first["stream"] is True
    assert "stream" not in second
    shape = ("stream", "stream_interval")
    assert second == {name: value for name, value in first.items() if name not in shape}


@pytest.mark.parametrize(
    "changes",
    [
        {"is_watched": True},
        {"seconds": 30.0},
        {"max_tokens": WHOLE_TOKENS + 1},
    ],
)
async def test_whoever_needs_the_beginning_of_a_text_gets_a_stream(
    server: ScriptedServer, client: OpenAIServer, changes: dict[str, Any]
) -> None:
    settings = params(**({"is_watched": False} | changes))
    await write(client.generator("m"), wants("", ""), settings)
    assert [body["stream"] for body in server.completions] == [True]


async def test_a_server_that_is_not_vllm_streams(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    server.owned_by = "sglang"
    server.script = lambda body, nth: spoken("5")
    await write(client.generator("m"), wants("", ""), params(is_watched=False))
    assert [body["stream"] for body in server.completions] == [True, True]


async def test_a_whole_answer_that_breaks_off_is_asked_for_again_in_pieces(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    def script(body: dict[str, Any], nth: int) -> Any:
        return spoken("5") if body.get("stream") else [b'{"choices": [', BREAK]

    server.script = script
    written = await write(client.generator("m"), wants("", ""), params(is_watched=False))
    assert [each.prefix.text for each in written] == ["5", "5"]
    assert [body.get("n") for body in server.completions] == [2, 1, 1]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b"nonsense", Unavailable, "another shape than vLLM"),
        (b'{"choices": []}', Unavailable, "ended its answer early"),
        (b'{"error": {"message": "top_p is odd", "code": 400}}', InvalidInput, "top_p is odd"),
    ],
)
async def test_a_whole_answer_that_is_none_is_told(
    server: ScriptedServer, client: OpenAIServer, answer: bytes, kind: type[Exception], message: str
) -> None:
    server.script = lambda body, nth: [answer if not body.get("stream") else event({})]
    with pytest.raises(kind, match=message):
        await write(client.generator("m"), wants(""), params(is_watched=False))


@pytest.fixture
async def known(server: ScriptedServer, tiny_models: Path) -> AsyncIterator[OpenAIServer]:
    """A client that has the tokenizer, in which a byte of ASCII is a token."""
    tokenizer = ChatTokenizer(tiny_models / POLICY / "1")
    async with OpenAIServer(server.url, tokenizer=tokenizer) as client:
        yield client


@pytest.mark.parametrize("is_watched", [True, False])
async def test_a_text_that_ends_at_a_token_ends_with_the_string_that_is_in_it(
    server: ScriptedServer, known: OpenAIServer, tiny_models: Path, is_watched: bool
) -> None:
    tokenizer = ChatTokenizer(tiny_models / POLICY / "1")
    ids = ending_tokens(tokenizer, frozenset(["\n", "#"]))
    assert ids

    def script(body: dict[str, Any], nth: int) -> Any:
        ended = [("3+2\n and more", ids[0]), ("4#", ids[-1]), ("5", 256)]
        if not body.get("stream"):
            yield whole(*({"text": t, "finish_reason": "stop", "stop_reason": i} for t, i in ended))
            return
        for index, (text, token) in enumerate(ended):
            yield piece(text, index=index, finish="stop", stop_reason=token)

    server.script = script
    settings = params(stop=("#",), keep_stop=("\n",), is_watched=is_watched)
    written = await write(known.generator("m"), wants("", "", ""), settings)
    assert [(each.prefix.text, each.ended_by) for each in written] == [
        ("3+2\n", "separator"),
        ("4", "stop"),
        ("5", "eos"),
    ]
    (body,) = server.completions
    assert body["stop"] == ["\n", "#"]
    assert body["stop_token_ids"] == list(ids)


async def test_a_token_that_says_no_stop_string_is_an_error(
    server: ScriptedServer, known: OpenAIServer, tiny_models: Path
) -> None:
    (newline,) = ending_tokens(ChatTokenizer(tiny_models / POLICY / "1"), frozenset(["\n"]))
    server.script = lambda body, nth: [piece("5", finish="stop", stop_reason=newline)]
    with pytest.raises(Unavailable, match=f"ended a text with token {newline}"):
        await write(known.generator("m"), wants(""), params(keep_stop=("\n",)))


async def test_without_a_tokenizer_no_token_is_named(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    await write(client.generator("m"), wants("", ""), params(keep_stop=("\n",)))
    assert "stop_token_ids" not in server.completions[0]


async def test_a_prefix_that_a_token_ended_goes_on_from_its_ids(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    generator = client.generator("m")
    first, _ = await write(generator, wants("", ""), params(keep_stop=("\n",), is_watched=False))
    assert first.prefix == Prefix(text="3+2\n", ids=tuple(b"3+2\n"), is_exact=False)
    server.script = lambda body, nth: spoken("5")
    again = [wants("")[0].__class__(number=0, prefix=first.prefix, seed=1)]
    (rest,) = await write(generator, again)
    assert rest.prefix.text == "3+2\n5"
    assert server.completions[-1]["prompt"] == [*CHAT_IDS, *b"3+2\n"]
