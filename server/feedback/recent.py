"""A sample of what was scored lately, for whoever compares a new version with the live one.

`RUNS/recent/<instance>.jsonl`: per PRM up to `SIZE` items, a line each, replaced at once every few
seconds while something is scored. The sample is biased to the newest (Aggarwal 2006, "On biased
reservoir sampling"): an item goes in with a probability that falls no lower than `LEAST`, and takes
the place of a random one, so that items stay for `SIZE / LEAST` others in the mean.
"""

import asyncio
import json
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prm.files import replace_durably
from server.feedback.types import Answer, problem_fields

SIZE = 200
LEAST = 0.1
WRITE_S = 5.0
# What nobody has added to for a day is not recent, whoever wrote it.
STALE_S = 86_400.0
# A file of a sample stays below some megabytes.
MOST_CHARACTERS = 20_000

Build = Callable[[], Answer]
Entry = tuple[str, Build]
logger = logging.getLogger(__name__)


class RecentItems:
    """The samples of one server, by PRM. `start` first, `aclose` last; for one event loop."""

    def __init__(self, runs: Path) -> None:
        self._path = runs / "recent" / f"{uuid.uuid4().hex}.jsonl"
        self._samples: dict[str, list[Entry]] = {}
        self._seen: Counter[str] = Counter()
        self._has_changed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sample from now on."""
        self._task = asyncio.create_task(self._write_often(), name="recent items")

    def add(self, name: str, version: str, builds: Sequence[Build]) -> None:
        """Items that this version of a PRM has scored; `builds` are called later, if at all."""
        if self._task is None:
            return
        sample = self._samples.setdefault(name, [])
        for build in builds:
            self._seen[name] += 1
            entry = (f"{name}@{version}", build)
            if len(sample) < SIZE:
                sample.append(entry)
            elif random.random() < max(LEAST, SIZE / self._seen[name]):
                sample[random.randrange(SIZE)] = entry
            else:
                continue
            self._has_changed = True

    async def aclose(self) -> None:
        """Write what has changed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._write()

    async def _write_often(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            await self._write()

    async def _write(self) -> None:
        if not self._has_changed:
            return
        self._has_changed = False
        entries = [entry for sample in self._samples.values() for entry in sample]
        try:
            await asyncio.to_thread(self._replace, entries)
        except OSError as error:
            logger.error("%s cannot be written: %s", self._path, error)

    def _replace(self, entries: Sequence[Entry]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        answers = [(key, build()) for key, build in entries]
        lines = [
            json.dumps(_line(key, answer), ensure_ascii=False)
            for key, answer in answers
            if answer.num_characters <= MOST_CHARACTERS
        ]
        replace_durably(self._path, "".join(f"{line}\n" for line in lines))
        for other in self._path.parent.glob("*.jsonl"):
            with suppress(FileNotFoundError):
                if other.stat().st_mtime < time.time() - STALE_S:
                    other.unlink()


def _line(key: str, answer: Answer) -> dict[str, Any]:
    """An item as `prm/evaluation/labelled.py` reads it, without a label, and what it scored."""
    fields = problem_fields(answer.messages)
    return fields | {"steps": answer.steps, "prm": key, "score": answer.score}
