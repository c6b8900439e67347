"""Answers that break off: nothing that was said is lost, and the rest is asked for again."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm.errors import Unavailable
from search.generators.breaker import Breaker
from search.generators.openai_server import OpenAIServer
from tests.search.generators.scripted_server import (
    BREAK,
    CHAT_IDS,
    ScriptedServer,
    params,
    piece,
    serving,
    spoken,
    wants,
    write,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_tries")]


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedServer]:
    async with serving(ScriptedServer(lambda body, nth: spoken("5"))) as server:
        yield server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(server.url, silence_s=0.5, breaker=Breaker(after=100)) as client:
        yield client


def state(breaker: Breaker) -> str:
    return breaker.state.value


def continuing(text: str, *, breaks_after: int) -> Any:
    """A script of a server that goes on with `text` where the prompt ends, and breaks off once."""

    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        there = bytes(body["prompt"][len(CHAT_IDS) :]).decode()
        assert text.startswith(there)
        rest = text[len(there) :]
        if nth == 0:
            yield from (piece(character) for character in rest[:breaks_after])
            yield BREAK
        yield from spoken(rest)

    return script


async def test_texts_that_had_ended_are_kept_and_the_others_go_on(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        if nth == 0:
            yield piece("done", finish="stop")
            yield piece("half", index=1)
            yield BREAK
        yield from spoken(" and more" if body["prompt"][-4:] == list(b"half") else "new")

    server.script = script
    found = await write(client.generator("m"), wants("", "", ""))
    assert [written.prefix.text for written in found] == ["done", "half and more", "new"]
    first, half, new = server.completions
    if half["prompt"] == list(CHAT_IDS):
        half, new = new, half
    assert (first["n"], first["seed"], first["max_tokens"]) == (3, 7, 40)
    # What had been begun goes on with other random numbers, and room for what is left.
    assert half["prompt"] == [*CHAT_IDS, *b"half"]
    assert (half["n"], half["max_tokens"]) == (1, 36)
    assert half["seed"] != first["seed"] + 1
    # What had not is asked for as it was: vLLM adds a choice's index to the seed.
    assert (new["n"], new["seed"], new["max_tokens"]) == (1, 7 + 2, 40)
    assert found[1].tokens == len("half and more")
    assert found[1].prefix.ids == tuple(b"half and more")


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(st.sampled_from("ab#²\n\u2028𝟒"), min_size=1, max_size=12), at=st.integers(0, 12)
)
async def test_a_text_is_the_same_wherever_its_answer_broke_off(
    server: ScriptedServer, client: OpenAIServer, text: str, at: int
) -> None:
    server.completions.clear()
    server.script = continuing(text, breaks_after=at)
    (written,) = await write(client.generator("m"), wants(""), params(max_tokens=99))
    assert (written.prefix.text, written.ended_by) == (text, "eos")
    assert written.tokens == len(text.encode())
    assert len(server.completions) == 2


@pytest.mark.parametrize("stop", ["##", "a.*b", "½\u2028"])
async def test_a_stop_string_over_the_break_is_found(
    server: ScriptedServer, client: OpenAIServer, stop: str
) -> None:
    server.script = continuing(f"12{stop}34", breaks_after=3)
    (cut,) = await write(client.generator("m"), wants(""), params(stop=(stop,)))
    assert (cut.prefix.text, cut.ended_by) == ("12", "stop")
    server.completions.clear()
    (kept,) = await write(client.generator("m"), wants(""), params(keep_stop=(stop,)))
    assert (kept.prefix.text, kept.ended_by) == ("12" + stop, "separator")


async def test_half_a_character_is_written_again(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        if nth == 0:
            yield piece("a")
            # The first of the two bytes of ½: an id, and no text yet.
            yield piece("", token_ids=[0xC2])
            yield BREAK
        yield from spoken("a½")

    server.script = script
    (written,) = await write(client.generator("m"), wants(""))
    assert server.completions[1]["prompt"] == list(CHAT_IDS)
    assert server.completions[1]["seed"] == 7
    assert written.prefix.text == "a½"
    assert written.prefix.ids == tuple("a½".encode())


async def test_a_text_that_was_complete_but_for_its_end_is_done(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    server.script = lambda body, nth: [piece("abc"), BREAK]
    (written,) = await write(client.generator("m"), wants(""), params(max_tokens=3))
    assert (written.prefix.text, written.ended_by, written.tokens) == ("abc", "length", 3)
    assert len(server.completions) == 1


async def test_a_server_that_breaks_off_every_time_is_unavailable(
    server: ScriptedServer, client: OpenAIServer
) -> None:
    server.script = lambda body, nth: [piece("a"), BREAK]
    with pytest.raises(Unavailable, match="policy 'm': the policy server broke off"):
        await write(client.generator("m"), wants(""))
    assert 3 <= len(server.completions) <= 5


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_request_that_was_not_let_in_is_sent_again(
    server: ScriptedServer, client: OpenAIServer, status: int
) -> None:
    server.statuses = [(status, {"Retry-After": "0"}), (status, {})]
    (written,) = await write(client.generator("m"), wants(""))
    assert written.prefix.text == "5"
    assert len(server.completions) == 3


async def test_the_wait_that_a_server_asks_for_is_kept_or_told(server: ScriptedServer) -> None:
    with stamina.set_testing(False):
        async with OpenAIServer(server.url) as client:
            await client.models()
            server.statuses = [(429, {"Retry-After": "1"})]
            started = asyncio.get_running_loop().time()
            await write(client.generator("m"), wants(""))
            assert asyncio.get_running_loop().time() - started >= 1.0
            server.statuses = [(503, {"Retry-After": "3600"})]
            with pytest.raises(Unavailable, match="status 503") as refused:
                await write(client.generator("m"), wants(""))
    assert refused.value.retry_after_s == 3600
    assert len(server.completions) == 3


async def test_no_retry_outlives_the_deadline(server: ScriptedServer) -> None:
    with stamina.set_testing(False):
        async with OpenAIServer(server.url) as client:
            await client.models()
            generator = client.generator("m")
            await write(generator, wants(""))
            server.statuses = [(503, {"Retry-After": "4"})] * 3
            (written,) = await write(generator, wants("a"), params(seconds=0.3))
    assert (written.prefix.text, written.ended_by) == ("a", "deadline")
    assert len(server.completions) == 2


async def test_a_server_that_keeps_failing_is_left_alone_and_then_tried_once(
    server: ScriptedServer,
) -> None:
    now_s = 0.0
    breaker = Breaker(after=3, cooldown_s=10, clock=lambda: now_s)
    async with OpenAIServer(server.url, breaker=breaker) as client:
        generator = client.generator("m")
        await write(generator, wants(""))
        server.statuses = [(500, {})] * 12
        for _ in range(3):
            with pytest.raises(Unavailable, match="status 500"):
                await write(generator, wants(""))
        assert state(breaker) == "open"
        asked = server.requests
        with pytest.raises(Unavailable, match=r"not asked for another 10\.0 s.*status 500") as told:
            await write(generator, wants(""))
        assert told.value.retry_after_s == 10
        assert server.requests == asked
        now_s = 10.0
        assert state(breaker) == "half_open"
        with pytest.raises(Unavailable, match="status 500"):
            await write(generator, wants(""))
        assert state(breaker) == "open"
        now_s = 20.0
        (written,) = await write(generator, wants(""))
        assert written.prefix.text == "5"
        assert state(breaker) == "closed"
        assert breaker.failures == 4
