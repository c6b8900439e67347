"""The generator through a real vLLM: the same texts as our engine, nothing lost on the way."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import torch

from prm.chat import ChatTokenizer
from prm.engine.attention import WholeSequences
from prm.engine.model import CausalLM
from prm.engine.sampler import Sampler, SamplingParams
from prm.errors import InvalidInput, Unavailable, UnknownModel
from prm.manifest import ModelVersion
from prm.types import Message
from search.generator import GenerateParams, Generator, Want, Written
from search.generators.openai_server import OpenAIServer
from search.types import Prefix
from tests.integration.vllm.conftest import MAX_SEQUENCES, PolicyServer

pytestmark = [pytest.mark.vllm, pytest.mark.anyio]

PROBLEMS = ("Evaluate (3+4)*2-5", "Evaluate 12+7*3", "Evaluate (9-2)*(1+6)", "Evaluate 40-3*(2+8)")


@pytest.fixture(scope="module")
def tokenizer(policy_version: ModelVersion) -> ChatTokenizer:
    return ChatTokenizer(policy_version.folder)


@pytest.fixture(scope="module")
def model(policy_version: ModelVersion) -> CausalLM:
    return CausalLM.load(policy_version.folder)


def chat(problem: str) -> tuple[Message, ...]:
    return (Message(role="user", content=problem),)


def wants(count: int, prefix: Prefix | None = None, seed: int = 0) -> list[Want]:
    return [Want(number=n, prefix=prefix or Prefix(), seed=seed + n) for n in range(count)]


async def write(
    generator: Generator,
    problem: str,
    asked: Sequence[Want],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 120,
    stop: tuple[str, ...] = (),
    keep_stop: tuple[str, ...] = (),
    seconds: float | None = None,
    is_watched: bool = True,
) -> list[Written]:
    params = GenerateParams(
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        stop=stop,
        keep_stop=keep_stop,
        seconds=seconds,
        is_watched=is_watched,
    )
    found = [piece async for piece in generator.generate(chat(problem), asked, params)]
    assert sorted(piece.number for piece in found) == [want.number for want in asked]
    return sorted(found, key=lambda piece: piece.number)


async def test_the_served_model_is_listed(server: OpenAIServer, vllm: PolicyServer) -> None:
    models = await server.models()
    assert models[vllm.model].max_model_len == vllm.version.context_limit


async def test_its_tokens_are_ours(
    server: OpenAIServer, vllm: PolicyServer, tokenizer: ChatTokenizer
) -> None:
    messages = (
        Message(role="user", content="Evaluate 1+1\n"),
        Message(role="assistant", content=" 2 "),
        *chat("Why?"),
    )
    prompt = await server.encode_prompt(vllm.model, messages)
    assert prompt.tokens == tokenizer.encode_prompt(messages)
    for text in ("3+4=7\n", "\n", "a\n\n", " 7*2=14 \n \n", "é\u2028\t"):
        encoded = await server.encode_response(vllm.model, text)
        assert encoded == tokenizer.encode_response(text).ids
        assert await server.decode(vllm.model, encoded) == text


async def test_greedy_texts_are_those_of_our_engine(
    generator: Generator, model: CausalLM, tokenizer: ChatTokenizer
) -> None:
    prompts = [tokenizer.encode_prompt(chat(problem)) for problem in PROBLEMS]
    ours = Sampler(model, tokenizer).generate(
        prompts, SamplingParams(temperature=0.0, max_tokens=120), [0] * len(prompts)
    )
    for problem, prompt, expected in zip(PROBLEMS, prompts, ours, strict=True):
        (written,) = await write(generator, problem, wants(1), temperature=0.0)
        assert written.prefix == Prefix(text=expected.text, ids=expected.ids)
        assert written.tokens == len(expected.ids)
        assert written.prompt_tokens == len(prompt)
        assert written.ended_by == expected.finish_reason


async def test_nothing_is_lost_where_a_text_goes_on(
    generator: Generator, tokenizer: ChatTokenizer
) -> None:
    # A greedy text is the same whether written at once or continued from any of its beginnings,
    # those among them that end in the step separator or in a space.
    (whole,) = await write(generator, PROBLEMS[0], wants(1), temperature=0.0)
    text = whole.prefix.text
    assert "\n" in text
    cuts = sorted({at + 1 for at, c in enumerate(text) if c.isspace()} | {1, len(text) // 2})
    for cut in cuts:
        ids = tokenizer.encode_response(text[:cut]).ids
        for prefix in (Prefix(text=text[:cut], ids=ids), Prefix(text=text[:cut])):
            (rest,) = await write(generator, PROBLEMS[0], wants(1, prefix), temperature=0.0)
            assert rest.prefix == whole.prefix
            assert rest.tokens == whole.tokens - len(ids)
            assert rest.prompt_tokens == whole.prompt_tokens


async def test_steps_chain_to_the_whole_text(generator: Generator) -> None:
    (whole,) = await write(generator, PROBLEMS[1], wants(1), temperature=0.0)
    prefix, tokens = Prefix(), 0
    while True:
        (step,) = await write(
            generator, PROBLEMS[1], wants(1, prefix), temperature=0.0, keep_stop=("\n",)
        )
        prefix, tokens = step.prefix, tokens + step.tokens
        if step.ended_by != "separator":
            break
        assert prefix.text.endswith("\n")
        assert whole.prefix.ids[: len(prefix.ids)] == prefix.ids
    assert prefix == whole.prefix
    assert tokens == whole.tokens


async def test_the_same_wants_give_the_same_texts(generator: Generator) -> None:
    first = await write(generator, PROBLEMS[2], wants(16, seed=100))
    again = await write(generator, PROBLEMS[2], wants(16, seed=100))
    other = await write(generator, PROBLEMS[2], wants(16, seed=900))
    assert first == again
    assert [w.prefix.text for w in first] != [w.prefix.text for w in other]
    assert len({w.prefix.text for w in first}) > 1


async def test_samples_have_the_models_distribution(
    generator: Generator, model: CausalLM, tokenizer: ChatTokenizer
) -> None:
    problem, draws = PROBLEMS[3], 16 * MAX_SEQUENCES
    ids = torch.tensor(tokenizer.encode_prompt(chat(problem)))
    hidden = model.hidden(ids, WholeSequences([len(ids)], ids.device))
    # Hot enough that a trained policy, too, leaves the first token open.
    temperature = 2.0
    expected = torch.softmax(model.next_logits(hidden[-1:])[0] / temperature, -1)
    counts = torch.zeros_like(expected)
    for start in range(0, draws, MAX_SEQUENCES):
        asked = wants(MAX_SEQUENCES, seed=start)
        for written in await write(
            generator, problem, asked, temperature=temperature, max_tokens=1
        ):
            counts[written.prefix.ids[0]] += 1
    error = counts / draws - expected
    # Five standard deviations of a binomial share, and 2 draws where the normal law is poor.
    allowed = 5 * torch.sqrt(expected * (1 - expected) / draws) + 2 / draws
    assert (error.abs() <= allowed).all(), (counts, expected * draws)


async def test_top_p_leaves_the_unlikely_out(
    generator: Generator, model: CausalLM, tokenizer: ChatTokenizer
) -> None:
    problem, temperature, top_p = PROBLEMS[3], 2.0, 0.5
    ids = torch.tensor(tokenizer.encode_prompt(chat(problem)))
    hidden = model.hidden(ids, WholeSequences([len(ids)], ids.device))
    logits = model.next_logits(hidden[-1:])[0] / temperature
    likely, order = torch.softmax(logits, -1).sort(descending=True)
    allowed = set(order[likely.cumsum(0) - likely < top_p].tolist())
    found = await write(
        generator,
        problem,
        wants(MAX_SEQUENCES),
        temperature=temperature,
        top_p=top_p,
        max_tokens=1,
    )
    assert {written.prefix.ids[0] for written in found} <= allowed


async def test_separators_stay_and_stop_strings_go(generator: Generator) -> None:
    (whole,) = await write(generator, PROBLEMS[0], wants(1), temperature=0.0)
    text = whole.prefix.text
    (step,) = await write(generator, PROBLEMS[0], wants(1), temperature=0.0, keep_stop=("\n",))
    at = text.index("\n") + 1
    assert (step.prefix.text, step.ended_by, step.tokens) == (text[:at], "separator", at)
    stop = text[2:4]
    (cut,) = await write(
        generator, PROBLEMS[0], wants(1), temperature=0.0, stop=(stop,), keep_stop=("\n",)
    )
    assert (cut.prefix.text, cut.ended_by) == (text[: text.index(stop)], "stop")
    assert cut.tokens == text.index(stop) + len(stop)
    (short,) = await write(generator, PROBLEMS[0], wants(1), temperature=0.0, max_tokens=3)
    assert (short.prefix.text, short.ended_by, short.tokens) == (text[:3], "length", 3)


async def test_a_deadline_returns_beginnings_of_the_same_texts(
    generator: Generator,
) -> None:
    asked = wants(MAX_SEQUENCES, seed=50)
    whole = await write(generator, PROBLEMS[1], asked)
    # The chat's ids are known by now, so the time goes to writing.
    late = await write(generator, PROBLEMS[1], asked, seconds=0.05)
    assert "deadline" in {piece.ended_by for piece in late}
    for piece, full in zip(late, whole, strict=True):
        assert full.prefix.text.startswith(piece.prefix.text)
        assert piece.tokens == len(piece.prefix.ids) <= full.tokens


async def test_a_caller_that_leaves_ends_the_writing(
    generator: Generator, vllm: PolicyServer
) -> None:
    asked = wants(MAX_SEQUENCES, seed=500)
    async with httpx2.AsyncClient(base_url=vllm.url, timeout=60) as client:
        before = await _metric(client, "generation_tokens_total")
        whole = await write(generator, PROBLEMS[0], asked)
        spent = await _metric(client, "generation_tokens_total") - before
        assert spent == sum(piece.tokens for piece in whole)
        params = GenerateParams(temperature=1.0, top_p=1.0, max_tokens=120)
        stream = generator.generate(chat(PROBLEMS[0]), asked, params)
        first = asyncio.ensure_future(anext(stream))
        async with asyncio.timeout(30):
            while not await _metric(client, "num_requests_running"):
                await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.wait([first])
        await stream.aclose()
        async with asyncio.timeout(30):
            while await _metric(client, "num_requests_running"):
                await asyncio.sleep(0.02)
        spent_again = await _metric(client, "generation_tokens_total") - before - spent
    assert spent_again < spent


async def test_refusals_are_told_in_our_words(
    server: OpenAIServer, generator: Generator, vllm: PolicyServer
) -> None:
    with pytest.raises(UnknownModel, match="does not exist"):
        await write(server.generator("nobody"), PROBLEMS[0], wants(1))
    with pytest.raises(InvalidInput, match="shorten it"):
        await write(generator, "1+" * vllm.version.context_limit, wants(1))
    with pytest.raises(InvalidInput, match="top_p"):
        await write(generator, PROBLEMS[0], wants(1), top_p=1.5)
    async with OpenAIServer(vllm.url, api_key="wrong") as stranger:
        with pytest.raises(Unavailable, match="refuses this server's key"):
            await stranger.models()


async def _metric(client: httpx2.AsyncClient, name: str) -> float:
    """The sum of a vLLM metric's samples."""
    text = (await client.get("/metrics")).text
    samples = re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
    assert samples
    return sum(map(float, samples))


