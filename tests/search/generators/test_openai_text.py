"""The text path, against a server that takes texts only and trims what it stops at."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, Unavailable
from search.generators.openai_server import OpenAIServer
from search.types import Prefix
from tests.factories import POLICY
from tests.search.generators.scripted_server import (
    BREAK,
    CHAT,
    CONTEXT,
    HANG,
    ScriptedServer,
    event,
    params,
    serving,
    wants,
    write,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_tries")]

SOLUTION = "2 + 3 = 5 \n\n  ½·4\u2028= 2\n\n(a|b)* é\n\n𝟒 is it. "


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> ChatTokenizer:
    return ChatTokenizer(tiny_models / POLICY / "1")


@pytest.fixture
async def plain(anyio_backend: str, tokenizer: ChatTokenizer) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(solving(tokenizer), owned_by="someone", has_tokenizer=False)
    async with serving(server):
        yield server


@pytest.fixture
async def client(plain: ScriptedServer, tokenizer: ChatTokenizer) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(
        plain.url, tokenizer=tokenizer, prompts="text", silence_s=0.5
    ) as client:
        yield client


def said(text: str, finish: str | None = None, **more: Any) -> bytes:
    """A piece as a plain server sends it: no ids, no index."""
    return event({"choices": [{"text": text, "finish_reason": finish}]} | more)


def solving(tokenizer: ChatTokenizer, *, step: int = 1, breaks_after: int | None = None) -> Any:
    """A script that goes on with SOLUTION where the prompt ends; ends nowhere but at its end."""
    chat = tokenizer.render(CHAT, add_generation_prompt=True)

    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        assert isinstance(body["prompt"], str)
        assert "stop" not in body
        assert body["prompt"].startswith(chat)
        there = body["prompt"][len(chat) :]
        assert SOLUTION.startswith(there)
        rest = SOLUTION[len(there) :][: body["max_tokens"] * step]
        for at in range(0, len(rest), step):
            if nth == 0 and breaks_after is not None and at >= breaks_after:
                yield BREAK
            yield said(rest[at : at + step])
        yield said("", "stop" if SOLUTION.endswith(rest) else "length")
        yield b"data: [DONE]\n\n"

    return script


@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize("separator", ["\n\n", "\n", "= ", "(a|b)*", "½·", "\u2028"])
async def test_steps_chain_to_the_whole_text(
    plain: ScriptedServer, client: OpenAIServer, tokenizer: ChatTokenizer, step: int, separator: str
) -> None:
    plain.script = solving(tokenizer, step=step)
    generator = client.generator("m")
    prefix, texts = "", []
    while True:
        (written,) = await write(
            generator, wants(prefix), params(keep_stop=(separator,), max_tokens=99)
        )
        assert written.prefix.ids == ()
        assert written.prefix.text.startswith(prefix)
        texts.append(written.prefix.text[len(prefix) :])
        prefix = written.prefix.text
        if written.ended_by != "separator":
            break
    assert written.ended_by == "eos"
    assert texts == [
        *(part + separator for part in SOLUTION.split(separator)[:-1]),
        SOLUTION.split(separator)[-1],
    ]


@pytest.mark.parametrize("stop", ["½·", "(a|b)*", "\\n", "5 \n\n  ", "it."])
async def test_a_stop_string_goes_and_every_other_character_stays(
    plain: ScriptedServer, client: OpenAIServer, stop: str
) -> None:
    (written,) = await write(client.generator("m"), wants(""), params(stop=(stop,), max_tokens=99))
    is_there = stop in SOLUTION
    assert written.prefix.text == SOLUTION.partition(stop)[0]
    assert written.ended_by == ("stop" if is_there else "eos")


@pytest.mark.parametrize("after", range(0, 36, 3))
async def test_a_text_goes_on_where_its_answer_broke_off(
    plain: ScriptedServer, client: OpenAIServer, tokenizer: ChatTokenizer, after: int
) -> None:
    plain.script = solving(tokenizer, breaks_after=after)
    settings = params(keep_stop=(" is ",), max_tokens=99)
    (written,) = await write(client.generator("m"), wants(""), settings)
    assert written.prefix.text == SOLUTION[: SOLUTION.index(" is ") + 4]
    assert (len(plain.completions), written.ended_by) == (2, "separator")


async def test_half_a_character_at_a_break_is_written_again(
    plain: ScriptedServer, client: OpenAIServer
) -> None:
    plain.script = lambda body, nth: (
        [said("a\ufffd"), BREAK] if nth == 0 else [said("½"), said("", "stop")]
    )
    (written,) = await write(client.generator("m"), wants(""))
    assert written.prefix.text == "a½"
    assert plain.completions[1]["prompt"].endswith("a")


async def test_tokens_are_counted_by_the_server_where_it_counts(
    plain: ScriptedServer, client: OpenAIServer, tokenizer: ChatTokenizer
) -> None:
    (written,) = await write(client.generator("m"), wants(""), params(max_tokens=99))
    assert written.tokens == len(tokenizer.encode_response(SOLUTION).ids)
    assert written.prompt_tokens == len(tokenizer.encode_prompt(CHAT))
    plain.script = lambda body, nth: [
        said("ab", "stop"),
        event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}),
        b"data: [DONE]\n\n",
    ]
    (written,) = await write(client.generator("m"), wants(""))
    assert written.tokens == 1


async def test_a_server_that_reads_other_tokens_is_told_in_the_log(
    plain: ScriptedServer, client: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 999, "completion_tokens": 2}
    plain.script = lambda body, nth: [said("ab", "stop", usage=usage)]
    await write(client.generator("m"), wants(""))
    assert "reads 999 tokens" in caplog.text


async def test_each_want_has_a_request_and_its_own_seed(
    plain: ScriptedServer, client: OpenAIServer
) -> None:
    plain.script = lambda body, nth: [said(str(body["seed"]), "stop")]
    found = await write(client.generator("m"), wants("", "", ""))
    assert [written.prefix.text for written in found] == ["7", "8", "9"]


async def test_the_context_bounds_prompt_and_text_together(
    plain: ScriptedServer, client: OpenAIServer, tokenizer: ChatTokenizer
) -> None:
    chat_length = len(tokenizer.encode_prompt(CHAT))
    full = "x" * (CONTEXT - chat_length)
    (none, some) = await write(
        client.generator("m"), wants(full, SOLUTION[:5]), params(max_tokens=10**6)
    )
    assert (none.tokens, none.ended_by, none.prefix.text) == (0, "length", full)
    assert some.prefix.text == SOLUTION
    assert plain.completions[0]["max_tokens"] == CONTEXT - chat_length - 5


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([said("x", "banana")], "gave up a text"),
        ([said("x" * 2000)], "more than it was asked for"),
        ([said("x"), HANG], "stopped in the middle"),
        ([said("x")], "ended its answer early"),
        ([said("", "stop"), b"data: {\n\n"], "another shape"),
    ],
)
async def test_odd_answers_are_unavailable(
    plain: ScriptedServer, client: OpenAIServer, pieces: list[bytes], message: str
) -> None:
    plain.script = lambda body, nth: pieces
    with pytest.raises(Unavailable, match=f"policy 'm': the policy server .*{message}"):
        await write(client.generator("m"), wants(""), params(max_tokens=5))


async def test_the_deadline_returns_what_is_there(
    plain: ScriptedServer, client: OpenAIServer
) -> None:
    plain.script = lambda body, nth: [said("ab"), said("c\ufffd"), HANG]
    (written,) = await write(client.generator("m"), wants("_"), params(seconds=0.3))
    assert (written.prefix.text, written.ended_by) == ("_abc", "deadline")
    assert written.tokens >= 3


async def test_control_tokens_in_a_prefix_are_refused(
    client: OpenAIServer, tokenizer: ChatTokenizer, plain: ScriptedServer
) -> None:
    special = next(iter(tokenizer._specials))
    with pytest.raises(InvalidInput, match="control token"):
        await write(client.generator("m"), wants(f"a{special}"))
    assert plain.completions == []


async def test_by_ids_a_server_without_tokenize_is_served_by_a_tokenizer_here(
    plain: ScriptedServer, tokenizer: ChatTokenizer
) -> None:
    def script(body: dict[str, Any], nth: int) -> Iterable[bytes]:
        assert body["prompt"] == [*tokenizer.encode_prompt(CHAT), *b"1\n"]
        choice = {"text": "5\n", "token_ids": [*b"5\n"], "matched_stop": "\n"}
        return [event({"choices": [choice | {"finish_reason": "stop"}]})]

    plain.script = script
    async with OpenAIServer(plain.url, tokenizer=tokenizer) as server:
        (written,) = await write(server.generator("m"), wants("1\n"), params(keep_stop=("\n",)))
    assert written.prefix == Prefix(text="1\n5\n", ids=tuple(b"1\n5\n"), is_exact=False)
    assert written.ended_by == "separator"


async def test_without_a_tokenizer_a_server_of_texts_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="policy_tokenizer"):
        OpenAIServer("http://127.0.0.1:1", prompts="text")
