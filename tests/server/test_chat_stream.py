"""Streamed chat completions: what is sent early stays, and who leaves or errs is heard."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from server.settings import BUNDLED_MODELS
from server.short_forms import WORDS
from tests.factories import POLICY, PROBLEM
from tests.server.conftest import RunningServer, poll, rung_serve

MESSAGES: Any = [{"role": "user", "content": PROBLEM}]
BODY: dict[str, Any] = {"model": POLICY, "messages": MESSAGES, "seed": 7, "max_tokens": 40}
GOOD_POLICY = "rung-arith-policy"


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def bundled() -> Iterator[RunningServer]:
    """A server whose policy writes steps."""
    with rung_serve(BUNDLED_MODELS) as running:
        yield running


def streamed(client: openai.OpenAI, **changes: Any) -> list[Any]:
    with client.chat.completions.create(**(BODY | changes), stream=True) as chunks:
        return list(chunks)


def texts_of(chunks: list[Any]) -> dict[int, str]:
    """Every choice's text, put together as a client does it."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("form", ["best-of-4", "beam-4x2"])
def test_the_pieces_make_up_the_same_answers(client: openai.OpenAI, form: str, n: int) -> None:
    asked: dict[str, Any] = {"model": f"{form}/{POLICY}", "n": n}
    chunks = streamed(client, **asked)
    whole: Any = client.chat.completions.create(**(BODY | asked))
    assert texts_of(chunks) == {c.index: c.message.content for c in whole.choices}
    first = {choice.index: choice.delta.role for c in reversed(chunks) for choice in c.choices}
    assert set(first.values()) == {"assistant"}
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert [(e.index, e.finish_reason, e.score) for e in ends] == [
        (c.index, c.finish_reason, c.score) for c in whole.choices
    ]
    (search,) = [chunk.search for chunk in chunks if hasattr(chunk, "search")]
    assert search["strategy"] == whole.search["strategy"]
    assert search["votes"] == whole.search["votes"]
    # A client that takes the first choice of every chunk must find one.
    assert all(chunk.choices for chunk in chunks)
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1


def test_usage_comes_last_and_only_when_asked_for(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": f"beam-4x2/{POLICY}", "n": 2}
    *others, last = streamed(client, **asked, stream_options={"include_usage": True})
    whole: Any = client.chat.completions.create(**(BODY | asked))
    assert all(chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.completion_tokens_details == whole.usage.completion_tokens_details
    assert all("usage" not in chunk.model_fields_set for chunk in streamed(client, **asked))


def test_the_searchs_events_are_named_and_sent_only_when_asked_for(
    client: openai.OpenAI, http: httpx2.Client
) -> None:
    body = BODY | {"model": f"beam-4x2/{POLICY}", "stream": True}
    assert "event:" not in http.post("/v1/chat/completions", json=body).text
    options = {"stream_options": {"search_events": True}}
    *events, done = (
        http.post("/v1/chat/completions", json=body | options).text.strip().split("\n\n")
    )
    assert done == "data: [DONE]"
    named = [event for event in events if event.startswith("event: search\n")]
    types = [json.loads(event.split("data: ", 1)[1])["search_event"]["type"] for event in named]
    assert types[:4] == ["expanded"] * 4
    assert set(types) >= {"expanded", "scored"}
    # OpenAI's client takes them for chunks, with no choice in them and the event beside.
    chunks = streamed(client, model=body["model"], **options)
    assert len([chunk for chunk in chunks if not chunk.choices]) == len(named)
    assert chunks[0].search_event["type"] == "expanded"
    assert texts_of(chunks) == texts_of(streamed(client, model=body["model"]))


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(WORDS.keys() - {"calibrated"}))
def test_what_was_sent_early_is_the_winners_beginning(bundled: RunningServer, word: str) -> None:
    form = f"{word}-4" if "n" in WORDS[word].fields else word
    with client_of(bundled) as client:
        for seed in range(6):
            asked: dict[str, Any] = {
                "model": f"{form}/{GOOD_POLICY}",
                "seed": seed,
                "temperature": 1.5,
                "max_tokens": 60,
            }
            chunks = streamed(client, **asked)
            whole: Any = client.chat.completions.create(**(BODY | asked))
            assert texts_of(chunks) == {0: whole.choices[0].message.content}


@pytest.mark.slow
def test_a_beams_text_is_sent_step_by_step(bundled: RunningServer) -> None:
    model = f"beam-4x4/{GOOD_POLICY}"
    options = {"search_events": True}
    with client_of(bundled) as client:
        chunks = streamed(client, model=model, stream_options=options, temperature=1.0)
    told, rounds = "", 0
    for chunk in chunks:
        if chunk.choices:
            told += chunk.choices[0].delta.content or ""
        elif chunk.search_event["type"] == "expanded":
            # All beams of a round continue one: its steps are out before the next is written.
            rounds = chunk.search_event["round"]
            assert told.count("\n") == rounds
            assert chunk.search_event["text"].startswith(told)
    assert rounds >= 2


@pytest.mark.slow
def test_a_search_that_takes_too_long_ends_with_an_error_in_the_stream(
    tiny_models: Any,
) -> None:
    with rung_serve(tiny_models, RUNG_REQUEST_TIMEOUT_S="2") as server, client_of(server) as client:
        asked: dict[str, Any] = {"model": f"majority-512/{POLICY}", "max_tokens": 200}
        options = {"search_events": True}
        create: Any = client.chat.completions.create
        with create(**(BODY | asked), stream=True, stream_options=options) as chunks:
            assert next(chunks).choices == []
            with pytest.raises(openai.APIError, match="longer than this server allows") as caught:
                list(chunks)
        assert caught.value.code == "timeout"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_leaves_frees_the_engine(
    server: RunningServer, http: httpx2.Client, stream: bool
) -> None:
    def in_flight() -> str:
        lines = http.get("/metrics").text.splitlines()
        (line,) = [x for x in lines if x.startswith("rung_engine_requests_in_flight")]
        return line.split()[-1]

    asked: dict[str, Any] = {"model": f"majority-512/{POLICY}", "max_tokens": 200}
    with client_of(server) as client:
        if stream:
            options: Any = {"search_events": True}
            chunks = client.chat.completions.create(
                **(BODY | asked), stream=True, stream_options=options
            )
            next(iter(chunks))
            assert in_flight() == "1.0"
            chunks.close()
        else:
            started = time.monotonic()
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**(BODY | asked), timeout=0.3)
            assert time.monotonic() - started < 2
    poll(lambda: in_flight() == "0.0", seconds=1, what="engine free")