async def test_by_text_too_nothing_is_lost_where_a_text_goes_on(
    generator: Generator, vllm: PolicyServer, tokenizer: ChatTokenizer
) -> None:
    (whole,) = await write(generator, PROBLEMS[1], wants(1), temperature=0.0)
    text = whole.prefix.text
    async with OpenAIServer(
        vllm.url, api_key=vllm.api_key, tokenizer=tokenizer, prompts="text"
    ) as server:
        by_text = server.generator(vllm.model)
        prefix, tokens = Prefix(), 0
        while True:
            (step,) = await write(
                by_text, PROBLEMS[1], wants(1, prefix), temperature=0.0, keep_stop=("\n",)
            )
            prefix, tokens = step.prefix, tokens + step.tokens
            if step.ended_by != "separator":
                break
            assert text.startswith(prefix.text)
            assert prefix.text.endswith("\n")
        assert (prefix, step.ended_by) == (Prefix(text=text), whole.ended_by)
        # Steps are cut here and not there: what was written behind a separator is counted as well.
        assert tokens >= whole.tokens
        for cut in range(1, len(text)):
            (rest,) = await write(
                by_text, PROBLEMS[1], wants(1, Prefix(text=text[:cut])), temperature=0.0
            )
            assert rest.prefix.text == text
            assert rest.prompt_tokens == whole.prompt_tokens
            assert rest.tokens == whole.tokens - cut


