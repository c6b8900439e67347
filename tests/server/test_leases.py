"""What began with a version ends with it; adapters of one base are swapped on its weights."""

import asyncio
import os
import shutil
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prm.engine.lora import BaseLM
from prm.manifest import ModelVersion
from prm.registry import Registry, promote, published, read_version
from prm.weights import ADAPTER
from server.schemas.score import ScoreItem, ScoreRequest
from server.schemas.search import SearchRequest, SearchResponse
from server.services import Services, running_services
from server.settings import Settings
from tests.factories import POLICY, PRM, PROBLEM, publish_tiny_prm
from tests.prm.test_lora import golden_value, publish_proven_pair, relist
from tests.prm.test_registry import edit_json

pytestmark = pytest.mark.anyio

SEARCH = SearchRequest.model_validate(
    {
        "policy": POLICY,
        "prm": PRM,
        "problem": PROBLEM,
        "strategy": {"type": "beam", "n": 8, "width": 2, "max_rounds": 6},
        "sampling": {"max_tokens": 200, "seed": 1},
        "include": ["candidates"],
    }
)


async def change(running: Services, name: str, version: str) -> None:
    await running.reloader.change(name, version, partial(promote, name=name, version=version))


def settings(root: Path) -> Settings:
    return Settings(models=root, runs=root.parent / "runs", threads=1, keep_versions=1)


def told(answer: SearchResponse) -> dict[str, Any]:
    kept = {"prm_version", "text", "score", "ranking", "candidates"}
    return answer.model_dump(include=kept)


async def test_a_search_ends_with_the_version_that_it_began_with_and_old_ones_are_removed(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    publish_tiny_prm(root, "2", seed=12, live=False)
    shutil.copytree(root / PRM / "1", root / PRM / "0")
    edit_json(root / PRM / "0" / "manifest.json", version="0")
    for version in ("0", "1", "2"):
        os.utime(root / PRM / version / "STABLE", (1e9, 1e9 + int(version)))
    async with running_services(settings(root), Registry.open(root)) as running:
        searches = running.searches
        before = await searches.run(await searches.prepare(SEARCH))
        assert before.rounds > 1
        async with aclosing(searches.events(await searches.prepare(SEARCH))) as events:
            await anext(events)
            await change(running, PRM, "2")
            assert f"{PRM}@1" in running.reloader.residency.keys
            answers = [each async for each in events if isinstance(each, SearchResponse)]
        assert told(answers[0]) == told(before)
        assert answers[0].prm_version == "1"
        # Nobody holds it any more.
        assert f"{PRM}@1" not in running.reloader.residency.keys
        async with asyncio.timeout(20):
            while published(root, PRM) != ["1", "2"]:
                await asyncio.sleep(0.01)
        after = await searches.run(await searches.prepare(SEARCH))
        assert after.prm_version == "2"
        assert after.score != before.score


def publish_second(first: ModelVersion, base: ModelVersion) -> None:
    """The same adapter with other numbers, as version 2."""
    folder = Path(shutil.copytree(first.folder, first.folder.parent / "2"))
    tensors = {name: 2 * tensor for name, tensor in load_file(folder / ADAPTER).items()}
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    relist(folder)
    edit_json(folder / "manifest.json", version="2")
    draft = read_version(folder)
    (golden,) = draft.manifest.golden
    raw = (golden_value(draft, BaseLM.load(base.folder), draft),)
    edited = golden.model_copy(update={"raw": raw}).model_dump()
    edit_json(folder / "manifest.json", golden=[edited])


async def test_adapters_of_one_base_are_swapped_and_the_base_stays(tmp_path: Path) -> None:
    root = tmp_path / "models"
    first, base = publish_proven_pair(root, "attention")
    publish_second(first, base)
    name = first.manifest.name

    async def score(running: Services) -> tuple[str, float]:
        item = ScoreItem(problem="1+1", steps=["2", "Answer: 2"])
        answer = await running.scores.score(ScoreRequest(model=name, items=[item]))
        return answer.model_version, answer.data[0].score

    async with running_services(settings(root), Registry.open(root)) as running:
        before = await score(running)
        asked = [asyncio.create_task(score(running)) for _ in range(8)]
        await change(running, name, "2")
        assert {await one for one in asked} <= {before, await score(running)}
        assert (await score(running))[0] == "2"
        assert (await score(running))[1] != pytest.approx(before[1], abs=1e-4)
        assert running.reloader.residency.keys == {base.key, f"{name}@2"}
        await change(running, name, "1")
        version, again = await score(running)
        assert version == before[0]
        assert again == pytest.approx(before[1], abs=1e-6)
