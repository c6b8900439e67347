"""Where memory holds no two versions of a name: drained, exchanged, opened; or left as it was."""

import asyncio
import json
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from prm.errors import Conflict, Unavailable
from prm.registry import Registry, promote, read_pointer, try_out
from server.residency import PutOff
from server.schemas.score import ScoreItem, ScoreRequest
from server.services import Services, running_services
from server.settings import Settings
from tests.factories import PRM, PROBLEM, STEPS, publish_tiny_prm
from tests.server.conftest import poll, rung_serve

OTHER = "other-prm"


@pytest.fixture(scope="module")
def two(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM with two versions, and another PRM that is read with the same reference."""
    root = tmp_path_factory.mktemp("in-place") / "models"
    shutil.copytree(tiny_models, root)
    publish_tiny_prm(root, "2", seed=12, live=False)
    shutil.copytree(root / PRM / "1", root / OTHER / "1")
    edit_manifest(root / OTHER / "1", name=OTHER)
    (root / OTHER / "live.json").write_text('{"live": "1"}')
    return root


@pytest.fixture
def root(two: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two, tmp_path / "models")


def edit_manifest(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


@asynccontextmanager
async def services(root: Path, **settings: Any) -> AsyncIterator[Services]:
    given = Settings(models=root, runs=root.parent / "runs", threads=1, **settings)
    async with running_services(given, Registry.open(root)) as running:
        yield running


async def score(running: Services, model: str = PRM) -> tuple[str, list[float]]:
    item = ScoreItem(problem=PROBLEM, steps=list(STEPS))
    answer = await running.scores.score(ScoreRequest(model=model, items=[item]))
    return answer.model_version, [step.score for step in answer.data[0].steps]


def promoting(running: Services, version: str) -> "asyncio.Task[None]":
    change = partial(promote, name=PRM, version=version)
    return asyncio.create_task(running.reloader.change(PRM, version, change))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_leases_run_out_new_requests_wait_and_other_models_go_on(root: Path) -> None:
    async with services(root, swap="drain") as running:
        (_, before), other = await score(running), await score(running, OTHER)
        version = running.registry.get(PRM)
        assert version is not None
        lease = running.serving.lease(version)
        promotion = promoting(running, "2")
        await until(lambda: running.serving.closed == {PRM})
        waiting = asyncio.create_task(score(running))
        assert await score(running, OTHER) == other
        assert not waiting.done()
        assert not promotion.done()
        lease.release()
        name, after = await waiting
        await promotion
        assert name == "2"
        assert after != pytest.approx(before, abs=1e-3)
        assert not running.serving.closed
        assert running.reloader.residency.keys == {"tiny-policy@1", f"{PRM}@2", f"{OTHER}@1"}

        # A trial is beside what is live, so that nothing is exchanged for it.
        trial = partial(try_out, name=PRM, kind="canary", version="1", fraction=0.5)
        await running.reloader.change(PRM, "1", trial, on_trial=True)
        assert {f"{PRM}@1", f"{PRM}@2"} <= running.reloader.residency.keys


@pytest.mark.anyio
async def test_what_cannot_be_served_gives_way_to_what_was_there(root: Path) -> None:
    manifest = json.loads((root / PRM / "2" / "manifest.json").read_text())
    manifest["golden"][0]["raw"][0] += 1
    edit_manifest(root / PRM / "2", golden=manifest["golden"])
    async with services(root, swap="drain") as running:
        before = await score(running)
        promotion = promoting(running, "2")
        await until(lambda: running.serving.closed == {PRM})
        assert await score(running) == before
        with pytest.raises(Conflict, match="cannot be served here: golden score 0"):
            await promotion
        assert await score(running) == before
        assert read_pointer(root, PRM).live == "1"


@pytest.mark.anyio
async def test_requests_that_do_not_end_put_the_swap_off_and_are_told_when_they_wait(
    root: Path,
) -> None:
    async with services(root, swap="drain", swap_wait_s=0.5) as running:
        before = await score(running)
        version = running.registry.get(PRM)
        assert version is not None
        with running.serving.lease(version):
            with pytest.raises(PutOff, match=f"hold {PRM}@1 for longer than 0.25 s") as put_off:
                await promoting(running, "2")
            assert put_off.value.retry_after_s > 0
            assert await score(running) == before
        with (
            running.serving.closing({PRM}),
            pytest.raises(Unavailable, match=f"{PRM} is being exchanged") as told,
        ):
            await score(running)
        assert told.value.retry_after_s == 0.5
        await promoting(running, "2")
        assert (await score(running))[0] == "2"


@pytest.mark.anyio
async def test_an_engine_that_dies_in_between_comes_back_with_the_new_version(root: Path) -> None:
    async with services(root, swap="drain") as running:
        promotion = promoting(running, "2")
        await until(lambda: f"{PRM}@1" not in running.reloader.residency.keys)
        assert running.engine.pid is not None
        os.kill(running.engine.pid, signal.SIGKILL)
        await promotion
        assert (await score(running))[0] == "2"


@pytest.mark.anyio
async def test_where_both_do_not_fit_the_engine_says_so_and_they_are_exchanged(root: Path) -> None:
    async with services(root, swap="auto") as running:
        await promoting(running, "2")
        assert (await score(running))[0] == "2"
        assert running.engine.pid is not None
        engine = psutil.Process(running.engine.pid)
        engine.rlimit(psutil.RLIMIT_AS, (engine.memory_info().vms + (100 << 20), -1))
        version = running.registry.get(PRM)
        assert version is not None
        with running.serving.lease(version):
            promotion = promoting(running, "1")
            await until(lambda: running.serving.closed == {PRM})
        await promotion
        assert (await score(running))[0] == "1"
        trial = partial(try_out, name=PRM, kind="canary", version="2", fraction=0.5)
        with pytest.raises(Conflict, match="MiB beside those that serve"):
            await running.reloader.change(PRM, "2", trial, on_trial=True)
        assert read_pointer(root, PRM).canary is None


def test_no_request_fails_under_load_and_readiness_says_what_happens(root: Path) -> None:
    stop, wrong, states = threading.Event(), [], set()
    versions: set[str] = set()
    body = {"model": PRM, "items": [{"problem": PROBLEM, "steps": STEPS}]}
    # More clients than permits would have room for, were waiting ones to keep theirs.
    with rung_serve(root, RUNG_SWAP="drain", RUNG_MAX_IN_FLIGHT="8") as server:

        def ask(model: str) -> None:
            with httpx2.Client(base_url=server.url, timeout=60) as client:
                while not stop.is_set():
                    answer = client.post("/v1/prm/score", json=body | {"model": model})
                    if answer.status_code != 200:
                        wrong.append(answer.text)
                    elif model == PRM:
                        versions.add(answer.json()["model_version"])

        def look() -> None:
            with httpx2.Client(base_url=server.url, timeout=60) as client:
                while not stop.is_set():
                    answer = client.get("/health/ready")
                    states.add((answer.status_code, answer.json()["reason"]))

        threads = [threading.Thread(target=ask, args=(model,)) for model in [PRM] * 5 + [OTHER]]
        threads.append(threading.Thread(target=look))
        for thread in threads:
            thread.start()
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for version in ("2", "1", "2"):
                answer = client.post(f"/v1/prm/models/{PRM}/promote", json={"version": version})
                assert answer.status_code == 200, answer.text
            poll(lambda: versions == {"1", "2"}, seconds=10, what="both versions")
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert states == {(200, None), (503, "swapping")}
