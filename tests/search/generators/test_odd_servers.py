"""Policy servers that answer oddly: what they say is right, or it is a clear Unavailable."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from prm.errors import InvalidInput, Unavailable
from search.generators.breaker import Breaker
from search.generators.events import MAX_EVENT_BYTES
from search.generators.openai_server import OpenAIServer
from tests.search.generators.scripted_server import (
    HANG,
    ScriptedServer,
    event,
    params,
    piece,
    serving,
    spoken,
    wants,
    write,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_tries")]

Ask = Callable[[Callable[[dict[str, Any], int], Iterable[bytes]]], Any]


@pytest.fixture
async def odd(anyio_backend: str) -> AsyncIterator[ScriptedServer]:
    async with serving(ScriptedServer(lambda body, nth: spoken("5"))) as server:
        yield server


@pytest.fixture
async def client(odd: ScriptedServer) -> AsyncIterator[OpenAIServer]:
    breaker = Breaker(after=100)
    async with OpenAIServer(odd.url, timeout_s=2, silence_s=0.3, breaker=breaker) as client:
        yield client


@pytest.mark.parametrize(
    ("text", "stop_reason", "ended_by", "tokens"),
    [("", None, "eos", 0), ("", "###", "stop", 0), ("\n", "\n", "separator", 1)],
)
async def test_an_empty_text_is_reported_with_how_it_ended(
    odd: ScriptedServer,
    client: OpenAIServer,
    text: str,
    stop_reason: str | None,
    ended_by: str,
    tokens: int,
) -> None:
    odd.script = lambda body, nth: spoken(text, stop_reason=stop_reason)
    settings = params(stop=("###",), keep_stop=("\n",))
    for _ in range(3):
        (written,) = await write(client.generator("m"), wants("a\n"), settings)
        assert (written.prefix.text, written.tokens) == ("a\n" + text, tokens)
        assert written.ended_by == ended_by


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_events_may_be_cut_anywhere(
    odd: ScriptedServer, client: OpenAIServer, size: int
) -> None:
    text = "é = 3·√2 ≈ 𝟒\u2028\x85 \\n data: [DONE]"

    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        whole = b": hello\r\n\r\nevent: x\n" + b"".join(spoken(text)).replace(b"\n\n", b"\r\n\r\n")
        return (whole[at : at + size] for at in range(0, len(whole), size))

    odd.script = script
    (written,) = await write(client.generator("m"), wants(""), params(max_tokens=99))
    assert written.prefix.text == text
    assert written.prefix.ids == tuple(text.encode())


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([b"data: \xff\xfe\n\n"], "not UTF-8"),
        ([b'data: {"choices": [{"text": "\xc3"}]}\n\n'], "not UTF-8"),
        ([b"data: {nonsense\n\n"], "another shape"),
        ([event({"choices": [{"text": 5}]})], "another shape"),
        ([event({"choices": "none"})], "another shape"),
        ([event({"choices": [{"index": 0, "text": "x"}]})], "tells no token ids"),
        ([piece("x", finish="banana")], "gave up a text .'banana'"),
        ([piece("x", index=3)], "answers for text 3 of 1"),
        ([piece("x", index=-1)], "answers for text -1 of 1"),
        ([piece("x" * 41)], "more than the 40 tokens"),
        ([event({"error": "it broke"})], "another shape"),
        ([event({"error": {"message": "engine died", "code": 500}})], "status 500"),
        ([event([])], "another shape"),
        ([piece("x"), event({"error": {"message": "dead", "code": 500}})], "status 500"),
        ([], "ended its answer early"),
        ([b"data: [DONE]\n\n"], "ended its answer early"),
        ([b"\n\n\n"], "ended its answer early"),
        ([piece("x"), HANG], "stopped in the middle"),
    ],
)
async def test_what_is_no_answer_is_unavailable_and_says_why(
    odd: ScriptedServer, client: OpenAIServer, pieces: list[bytes], message: str
) -> None:
    odd.script = lambda body, nth: pieces
    with pytest.raises(Unavailable, match=f"^policy 'm': the policy server .*{message}"):
        await write(client.generator("m"), wants(""))


async def test_an_event_without_end_is_left(odd: ScriptedServer, client: OpenAIServer) -> None:
    odd.script = lambda body, nth: itertools.repeat(b"data: " + b"x" * 65_536)
    with pytest.raises(Unavailable, match=f"more than {MAX_EVENT_BYTES} bytes"):
        await write(client.generator("m"), wants(""))


@pytest.mark.parametrize("endless", [piece(""), event({"choices": []}), event({"usage": None})])
async def test_a_stream_that_says_nothing_for_ever_is_left(
    odd: ScriptedServer, client: OpenAIServer, endless: bytes
) -> None:
    odd.script = lambda body, nth: itertools.repeat(endless)
    with pytest.raises(Unavailable, match="goes on without end"):
        await write(client.generator("m"), wants(""))


async def test_comments_for_ever_do_not_count_as_an_answer(
    odd: ScriptedServer, client: OpenAIServer
) -> None:
    odd.script = lambda body, nth: itertools.chain(
        [piece("x")], itertools.repeat(b": still here\n\n")
    )
    with pytest.raises(Unavailable, match="stopped in the middle"):
        await write(client.generator("m"), wants(""))


async def test_the_deadline_ends_a_server_that_never_begins(
    odd: ScriptedServer, client: OpenAIServer
) -> None:
    odd.script = lambda body, nth: itertools.repeat(b": still here\n\n")
    (written,) = await write(client.generator("m"), wants("a"), params(seconds=0.3))
    assert (written.prefix.text, written.tokens, written.ended_by) == ("a", 0, "deadline")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b'{"error": {"message": "no room", "code": 500}}', Unavailable, "failed .status 500"),
        (b'{"error": {"message": "bad top_p", "code": 400}}', InvalidInput, "bad top_p"),
        (b'{"choices": [{"text": "all at once"}]}', Unavailable, "does not stream"),
        (b"<html>welcome</html>", Unavailable, "does not stream"),
        (b"\xff\xfe", Unavailable, "does not stream"),
    ],
)
async def test_a_good_status_over_something_else_is_no_answer(
    odd: ScriptedServer, client: OpenAIServer, body: bytes, kind: type[Exception], message: str
) -> None:
    odd.content_type = "application/json"
    odd.script = lambda _, nth: [body]
    with pytest.raises(kind, match=message):
        await write(client.generator("m"), wants(""))


async def test_a_refusal_in_the_stream_is_the_callers_matter(
    odd: ScriptedServer, client: OpenAIServer
) -> None:
    odd.script = lambda body, nth: [event({"error": {"message": "too hot", "code": 400}})]
    with pytest.raises(InvalidInput, match="too hot"):
        await write(client.generator("m"), wants(""))
    assert len(odd.completions) == 1


async def test_what_comes_after_a_texts_end_is_not_part_of_it(
    odd: ScriptedServer, client: OpenAIServer
) -> None:
    odd.script = lambda body, nth: [
        piece("5", finish="stop"),
        piece("6", finish="stop"),
        piece("x", index=1, finish="length"),
    ]
    first, second = await write(client.generator("m"), wants("", ""))
    assert (first.prefix.text, first.ended_by) == ("5", "eos")
    assert (second.prefix.text, second.ended_by) == ("x", "length")


async def test_a_body_without_end_is_left(client: OpenAIServer, odd: ScriptedServer) -> None:
    odd.content_type = "application/json"
    odd.script = lambda body, nth: itertools.repeat(b" " * (1 << 20))
    with pytest.raises(Unavailable, match="more than 67108864 bytes"):
        await write(client.generator("m"), wants(""))


@pytest.mark.parametrize("stop", [".*", "(", "a|b", "[x]$", "\\", "né\u2028", "²"])
async def test_stop_strings_are_strings(
    odd: ScriptedServer, client: OpenAIServer, stop: str
) -> None:
    odd.script = lambda body, nth: spoken(f"ab{stop}", stop_reason=stop)
    settings = params(max_tokens=99)
    (cut,) = await write(client.generator("m"), wants(""), params(stop=(stop,)))
    (kept,) = await write(client.generator("m"), wants(""), params(keep_stop=(stop,)))
    assert (cut.prefix.text, cut.ended_by) == ("ab", "stop")
    assert (kept.prefix.text, kept.ended_by) == ("ab" + stop, "separator")
    assert kept.prefix.ids == tuple(f"ab{stop}".encode())
    assert json.loads(json.dumps(odd.completions[-1]["stop"])) == [stop]
    assert settings.stop == ()


async def test_a_caller_that_leaves_an_odd_server_is_not_kept(
    odd: ScriptedServer, client: OpenAIServer
) -> None:
    odd.script = lambda body, nth: [piece("x"), HANG]
    stream = client.generator("m").generate((), wants(""), params())
    task = asyncio.ensure_future(anext(stream))
    while not odd.completions:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(2):
            await task
