"""One caller's hold on one worker: a line of JSON out, lines of JSON back, against a clock."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol


class WorkerLost(Exception):
    """The worker died under the request, or said nothing for too long and was killed."""


class PoolLost(WorkerLost):
    """All processes are gone, killed by someone else: nobody's answer was at fault."""


@dataclass(slots=True, eq=False)
class Worker:
    """One socket and whoever is behind it now: the `generation`-th process, 0 before the first."""

    index: int
    reader: StreamReader
    writer: StreamWriter
    generation: int = 0
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    has_died: asyncio.Event = field(default_factory=asyncio.Event)
    requests: "count[int]" = field(default_factory=count)

    def is_born(self) -> None:
        """A new process stands; whoever waits for the death of the last one has been told."""
        self.generation += 1
        self.has_died = asyncio.Event()
        self.is_ready.set()

    def dies(self) -> None:
        """The process is gone; a new one comes unless the nursery is gone too."""
        self.is_ready.clear()
        self.has_died.set()


class Parent(Protocol):
    """Whoever forks the workers."""

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, and all workers with it."""
        ...

    async def wait_ended(self) -> None:
        """Wait until it is known to be gone."""
        ...


class Lease:
    """`is_busy` while a request has not ended: then the worker is of no more use as it is."""

    def __init__(self, parent: Parent, worker: Worker) -> None:
        self._parent = parent
        self._worker = worker
        self.generation = worker.generation
        self.is_busy = False
        self._has_died = worker.has_died

    async def ask(
        self, request: dict[str, Any], *, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """The replies to one request, the last of which has the key "first".

        Raises WorkerLost when `silence_s` passes without one; the lease is of no more use then.
        """
        number = next(self._worker.requests)
        self.is_busy = True
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        try:
            self._worker.writer.write(line)
            while True:
                reply = await self._reply(number, silence_s)
                if "first" in reply:
                    self.is_busy = False
                yield reply
                if not self.is_busy:
                    return
        except (OSError, asyncio.IncompleteReadError) as error:
            # The nursery holds the other end too, so it is gone.
            await self._parent.wait_ended()
            raise PoolLost("the processes have gone") from error

    async def _reply(self, number: int, silence_s: float) -> dict[str, Any]:
        reading = asyncio.ensure_future(self._next_line(number))
        death = asyncio.ensure_future(self._has_died.wait())
        try:
            await asyncio.wait(
                {reading, death}, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                return reading.result()
            if death.done() and self._parent.has_ended:
                raise PoolLost("the processes have gone")
            raise WorkerLost("died" if death.done() else f"silent for {silence_s:g} s")
        finally:
            reading.cancel()
            death.cancel()

    async def _next_line(self, number: int) -> dict[str, Any]:
        while True:
            line = await self._worker.reader.readline()
            if not line:
                raise asyncio.IncompleteReadError(b"", None)
            reply: dict[str, Any] = json.loads(line)
            # An earlier request's last words, of a worker that was killed while it spoke.
            if reply.pop("id") == number:
                return reply