async def test_a_tokenizer_here_does_what_the_servers_own_does(
    generator: Generator, vllm: PolicyServer, tokenizer: ChatTokenizer
) -> None:
    asked = wants(8, seed=40)
    theirs = await write(generator, PROBLEMS[2], asked, keep_stop=("\n",), stop=("=1",))
    async with OpenAIServer(vllm.url, api_key=vllm.api_key, tokenizer=tokenizer) as server:
        await server.models()
        mine = server.generator(vllm.model)
        ours = await write(mine, PROBLEMS[2], asked, keep_stop=("\n",), stop=("=1",))
    assert ours == theirs


async def test_a_registered_tokenizer_is_proven_and_its_tokens_end_the_same_texts(
    generator: Generator, vllm: PolicyServer
) -> None:
    """Whole answers, stop tokens and no look-ups give what streams, strings and look-ups give."""
    options: dict[str, Any] = {"keep_stop": ("\n",), "stop": ("=1", "\u00bd")}
    asked = wants(8, seed=60)
    theirs = await write(generator, PROBLEMS[2], asked, **options)
    folders = {vllm.model: vllm.version.folder}
    async with OpenAIServer(vllm.url, api_key=vllm.api_key, tokenizers=folders) as server:
        assert await server.tokenizer_of(vllm.model) is not None
        mine = server.generator(vllm.model)
        assert await write(mine, PROBLEMS[2], asked, **options, is_watched=False) == theirs
        assert await write(mine, PROBLEMS[2], asked, **options) == theirs
        going_on = [replace(want, prefix=theirs[0].prefix) for want in asked]
        rest = await write(generator, PROBLEMS[2], going_on, **options)
        assert await write(mine, PROBLEMS[2], going_on, **options, is_watched=False) == rest
    assert {piece.ended_by for piece in theirs} >= {"separator"}


async def test_a_caller_that_leaves_a_whole_answer_ends_the_writing(
    generator: Generator, vllm: PolicyServer
) -> None:
    params = GenerateParams(temperature=1.0, top_p=1.0, max_tokens=120, is_watched=False)
    stream = generator.generate(chat(PROBLEMS[0]), wants(MAX_SEQUENCES, seed=700), params)
    async with httpx2.AsyncClient(base_url=vllm.url, timeout=60) as client:
        first = asyncio.ensure_future(anext(stream))
        async with asyncio.timeout(30):
            while not await _metric(client, "num_requests_running"):
                await asyncio.sleep(0.005)
        before = await _metric(client, "generation_tokens_total")
        first.cancel()
        await asyncio.wait([first])
        await stream.aclose()
        async with asyncio.timeout(30):
            while await _metric(client, "num_requests_running"):
                await asyncio.sleep(0.005)
        spent = await _metric(client, "generation_tokens_total") - before
    assert spent < MAX_SEQUENCES * 120 / 2
