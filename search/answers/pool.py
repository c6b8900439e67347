"""A few killable worker processes, each asked one thing at a time, against a clock.

A worker that is silent beyond its deadline, or whose caller has gone, is killed and forked anew by
the nursery (`worker.py`); it is handed out again only when the new one stands. There are never
more than `workers` of them, and after `aclose()` there is none.
"""

import asyncio
import json
import logging
import os
import socket
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from prm.errors import Unavailable

_START_S = 60.0
_REFORK_S = 10.0
_MAX_LINE_BYTES = 1 << 20
# Of the server's environment, with its keys in it, a worker needs only what starts Python.
_KEPT_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "HOME",
    "VIRTUAL_ENV",
)

logger = logging.getLogger(__name__)


class WorkerLost(Exception):
    """The worker died under the request, or said nothing for too long and was killed."""


class PoolLost(WorkerLost):
    """All processes are gone, killed by someone else: nobody's answer was at fault."""


@dataclass(slots=True)
class Worker:
    """One socket and whoever is behind it now: the `generation`-th process, 0 before the first."""

    index: int
    reader: StreamReader
    writer: StreamWriter
    generation: int = 0
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    has_died: asyncio.Event = field(default_factory=asyncio.Event)

    def is_born(self) -> None:
        """A new process stands; whoever waits for the death of the last one has been told."""
        self.generation += 1
        self.has_died = asyncio.Event()
        self.is_ready.set()

    def dies(self) -> None:
        """The process is gone; a new one comes unless the nursery is gone too."""
        self.is_ready.clear()
        self.has_died.set()


class WorkerPool:
    """Starts on `begin` or the first use. Bound to the event loop of that."""

    def __init__(self, *, workers: int = 2, memory_mb: int = 512) -> None:
        self.workers = workers
        self.memory_mb = memory_mb
        self._process: Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._free: asyncio.Queue[Worker | None] = asyncio.Queue()
        self._all: list[Worker] = []
        self._starting = asyncio.Lock()
        self._begun: asyncio.Task[None] | None = None
        self._restoring: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._born = 0
        self._is_closed = False

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator["Lease"]:
        """A worker for this caller alone; waits for a free one.

        Raises Unavailable when workers cannot be started, or the pool is closed.
        """
        await self.start()
        free = self._free
        worker = await free.get()
        if worker is None:
            # For whoever waits behind this one.
            free.put_nowait(None)
            raise Unavailable("the answer checker was stopped")
        lease = Lease(self, worker)
        try:
            yield lease
        finally:
            if lease.is_busy:
                # Not awaited here: a caller that is cancelled leaves at once.
                task = asyncio.create_task(self._restore(worker, lease.generation))
                self._restoring.add(task)
                task.add_done_callback(self._restoring.discard)
            elif worker in self._all:
                self._free.put_nowait(worker)

    def begin(self) -> None:
        """Begin to start the processes; returns at once. Whoever needs them waits for the rest."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin(), name="answer-checker-start")

    async def start(self) -> None:
        """Start the processes if they do not run, and wait until they are warm."""
        async with self._starting:
            if self._is_closed:
                raise Unavailable("the answer checker is closed")
            if self.has_ended:
                await self._stop()
                await self._start()

    async def aclose(self) -> None:
        """End every process. Callers that still wait for a worker get Unavailable."""
        self._is_closed = True
        if self._begun is not None:
            self._begun.cancel()
            await asyncio.wait([self._begun])
        async with self._starting:
            await self._stop()

    async def wait_ended(self) -> None:
        """Wait until the nursery, whose sockets have closed, is known to have ended."""
        if self._process is not None:
            await self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the processes are gone; the next use starts them anew, unless it was closed."""
        return self._process is None or self._process.returncode is not None

    @property
    def replaced(self) -> int:
        """Processes that died or were killed, and that another one stands for."""
        return max(0, self._born - self.workers)

    def next_request(self) -> int:
        """A number that no other request has."""
        self._requests += 1
        return self._requests

    async def _begin(self) -> None:
        try:
            await self.start()
        except Unavailable as error:
            # Whoever needs them tries again, and is told.
            logger.warning("%s", error)

    async def _start(self) -> None:
        ours, theirs = zip(*(socket.socketpair() for _ in range(self.workers)), strict=True)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "search.answers.worker",
                str(self.memory_mb),
                *(str(end.fileno()) for end in theirs),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=[end.fileno() for end in theirs],
                env={k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT},
                start_new_session=True,
            )
            for index, end in enumerate(ours):
                end.setblocking(False)
                streams = await asyncio.open_connection(sock=end, limit=_MAX_LINE_BYTES)
                self._all.append(Worker(index, *streams))
        except BaseException:
            for end in ours[len(self._all) :]:
                end.close()
            raise
        finally:
            for end in theirs:
                end.close()
        self._watcher = asyncio.create_task(self._watch(self._process, list(self._all)))
        try:
            async with asyncio.timeout(_START_S):
                for worker in self._all:
                    await worker.is_ready.wait()
        except TimeoutError:
            pass
        if self._watcher.done() or not all(worker.is_ready.is_set() for worker in self._all):
            await self._stop()
            raise Unavailable("the answer checker does not start; is math-verify installed?")
        for worker in self._all:
            self._free.put_nowait(worker)

    async def _watch(self, process: Process, workers: list[Worker]) -> None:
        """Take the nursery's news. When it is gone, so are the workers: wake whoever waits."""
        assert process.stdout is not None, "it was started with a pipe"
        while line := await process.stdout.readline():
            event, index = line.split()
            worker = workers[int(index)]
            if event == b"ready":
                self._born += 1
                worker.is_born()
            else:
                worker.dies()
        await process.wait()
        for worker in workers:
            worker.dies()
            # To be found out at its next use, which starts the processes anew.
            worker.is_ready.set()

    async def _restore(self, worker: Worker, generation: int) -> None:
        """Replace that process, if it still lives, then hand the socket out again."""
        process = self._process
        if process is None or process.stdin is None:
            return
        if worker.generation == generation:
            # The nursery ignores it for a process that has died meanwhile.
            worker.is_ready.clear()
            with suppress(OSError, RuntimeError):
                process.stdin.write(f"kill {worker.index} {generation}\n".encode())
        try:
            async with asyncio.timeout(_REFORK_S):
                await worker.is_ready.wait()
        except TimeoutError:
            # The nursery itself hangs: the next use starts another.
            if process.returncode is None:
                process.kill()
                await process.wait()
        if worker in self._all:
            self._free.put_nowait(worker)

    async def _stop(self) -> None:
        for task in list(self._restoring):
            task.cancel()
        is_cold = not any(worker.generation for worker in self._all)
        for worker in self._all:
            worker.writer.close()
        self._all.clear()
        self._free.put_nowait(None)
        self._free = asyncio.Queue()
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            if is_cold:
                # It would import all that it needs before it saw that nobody is there.
                self._process.kill()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._process = None
        if self._watcher is not None:
            await self._watcher
            self._watcher = None


class Lease:
    """One caller's hold on a worker. `is_busy` while a request has not ended."""

    def __init__(self, pool: WorkerPool, worker: Worker) -> None:
        self._pool = pool
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
        number = self._pool.next_request()
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
            await self._pool.wait_ended()
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
            if death.done() and self._pool.has_ended:
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
