"""The engine process, for real: it answers, it dies, it comes back."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from prm.engine.client import EngineClient, EngineState
from prm.engine.messages import SampleReply, SampleRequest
from prm.engine.process import EngineOptions
from prm.errors import EngineDied, ModelFolderError, Unavailable
from prm.families.base import LogprobRead
from prm.registry import Registry
from tests.factories import POLICY, PRM

pytestmark = pytest.mark.anyio

READ = LogprobRead(model=f"{PRM}@1", ids=tuple(range(40, 90)), first=5)


@asynccontextmanager
async def running(root: Path, **options: int) -> AsyncIterator[EngineClient]:
    folders = [version.folder for version in Registry.open(root)]
    client = EngineClient(folders, EngineOptions(threads=1, **options))  # type: ignore[arg-type]
    client.start()
    try:
        await client.wait_settled()
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def sample_request(*, count: int = 1, max_tokens: int = 20) -> SampleRequest:
    return SampleRequest(
        id=0,
        model=f"{POLICY}@1",
        numbers=tuple(range(count)),
        prompts=((257, 49, 256, 258),) * count,
        seeds=tuple(range(count)),
        temperature=1.0,
        top_p=1.0,
        max_tokens=(max_tokens,) * count,
        stop=(),
        keep_stop=(),
        seconds=None,
    )


async def sample(client: EngineClient, request: SampleRequest) -> dict[int, SampleReply]:
    async with aclosing(client.sample(request)) as replies:
        return {reply.number: reply async for reply in replies}


def kill(client: EngineClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)


async def test_answers_are_the_same_alone_in_a_crowd_and_after_it(tiny_models: Path) -> None:
    async with running(tiny_models, token_budget=200) as client:
        alone = (await client.read([READ])).outputs[0].values
        others = [
            LogprobRead(model=f"{name}@1", ids=tuple(range(5, 5 + length)), first=1)
            for length in range(3, 60, 3)
            for name in (POLICY, PRM)
        ]
        sampled, crowd = await asyncio.gather(
            sample(client, sample_request(count=8, max_tokens=60)),
            asyncio.gather(*[client.read([other, READ]) for other in others]),
        )
        (after,) = (await client.read([READ])).outputs
        assert len(sampled) == 8
        for reply in crowd:
            assert reply.outputs[1].values == pytest.approx(alone, abs=1e-5)
        assert after.values == pytest.approx(alone, abs=1e-5)
        assert client.in_flight == 0


async def test_killed_engine_is_replaced_and_what_was_in_it_is_answered(tiny_models: Path) -> None:
    async with running(tiny_models) as client:
        expected = await sample(client, sample_request(count=12, max_tokens=200))
        work = asyncio.create_task(sample(client, sample_request(count=12, max_tokens=200)))
        await until(lambda: client.in_flight == 1)
        kill(client)
        await until(lambda: client.state is EngineState.STARTING)
        with pytest.raises(Unavailable, match="starting"):
            await client.read([READ])
        retried = await work
        assert {n: r.ids for n, r in retried.items()} == {n: r.ids for n, r in expected.items()}
        assert client.restarts == 1


async def test_a_stopped_engine_is_replaced_and_what_was_in_it_is_answered(
    tiny_models: Path,
) -> None:
    async with running(tiny_models, silence_s=3) as client:
        expected = await sample(client, sample_request(count=12, max_tokens=200))
        first = client.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        # Shorter than that is nobody's business.
        await asyncio.sleep(1)
        os.kill(first, signal.SIGCONT)
        assert (await client.read([READ])).outputs
        assert client.restarts == 0
        os.kill(first, signal.SIGSTOP)
        answered = await sample(client, sample_request(count=12, max_tokens=200))
        assert {n: r.ids for n, r in answered.items()} == {n: r.ids for n, r in expected.items()}
        assert client.restarts == 1
        assert client.pid != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


async def test_an_engine_is_not_killed_for_the_servers_own_silence(tiny_models: Path) -> None:
    async with running(tiny_models, silence_s=4) as client:
        await asyncio.sleep(0.5)
        time.sleep(5)  # as a server that was stopped, or a laptop that slept
        # Longer than a half, so that a first miss would be followed by a second.
        await asyncio.sleep(2.5)
        assert (await client.read([READ])).outputs
        assert client.restarts == 0


@pytest.mark.slow
async def test_a_busy_engine_is_not_taken_for_a_silent_one(tiny_models: Path) -> None:
    async with running(tiny_models, max_batch=1, silence_s=3) as client:
        started = time.monotonic()
        while time.monotonic() - started < 8:
            await sample(client, sample_request(count=20, max_tokens=250))
        assert client.restarts == 0


async def test_a_request_that_two_engines_died_under_fails(tiny_models: Path) -> None:
    async with running(tiny_models, max_batch=1) as client:
        # One slot and 100 long samples: this takes far longer than two kills.
        work = asyncio.create_task(sample(client, sample_request(count=100, max_tokens=250)))
        await until(lambda: client.in_flight == 1)
        kill(client)
        await until(lambda: client.restarts == 1)
        await client.wait_settled()
        kill(client)
        with pytest.raises(EngineDied, match="twice"):
            await work
        await client.wait_settled()
        assert len((await client.read([READ])).outputs) == 1


async def test_a_caller_who_leaves_stops_the_work(tiny_models: Path) -> None:
    async with running(tiny_models, max_batch=1) as client:
        async with aclosing(client.sample(sample_request(count=200, max_tokens=250))) as replies:
            async for _ in replies:
                break
        assert client.in_flight == 0
        # The one slot is free again at once, not after 199 more samples.
        async with asyncio.timeout(5):
            await sample(client, sample_request())


async def test_a_golden_score_that_is_not_reproduced_is_refused(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    manifest = root / PRM / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["golden"][0]["raw"][1] += 0.01
    manifest.write_text(json.dumps(content))
    refused: list[ModelFolderError] = []
    client = EngineClient(
        [version.folder for version in Registry.open(root)], EngineOptions(threads=1)
    )
    client.start(refused.append)
    try:
        with pytest.raises(ModelFolderError, match="golden score 0, number 1"):
            await client.wait_settled()
        assert client.state is EngineState.REFUSED
        assert len(refused) == 1
        with pytest.raises(Unavailable):
            await client.read([READ])
    finally:
        await client.close()


async def test_a_read_that_cannot_be_computed_fails_alone(tiny_models: Path) -> None:
    beyond = LogprobRead(model=f"{PRM}@1", ids=(1, 2, 100_000, 3), first=1)
    async with running(tiny_models) as client:
        (expected,) = (await client.read([READ])).outputs
        answers = await asyncio.gather(
            *[client.read([read]) for read in (READ, READ, beyond, READ)],
            return_exceptions=True,
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(failed) == 1
        assert "token ids must lie between 0 and" in str(failed[0])
        for answer in answers:
            if not isinstance(answer, BaseException):
                assert answer.outputs[0].values == pytest.approx(expected.values, abs=1e-5)
        assert client.restarts == 0


async def test_weights_that_give_no_numbers_are_refused(tiny_models: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    folder = root / PRM / "1"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    client = EngineClient([root / POLICY / "1", folder], EngineOptions(threads=1))
    client.start()
    try:
        with pytest.raises(ModelFolderError, match=r"golden score 0: .* is no finite number"):
            await client.wait_settled()
    finally:
        await client.close()


async def test_a_tokenizer_with_ids_beyond_the_model_is_refused(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    path = root / POLICY / "1" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<|one more|>"])
    tokenizer.save(str(path))
    client = EngineClient([root / POLICY / "1"], EngineOptions(threads=1))
    client.start()
    try:
        with pytest.raises(ModelFolderError, match=r"tokenizer\.json: has ids up to 261"):
            await client.wait_settled()
    finally:
        await client.close()


async def test_a_device_that_is_not_there_is_refused(tiny_models: Path) -> None:
    folders = [version.folder for version in Registry.open(tiny_models)]
    client = EngineClient(folders, EngineOptions(device="cuda:7"))
    client.start()
    try:
        async with asyncio.timeout(60):
            with pytest.raises(ModelFolderError, match="cannot be loaded on cuda:7"):
                await client.wait_settled()
    finally:
        await client.close()


async def test_closing_leaves_no_process_and_no_socket(tiny_models: Path) -> None:
    async with running(tiny_models) as client:
        pid = client.pid
        assert pid is not None
        folder = client._socket_folder
        assert folder is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
