"""A change at one server is known to the others at once; without Redis it takes them one look."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.factories import PRM, publish_tiny_prm
from tests.redis_server import RedisServer, running_redis
from tests.server.conftest import HTTP, RunningServer, poll, rung_serve

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def root(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("announced") / "models"
    shutil.copytree(tiny_models, root)
    publish_tiny_prm(root, "2", seed=12, live=False)
    return root


@pytest.fixture(scope="module")
def pair(root: Path, redis: RedisServer) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Two servers of one folder that look at it every half minute."""
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(rung_serve(root, RUNG_RELOAD_POLL_S="30", RUNG_REDIS_URL=redis.url))
            for _ in range(2)
        )
        yield first, second


def live(server: RunningServer) -> str:
    return str(HTTP.get(f"{server.url}/v1/prm/models/{PRM}").json()["live"])


def promote(server: RunningServer, version: str) -> None:
    answer = HTTP.post(f"{server.url}/v1/prm/models/{PRM}/promote", json={"version": version})
    assert answer.status_code == 200, answer.text


def test_a_promotion_at_one_server_is_served_by_the_other_within_a_second(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    first, second = pair
    for version in ("2", "1"):
        promote(first, version)
        assert live(first) == version
        poll(lambda version=version: live(second) == version, seconds=1, what="the other's swap")  # type: ignore[misc]


def test_a_promotion_in_the_folder_is_announced_too(
    pair: tuple[RunningServer, RunningServer],
    root: Path,
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", redis.url)
    for version in ("2", "1"):
        told = CliRunner().invoke(app, ["models", "promote", PRM, version, f"--models={root}"])
        assert told.exit_code == 0, told.output
        poll(lambda v=version: {live(server) for server in pair} == {v}, seconds=2, what="both")  # type: ignore[misc]


def test_without_redis_all_goes_on_by_looking_and_when_it_is_back_by_listening(
    pair: tuple[RunningServer, RunningServer], root: Path, redis: RedisServer
) -> None:
    first, second = pair
    redis.kill()
    with rung_serve(root, RUNG_RELOAD_POLL_S="0.5", RUNG_REDIS_URL=redis.url) as looking:
        promote(first, "2")
        assert live(first) == "2"
        poll(lambda: live(looking) == "2", seconds=5, what="a look at the folder")
    assert live(second) == "1"
    redis.start()
    # Who hears Redis again looks at once: what was said meanwhile is lost.
    poll(lambda: live(second) == "2", seconds=10, what="the other's return")
    promote(second, "1")
    poll(lambda: live(first) == "1", seconds=2, what="the first's return")
