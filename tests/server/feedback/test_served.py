"""What was served is remembered for some hours, up to some megabytes, and written behind."""

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from prm.types import Message
from server.feedback.served import ServedStore
from server.feedback.types import Answer, Served

pytestmark = pytest.mark.anyio


def served(number: int, *, characters: int = 10, age_s: float = 0.0) -> Served:
    answer = Answer(
        messages=(Message(role="user", content=f"problem {number}"),),
        response="x" * characters,
        steps=("x" * characters,),
        score=0.5,
        prm_correct=True,
    )
    return Served(
        id=f"score-{number}",
        kind="score",
        prm="m@1",
        created_s=time.time() - age_s,
        answers=(answer,),
    )


def remember(store: ServedStore, each: Served) -> None:
    store.remember(each.id, partial(_same, each))


def _same(each: Served) -> Served:
    return each


async def test_an_answer_is_found_before_and_after_it_is_written(tmp_path: Path) -> None:
    store = ServedStore(tmp_path, hours=1, megabytes=1)
    store.start()
    first = served(1)
    remember(store, first)
    assert await store.find("score-1") == first
    assert not (tmp_path / "served.db").exists()
    await store.aclose()
    other = ServedStore(tmp_path, hours=1, megabytes=1)
    assert await other.find("score-1") == first
    assert await other.find("score-2") is None
    await other.aclose()


async def test_the_oldest_go_when_there_is_too_much_and_when_they_are_too_old(
    tmp_path: Path,
) -> None:
    store = ServedStore(tmp_path, hours=1, megabytes=1)
    store.start()
    remember(store, served(0, age_s=3700))
    assert await store.find("score-0") is not None
    count = 300
    for number in range(1, count):
        remember(store, served(number, characters=5_000))
        if number % 50 == 0:
            await asyncio.sleep(0)
    await store.aclose()
    again = ServedStore(tmp_path, hours=1, megabytes=1)
    assert await again.find("score-0") is None
    assert await again.find("score-1") is None
    assert await again.find(f"score-{count - 1}") is not None
    assert (tmp_path / "served.db").stat().st_size < 5 << 20
    left = [n for n in range(1, count) if await again.find(f"score-{n}") is not None]
    assert left == list(range(left[0], count))
    assert 20 < len(left) < 120
    await again.aclose()


async def test_nothing_is_remembered_for_no_hours(tmp_path: Path) -> None:
    store = ServedStore(tmp_path, hours=0, megabytes=1)
    store.start()
    remember(store, served(1))
    assert await store.find("score-1") is None
    await store.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_takes_nothing_is_told_and_forgets_nothing_of_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "served.db").mkdir()
    store = ServedStore(tmp_path, hours=1, megabytes=1)
    store.start()
    remember(store, served(1))
    await store.aclose()
    assert "cannot be remembered" in caplog.text
