"""Clients that score without pause, and what they got."""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.closed_loop.answers import as_items
from benchmarks.scoring.over_http import MODEL, PATH
from training.labelled import Line

# Answers to one problem that are ranked together.
_CANDIDATES = 4


@dataclass(slots=True)
class Load:
    """`answers` are of the request with that number; failures are told as they came."""

    requests: list[list[Line]]
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def versions(self) -> dict[str, int]:
        """How many answers each version gave, in the order of its first one."""
        return dict(Counter(answer["model_version"] for _, answer in self.answers))


@contextmanager
def clients(url: str, count: int, lines: Sequence[Line]) -> Iterator[Load]:
    """So many clients, each with its next request the moment it has an answer, while within."""
    load = Load([list(lines[at : at + _CANDIDATES]) for at in range(0, len(lines), _CANDIDATES)])
    ends = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_ask(url, count, load, ends)))
    thread.start()
    try:
        yield load
    finally:
        ends.set()
        thread.join()


async def _ask(url: str, count: int, load: Load, ends: threading.Event) -> None:
    places = itertools.count()

    async def one(http: httpx2.AsyncClient) -> None:
        while not ends.is_set():
            place = next(places) % len(load.requests)
            body = {"model": MODEL, "items": as_items(load.requests[place])}
            try:
                answer = await http.post(PATH, json=body)
            except httpx2.TransportError as error:
                load.failures.append(repr(error))
                continue
            if answer.status_code == 200:
                load.answers.append((place, answer.json()))
            else:
                load.failures.append(f"{answer.status_code}: {answer.text[:200]}")

    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(one(http) for _ in range(count)))
