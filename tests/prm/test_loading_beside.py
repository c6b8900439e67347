"""An engine takes in versions while it serves, and forgets those that nobody needs."""

import asyncio
import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from prm.engine.client import EngineClient
from prm.engine.lora import AdaptedLM
from prm.engine.residents import Device, Residents
from prm.errors import ModelFolderError, NoRoom, Unavailable
from prm.families.base import LogprobRead
from prm.manifest import ModelVersion
from prm.registry import Registry, load_version
from tests.factories import POLICY, PRM, publish_tiny_prm
from tests.prm.test_engine import READ, running, until
from tests.prm.test_lora import publish_proven_pair

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def root(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny PRM, live, and a second version of it, which is not."""
    root = tmp_path_factory.mktemp("beside") / "models"
    shutil.copytree(tiny_models, root)
    publish_tiny_prm(root, "2", seed=12, live=False)
    return root


def second(read: LogprobRead) -> LogprobRead:
    return LogprobRead(model=f"{PRM}@2", ids=read.ids, first=read.first)


async def values(client: EngineClient, read: LogprobRead) -> tuple[float, ...]:
    (output,) = (await client.read([read])).outputs
    return tuple(output.values)


async def test_a_version_joins_a_running_engine_and_leaves_it(root: Path) -> None:
    async with running(root) as client:
        before = await values(client, READ)
        with pytest.raises(Unavailable, match="no model"):
            await values(client, second(READ))
        assert await client.load([root / PRM / "2"]) < 30
        assert await values(client, second(READ)) != pytest.approx(before, abs=1e-2)
        assert await values(client, READ) == pytest.approx(before, abs=1e-5)
        client.unload([f"{PRM}@2"])
        with pytest.raises(Unavailable, match="no model"):
            await values(client, second(READ))
        assert await values(client, READ) == pytest.approx(before, abs=1e-5)


async def test_an_engine_that_dies_comes_back_with_what_joined_and_without_what_left(
    root: Path,
) -> None:
    async with running(root) as client:
        await client.load([root / PRM / "2"])
        client.unload([f"{PRM}@1"])
        expected = await values(client, second(READ))
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: client.restarts == 1)
        await client.wait_settled()
        assert await values(client, second(READ)) == pytest.approx(expected, abs=1e-5)
        with pytest.raises(Unavailable, match="no model"):
            await values(client, READ)


async def test_a_version_that_fails_its_golden_scores_is_refused_and_changes_nothing(
    root: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / PRM / "3"
    shutil.copytree(root / PRM / "2", wrong)
    manifest = json.loads((wrong / "manifest.json").read_text())
    manifest["version"] = "3"
    manifest["golden"][0]["raw"][0] += 1
    (wrong / "manifest.json").write_text(json.dumps(manifest))
    async with running(root) as client:
        before = await values(client, READ)
        with pytest.raises(ModelFolderError, match="golden score 0"):
            await client.load([wrong])
        with pytest.raises(ModelFolderError, match="never fully published"):
            await client.load([tmp_path / "nowhere" / "1"])
        assert await values(client, READ) == pytest.approx(before, abs=1e-5)


async def test_a_version_that_would_not_fit_changes_nothing_and_is_loaded_where_it_must_be(
    root: Path,
) -> None:
    async with running(root) as client:
        before = await values(client, READ)
        assert client.pid is not None
        engine = psutil.Process(client.pid)
        room = 100 << 20
        engine.rlimit(psutil.RLIMIT_AS, (engine.memory_info().vms + room, -1))
        with pytest.raises(
            NoRoom, match=r"it needs 1\d\d MiB beside those that serve, and \d\d are"
        ):
            await client.load([root / PRM / "2"], only_if_it_fits=True)
        with pytest.raises(Unavailable, match="no model"):
            await values(client, second(READ))
        assert await values(client, READ) == pytest.approx(before, abs=1e-5)
        await client.load([root / PRM / "2"])
        assert await values(client, second(READ)) != pytest.approx(before, abs=1e-2)


async def test_reads_go_on_while_a_version_loads(root: Path) -> None:
    async with running(root) as client:
        loading = asyncio.create_task(client.load([root / PRM / "2"]))
        during = 0
        while not loading.done():
            await values(client, READ)
            during += 1
        await loading
        assert during > 1


def keys(versions: Iterable[ModelVersion]) -> set[str]:
    return {version.key for version in versions}


async def test_an_adapter_joins_whatever_its_base_was_loaded_for(tmp_path: Path) -> None:
    first, base = publish_proven_pair(tmp_path, "attention")
    alone = Residents(Device())
    alone.adopt(alone.load([base]))
    assert not alone.must_wait([first])
    loaded = alone.load([first])
    model = loaded.models[first.key]
    assert isinstance(model, AdaptedLM)
    alone.adopt(loaded)
    # The next adapter of that base is put on the same weights, which are in use by then.
    assert alone.must_wait([first])
    together = Residents(Device())
    together.adopt(together.load([base, first]))
    read = LogprobRead(model=first.key, ids=tuple(range(40, 80)), first=3)
    (ours,), (theirs,) = (r.readers[first.key].read([read]) for r in (alone, together))
    assert ours.values == pytest.approx(theirs.values, abs=1e-5)
    alone.drop([first.key])
    assert set(alone.readers) == {base.key}


def test_versions_of_a_registry_are_loaded_by_key(root: Path) -> None:
    registry = Registry.open(root)
    residents = Residents(Device())
    residents.adopt(residents.load(list(registry)))
    assert set(residents.readers) == keys(registry)
    assert set(residents.samplers) == {f"{POLICY}@1"}
    assert residents.samplers[f"{POLICY}@1"].keeps_logprobs
    residents.adopt(residents.load([load_version(root / PRM / "2")]))
    assert f"{PRM}@2" in residents.readers
    models = [weakref.ref(residents.readers[f"{name}@1"].model) for name in (PRM, POLICY)]
    residents.drop([f"{PRM}@1"])
    assert set(residents.readers) == {f"{POLICY}@1", f"{PRM}@2"}
    residents.drop([f"{POLICY}@1"])
    # Their memory is free at once: what takes their place may need it.
    assert [model() for model in models] == [None, None]
