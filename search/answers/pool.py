"""A few killable worker processes, each asked one thing at a time, against a clock.

A worker that is silent beyond its deadline, or whose caller has gone, is killed and forked anew by
the nursery (`worker.py`); it is handed out again only when the new one stands. There are never
more than `workers` of them, and after `aclose()` there is none.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prm.errors import Unavailable
from search.answers.lease import Lease, Worker
from search.answers.nursery import Nursery

logger = logging.getLogger(__name__)


class WorkerPool:
    """Starts on `begin` or the first use. Bound to the event loop of that."""

    def __init__(self, *, workers: int = 2, memory_mb: int = 512) -> None:
        self.workers = workers
        self.memory_mb = memory_mb
        self._nursery: Nursery | None = None
        self._free: asyncio.Queue[Worker | None] = asyncio.Queue()
        self._starting = asyncio.Lock()
        self._begun: asyncio.Task[None] | None = None
        self._restoring: set[asyncio.Task[None]] = set()
        self._born_before = 0
        self._is_closed = False

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[Lease]:
        """A worker for this caller alone; waits for a free one.

        Raises Unavailable when workers cannot be started, or the pool is closed.
        """
        nursery = await self._started()
        free = self._free
        worker = await free.get()
        if worker is None:
            # For whoever waits behind this one.
            free.put_nowait(None)
            raise Unavailable("the answer checker was stopped")
        lease = Lease(nursery, worker)
        try:
            yield lease
        finally:
            if lease.is_busy:
                # Not awaited here: a caller that is cancelled leaves at once.
                task = asyncio.create_task(self._restore(nursery, worker, lease.generation))
                self._restoring.add(task)
                task.add_done_callback(self._restoring.discard)
            else:
                self._hand_out(nursery, worker)

    def begin(self) -> None:
        """Begin to start the processes; returns at once. Whoever needs them waits for the rest."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin(), name="answer-checker-start")

    async def start(self) -> None:
        """Start the processes if they do not run, and wait until they are warm."""
        await self._started()

    async def aclose(self) -> None:
        """End every process. Callers that still wait for a worker get Unavailable."""
        self._is_closed = True
        if self._begun is not None:
            self._begun.cancel()
            await asyncio.wait([self._begun])
        async with self._starting:
            await self._stop()

    @property
    def has_ended(self) -> bool:
        """Whether the processes are gone; the next use starts them anew, unless it was closed."""
        return self._nursery is None or self._nursery.has_ended

    @property
    def replaced(self) -> int:
        """Processes that died or were killed, and that another one stands for."""
        born = self._born_before + (self._nursery.born if self._nursery is not None else 0)
        return max(0, born - self.workers)

    async def _begin(self) -> None:
        try:
            await self.start()
        except Unavailable as error:
            # Whoever needs them tries again, and is told.
            logger.warning("%s", error)

    async def _started(self) -> Nursery:
        async with self._starting:
            if self._is_closed:
                raise Unavailable("the answer checker is closed")
            if self._nursery is None or self._nursery.has_ended:
                await self._stop()
                self._nursery = await Nursery.start(self.workers, memory_mb=self.memory_mb)
                for worker in self._nursery.workers:
                    self._free.put_nowait(worker)
            return self._nursery

    async def _restore(self, nursery: Nursery, worker: Worker, generation: int) -> None:
        """Replace that process, if it still lives, then hand the worker out again."""
        await nursery.replace(worker, generation)
        self._hand_out(nursery, worker)

    def _hand_out(self, nursery: Nursery, worker: Worker) -> None:
        if nursery is self._nursery:
            self._free.put_nowait(worker)

    async def _stop(self) -> None:
        for task in list(self._restoring):
            task.cancel()
        nursery, self._nursery = self._nursery, None
        self._free.put_nowait(None)
        self._free = asyncio.Queue()
        if nursery is not None:
            self._born_before += nursery.born
            await nursery.aclose()
